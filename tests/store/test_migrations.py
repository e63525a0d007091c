"""A store of any older revision becomes one of today with all that is in it, in one step or not at all."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy import Engine

from sqlwall.errors import StoreError
from sqlwall.store import migrations
from sqlwall.store.agents import add_agent, find
from sqlwall.store.audit import AuditWriter
from sqlwall.store.chain import AuditKind, AuditRecord
from sqlwall.store.database import mock_seed, open_store, reading, writing
from sqlwall.store.schema import METADATA, REVISION_TABLE, SNAPSHOTS
from sqlwall.store.snapshots import Snapshots
from sqlwall.store.verify import verify
from tests.store.samples import ROWS, take


@contextmanager
def raw(location: str) -> Iterator[Engine]:
    """The database without sqlwall's way of opening it."""
    url = (
        location.replace("postgresql://", "postgresql+psycopg://")
        if "://" in location
        else f"sqlite:///{location}"
    )
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def make(location: str, revision: str) -> None:
    """A store of an older revision, as its version of sqlwall left it."""
    if "://" not in location:
        sqlite3.connect(location).close()
    with raw(location) as engine, engine.begin() as connection:
        config = migrations.configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def revision_of(location: str) -> str | None:
    with raw(location) as engine, engine.connect() as connection:
        return migrations.current(connection)


def tables(location: str) -> set[str]:
    with raw(location) as engine:
        return set(sa.inspect(engine).get_table_names())


def test_a_new_store_is_of_the_newest_revision(location: str) -> None:
    open_store(location).dispose()
    assert revision_of(location) == migrations.head()


def test_revisions_form_one_line() -> None:
    files = Path(migrations.__file__).parent.glob("versions/r*.py")
    numbers = sorted(
        re.findall(r'^revision = "(\d+)"', "\n".join(f.read_text() for f in files), re.MULTILINE)
    )
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    assert migrations.head() == numbers[-1]
    assert all(migrations.is_known(number) for number in numbers)
    assert not migrations.is_known("9999")


def test_the_schema_that_migrations_make_is_the_one_that_the_code_uses(engine: Engine) -> None:
    found = sa.inspect(engine)
    assert set(found.get_table_names()) == {*METADATA.tables, REVISION_TABLE}
    for name, table in METADATA.tables.items():
        columns = {column["name"]: column for column in found.get_columns(name)}
        assert list(columns) == [column.name for column in table.columns]
        for column in table.columns:
            is_nullable = columns[column.name]["nullable"] and not column.primary_key
            assert is_nullable == column.nullable, f"{name}.{column.name}"
        assert found.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key]
        assert {
            index["name"] for index in found.get_indexes(name) if "duplicates_constraint" not in index
        } == {index.name for index in table.indexes}


def test_revision_1_becomes_the_newest_with_all_that_is_in_it(location: str, tmp_path: Path) -> None:
    make(location, "0001")
    assert "sqlwall_snapshots" not in tables(location)
    with raw(location) as engine:
        seed = mock_seed(engine)
        add_agent(engine, "ada", note="before")
        writer = AuditWriter(engine)
        writer.append([AuditRecord(AuditKind.STATEMENT, agent="ada", reason="before")])
    assert revision_of(location) == "0001"

    engine = open_store(location)
    assert revision_of(location) == migrations.head()
    assert mock_seed(engine) == seed
    agent = find(engine, "ada")
    assert agent is not None
    assert agent.note == "before"
    assert verify(engine, [writer.head] if writer.head else []).faults == ()
    snapshots = Snapshots(engine, str(tmp_path / "blobs"))
    assert snapshots.verify(take(snapshots, ROWS).id) == []
    engine.dispose()


def test_opening_a_store_again_changes_nothing(location: str) -> None:
    open_store(location).dispose()
    before = schema_text(location)
    open_store(location).dispose()
    assert schema_text(location) == before


def schema_text(location: str) -> list[tuple[object, ...]]:
    with raw(location) as engine, engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            return [
                tuple(row) for row in connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_schema")
            ]
        return [
            tuple(row)
            for row in connection.exec_driver_sql(
                "SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid"
            )
        ]


def test_an_upgrade_that_fails_leaves_the_old_revision(location: str) -> None:
    """Something of the same name is in the way."""
    make(location, "0001")
    with raw(location) as engine, engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE sqlwall_snapshots (a integer)")
    with pytest.raises(StoreError, match="already exists"):
        open_store(location)
    assert revision_of(location) == "0001"
    with raw(location) as engine, engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE sqlwall_snapshots")
    open_store(location).dispose()
    assert revision_of(location) == migrations.head()


def set_revision(location: str, revision: str) -> None:
    with raw(location) as engine, engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {REVISION_TABLE} SET version_num = '{revision}'")


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_of_a_newer_program_is_left_alone(location: str, read_only: bool) -> None:
    open_store(location).dispose()
    set_revision(location, "9999")
    with pytest.raises(StoreError, match=r"was written by a newer sqlwall \(revision 9999\)"):
        open_store(location, read_only=read_only)
    assert revision_of(location) == "9999"


def test_who_only_looks_upgrades_nothing(location: str) -> None:
    make(location, "0001")
    with pytest.raises(StoreError, match="is of revision 0001; open it with `sqlwall serve` once"):
        open_store(location, read_only=True)
    assert revision_of(location) == "0001"


def test_other_tables_of_a_shared_database_are_left_alone(location: str) -> None:
    if "://" not in location:
        sqlite3.connect(location).close()
    with raw(location) as engine, engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num text)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('of somebody else')")
    open_store(location).dispose()
    with raw(location) as engine, engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM alembic_version").scalar() == "of somebody else"


# -- the guard of snapshots


def refuse(engine: Engine, statement: str, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        with writing(engine) as connection:
            connection.exec_driver_sql(statement)


def count(engine: Engine) -> int:
    with reading(engine) as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(SNAPSHOTS)) or 0


@pytest.fixture
def locked(engine: Engine, tmp_path: Path) -> Engine:
    """With a snapshot that is locked for an hour, and one whose lock has ended."""
    take(Snapshots(engine, str(tmp_path / "blobs"), lock_seconds=3600), ROWS)
    take(Snapshots(engine, str(tmp_path / "blobs")), ROWS, xid="free")
    return engine


def test_no_statement_shortens_a_lock(locked: Engine) -> None:
    words = "under a retention lock"
    refuse(locked, "DELETE FROM sqlwall_snapshots WHERE xid <> 'free'", words)
    refuse(locked, "UPDATE sqlwall_snapshots SET locked_until = '2000-01-01T00:00:00.000000Z'", words)
    refuse(locked, "UPDATE sqlwall_snapshots SET locked_until = ''", words)
    refuse(locked, "UPDATE sqlwall_snapshots SET digest = ''", words)
    if locked.dialect.name == "postgresql":
        refuse(locked, "TRUNCATE sqlwall_snapshots", words)
    else:
        refuse(locked, "REPLACE INTO sqlwall_snapshots SELECT * FROM sqlwall_snapshots", "is there already")
    assert count(locked) == 2


def test_a_snapshot_whose_lock_has_ended_may_go(locked: Engine) -> None:
    with writing(locked) as connection:
        connection.exec_driver_sql("DELETE FROM sqlwall_snapshots WHERE xid = 'free'")
    assert count(locked) == 1
