"""``python -m bench.guarded``: what it costs that a write is snapshotted, against the same written by hand.

By hand is what a careful person sends: ``BEGIN; SELECT ... FOR UPDATE; UPDATE; COMMIT``. Both run on one server, whose
commits are synced to disk, in turns. The wall has its snapshots in a local folder beside its store.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

from bench import load
from bench.processes import BenchError, Target
from bench.stage import add_observer, edited_ruleset, observing, open_folder, say
from bench.targets import Wall, prepare_wall, started, wall
from sqlwall.cli.embedded import EmbeddedServer
from sqlwall.store.database import open_store
from sqlwall.store.snapshots import Snapshots

#: What EmbeddedServer turns off, on again as PostgreSQL has it; nothing else that is timed.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
}
#: agent-safe bounds a statement to fewer rows than are measured here.
LIMITS = re.compile(r"limits: \{rows: 1000, transaction_rows: 5000\b[^}]*\}")
UNLIMITED = "limits: {rows: 1000000, transaction_rows: 1000000}"

#: `rows` are updated in ranges that no other measurement has touched; `doomed` are deleted one by one.
SCHEMA = """
CREATE TABLE rows (id int PRIMARY KEY, v int NOT NULL, note text NOT NULL);
INSERT INTO rows SELECT g, 0, repeat(md5(g::text), 3) FROM generate_series(1, {rows}) g;
CREATE TABLE wide (id int PRIMARY KEY, part int NOT NULL, v int NOT NULL, note text NOT NULL);
INSERT INTO wide SELECT g, g % {parts}, 0, repeat(md5(g::text), 10) FROM generate_series(1, {wide}) g;
CREATE TABLE doomed (id int PRIMARY KEY, v int NOT NULL, note text NOT NULL);
INSERT INTO doomed SELECT g, 0, repeat(md5(g::text), 3) FROM generate_series(1, {doomed}) g;
"""


@dataclass(frozen=True, slots=True)
class Work:
    """A change of one row. `key` sets :id, `change` is the statement, `look` what a person locks before it."""

    name: str
    key: str
    change: str
    look: str

    def script(self, kind: str) -> str:
        """For pgbench: guarded and plain are the change alone, and what stands before the server differs."""
        if kind != "by hand":
            return f"{self.key}\n{self.change}\n"
        return f"{self.key}\nBEGIN;\n{self.look}\n{self.change}\nCOMMIT;\n"


WORKS = (
    Work(
        "UPDATE",
        r"\set id random(1, 100000)",
        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :id;",
        "SELECT * FROM pgbench_accounts WHERE aid = :id FOR UPDATE;",
    ),
    Work(
        "DELETE",
        r"\set id :id + 1",
        "DELETE FROM doomed WHERE id = :id;",
        "SELECT * FROM doomed WHERE id = :id FOR UPDATE;",
    ),
)
KINDS = ("plain", "by hand", "guarded")
MODES = ("simple", "prepared")
#: Transactions before each measurement that are not counted: caches, the observer's login.
WARM = 20

Samples = dict[tuple[str, str], list[float]]


class Doomed:
    """Hands out the keys of rows that are still there."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> int:
        """The number before the first of so many keys."""
        start, self._next = self._next, self._next + count
        return start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.guarded", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="single-row transactions of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each pair")
    parser.add_argument("--clients", type=int, default=4, help="of the runs that count transactions a second")
    parser.add_argument("--rows", type=int, default=10_000, help="of the update of many rows")
    parser.add_argument("--wide", type=int, default=100_000, help="rows of the update whose capture is timed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder())
        server = stack.enter_context(EmbeddedServer(settings=SETTINGS))
        direct = Target("direct", server.dsn())
        make_tables(direct, options)
        add_observer(server)
        ruleset = edited_ruleset(folder, "guarded", LIMITS, UNLIMITED)
        settings = observing(server, folder / "snapshots")
        prepared = prepare_wall(server, folder, Wall(ruleset, settings=settings))
        guarded = replace(stack.enter_context(started(prepared)), name="guarded")
        unguarded = replace(stack.enter_context(wall(server, folder, Wall("agent-safe"))), name="wall")
        samples: Samples = defaultdict(list)
        measure_single(samples, direct, guarded, options)
        measure_many(samples, direct, guarded, options)
        snapshots = Snapshots(open_store(prepared.store, read_only=True), str(folder / "snapshots"))
        measure_capture(samples, direct, guarded, snapshots, options)
        measure_reads(samples, (direct, unguarded, guarded), options)
        samples["fsync of 8 kB, us", ""] = time_fsync(folder)
    report(samples, as_json=options.json)


# -- what is measured


def make_tables(direct: Target, options: argparse.Namespace) -> None:
    """All that is read and written here; settled, so that no checkpoint or vacuum of it falls into a measurement."""
    load.initialise(direct, 1)
    runs = options.rounds * len(KINDS) * len(MODES)
    counts = {
        "rows": options.rows * (options.rounds + 1) * 2,
        "wide": options.wide * (options.rounds + 1) * 2,
        "parts": (options.rounds + 1) * 2,
        "doomed": runs * (options.count + WARM) + options.rounds * len(KINDS) * options.count * 2,
    }
    with psycopg.connect(direct.dsn, autocommit=True) as connection:
        connection.execute(SCHEMA.format(**counts).encode())
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def measure_single(samples: Samples, direct: Target, guarded: Target, options: argparse.Namespace) -> None:
    """One row by key, one client, each transaction timed by pgbench; then several clients at once."""
    doomed = Doomed()
    targets = {"plain": direct, "by hand": direct, "guarded": guarded}
    for number in range(options.rounds):
        runs = [(work, mode, kind) for work in WORKS for mode in MODES for kind in KINDS]
        random.shuffle(runs)
        for work, mode, kind in runs:
            say(f"round {number + 1} of {options.rounds}: {work.name}, {mode}, {kind}")
            start = doomed.take(options.count + WARM) if work.name == "DELETE" else 0
            times = run_script(targets[kind], work.script(kind), mode, options.count + WARM, start)
            samples[f"{work.name} by key, {mode}, us", kind] += times[WARM:]
        for kind in random.sample(KINDS, len(KINDS)):
            count = options.count * options.clients
            cpu, started = targets[kind].cpu_seconds(), time.perf_counter()
            run_script(targets[kind], WORKS[0].script(kind), "prepared", options.count, 0, options.clients)
            rate = count / (time.perf_counter() - started)
            samples[f"UPDATE by key, {options.clients} clients, tps", kind].append(rate)
            if targets[kind].pid:
                used = (targets[kind].cpu_seconds() - cpu) / count * 1e6
                samples["CPU of the wall per UPDATE, us", kind].append(used)
    check_deleted(direct, doomed.take(0))


def check_deleted(direct: Target, last: int) -> None:
    """A DELETE that found no row would have been quick, and wrong."""
    with psycopg.connect(direct.dsn) as connection:
        row = connection.execute("SELECT count(*) FROM doomed WHERE id <= %s", (last,)).fetchone()
    if row != (0,):
        raise BenchError(f"rows that were to be deleted are still there: {row}")


def run_script(
    target: Target, script: str, mode: str, count: int, start: int, clients: int = 1
) -> list[float]:
    """Microseconds of each of so many transactions, in the order in which they ran."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "script").write_text(script)
        load.run_pgbench(
            target, "-M", mode, "-f", "script", "-c", str(clients), "-t", str(count),
            "-D", f"id={start}", "-l", "--log-prefix=l", folder=folder,
        )  # fmt: skip
        return load.read_log(folder)


def measure_many(samples: Samples, direct: Target, guarded: Target, options: argparse.Namespace) -> None:
    """Many rows of one table, each range of keys once; the first pair is not counted."""
    first = 1
    for number in range(options.rounds + 1):
        for kind in random.sample(("by hand", "guarded"), 2):
            say(f"{options.rows} rows, {kind}")
            where = f"WHERE id BETWEEN {first} AND {first + options.rows - 1}"
            first += options.rows
            change = f"UPDATE rows SET v = v + 1 {where}"
            look = f"SELECT * FROM rows {where} FOR UPDATE"
            spent = time_change(direct if kind == "by hand" else guarded, kind, look, change, options.rows)
            if number:
                samples[f"UPDATE of {options.rows} rows, ms", kind].append(spent * 1e3)


def measure_capture(
    samples: Samples, direct: Target, guarded: Target, snapshots: Snapshots, options: argparse.Namespace
) -> None:
    """A large update: how fast images of rows get into a snapshot, before and after, as COPY text."""
    part = 0
    for number in range(options.rounds + 1):
        for kind in random.sample(("by hand", "guarded"), 2):
            say(f"{options.wide} wide rows, {kind}")
            change = f"UPDATE wide SET v = v + 1 WHERE part = {part}"
            look = f"SELECT * FROM wide WHERE part = {part} FOR UPDATE"
            part += 1
            spent = time_change(direct if kind == "by hand" else guarded, kind, look, change, options.wide)
            if not number:
                continue
            samples[f"UPDATE of {options.wide} wide rows, s", kind].append(spent)
            if kind == "guarded":
                record = snapshots.list(limit=1)[0]
                changes = snapshots.open(record.id).manifest.changes
                size = sum(change.before.size + change.after.size for change in changes)
                samples["images captured, MB", kind].append(size / 1e6)
                samples["capture, MB/s of images", kind].append(size / 1e6 / spent)
                samples["blob, MB", kind].append(record.size / 1e6)


def time_change(target: Target, kind: str, look: str, change: str, rows: int) -> float:
    """Seconds; libpq keeps the results as they come, so that the client's own work is small."""
    texts: Sequence[str] = ("BEGIN", look, change, "COMMIT") if kind == "by hand" else (change,)
    with psycopg.connect(target.dsn, autocommit=True) as connection:
        started = time.perf_counter()
        for text in texts:
            result = connection.pgconn.exec_(text.encode())
            if result.error_message:
                raise BenchError(f"{target.name}: {result.get_error_message()}")
            if text == change and result.command_tuples != rows:
                raise BenchError(f"{target.name}: {result.command_tuples} rows instead of {rows}")
        return time.perf_counter() - started


def measure_reads(samples: Samples, targets: Sequence[Target], options: argparse.Namespace) -> None:
    """pgbench -S direct, through a wall that takes no snapshots, and through the one that does."""
    for number in range(options.rounds):
        runs = [(target, mode) for target in targets for mode in MODES]
        random.shuffle(runs)
        for target, mode in runs:
            say(f"round {number + 1} of {options.rounds}: SELECT, {mode}, {target.name}")
            times = load.latency(target, mode, 2)
            samples[f"SELECT by key, {mode}, p50 us", target.name].append(times.p50)
            samples[f"SELECT by key, {mode}, p99 us", target.name].append(times.p99)


def time_fsync(folder: Path) -> list[float]:
    """Microseconds of what every commit waits for, on the same disk."""
    times: list[float] = []
    with (folder / "synced").open("wb", buffering=0) as file:
        for _ in range(200):
            started = time.perf_counter()
            file.write(bytes(8192))
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1e6)
    return times


