"""``python -m bench.crowd``: one worker with thousands of idle connections, hundreds that work, a result of many GB.

Opens the idle ones through a served wall and asks each something; runs pgbench with the active ones beside them, past
the wall and through it; asks every idle connection once more; reads a large result while the wall's memory is watched.
Exit status 1 if a connection was lost.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TypeVar

import psycopg

from bench import load
from bench.compared import LIFTED, READ_LIMITS
from bench.figures import DIRECT, quantile
from bench.processes import BenchError, Target
from bench.stage import SCALE, edited_ruleset, open_folder, say
from bench.targets import Wall, wall
from sqlwall.cli.embedded import EmbeddedServer

#: Clients that log in, or ask, at the same time.
AT_ONCE = 8
#: Connections beside those that are asked for: pgbench's own, and the server's.
SPARE = 100
#: Seconds between two looks at the memory, and between two questions of the one that waits beside the crowd.
LOOK = 0.2

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured. Memory is PSS of all the wall's processes, in MB; times are milliseconds."""

    idle: int
    active: int
    login_seconds: float
    kb_per_pair: float
    direct_tps: float
    tps: float
    statement_ms: tuple[float, float]
    beside_ms: tuple[float, float]
    lost: int
    gigabytes: float
    mb_per_second: float
    before_mb: float
    peak_mb: float


def main() -> int:
    """Measure and print; 1 if a connection was lost."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument("--idle", type=int, default=5000, help="connections that do nothing")
    parser.add_argument("--active", type=int, default=500, help="connections of pgbench")
    parser.add_argument("--seconds", type=float, default=20.0, help="of pgbench")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of the large result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to it")
    options = parser.parse_args()
    try:
        found = measure(options.idle, options.active, options.seconds, options.gigabytes)
    except BenchError as error:
        say(f"bench.crowd: {error}")
        return 1
    sys.stdout.write(render(found))
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    return int(found.lost > 0)


def measure(idle: int, active: int, seconds: float, gigabytes: float) -> Found:
    """All of it, on a server and a wall of its own."""
    room = idle + 2 * active + SPARE
    with ExitStack() as stack:
        say(f"starting PostgreSQL for {room} connections, making pgbench's tables")
        server = stack.enter_context(
            EmbeddedServer(settings={"max_connections": str(room), "shared_buffers": "256MB"})
        )
        direct = Target(DIRECT, server.dsn())
        load.initialise(direct, SCALE)
        folder = stack.enter_context(open_folder())
        how = Wall(edited_ruleset(folder, "lifted", READ_LIMITS, LIFTED), connections=room)
        ours = stack.enter_context(wall(server, folder, how))
        empty = ours.memory()[0]
        say(f"logging in {idle} times")
        began = time.perf_counter()
        waiting = open_all(stack, ours, idle)
        spent = time.perf_counter() - began
        pair = (ours.memory()[0] - empty) / idle
        say(f"{active} connections work beside {idle} that wait: first past the wall")
        direct_tps, _ = crowd(direct, active, seconds)
        say("now through it")
        with Beside(ours) as beside:
            tps, times = crowd(ours, active, seconds)
        say("asking every one that waited")
        lost = sum(map_all(still_there, waiting))
        say(f"a result of {gigabytes:g} GB")
        before = ours.memory()[0]
        with Watch(ours) as watch:
            rate = load.throughput(ours, int(gigabytes * 1000), copy=False)
    return Found(
        idle, active, spent, pair, direct_tps, tps, times, beside.quantiles(), lost, gigabytes, rate,
        before / 1024, watch.peak / 1024,
    )  # fmt: skip


def crowd(target: Target, clients: int, seconds: float) -> tuple[float, tuple[float, float]]:
    """Transactions per second of so many at once, and the median and 99th percentile of their times."""
    work = [*load.SELECT_ONLY, "-M", "prepared", "-c", str(clients), "-j", "2"]
    with open_folder() as folder:
        output = load.run_pgbench(
            target, *work, "-T", str(round(seconds)), "-l", "--log-prefix=l", folder=str(folder)
        )
        times = load.read_log(str(folder))
    return load.number(r"tps = ([\d.]+)", output), (
        quantile(times, 0.5) / 1000,
        quantile(times, 0.99) / 1000,
    )


def open_all(stack: ExitStack, target: Target, count: int) -> list[psycopg.Connection[tuple[object, ...]]]:
    """So many sessions, each of which has asked something."""

    def open_one(_number: int) -> psycopg.Connection[tuple[object, ...]]:
        connection = psycopg.connect(target.dsn, autocommit=True, sslmode="disable", gssencmode="disable")
        connection.execute("SELECT 1").fetchone()
        return connection

    found = map_all(open_one, range(count))
    for connection in found:
        stack.callback(connection.close)
    return found


def still_there(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """0 if the session answers, 1 if it is lost."""
    try:
        return int(connection.execute("SELECT 2").fetchone() != (2,))
    except psycopg.Error as error:
        say(f"lost: {error}")
        return 1


def map_all(work: Callable[[S], R], items: Iterable[S]) -> list[R]:
    """A few at the same time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


class Regularly:
    """Something done again and again beside what is measured, in a thread of its own."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK):
            self.look()

    def look(self) -> None:
        """Once."""
        raise NotImplementedError


class Beside(Regularly):
    """One client that asks something now and then: how long does it wait beside the crowd?"""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._connection = psycopg.connect(target.dsn, autocommit=True)
        self._times: list[float] = []

    def look(self) -> None:
        """Ask, and note the time."""
        began = time.perf_counter()
        self._connection.execute("SELECT 3").fetchone()
        self._times.append((time.perf_counter() - began) * 1000)

    def quantiles(self) -> tuple[float, float]:
        """Median and 99th percentile, in ms."""
        return quantile(self._times, 0.5), quantile(self._times, 0.99)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._connection.close()


class Watch(Regularly):
    """The largest memory that the wall's processes had together, in KB of PSS."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self.peak = 0

    def look(self) -> None:
        """Once."""
        self.peak = max(self.peak, self._target.memory()[0])


def render(found: Found) -> str:
    """What a person reads."""
    p50, p99 = found.statement_ms
    beside50, beside99 = found.beside_ms
    return f"""\
{found.idle} idle connections: {found.login_seconds:.0f} s to log in, {found.kb_per_pair:.1f} KB of PSS each
    asked again at the end: {found.lost} lost
{found.active} active ones beside them: {found.tps:.0f} tps; past the wall {found.direct_tps:.0f}
    a statement of theirs: p50 {p50:.1f} ms, p99 {p99:.1f} ms
    one that asks now and then: p50 {beside50:.1f} ms, p99 {beside99:.1f} ms
a result of {found.gigabytes:g} GB: {found.mb_per_second:.0f} MB/s
    the wall held {found.before_mb:.0f} MB before, {found.peak_mb:.0f} MB at most
"""


if __name__ == "__main__":
    sys.exit(main())
