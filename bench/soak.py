"""``python -m bench.soak --minutes 30``: hours of mixed load through a served wall, and whether anything of it grows.

Agents read (the same texts prepared, new literals simply), write under the guard, are refused, make mistakes, copy in
and out, ask for large results, send large texts, come and go. Every minute one line says what the wall's processes
hold; at the end a line is fitted through the second half. The caches of texts are filled before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg

from bench.processes import family
from bench.stage import add_observer, observing, open_folder, say
from bench.targets import Prepared, Wall, prepare_wall, started
from sqlwall.cli.embedded import EmbeddedServer

SCHEMA = """
CREATE TABLE items (id int PRIMARY KEY, v int NOT NULL, note text NOT NULL);
INSERT INTO items SELECT g, 0, repeat(md5(g::text), 2) FROM generate_series(1, 20000) g;
CREATE TABLE copied (id int PRIMARY KEY, note text NOT NULL);
INSERT INTO copied SELECT -g, 'there' FROM generate_series(1, 2000) g;
"""
#: Seconds between two looks at the processes; each minute one of them is printed.
LOOK = 5.0
#: Statements that a refusal, an error or a limit ends: what they must end with.
REFUSED = ("42501",)
MISTAKEN = ("22012", "42P01", "42601")
#: MB an hour below which a slope is not called growth, whatever its error.
FLAT = 2.0


@dataclass(frozen=True, slots=True)
class Process:
    """What one process holds. Memory in MB; PSS divides shared pages among their holders."""

    name: str
    rss: float
    pss: float
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Look:
    """What there was at one moment, so many seconds after the start."""

    at: float
    processes: Sequence[Process]
    sessions: float
    server_sessions: int
    statements: int
    cpu: float
    store: float
    snapshots: int

    def total(self, name: str) -> float:
        """The sum of a figure over all processes."""
        return float(sum(getattr(process, name) for process in self.processes))


@dataclass(slots=True)
class Done:
    """What agents have done. Each thread counts in its own; `unexpected` says what was no good."""

    acts: Counter[str] = field(default_factory=Counter)
    count: int = 0
    unexpected: list[str] = field(default_factory=list)


class Agent:
    """One client after the other, at its part of the pace."""

    def __init__(self, number: int, dsn: str, pause: float, stop: threading.Event) -> None:
        self.done = Done()
        self._number = number
        self._dsn = dsn
        self._pause = pause
        self._stop = stop
        self._chance = random.Random(number)
        self.thread = threading.Thread(target=self._run, name=f"agent {number}", daemon=True)

    def _run(self) -> None:
        acts: dict[Callable[[psycopg.Connection], None], float] = {
            self._read_prepared: 30,
            self._read_simply: 40,
            self._read_in_block: 5,
            self._write: 8,
            self._write_in_block: 2,
            self._be_refused: 6,
            self._be_mistaken: 4,
            self._copy_out: 1,
            self._copy_in: 1,
            self._ask_for_much: 0.5,
            self._ask_for_too_much: 0.2,
            self._send_much: 0.3,
        }
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=20) as connection:
                    self.done.acts["connects"] += 1
                    for _ in range(self._chance.randrange(1, 200)):
                        (act,) = self._chance.choices(list(acts), list(acts.values()))
                        act(connection)
                        self.done.acts[act.__name__[1:]] += 1
                        self.done.count += 1
                        if self._stop.wait(self._chance.uniform(0, 2 * self._pause)):
                            break
            except psycopg.Error as error:
                self.done.unexpected.append(f"{type(error).__name__} {error.sqlstate} {error}"[:300])
                self._stop.wait(1)

    def _id(self) -> int:
        return self._chance.randrange(1, 20001)

    def _read_prepared(self, connection: psycopg.Connection) -> None:
        connection.execute("SELECT v, note FROM items WHERE id = %s", (self._id(),), prepare=True).fetchall()

    def _read_simply(self, connection: psycopg.Connection) -> None:
        text = (
            f"SELECT id, v, note FROM items WHERE id = {self._id()} OR v = {self._chance.randrange(1 << 30)}"
        )
        connection.execute(text.encode()).fetchall()

    def _read_in_block(self, connection: psycopg.Connection) -> None:
        with connection.transaction():
            self._read_prepared(connection)
            self._read_prepared(connection)

    def _write(self, connection: psycopg.Connection) -> None:
        # Rows of its own, so that nobody waits for another.
        row = self._number + 100 * self._chance.randrange(200)
        if self._chance.random() < 0.5:
            connection.execute("UPDATE items SET v = v + 1 WHERE id = %s", (row,))
        else:
            connection.execute(f"UPDATE items SET v = v + 1 WHERE id = {row}".encode())

    def _write_in_block(self, connection: psycopg.Connection) -> None:
        with connection.transaction():
            self._write(connection)
            self._write(connection)

    def _be_refused(self, connection: psycopg.Connection) -> None:
        texts = (
            "DELETE FROM items",
            "DROP TABLE items",
            f"TRUNCATE items /* {self._id()} */",
            "SET ROLE postgres",
        )
        self._fail(connection, self._chance.choice(texts), REFUSED)

    def _be_mistaken(self, connection: psycopg.Connection) -> None:
        texts = ("SELECT 1 / 0", f"SELECT * FROM missing_{self._id()}", "SELEC 1")
        self._fail(connection, self._chance.choice(texts), MISTAKEN)

    def _ask_for_too_much(self, connection: psycopg.Connection) -> None:
        self._fail(connection, "SELECT g FROM generate_series(1, 100000) g", ("53400",))

    def _fail(self, connection: psycopg.Connection, text: str, states: Sequence[str]) -> None:
        try:
            connection.execute(text.encode())
        except psycopg.Error as error:
            if error.sqlstate in states:
                return
            raise
        self.done.unexpected.append(f"went through: {text}")

    def _copy_out(self, connection: psycopg.Connection) -> None:
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY (SELECT * FROM items LIMIT 5000) TO STDOUT") as copy,
        ):
            for _ in copy:
                pass

    def _copy_in(self, connection: psycopg.Connection) -> None:
        first = self._number * 1000
        with connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
            for row in range(first, first + 20):
                copy.write_row((row, "x" * 50))
        connection.execute("DELETE FROM copied WHERE id >= %s AND id < %s", (first, first + 20))

    def _ask_for_much(self, connection: psycopg.Connection) -> None:
        connection.execute("SELECT repeat('x', 1000) FROM generate_series(1, 20000)").fetchall()

    def _send_much(self, connection: psycopg.Connection) -> None:
        numbers = ", ".join(str(self._id()) for _ in range(self._chance.choice((500, 5000, 20000))))
        connection.execute(f"SELECT count(*) FROM items WHERE id IN ({numbers})".encode()).fetchall()


class Watch:
    """Looks at a wall's processes."""

    def __init__(self, prepared: Prepared, pid: int, server: EmbeddedServer, snapshots: Path) -> None:
        self._prepared = prepared
        self._pid = pid
        self._snapshots = snapshots
        self._direct = psycopg.connect(server.dsn(), autocommit=True)
        self._started = time.monotonic()

    def look(self, statements: int) -> Look:
        """Now."""
        row = self._direct.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
        assert row is not None
        found = [process for pid in family(self._pid) if (process := self._process(pid)) is not None]
        files = [file.stat().st_size for file in self._prepared.store.parent.glob("store.db*")]
        return Look(
            time.monotonic() - self._started,
            found,
            self._metric("sqlwall_sessions"),
            row[0],
            statements,
            sum(_cpu(pid) for pid in family(self._pid)),
            sum(files) / 1e6,
            sum(len(names) for _, _, names in os.walk(self._snapshots)),
        )

    def _process(self, pid: int) -> Process | None:
        """One process; None if it has ended meanwhile."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            return None
        kind = "supervisor" if pid == self._pid else "worker" if "spawn_main" in command else "helper"
        sizes = dict(re.findall(r"^(Rss|Pss):\s+(\d+)", rollup, re.MULTILINE))
        threads = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
        return Process(
            f"{kind} {pid}",
            int(sizes.get("Rss", 0)) / 1024,
            int(sizes.get("Pss", 0)) / 1024,
            files,
            int(threads[1]) if threads is not None else 0,
        )

    def _metric(self, name: str) -> float:
        url = f"http://127.0.0.1:{self._prepared.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{| )", line))


def _cpu(pid: int) -> float:
    """Seconds of CPU; 0 for a process that has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


