"""What rows share: the options, one server with pgbench's tables, the peers, and where samples go."""

from __future__ import annotations

import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench import load
from bench.figures import DIRECT, Figure, Run
from bench.processes import BenchError, Target
from bench.targets import Wall, find_program, pgbouncer, pgpool, wall
from sqlwall.cli.embedded import EmbeddedServer, give_away
from sqlwall.cli.rulesets import find_ruleset

#: Nothing waits for the disk: what is compared is the work of the proxies. `bench.guarded` has a server that does.
SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "4GB", "max_connections": "400"}
#: pgbench's -s: a million accounts, so that a new literal is nearly always new.
SCALE = 10
#: Connections that a peer is set up for.
CONNECTIONS = 100

OBSERVER = "bench_observer"
#: It reads all rows, for the wall's snapshots.
OBSERVER_ROLE = """
CREATE ROLE bench_observer LOGIN BYPASSRLS PASSWORD 'bench';
GRANT pg_read_all_data TO bench_observer;
"""


@dataclass(frozen=True, slots=True)
class Options:
    """How long and how large."""

    seconds: float = 5.0
    rounds: int = 3
    clients: int = 8
    megabytes: int = 1000
    idle: int = 1000
    updates: int = 300
    regress: Path | None = None


@dataclass(slots=True)
class Stage:
    """Starts what a row asks for. The server is started once, and lives as long as `stack`."""

    options: Options
    stack: ExitStack
    run: Run = field(default_factory=Run)
    _server: EmbeddedServer | None = None

    @property
    def server(self) -> EmbeddedServer:
        """The server of all rows that need nothing special of it."""
        if self._server is None:
            say("starting PostgreSQL, making pgbench's tables")
            self._server = self.stack.enter_context(EmbeddedServer(settings=SETTINGS))
            load.initialise(Target(DIRECT, self._server.dsn()), SCALE)
            add_observer(self._server)
        return self._server

    @property
    def direct(self) -> Target:
        """The server itself."""
        return Target(DIRECT, self.server.dsn())

    @contextmanager
    def targets(self, how: Wall) -> Iterator[list[Target]]:
        """The server, what there is of the peers, and a wall; for one row, so that none runs beside other rows."""
        with ExitStack() as stack:
            found = [self.direct]
            for name, start in (("pgbouncer", pgbouncer), ("pgpool", pgpool)):
                if find_program(name) is not None:
                    folder = stack.enter_context(open_folder())
                    found.append(stack.enter_context(start(self.server, folder, CONNECTIONS)))
            folder = stack.enter_context(open_folder())
            found.append(stack.enter_context(wall(self.server, folder, how)))
            yield found

    def interleave(self, name: str, targets: list[Target], measure: Callable[[Target], None]) -> None:
        """Every target in every round, in a new random order each time: drift of the machine hits all alike."""
        for number in range(self.options.rounds):
            for target in random.sample(targets, len(targets)):
                say(f"{name}, round {number + 1} of {self.options.rounds}: {target.name}")
                measure(target)

    def add(self, figure: Figure, target: Target | str, value: float) -> None:
        """One sample."""
        self.run.add(figure, target if isinstance(target, str) else target.name, value)

    def note(self, text: str) -> None:
        """What a reader of the table must know."""
        if text not in self.run.notes:
            self.run.notes.append(text)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder for one process, which the server's user may enter and own."""
    with tempfile.TemporaryDirectory(prefix="sqlwall-bench-") as name:
        folder = Path(name)
        give_away(folder)
        folder.chmod(0o711)
        yield folder


def add_observer(server: EmbeddedServer) -> None:
    """The role that the wall's observer logs in as."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(OBSERVER_ROLE)


def observing(server: EmbeddedServer, snapshots: Path) -> Mapping[str, str]:
    """Settings of a wall that takes snapshots."""
    return {
        "SQLWALL_OBSERVER": server.dsn("postgres", OBSERVER, "bench"),
        "SQLWALL_SNAPSHOTS_URL": str(snapshots),
    }


def edited_ruleset(folder: Path, name: str, limits: re.Pattern[str], instead: str) -> str:
    """The path of agent-safe with other limits. Raises BenchError if it has none of the old ones."""
    text, _ = find_ruleset("agent-safe")
    text, count = limits.subn(instead, text)
    if not count:
        raise BenchError("agent-safe words its limits in another way than before")
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def say(line: str) -> None:
    """Progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
