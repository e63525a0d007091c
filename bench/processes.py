"""Processes that are measured: where they listen, what CPU they have used, what memory they hold."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds for a peer to listen, and to end.
START_TIMEOUT = 20.0
STOP_TIMEOUT = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A row could not be measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client connects, and whose CPU and memory count: a process and all below it. Without one: no proxy."""

    name: str
    dsn: str
    pid: int = 0

    def cpu_seconds(self) -> float:
        """User and system time of the proxy so far, with that of children that have ended."""
        if not self.pid:
            return 0.0
        fields = (_stat(pid) for pid in family(self.pid))
        return sum(sum(map(int, found[11:15])) for found in fields if found) / _TICKS

    def memory(self) -> tuple[int, int]:
        """KB of PSS (shared pages divided among their holders) and of RSS."""
        pss = rss = 0
        for pid in family(self.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name == "Pss":
                    pss += int(rest.split()[0])
                elif name == "Rss":
                    rss += int(rest.split()[0])
        return pss, rss


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += parents.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields from the state on; none if the process has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


@contextmanager
def running(command: list[str], **arguments: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended at the end."""
    process = subprocess.Popen(command, **arguments)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when somebody listens. Raises BenchError if the process ends before."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"{process.args!r} has ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise BenchError(f"nothing listens on port {port}")