# -- the verdict


@dataclass(frozen=True, slots=True)
class Slope:
    """How a figure moved in the second half, an hour; `error` is one standard error of that."""

    name: str
    unit: str
    mean: float
    per_hour: float
    error: float

    @property
    def is_growth(self) -> bool:
        """Whether it goes up by more than chance explains, and by enough to matter."""
        least = FLAT if self.unit == "MB" else 1.0
        return self.per_hour > least and self.per_hour > 3 * self.error


def fit(name: str, unit: str, times: Sequence[float], values: Sequence[float]) -> Slope:
    """Least squares."""
    if len(times) < 3:
        return Slope(name, unit, statistics.fmean(values or [0.0]), 0.0, 0.0)
    middle, mean = statistics.fmean(times), statistics.fmean(values)
    spread = sum((at - middle) ** 2 for at in times)
    slope = sum((at - middle) * (value - mean) for at, value in zip(times, values, strict=True)) / spread
    rest = sum((value - mean - slope * (at - middle)) ** 2 for at, value in zip(times, values, strict=True))
    error = (rest / (len(times) - 2) / spread) ** 0.5
    return Slope(name, unit, mean, slope * 3600, error * 3600)


def slopes(looks: Sequence[Look]) -> list[Slope]:
    """Of the second half: memory and threads of each process that lived through it, and sums."""
    half = [look for look in looks if look.at >= looks[-1].at / 2]
    times = [look.at for look in half]
    names = [
        p.name for p in half[0].processes if all(p.name in [q.name for q in look.processes] for look in half)
    ]
    found = []
    for name in names:
        held = [next(p for p in look.processes if p.name == name) for look in half]
        for figure, unit in (("rss", "MB"), ("pss", "MB"), ("threads", "threads")):
            found.append(fit(f"{figure} of {name}", unit, times, [float(getattr(p, figure)) for p in held]))
    found.append(fit("pss of all", "MB", times, [look.total("pss") for look in half]))
    # Sessions come to one worker today, to another tomorrow.
    found.append(fit("files of all", "files", times, [look.total("files") for look in half]))
    found.append(
        fit("sessions on the server", "sessions", times, [float(look.server_sessions) for look in half])
    )
    return found


