"""The loads: pgbench with its own scripts or ours, and large results read as they come."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from bench.figures import quantile
from bench.processes import BenchError, Target

#: pgbench's own: one SELECT by key; and five statements in a transaction, which write.
SELECT_ONLY = ("-b", "select-only")
TPCB = ("-b", "tpcb-like")
#: A transaction that writes nothing.
READS = r"""\set a random(1, 100000 * :scale)
\set b random(1, 100000 * :scale)
\set c random(1, 100000 * :scale)
BEGIN;
SELECT abalance FROM pgbench_accounts WHERE aid = :a;
SELECT abalance FROM pgbench_accounts WHERE aid = :b;
SELECT abalance FROM pgbench_accounts WHERE aid = :c;
COMMIT;
"""
#: Rows of about 110 bytes on the wire. In the list of results the numbers are made one by one, in FROM all at once.
ROWS = "SELECT g, repeat('x', 90) FROM (SELECT generate_series(1, {rows}) AS g) AS numbers"
ROW_BYTES = 110
_BLOCK = 1 << 20
_READY = b"Z\0\0\0\5I"


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
        raise BenchError("pgbench is not installed; Debian has it in postgresql-contrib")
    return found


def initialise(target: Target, scale: int) -> None:
    """pgbench's tables, settled, so that no checkpoint or vacuum of them falls into a measurement."""
    done = subprocess.run(
        [find_pgbench(), "-i", "-q", "-s", str(scale), target.dsn],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchError(f"pgbench -i: {done.stderr[-600:]}")
    with psycopg.connect(target.dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def rate(target: Target, work: tuple[str, ...], mode: str, clients: int, seconds: float) -> Rate:
    """Several clients for so many seconds. What their logins cost the proxy is measured apart and taken off."""
    one = [*work, "-M", mode, "-c", str(clients), "-t", "1"]
    run_pgbench(target, *one)  # caches, and server connections that a pool keeps
    before, began = target.cpu_seconds(), time.perf_counter()
    run_pgbench(target, *one)
    between = target.cpu_seconds()
    duration = (
        seconds + time.perf_counter() - began
    )  # pgbench's clock runs while it logs in, its tps do not count that
    output = run_pgbench(target, *one[:-2], "-T", str(math.ceil(duration)))
    spent = (target.cpu_seconds() - between) - (between - before)
    count = int(number(r"actually processed: (\d+)", output)) - clients
    return Rate(number(r"tps = ([\d.]+)", output), max(0.0, spent) / max(1, count) * 1e6)


def latency(target: Target, mode: str, seconds: float) -> Latency:
    """One client, each statement's time from pgbench's own log, which knows whole microseconds."""
    work = [*SELECT_ONLY, "-M", mode, "-c", "1"]
    run_pgbench(target, *work, "-t", "1")
    with TemporaryDirectory() as folder:
        run_pgbench(target, *work, "-T", str(math.ceil(seconds)), "-l", "--log-prefix=l", folder=folder)
        times = read_log(folder)
    return Latency(quantile(times, 0.5, 1.0), quantile(times, 0.99, 1.0))


def read_log(folder: str) -> list[float]:
    """Microseconds of each transaction that pgbench has logged."""
    files = Path(folder).glob("l*")
    return [float(line.split()[2]) for file in files for line in file.read_text().splitlines()]


def run_pgbench(target: Target, *arguments: str, folder: str | None = None) -> str:
    """What pgbench says. Raises BenchError for any error: it goes on without a client that failed, and with a statement
    of the same name that somebody else has prepared.
    """
    done = subprocess.run(
        [find_pgbench(), "-n", *arguments, target.dsn],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    if done.returncode != 0 or "error:" in done.stderr:
        raise BenchError(f"pgbench against {target.name}: {done.stderr[-600:]}")
    return done.stdout


def throughput(target: Target, megabytes: int, *, copy: bool) -> float:
    """MB/s of a large result. Nothing but the end of it is looked at, so that the client is not what is measured."""
    rows = megabytes * 1_000_000 // ROW_BYTES
    text = ROWS.format(rows=rows)
    query = (f"COPY ({text}) TO STDOUT" if copy else text).encode() + b"\0"
    tag = f"{'COPY' if copy else 'SELECT'} {rows}\0".encode()
    with psycopg.connect(target.dsn, autocommit=True, sslmode="disable", gssencmode="disable") as connection:
        line = socket.socket(fileno=connection.pgconn.socket)
        try:
            line.setblocking(True)
            began = time.perf_counter()
            line.sendall(b"Q" + (len(query) + 4).to_bytes(4) + query)
            size, tail = _read_to_end(line)
            spent = time.perf_counter() - began
        finally:
            line.detach()  # libpq closes it
    if tag not in tail:
        raise BenchError(f"{target.name}: the large result ended with {tail!r}")
    return size / spent / 1e6


def _read_to_end(line: socket.socket) -> tuple[int, bytes]:
    """How many bytes came until ReadyForQuery, and the last of them."""
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    size, tail = 0, b""
    while not tail.endswith(_READY):
        count = line.recv_into(view)
        if count == 0:
            raise BenchError("the connection was closed within a result")
        size += count
        tail = (tail + bytes(view[max(0, count - 400) : count]))[-400:]
    return size, tail


def number(pattern: str, text: str) -> float:
    """What a pattern finds in what pgbench says."""
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"pgbench did not say {pattern}: {text[:300]}")
    return float(found.group(1))
