"""Opening a store: where it may be, who may read it, how durable it is, and that every failure is one line."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy import Engine

from sqlwall.errors import ConfigError, StoreError
from sqlwall.store.database import describe, mock_seed, open_store, reading, writing
from sqlwall.store.schema import MOCK_SEED, SETTINGS
from tests.postgres import Database, Server

# -- where


def test_a_path_is_a_sqlite_store_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "state" / "here" / "store 100% ü.sqlite"
    engine = open_store(path)
    assert describe(engine) == str(path)
    with writing(engine) as connection:
        connection.execute(SETTINGS.insert().values(name="x", value="y"))
        files = sorted(path.parent.iterdir())
        assert [file.name.removeprefix(path.name) for file in files] == ["", "-shm", "-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    engine.dispose()


@pytest.mark.parametrize("shape", ["{}", "sqlite:///{}"])
def test_a_store_can_be_named_in_several_ways(tmp_path: Path, shape: str) -> None:
    engine = open_store(shape.format(tmp_path / "store.sqlite"))
    assert describe(engine) == str(tmp_path / "store.sqlite")
    engine.dispose()


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (":memory:", "a store in memory is not durable"),
        ("sqlite://", "a store in memory is not durable"),
        ("sqlite:///:memory:", "a store in memory is not durable"),
        ("mysql://root:hunter2@db/x", "mysql is not supported"),
        ("://", "the URL cannot be read"),
        ("postgresql://user:hunter2@host:port/x", "the URL cannot be read"),
        ("a\0b", "the path holds a NUL character"),
    ],
)
def test_a_location_that_makes_no_sense_is_said_without_its_password(location: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        open_store(location)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_not_there_is_said_without_its_password() -> None:
    with pytest.raises(StoreError, match=r"^store postgresql://127\.0\.0\.1:1/x: ") as caught:
        open_store("postgresql://user:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_of_a_server_is_said_without_it(postgres: Server) -> None:
    with pytest.raises(StoreError, match=r"^store postgresql://") as caught:
        open_store(postgres.dsn("postgres", "nobody_here", "hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_store_is_said(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, " * 100)
    with pytest.raises(StoreError, match="is not a SQLite database"):
        open_store(path)
    assert path.read_text().startswith("these are notes")


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^store "):
        open_store(tmp_path)


def test_a_store_below_a_file_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        open_store(tmp_path / "file" / "store.sqlite")


def test_a_database_of_another_encoding_is_refused(postgres: Server) -> None:
    name = "sqlwall_test_latin1"
    postgres.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").format(
            sql.Identifier(name)
        )
    )
    try:
        with pytest.raises(StoreError, match="its encoding is LATIN1; create the database with UTF8"):
            open_store(postgres.dsn(name))
    finally:
        postgres.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


# -- only looking


def test_who_only_looks_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such file"):
        open_store(tmp_path / "store.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(StoreError, match="holds no sqlwall store"):
        open_store(tmp_path / "other.sqlite", read_only=True)


def test_who_only_looks_cannot_write(tmp_path: Path) -> None:
    open_store(tmp_path / "a 50% store.sqlite").dispose()
    engine = open_store(tmp_path / "a 50% store.sqlite", read_only=True)
    assert describe(engine) == str(tmp_path / "a 50% store.sqlite")
    assert mock_seed(engine)
    with pytest.raises(StoreError, match="is read-only"):
        with writing(engine) as connection:
            connection.execute(SETTINGS.insert().values(name="x", value="y"))
    engine.dispose()


# -- transactions


def setting(engine: Engine, name: str) -> str | None:
    with reading(engine) as connection:
        return connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == name))


def test_what_was_written_stays(location: str) -> None:
    engine = open_store(location)
    with writing(engine) as connection:
        connection.execute(SETTINGS.insert().values(name="x", value="é"))
    engine.dispose()
    again = open_store(location)
    assert setting(again, "x") == "é"
    again.dispose()


def test_a_transaction_that_fails_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        with writing(engine) as connection:
            connection.execute(SETTINGS.insert().values(name="x", value="y"))
            raise ZeroDivisionError
    assert setting(engine, "x") is None


def test_an_error_of_the_driver_is_one_line_and_holds_no_values(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(SETTINGS.insert().values(name="x", value="hunter2"))
    with pytest.raises(StoreError, match=r"(?i)^store .*unique constraint") as caught:
        with writing(engine) as connection:
            connection.execute(SETTINGS.insert().values(name="x", value="hunter3"))
    assert "hunter" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reader_cannot_write_to_a_server(database: Database) -> None:
    engine = open_store(database.dsn())
    with pytest.raises(StoreError, match="is read-only"):
        with reading(engine) as connection:
            connection.execute(SETTINGS.insert().values(name="x", value="y"))
    engine.dispose()


def test_a_reader_sees_one_moment(engine: Engine) -> None:
    with reading(engine) as connection:
        count = sa.select(sa.func.count()).select_from(SETTINGS)
        before = connection.scalar(count)
        with writing(engine) as other:
            other.execute(SETTINGS.insert().values(name="x", value="y"))
        assert connection.scalar(count) == before
    assert setting(engine, "x") == "y"


def test_writers_wait_for_each_other(engine: Engine) -> None:
    """Both read before they write: a lock taken later would be a deadlock, or a lost update."""
    with writing(engine) as connection:
        connection.execute(SETTINGS.insert().values(name="count", value="0"))
    start = threading.Barrier(4)

    def count_up() -> None:
        start.wait(10)
        for _ in range(10):
            with writing(engine) as connection:
                query = sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "count").with_for_update()
                value = int(connection.scalar(query) or 0)
                connection.execute(
                    SETTINGS.update().where(SETTINGS.c.name == "count").values(value=str(value + 1))
                )

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert setting(engine, "count") == "40"


def test_a_store_that_somebody_holds_is_said(file_engine: Engine) -> None:
    path = describe(file_engine)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreError, match="locked by another process for more than 5 s"):
            with writing(file_engine) as connection:
                connection.execute(SETTINGS.insert().values(name="x", value="y"))
    finally:
        holder.close()
    with writing(file_engine) as connection:
        connection.execute(SETTINGS.insert().values(name="x", value="y"))


def test_sqlite_syncs_every_commit(file_engine: Engine) -> None:
    with writing(file_engine) as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@pytest.mark.parametrize(
    ("turned", "kept"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")],
)
def test_a_server_that_does_not_wait_for_its_disk_is_made_to(
    database: Database, turned: str, kept: str
) -> None:
    database.execute(
        sql.SQL("ALTER DATABASE {} SET synchronous_commit = {}").format(
            sql.Identifier(database.name), sql.Literal(turned)
        )
    )
    engine = open_store(database.dsn())
    with writing(engine) as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == kept
    engine.dispose()


def test_a_connection_that_the_server_ended_is_replaced(database: Database) -> None:
    engine = open_store(database.dsn())
    assert setting(engine, MOCK_SEED)
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'sqlwall store'"
    )
    assert setting(engine, MOCK_SEED)
    engine.dispose()


# -- the seed


def test_the_seed_is_made_once_and_differs_between_stores(location: str, tmp_path: Path) -> None:
    engine = open_store(location)
    seed = mock_seed(engine)
    engine.dispose()
    again, other = open_store(location), open_store(tmp_path / "other.sqlite")
    assert mock_seed(again) == seed
    assert mock_seed(other) != seed
    assert len(seed) == 64
    again.dispose()
    other.dispose()


def test_a_store_without_its_seed_is_damaged(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(SETTINGS.delete().where(SETTINGS.c.name == MOCK_SEED))
    with pytest.raises(StoreError, match=f"is damaged: its setting {MOCK_SEED} is missing"):
        mock_seed(engine)


def open_and_leave(location: str, start: object) -> None:
    start.wait(30)  # type: ignore[attr-defined]
    open_store(location).dispose()


def test_several_processes_may_create_a_store_at_once(location: str) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    processes = [context.Process(target=open_and_leave, args=(location, start)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