# -- the run


def main() -> int:
    """Run and print. 1 if something grows, or something unexpected happened."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--agents", type=int, default=12, help="sessions at a time")
    parser.add_argument(
        "--rate", type=float, default=60.0, help="acts per second of all agents together, about"
    )
    parser.add_argument("--warm", type=int, default=100_000, help="texts sent first, so that caches are full")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every look to it")
    options = parser.parse_args()
    stop = threading.Event()
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder())
        server = stack.enter_context(EmbeddedServer())
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(SCHEMA)
        add_observer(server)
        settings = observing(server, folder / "snapshots")
        prepared = prepare_wall(server, folder, Wall("agent-safe", options.workers, settings=settings))
        target = stack.enter_context(started(prepared))
        watch = Watch(prepared, target.pid, server, folder / "snapshots")
        agents = [
            Agent(number, f"{prepared.dsn}?sslmode=disable", options.agents / options.rate, stop)
            for number in range(1, options.agents + 1)
        ]
        stack.callback(stop.set)
        warm(f"{prepared.dsn}?sslmode=disable", options.warm)
        for agent in agents:
            agent.thread.start()
        looks = run(watch, agents, options.minutes * 60)
        stop.set()
        for agent in agents:
            agent.thread.join(60)
    return report(options, looks, agents)


def warm(dsn: str, texts: int) -> None:
    """New texts as fast as they go: a cache that fills for hours looks like a leak."""
    sessions = 8

    def send(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for place in range(texts // sessions):
                unique = (1 << 30) + number * texts + place
                connection.execute(
                    f"SELECT id, v, note FROM items WHERE id = {number} OR v = {unique}".encode()
                )

    threads = [
        threading.Thread(target=send, args=(number,), daemon=True) for number in range(1, sessions + 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(watch: Watch, agents: Sequence[Agent], seconds: float) -> list[Look]:
    """Look every few seconds; a line every minute."""
    looks: list[Look] = []
    started = time.monotonic()
    printed = -60.0
    while time.monotonic() - started < seconds:
        time.sleep(LOOK)  # what is measured goes on by itself
        looks.append(watch.look(sum(agent.done.count for agent in agents)))
        if looks[-1].at - printed >= 59:
            printed = looks[-1].at
            say(line(looks[-1]))
    return looks


def line(look: Look) -> str:
    """One minute's figures."""
    held = "; ".join(f"{p.name} {p.rss:.1f}/{p.pss:.1f} MB {p.files} files" for p in look.processes)
    return (
        f"{look.at / 60:5.1f} min  {look.statements} acts  cpu {look.cpu:.1f} s  sessions {look.sessions:.0f} of"
        f" agents, {look.server_sessions} on the server  store {look.store:.1f} MB  snapshots {look.snapshots}"
        f"  RSS/PSS: {held}"
    )


def report(options: argparse.Namespace, looks: Sequence[Look], agents: Sequence[Agent]) -> int:
    """The verdict."""
    acts: Counter[str] = sum((agent.done.acts for agent in agents), Counter())
    unexpected = [text for agent in agents for text in agent.done.unexpected]
    found = slopes(looks)
    growing = [slope for slope in found if slope.is_growth]
    out = sys.stdout.write
    out(f"{looks[-1].at / 60:.1f} minutes, {options.workers} workers, {dict(acts.most_common())}\n")
    out(f"CPU of the wall: {looks[-1].cpu / looks[-1].at:.1%} of one core\n\n")
    out("| Second half | mean | per hour | +- |\n|---|---|---|---|\n")
    for slope in found:
        out(
            f"| {slope.name}, {slope.unit} | {slope.mean:.1f} | {slope.per_hour:+.2f} | {slope.error:.2f} |\n"
        )
    out(f"\ngrows: {', '.join(slope.name for slope in growing) or 'nothing'}\n")
    for text, count in Counter(unexpected).most_common(20):
        out(f"unexpected, {count} times: {text}\n")
    if options.json is not None:
        made = {
            "workers": options.workers,
            "acts": acts,
            "unexpected": unexpected,
            "slopes": [asdict(slope) for slope in found],
            "growing": [slope.name for slope in growing],
            "looks": [asdict(look) for look in looks],
        }
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    return int(bool(growing or unexpected))


if __name__ == "__main__":
    sys.exit(main())
