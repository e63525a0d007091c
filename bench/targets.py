"""What is measured beside the server itself: PgBouncer, pgpool-II and the wall, each on a port of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.figures import PGBOUNCER, PGPOOL, WALL
from bench.processes import START_TIMEOUT, BenchError, Target, await_port, running
from sqlwall.cli.embedded import EmbeddedServer, find_free_port, give_away, identity

SQLWALL = [sys.executable, "-m", "sqlwall"]
#: Debian's places that are not in everyone's PATH.
_SBIN = "/usr/sbin"


def find_program(name: str) -> str | None:
    """A program of the system."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


@contextmanager
def pgbouncer(server: EmbeddedServer, folder: Path, connections: int) -> Iterator[Target]:
    """PgBouncer in session mode, as Debian packages it: one process, a server connection for each client.

    It resets a connection before it gives it to another client: pgbench prepares the same names again.
    """
    port = find_free_port()
    users = folder / "users.txt"
    users.write_text(f'"{server.user}" "{server.password}"\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = session\n"
        f"max_client_conn = {connections}\ndefault_pool_size = {connections}\n"
        "unix_socket_dir =\nlog_connections = 0\nlog_disconnections = 0\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    for path in (users, settings):
        give_away(path)
    with running([find_program("pgbouncer") or "", "-q", str(settings)], **identity()) as process:
        await_port(port, process)
        yield Target(PGBOUNCER, _dsn(server.user, server.password, port), process.pid)


@contextmanager
def pgpool(server: EmbeddedServer, folder: Path, connections: int) -> Iterator[Target]:
    """pgpool-II, as Debian packages it: one server, its connections cached, no load balancing, no query cache.

    Clients are trusted; only logins, which no figure counts, are cheaper by that.
    """
    port = find_free_port()
    settings = folder / "pgpool.conf"
    passwords, hba, pcp = folder / "pool_passwd", folder / "pool_hba.conf", folder / "pcp.conf"
    passwords.write_text(f"{server.user}:TEXT{server.password}\n")
    hba.write_text("host all all 127.0.0.1/32 trust\n")
    pcp.write_text("")
    given = {
        "backend_clustering_mode": "raw",
        "listen_addresses": "127.0.0.1",
        "port": port,
        "socket_dir": folder,
        "pcp_socket_dir": folder,
        "pcp_listen_addresses": "",
        "pcp_port": find_free_port(),
        "wd_ipc_socket_dir": folder,
        "backend_hostname0": server.host,
        "backend_port0": server.port,
        "backend_weight0": 1,
        "backend_flag0": "DISALLOW_TO_FAILOVER",
        "enable_pool_hba": "on",
        "pool_passwd": passwords,
        "num_init_children": connections,
        "max_pool": 1,
        "connection_cache": "on",
        "load_balance_mode": "off",
        "memory_cache_enabled": "off",
        "use_watchdog": "off",
        "sr_check_period": 0,
        "health_check_period0": 0,
        "pid_file_name": folder / "pgpool.pid",
        "logdir": folder,
        "log_min_messages": "error",
    }
    settings.write_text("".join(f"{name} = '{value}'\n" for name, value in given.items()))
    for path in (settings, passwords, hba, pcp):
        give_away(path)
    command = [find_program("pgpool") or "", "-n", "-f", str(settings), "-a", str(hba), "-F", str(pcp)]
    with (
        (folder / "pgpool.log").open("wb") as log,
        running(command, stderr=log, stdout=log, **identity()) as process,
    ):
        await_port(port, process)
        yield Target(PGPOOL, _dsn(server.user, server.password, port), process.pid)


@dataclass(frozen=True, slots=True)
class Wall:
    """How a wall is started. `settings` are variables of its environment."""

    ruleset: str
    workers: int = 1
    connections: int = 200
    settings: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A wall with a store and an agent that is not started yet."""

    command: list[str]
    environment: dict[str, str]
    dsn: str
    port: int
    metrics: int
    store: Path


def prepare_wall(server: EmbeddedServer, folder: Path, how: Wall) -> Prepared:
    """All that is done once, before `sqlwall serve`."""
    store = Path(tempfile.mkdtemp(prefix="wall-", dir=folder)) / "store.db"
    port, metrics = find_free_port(), find_free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQLWALL_")}
    environment |= {
        "SQLWALL_UPSTREAM": server.dsn(),
        "SQLWALL_LIMITS_MAX_CONNECTIONS": str(how.connections),
        "SQLWALL_LIMITS_PER_AGENT_CONNECTIONS": str(how.connections),
        **(how.settings or {}),
    }
    added = subprocess.run(
        [*SQLWALL, "agent", "add", "bench", "--store", str(store), "--json"],
        env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if added.returncode != 0:
        raise BenchError(f"sqlwall agent add: {added.stderr[-600:]}")
    password = json.loads(added.stdout)["dsn"].split(":")[2].split("@")[0]
    command = [
        *SQLWALL, "serve", "--store", str(store), "--ruleset", how.ruleset, "--workers", str(how.workers),
        "--listen", f"127.0.0.1:{port}", "--metrics", f"127.0.0.1:{metrics}",
    ]  # fmt: skip
    return Prepared(command, environment, _dsn("bench", password, port), port, metrics, store)


@contextmanager
def wall(server: EmbeddedServer, folder: Path, how: Wall) -> Iterator[Target]:
    """The wall, started as a person starts it, when all its workers are ready."""
    prepared = prepare_wall(server, folder, how)
    with started(prepared) as target:
        yield target


@contextmanager
def started(prepared: Prepared) -> Iterator[Target]:
    """A prepared wall that runs."""
    log = prepared.store.with_suffix(".log")
    with (
        log.open("wb") as output,
        running(prepared.command, env=prepared.environment, stderr=output) as process,
    ):
        await_port(prepared.port, process)
        _await_ready(prepared, log)
        yield Target(WALL, prepared.dsn, process.pid)


def _await_ready(prepared: Prepared, log: Path) -> None:
    """Connections before the last worker listens would all be the first one's."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{prepared.metrics}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise BenchError(f"the wall is not ready: {log.read_text('utf-8', 'replace')[-600:]}")


def first_query(prepared: Prepared) -> float:
    """Seconds from the start of ``sqlwall serve`` until a client that tries all the time has its first row."""
    with prepared.store.with_suffix(".log").open("ab") as output:
        began = time.perf_counter()
        with running(prepared.command, env=prepared.environment, stderr=output) as process:
            while True:
                await_port(prepared.port, process)
                try:
                    with psycopg.connect(prepared.dsn, autocommit=True, sslmode="disable") as connection:
                        connection.execute("SELECT 1").fetchone()
                        return time.perf_counter() - began
                except psycopg.OperationalError:
                    if time.perf_counter() - began > START_TIMEOUT:
                        raise


def _dsn(user: str, password: str, port: int) -> str:
    return f"postgresql://{user}:{password}@127.0.0.1:{port}/postgres"
