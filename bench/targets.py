"""What is measured: the server itself, PgBouncer, and the wall, each a process of its own on a port of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlwall.cli.embedded import EmbeddedServer, find_free_port, give_away, identity

#: Seconds for a peer to listen.
START_TIMEOUT = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Target:
    """Where pgbench connects, and whose CPU counts; without a pid there is no proxy."""

    name: str
    dsn: str
    pids: tuple[int, ...] = ()

    def cpu_seconds(self) -> float:
        """User and system time of the proxy so far."""
        total = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICKS


@contextmanager
def pgbouncer(server: EmbeddedServer, folder: Path) -> Iterator[Target]:
    """PgBouncer in session mode, as Debian packages it."""
    binary = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    port = find_free_port()
    users = folder / "users.txt"
    users.write_text(f'"{server.user}" "{server.password}"\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = session\n"
        "max_client_conn = 500\ndefault_pool_size = 200\nserver_reset_query =\nunix_socket_dir =\n"
        "log_connections = 0\nlog_disconnections = 0\nignore_startup_parameters = extra_float_digits\n"
    )
    for path in (users, settings):
        give_away(path)
    process = subprocess.Popen([binary, "-q", str(settings)], **identity())
    try:
        _await_port(port, process)
        yield Target("pgbouncer", _dsn(server.user, server.password, port), (process.pid,))
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def wall(server: EmbeddedServer, folder: Path, ruleset: str) -> Iterator[Target]:
    """The wall with one worker, started as a person starts it."""
    store = str(folder / f"{ruleset}.db")
    port, metrics = find_free_port(), find_free_port()
    environment = os.environ | {"SQLWALL_UPSTREAM": server.dsn()}
    command = [sys.executable, "-m", "sqlwall"]
    added = subprocess.run(
        [*command, "agent", "add", "bench", "--store", store, "--json"],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    password = json.loads(added.stdout)["dsn"].split(":")[2].split("@")[0]
    process = subprocess.Popen(
        [*command, "serve", "--store", store, "--ruleset", ruleset, "--workers", "1",
         "--listen", f"127.0.0.1:{port}", "--metrics", f"127.0.0.1:{metrics}"],
        env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _await_port(port, process)
        yield Target(f"sqlwall {ruleset}", _dsn("bench", password, port), _children(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def _dsn(user: str, password: str, port: int) -> str:
    return f"postgresql://{user}:{password}@127.0.0.1:{port}/postgres"


def _children(pid: int) -> tuple[int, ...]:
    """The worker processes; the supervisor does nothing between two scrapes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == pid and b"spawn_main" in command:
                found.append(int(entry.name))
    return tuple(found)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} has ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")
