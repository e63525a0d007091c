"""The loads: pgbench -S in each protocol mode, one client's latency, and large results."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from bench.targets import Target

MODES = ("simple", "extended", "prepared")
#: A row of the large result, and how many: about 100 MB.
LARGE = "SELECT g, repeat('x', 90) FROM generate_series(1, {rows}) g"
COPY = "COPY (SELECT g, repeat('x', 90) FROM generate_series(1, {rows}) g) TO STDOUT"


@dataclass(frozen=True, slots=True)
class Rate:
    """Transactions per second, and microseconds of the proxy's CPU for each."""

    tps: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds."""

    p50: float
    p99: float


def find_pgbench() -> str:
    """pgbench of the system."""
    found = shutil.which("pgbench")
    if found is None:
        raise SystemExit("bench: pgbench is not installed; Debian has it in postgresql-contrib")
    return found


def rate(target: Target, mode: str, clients: int, seconds: float) -> Rate:
    """pgbench -S with several clients."""
    before = target.cpu_seconds()
    output = _pgbench(target, mode, clients, seconds)
    count = int(_number(r"actually processed: (\d+)", output))
    return Rate(_number(r"tps = ([\d.]+)", output), (target.cpu_seconds() - before) / count * 1e6)


def _pgbench(
    target: Target, mode: str, clients: int, seconds: float, *more: str, folder: str | None = None
) -> str:
    duration = str(max(1, int(seconds)))
    command = [find_pgbench(), "-n", "-S", "-M", mode, "-c", str(clients), "-T", duration, *more, target.dsn]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        raise SystemExit(f"bench: pgbench against {target.name} failed: {done.stderr[-600:]}")
    return done.stdout


def latency(target: Target, mode: str, seconds: float) -> Latency:
    """One client, each statement's time from pgbench's own log."""
    with TemporaryDirectory() as folder:
        _pgbench(target, mode, 1, seconds, "-l", "--log-prefix=l", folder=folder)
        times = sorted(
            float(line.split()[2])
            for file in Path(folder).iterdir()
            for line in file.read_text().splitlines()
        )
    return Latency(times[len(times) // 2], times[len(times) * 99 // 100])


def throughput(target: Target, rows: int, *, copy: bool) -> float:
    """MB/s of a large result, as a client receives it."""
    size = 0
    with psycopg.connect(target.dsn, autocommit=True) as connection:
        text = (COPY if copy else LARGE).format(rows=rows)
        started = time.perf_counter()
        if copy:
            with connection.cursor().copy(text.encode()) as data:
                for block in data:
                    size += len(block)
        else:
            result = connection.pgconn.exec_(text.encode())
            if result.error_message:
                raise RuntimeError(result.get_error_message())
            size = rows * 110
        return size / (time.perf_counter() - started) / 1e6


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"pgbench did not say {pattern}: {text[:300]}")
    return float(found.group(1))
