"""Opens the store: SQLite by default, PostgreSQL by URL, one code path. Brings it to the current revision.

Driver errors end here: whoever uses `reading` and `writing` sees a `StoreError` of one line that names the store.
An engine belongs to the process that opened it; a worker opens its own.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sqlwall.errors import ConfigError, StoreError
from sqlwall.store import migrations
from sqlwall.store.schema import MOCK_SEED, SETTINGS

#: Seconds to wait for another process that holds SQLite's write lock, or for a PostgreSQL store to answer.
PATIENCE: Final = 5

#: Serialises upgrades on PostgreSQL. Any number, but always the same one ("sqlwall" in ASCII).
_UPGRADE_LOCK: Final = 0x73716C77616C6C
_READ_OPTION: Final = "sqlwall_read"
_URI_PREFIX: Final = "file:"
#: Where a pooled connection remembers which files it has open, and what follows the store's name in theirs.
_FILES: Final = "sqlwall_files"
_FILE_ENDS: Final = ("", "-wal", "-shm")

#: Primary result codes, https://www.sqlite.org/rescode.html
_SQLITE_WORDS: Final = {
    sqlite3.SQLITE_BUSY: f"locked by another process for more than {PATIENCE} s",
    sqlite3.SQLITE_LOCKED: f"locked by another process for more than {PATIENCE} s",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_PERM: "access denied by the file system",
    sqlite3.SQLITE_FULL: "is full: no space left to write",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that the folder exists and may be written",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write it",
}

#: SQLSTATE, or its class where two characters, of a PostgreSQL store.
_POSTGRESQL_WORDS: Final = {
    "25006": "is read-only",
    "53100": "is full: no space left to write",
    "53300": "has no free connection",
    "55P03": "locked by another process",
    "57014": "did not answer in time",
    "42501": "access denied: the role may not use it",
    "3D": "does not exist",
    "28": "refused the login",
}


def open_store(location: str | Path, *, read_only: bool = False) -> Engine:
    """An engine on the store at a path, ``sqlite:///path`` or ``postgresql://…``, at the current revision.

    Raises ConfigError for a location that makes no sense and StoreError for a store that cannot be used. `read_only`
    is for whoever only looks: nothing is created or upgraded.
    """
    url = _url(location)
    engine = _sqlite_engine(url, read_only) if url.get_backend_name() == "sqlite" else _postgresql_engine(url)
    try:
        _check_revision(engine) if read_only else _upgrade(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def describe(engine: Engine) -> str:
    """The store as messages name it: its path, or where its server is. Never a password."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        path = url.database or ""
        return unquote(path.removeprefix(_URI_PREFIX)) if path.startswith(_URI_PREFIX) else path
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{url.host or 'local'}{port}/{url.database or ''}"


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one moment of the store throughout and writes nothing."""
    with store_errors(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection.execution_options(**{_READ_OPTION: True})


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is durable when the block has ended, or has left nothing behind."""
    with store_errors(engine), engine.begin() as connection:
        yield connection


@contextmanager
def store_errors(engine: Engine) -> Iterator[None]:
    """Turn what the driver raises into a StoreError of one line."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise StoreError(f"store {describe(engine)}: {_words(error)}") from error


def mock_seed(engine: Engine) -> bytes:
    """The secret from which `scram.Verifier.mock` answers for a name that is no agent's. Made with the store."""
    with reading(engine) as connection:
        value = connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == MOCK_SEED))
    if not isinstance(value, str) or not value:
        raise StoreError(f"store {describe(engine)}: is damaged: its setting {MOCK_SEED} is missing")
    return value.encode()


def _words(error: SQLAlchemyError | sqlite3.Error) -> str:
    origin = getattr(error, "orig", None) or error
    line = str(origin).strip().partition("\n")[0] or type(origin).__name__
    code = getattr(origin, "sqlite_errorcode", None)
    if isinstance(code, int):
        known = _SQLITE_WORDS.get(code & 0xFF)
        return f"{known} ({line})" if known else line
    state = getattr(origin, "sqlstate", None)
    if isinstance(state, str):
        known = _POSTGRESQL_WORDS.get(state) or _POSTGRESQL_WORDS.get(state[:2])
        return f"{known} ({line})" if known else line
    return line


def _url(location: str | Path) -> URL:
    if isinstance(location, Path) or "://" not in location:
        return _sqlite_url(str(location))
    try:
        url = make_url(location)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise ConfigError(
            "store: the URL cannot be read; write a path or postgresql://user@host/name"
        ) from None
    if backend == "sqlite":
        return _sqlite_url(url.database or "")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise ConfigError(f"store: {backend} is not supported; write a path, sqlite:///path or postgresql://…")