# -- what is said


def report(samples: Samples, *, as_json: bool) -> None:
    """The tables, or every sample."""
    if as_json:
        rows = [{"figure": figure, "target": name, "samples": v} for (figure, name), v in samples.items()]
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    figures = list(dict.fromkeys(figure for figure, _ in samples))
    by_key = [
        figure for figure in figures if " by key, " in figure and figure.startswith(("UPDATE", "DELETE"))
    ]
    sys.stdout.write("| p50 / p99 | plain | by hand | guarded | guarded / by hand |\n|---|---|---|---|---|\n")
    for figure in (figure for figure in by_key if figure.endswith("us")):
        cells = [
            f"{_at(samples[figure, kind], 50):.0f} / {_at(samples[figure, kind], 99):.0f}" for kind in KINDS
        ]
        hand, ours = samples[figure, "by hand"], samples[figure, "guarded"]
        ratios = f"{_at(ours, 50) / _at(hand, 50):.2f} / {_at(ours, 99) / _at(hand, 99):.2f}"
        sys.stdout.write(f"| {figure} | {' | '.join(cells)} | {ratios} |\n")
    sys.stdout.write(
        "\n| median (min-max) | plain or direct | by hand | wall | guarded | guarded / hand or wall |\n"
    )
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for figure in (figure for figure in figures if not (figure in by_key and figure.endswith("us"))):
        found = {name: values for (other, name), values in samples.items() if other == figure}
        base = found.get("by hand") or found.get("wall")
        ratio = f"{_at(found['guarded'], 50) / _at(base, 50):.2f}" if base and _at(base, 50) else ""
        first = found.get("plain") or found.get("direct") or found.get("")
        cells = [_cell(values) for values in (first, *(found.get(n) for n in ("by hand", "wall", "guarded")))]
        sys.stdout.write(f"| {figure} | {' | '.join(cells)} | {ratio} |\n")


def _cell(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    digits = 0 if min(values) >= 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _at(values: Sequence[float], percent: int) -> float:
    if percent == 50:
        return statistics.median(values)
    return sorted(values)[len(values) * percent // 100]


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
