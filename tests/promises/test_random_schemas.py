"""Promises 3 and 4 over random schemas and random scripts of writes: every accepted commit is explained by snapshots,
undo of all brings back what was, and undo of that undo what had become of it.

``SQLWALL_RANDOM_EXAMPLES`` says how many; without it there are a few, the same each time. Refusals are counted by
reason and printed: too many of them, and nothing would be tested.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PipelineStatus, TransactionStatus

from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import Secret, Upstream
from sqlwall.proxy.undo import Undoer, open_undo
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.snapshot import provision
from sqlwall.store.index import SnapshotState
from sqlwall.store.stamp import utc_now
from tests.e2e.wall import APP, OpenWall, RunningWall, make_shop
from tests.postgres import Database, Server, fresh_database
from tests.promises.guarded import COLUMNS, OBSERVER, UNDO, UNDO_PASSWORD, Guarded, observer, rows_of
from tests.promises.random_scripts import Statement, Step, Way, World, worlds
from tests.promises.schemas import Abilities, Schema

__all__ = ["observer"]

GIVEN = os.environ.get("SQLWALL_RANDOM_EXAMPLES")
EXAMPLES = int(GIVEN or "30")

Connection = psycopg.Connection[tuple[Any, ...]]

#: Refusals that README.md and SECURITY.md tell of, by their rule. None says that something of ours is broken.
DOCUMENTED = re.compile(r"\[(gate|snapshot-(not-covered|limit|privilege)|small-writes|bounded-writes-only)\]")
#: Of all that is sent, this share may be refused.
REFUSED_SHARE = 0.02


@dataclass(slots=True)
class Tally:
    """What became of all that was sent."""

    steps: int = 0
    commits: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def note(self, error: psycopg.Error) -> None:
        """An error that an agent got."""
        first = str(error).splitlines()[0]
        if first.startswith("sqlwall"):
            assert DOCUMENTED.search(first), first
            self.refusals[generalized(first)] += 1
        else:
            self.errors[f"{error.sqlstate} {type(error).__name__}"] += 1

    def __str__(self) -> str:
        lines = [f"{self.steps} steps, {self.commits} snapshots"]
        for title, found in (("refused by the wall", self.refusals), ("refused by the server", self.errors)):
            lines.append(f"{title}: {found.total()}")
            lines += [f"  {count:6} {what}" for what, count in found.most_common()]
        return "\n".join(lines)


def generalized(line: str) -> str:
    """A reason without names and numbers."""
    return re.sub(r"\b[0-9]+\b", "N", re.sub(r"public\.\S+", "TABLE", line))


@dataclass(slots=True)
class Player:
    """An agent that plays a script: after an error it goes back to its last savepoint, else it gives the block up."""

    connect: Callable[[], Connection]
    tally: Tally
    agent: Connection
    savepoints: list[str] = field(default_factory=list)
    has_given_up: bool = False
    prepared: int = 0

    def play(self, script: Sequence[Step]) -> None:
        """All of it; nothing may end the session."""
        for step in script:
            text = step.statements[0].text
            is_end = text in ("COMMIT", "END", "ROLLBACK")
            if not self.has_given_up:
                self.tally.steps += 1
                try:
                    self._send(step)
                except psycopg.Error as error:
                    self.tally.note(error)
                    assert not self.agent.closed, error
                    if self.agent.pgconn.pipeline_status != PipelineStatus.OFF:
                        self._start_anew()
                    self._recover()
                else:
                    self._note_savepoint(text)
            if is_end:
                self.has_given_up = False
                self.savepoints.clear()

    def _note_savepoint(self, text: str) -> None:
        verb, _, name = text.rpartition(" ")
        if verb == "SAVEPOINT":
            self.savepoints.append(name)
        elif verb in ("ROLLBACK TO", "RELEASE"):
            while self.savepoints[-1] != name:
                self.savepoints.pop()
            if verb == "RELEASE":
                self.savepoints.pop()

    def _start_anew(self) -> None:
        """libpq cannot leave a pipeline whose Sync itself has failed, as a deferred constraint makes it; direct neither."""
        self.agent.close()
        self.agent = self.connect()

    def _recover(self) -> None:
        if self.agent.info.transaction_status != TransactionStatus.INERROR:
            return
        if self.savepoints:
            self.agent.execute(f"ROLLBACK TO {self.savepoints[-1]}".encode())
        else:
            self.agent.execute("ROLLBACK")
            self.has_given_up = True

    def _send(self, step: Step) -> None:
        first = step.statements[0]
        match step.way:
            case Way.QUERY | Way.TOGETHER:
                self.agent.execute("; ".join(map(str, step.statements)).encode())
            case Way.PARAMETERS | Way.BINARY | Way.PREPARED:
                self.agent.execute(
                    first.text.encode(),
                    first.values or None,
                    prepare=step.way is Way.PREPARED,
                    binary=step.way is Way.BINARY,
                )
            case Way.EXECUTE:
                self._execute(first)
            case Way.PIPELINE:
                with self.agent.pipeline():
                    for statement in step.statements:
                        self.agent.execute(statement.text.encode(), statement.values or None)
            case Way.COPY:
                with self.agent.cursor() as cursor, cursor.copy(first.text.encode()) as copy:
                    copy.write(step.data)

    def _execute(self, statement: Statement) -> None:
        self.prepared += 1
        numbers = tuple(f"${place}::int" for place in range(1, len(statement.values) + 1))
        values = f"({', '.join(map(str, statement.values))})" if statement.values else ""
        self.agent.execute(f"PREPARE p{self.prepared} AS {statement.text % numbers}".encode())
        self.agent.execute(f"EXECUTE p{self.prepared}{values}".encode())


class Stage(Guarded):
    """One wall and one database for all examples; a schema of its own for each."""

    def __init__(self, wall: RunningWall, folder: Path) -> None:
        super().__init__(wall, folder)
        self.tally = Tally()
        self.superuser = wall.database.connect()
        self._undoing = open_undo(undo_settings(wall.database), wall.database.name)

    def abilities(self) -> Abilities:
        """What schemas may have."""
        try:
            self.superuser.execute("SELECT '<a/>'::xml")
        except psycopg.errors.FeatureNotSupported:
            has_xml = False
        else:
            has_xml = True
        return Abilities(self.superuser.info.server_version // 10_000, has_xml)

    def close(self) -> None:
        self.superuser.close()
        self._undoing.close()
        self.engine.dispose()

    @contextmanager
    def _undoer(self) -> Iterator[Undoer]:
        yield Undoer(self._undoing, self.snapshots, lambda _: None)

    def bags(self) -> dict[str, Counter[bytes]]:
        """As ever, on a session that is kept."""
        found: dict[str, Counter[bytes]] = {}
        with self.superuser.transaction():
            self.superuser.execute("SET LOCAL search_path = pg_catalog")
            self.superuser.execute("SET LOCAL timezone = 'UTC'")
            for name, columns in self.superuser.execute(COLUMNS).fetchall():
                with self.superuser.cursor() as cursor, cursor.copy(rows_of(name, columns)) as copy:
                    found[name] = Counter(bytes(line) for line in copy)
        return found

    def begin(self, schema: Schema) -> None:
        """Put this schema in the place of the last one, and forget the snapshots of that."""
        self.settled()
        self.snapshots.prune(before=utc_now())
        self.superuser.execute("DROP SCHEMA public CASCADE")
        self.superuser.execute("CREATE SCHEMA public")
        self.superuser.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        with self.superuser.transaction():
            for statement in schema.ddl:
                self.superuser.execute(statement.replace("{app}", APP).encode())
        self.wall.run(self._look_again())

    async def _look_again(self) -> None:
        """The wall looks for changes of the catalog every 2 seconds: now."""
        worker = self.wall.wall.worker
        catalog = await worker.catalog_of(self.wall.database.name)
        try:
            await catalog.refresh()
        finally:
            worker.release_catalog(catalog)

    def play(self, script: Sequence[Step]) -> Sequence[str]:
        """As an agent; the ids of snapshots, the latest first."""
        connect = partial(self.wall.connect, prepare_threshold=None)
        player = Player(connect, self.tally, connect())
        try:
            player.play(script)
            assert player.agent.info.transaction_status == TransactionStatus.IDLE
        finally:
            player.agent.close()
        self.settled()
        taken = [record.id for record in self.snapshots.list(state=SnapshotState.COMMITTED)]
        self.tally.commits += len(taken)
        return taken

    def undo_all(self, snapshots: Sequence[str], *, at_once: bool) -> Sequence[str]:
        """Undo these, given the latest first; the snapshots of the undo, the latest first."""
        taken: list[str] = []
        for some in [snapshots] if at_once else [[one] for one in snapshots]:
            outcome = self.undo(*some)
            assert outcome.conflicts == ()
            taken += outcome.snapshots
        return taken[::-1]

    def check(self, world: World, *, at_once: bool) -> None:
        """What must hold of every schema and script."""
        self.begin(world.schema)
        before = self.bags()
        taken = self.play(world.script)
        after = self.bags()
        assert self.apply(before, set()) == {name: +bag for name, bag in after.items()}
        assert [fault for one in taken for fault in self.snapshots.verify(one)] == []
        if not taken:
            return
        undone = self.undo_all(taken, at_once=at_once)
        assert self.bags() == before
        self.undo_all(undone, at_once=at_once)
        assert self.bags() == after


def undo_settings(database: Database) -> UpstreamSettings:
    server = conninfo_to_dict(database.dsn())
    host, port = str(server["host"]), int(str(server["port"]))
    return UpstreamSettings.of(Upstream(host=host, port=port, user=UNDO, password=Secret(UNDO_PASSWORD)))


@pytest.fixture(scope="module")
def database_template(postgres: Server, observer: tuple[str, str]) -> Iterator[str]:
    """An empty database with the functions that `sqlwall provision` makes."""
    with fresh_database(postgres) as first, fresh_database(postgres) as found:
        make_shop(postgres, first.name)  # makes the role
        with found.connect() as connection:
            for statement in provision.functions(OBSERVER, APP):
                connection.execute(statement.encode())
        yield found.name


@pytest.fixture
def stage(
    open_wall: OpenWall, database: Database, observer: tuple[str, str], tmp_path: Path
) -> Iterator[Stage]:
    folder = tmp_path / "snapshots"
    text, _ = find_ruleset("agent-safe")
    ruleset = re.sub(r", share: \d+%", "", text)  # tables are so small here that it would be met all the time
    wall = open_wall(ruleset, observer__dsn=database.dsn(*observer), snapshots__url=str(folder))
    with closing(Stage(wall, folder)) as found:
        yield found


@pytest.mark.timeout(420 + 5 * EXAMPLES)
def test_snapshots_explain_every_commit_and_undo_brings_every_bit_back(stage: Stage) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=GIVEN is None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(world=worlds(stage.abilities()), at_once=st.booleans())
    def holds(world: World, at_once: bool) -> None:
        stage.check(world, at_once=at_once)

    try:
        holds()
    finally:
        print(stage.tally)
    assert stage.tally.refusals.total() <= REFUSED_SHARE * stage.tally.steps
    assert stage.tally.commits >= EXAMPLES