def _sqlite_url(path: str) -> URL:
    if path in ("", ":memory:"):
        raise ConfigError("store: a store in memory is not durable; give it a file")
    if "\0" in path:
        raise ConfigError("store: the path holds a NUL character")
    return URL.create("sqlite", database=str(Path(path).expanduser().absolute()))


def _sqlite_engine(url: URL, read_only: bool) -> Engine:
    assert url.database is not None
    path = Path(url.database)
    if read_only:
        if not path.is_file():
            raise StoreError(f"store {path}: there is no such file")
    else:
        _create_private(path)
    # Never SQLite's own way of making a file: a store that is gone must not come back empty.
    url = url.set(
        database=_URI_PREFIX + quote(url.database), query={"mode": "ro" if read_only else "rw", "uri": "true"}
    )
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": PATIENCE})
    event.listen(engine, "connect", _set_up_sqlite_reader if read_only else _set_up_sqlite)
    if not read_only:
        event.listen(engine, "checkout", _check_files)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _create_private(path: Path) -> None:
    """Make the file readable by its owner only before SQLite would: it holds verifiers and statements.

    SQLite gives its -wal and -shm files the same mode.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"store {path}: cannot be created: {error.strerror or error}") from error


def _set_up_sqlite_reader(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    # We begin transactions ourselves: the driver's own begin is late and never IMMEDIATE.
    connection.isolation_level = None
    # Bytes that are not UTF-8 are a finding for `verify`, not an exception that ends it.
    connection.text_factory = _lenient_text
    connection.execute("PRAGMA foreign_keys=ON")


def _set_up_sqlite(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
    _set_up_sqlite_reader(connection, record)
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA journal_size_limit=67108864")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log, and makes it
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    record.info[_FILES] = path, _find_files(path)


def _check_files(_connection: object, record: ConnectionPoolEntry, _proxied: PoolProxiedConnection) -> None:
    """SQLite goes on writing to files that were renamed or removed, where nobody would find it again.

    The pool opens another connection instead of one of which this is true.
    """
    path, files = record.info[_FILES]
    if files is None or _find_files(path) != files:
        raise DisconnectionError("the files are not those that were opened")


def _find_files(path: str) -> tuple[tuple[int, int], ...] | None:
    """Which files the store's names mean now, by device and inode; None if one of them is not there."""
    try:
        # A Path would cost more than the call, and this is on the way of every record.
        found = [os.stat(path + end) for end in _FILE_ENDS]  # noqa: PTH116
    except OSError:
        return None
    return tuple((one.st_dev, one.st_ino) for one in found)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """The switch itself does not wait for other processes that open the new file at the same time; so we do."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
            continue
        if mode != "wal":
            raise sqlite3.OperationalError(
                f"the file system cannot hold a write-ahead log (journal is {mode})"
            )
        return


def _lenient_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock first: upgrading a read lock later fails at once instead of waiting.
    reads = connection.get_execution_options().get(_READ_OPTION, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _postgresql_engine(url: URL) -> Engine:
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": PATIENCE,
            "application_name": "sqlwall store",
            "keepalives_idle": 2 * PATIENCE,
            "tcp_user_timeout": 2 * PATIENCE * 1000,
        },
    )
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _begin_postgresql(connection: Connection) -> None:
    """Durable means durable: a role or server may have turned synchronous_commit down; remote_apply is left alone."""
    if connection.get_execution_options().get(_READ_OPTION, False):
        return
    connection.exec_driver_sql(
        "SELECT set_config('synchronous_commit', 'on', true)"
        " WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')"
    )
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {2 * PATIENCE * 1000}")


def _upgrade(engine: Engine) -> None:
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            _require_utf8(connection, engine)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        revision = migrations.current(connection)
        if revision == migrations.head():
            return
        if revision is not None and not migrations.is_known(revision):
            raise _newer(engine, revision)
        from alembic.util.exc import CommandError  # noqa: PLC0415 - see `migrations`

        try:
            migrations.upgrade(connection)
        except CommandError as error:
            raise StoreError(f"store {describe(engine)}: cannot be upgraded: {error}") from error


def _check_revision(engine: Engine) -> None:
    with reading(engine) as connection:
        revision = migrations.current(connection)
    if revision is None:
        raise StoreError(f"store {describe(engine)}: holds no sqlwall store")
    if revision != migrations.head():
        if not migrations.is_known(revision):
            raise _newer(engine, revision)
        raise StoreError(
            f"store {describe(engine)}: is of revision {revision}; open it with `sqlwall serve` once"
        )


def _newer(engine: Engine, revision: str) -> StoreError:
    return StoreError(f"store {describe(engine)}: was written by a newer sqlwall (revision {revision})")


def _require_utf8(connection: Connection, engine: Engine) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise StoreError(
            f"store {describe(engine)}: its encoding is {encoding}; create the database with UTF8"
        )
