"""Promise 11: where a snapshot cannot be kept, the write is refused and nothing of it stays; the next one works again."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

from tests.e2e.wall import APP, OpenWall
from tests.postgres import Database
from tests.promises.guarded import Guarded, database_template, guarded, observer

__all__ = ["database_template", "guarded", "observer"]

Connection = psycopg.Connection[tuple[object, ...]]
Outage = Callable[[Guarded, Path], AbstractContextManager[None]]

CLOSED = "58000"
IDLE = pq.TransactionStatus.IDLE
#: More than the small disk holds, and no compression helps.
LARGE = (
    "INSERT INTO parent SELECT g, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 100) i WHERE g > 0)"
    " FROM generate_series(1000, 1500) g"
)
DISK = 512 * 1024


# -- what can be wrong with the place of the blobs


@contextmanager
def a_file_instead(_: Guarded, folder: Path) -> Iterator[None]:
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


@contextmanager
def read_only(_: Guarded, folder: Path) -> Iterator[None]:
    """For its owner by its mode, for root by its mount."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextmanager
def full(_: Guarded, folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass  # that it is full is what we want
    try:
        yield
    finally:
        filler.unlink()


# -- what can be wrong with the index and the record


@contextmanager
def without_table(wall: Guarded, name: str) -> Iterator[None]:
    with closing(sqlite3.connect(wall.wall.store, timeout=10, isolation_level=None)) as store:
        store.execute("PRAGMA legacy_alter_table = ON")
        store.execute(f"ALTER TABLE {name} RENAME TO away")
        try:
            yield
        finally:
            store.execute(f"ALTER TABLE away RENAME TO {name}")


def no_index(wall: Guarded, _: Path) -> AbstractContextManager[None]:
    return without_table(wall, "sqlwall_snapshots")


def no_record(wall: Guarded, _: Path) -> AbstractContextManager[None]:
    return without_table(wall, "sqlwall_audit")


@contextmanager
def locked(wall: Guarded, _: Path) -> Iterator[None]:
    """Somebody else writes for longer than the wall waits."""
    with closing(sqlite3.connect(wall.wall.store, timeout=10, isolation_level=None)) as store:
        store.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            store.execute("ROLLBACK")


def store_files(store: Path) -> list[Path]:
    """What SQLite keeps a store in while it is open."""
    return [store.with_name(store.name + end) for end in ("", "-wal", "-shm")]


@contextmanager
def removed(wall: Guarded, _: Path) -> Iterator[None]:
    """The store's files are gone from the disk, although the wall holds them open."""
    files = store_files(wall.wall.store)
    away = [(file, file.with_name("away-" + file.name)) for file in files if file.exists()]
    for file, place in away:
        file.rename(place)
    try:
        yield
    finally:
        for file in files:
            file.unlink(missing_ok=True)
        for file, place in away:
            place.rename(file)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the snapshots, where we may have one."""
    folder = tmp_path / "snapshots"
    folder.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "sqlwall", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def simple(agent: Connection, token: str) -> None:
    with psycopg.ClientCursor(agent) as cursor:
        cursor.execute("UPDATE parent SET name = %s WHERE id = 3", (token,))


def extended(agent: Connection, token: str) -> None:
    agent.execute("UPDATE parent SET name = %s WHERE id = %s", (token, 4))


def block(agent: Connection, token: str) -> None:
    agent.execute("BEGIN")
    agent.execute("DELETE FROM parent WHERE id = 5")
    agent.execute("INSERT INTO parent VALUES (5, %s)", (token,))
    agent.execute("COMMIT")


def pipeline(agent: Connection, token: str) -> None:
    with agent.pipeline():
        agent.execute("BEGIN")
        agent.execute(
            "INSERT INTO parent VALUES (6, %s) ON CONFLICT (id) DO UPDATE SET name = excluded.name", (token,)
        )
        agent.execute("COMMIT")


WRITES = (simple, extended, block, pipeline)


def refused(agent: Connection, write: Callable[[Connection, str], None]) -> None:
    """The write fails as documented, and the session is as before it."""
    with pytest.raises(psycopg.Error) as caught:
        write(agent, "refused")
    assert caught.value.sqlstate == CLOSED, caught.value
    assert "retryable=true" in (caught.value.diag.message_detail or "")
    if agent.info.transaction_status != IDLE:
        agent.execute("ROLLBACK")
    assert agent.info.transaction_status == IDLE


def check_outage(found: Guarded, folder: Path, outage: Outage, *, reads_go_on: bool) -> None:
    """Writes work, are refused during the outage, and work after; the snapshots say exactly what was committed."""
    with found.wall.connect() as agent:
        begun = found.bags()
        for write in WRITES:
            write(agent, "before")
        found.settled()
        before, records = found.bags(), found.snapshots.list()
        with outage(found, folder):
            for write in WRITES:
                refused(agent, write)
                if reads_go_on:
                    assert agent.execute("SELECT count(*) FROM parent").fetchone() == (20,)
            assert found.bags() == before
            assert open_transactions(found) == 0
        assert found.snapshots.list() == records
        assert list(folder.glob("*.partial")) == []
        for write in WRITES:
            until_it_works(agent, write)
        found.settled()
        assert found.bags() == found.apply(begun, set())
        for record in found.snapshots.list():
            assert found.snapshots.verify(record.id) == []


def open_transactions(found: Guarded) -> int:
    with found.wall.database.connect() as direct:
        row = direct.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE usename = %s AND datname = current_database() AND backend_xid IS NOT NULL",
            (APP,),
        ).fetchone()
    assert row is not None
    return int(row[0])


def until_it_works(agent: Connection, write: Callable[[Connection, str], None]) -> None:
    """A store that was down is tried again after a moment."""
    for _ in range(100):
        try:
            write(agent, "after")
        except psycopg.errors.SystemError:
            if agent.info.transaction_status != IDLE:
                agent.execute("ROLLBACK")
            time.sleep(0.05)
        else:
            return
    raise AssertionError("writes are still refused")


@pytest.mark.parametrize(
    ("outage", "reads_go_on"),
    [(a_file_instead, True), (no_index, True), (no_record, False), (locked, False), (removed, False)],
)
def test_a_write_that_cannot_be_kept_is_refused(
    guarded: Guarded, tmp_path: Path, outage: Outage, reads_go_on: bool
) -> None:
    check_outage(guarded, tmp_path / "snapshots", outage, reads_go_on=reads_go_on)


@pytest.mark.parametrize("outage", [read_only, full])
def test_a_disk_that_takes_nothing_more_refuses_writes(
    disk: Path, open_wall: OpenWall, database: Database, observer: tuple[str, str], outage: Outage
) -> None:
    wall = open_wall(observer__dsn=database.dsn(*observer), snapshots__url=str(disk))
    check_outage(Guarded(wall, disk), disk, outage, reads_go_on=True)


def test_a_snapshot_that_does_not_fit_leaves_nothing_behind(
    disk: Path, open_wall: OpenWall, database: Database, observer: tuple[str, str]
) -> None:
    found = Guarded(open_wall(observer__dsn=database.dsn(*observer), snapshots__url=str(disk)), disk)
    before = found.bags()
    with found.wall.connect() as agent:
        refused(agent, lambda agent, _: agent.execute(LARGE) and None)
        assert found.bags() == before
        assert list(disk.iterdir()) == []
        block(agent, "small")
    found.settled()
    assert found.bags() == found.apply(before, set())


def test_a_folder_that_was_removed_is_made_anew_and_what_it_held_is_missed(
    guarded: Guarded, tmp_path: Path
) -> None:
    with guarded.wall.connect() as agent:
        simple(agent, "first")
        guarded.settled()
        shutil.rmtree(tmp_path / "snapshots")
        block(agent, "second")
    guarded.settled()
    second, first = guarded.snapshots.list()
    assert guarded.snapshots.verify(second.id) == []
    (problem,) = guarded.snapshots.verify(first.id)
    assert problem.startswith(f"snapshot {first.id} is missing: ")


def test_a_store_that_was_deleted_is_not_made_anew_and_works_when_it_was_restored(guarded: Guarded) -> None:
    store = guarded.wall.store
    backup = store.with_name("backup.db")
    with guarded.wall.connect() as agent:
        simple(agent, "first")
        guarded.settled()
        with closing(sqlite3.connect(store, timeout=10)) as direct:
            direct.execute("VACUUM INTO ?", (str(backup),))
        guarded.engine.dispose()
        for file in store_files(store):
            file.unlink()
        before = guarded.bags()
        for write in WRITES:
            refused(agent, write)
        assert guarded.bags() == before
        assert not any(file.exists() for file in store_files(store))
        with pytest.raises(psycopg.OperationalError):
            guarded.wall.connect()
        backup.rename(store)
        for write in WRITES:
            until_it_works(agent, write)
    guarded.settled()
    assert [guarded.snapshots.verify(record.id) for record in guarded.snapshots.list()] == [[]] * 5


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
def test_no_file_of_the_store_may_be_missing(guarded: Guarded, end: str) -> None:
    store = guarded.wall.store
    file, away = store.with_name(store.name + end), store.with_name("away")
    with guarded.wall.connect() as agent:
        simple(agent, "first")
        guarded.settled()
        before = guarded.bags()
        file.rename(away)
        try:
            refused(agent, simple)
        finally:
            away.replace(file)
        assert guarded.bags() == before
        until_it_works(agent, simple)


def test_what_a_write_is_refused_for_is_not_told_where_it_cannot_be_recorded(
    guarded: Guarded, tmp_path: Path
) -> None:
    """Its rows are counted behind its verdict, which was on the record's way already."""
    many = "UPDATE parent SET name = 'x' WHERE id >= 1000"
    with guarded.wall.database.connect() as direct:
        direct.execute("INSERT INTO parent SELECT g, 'many' FROM generate_series(1000, 2500) g")
    with guarded.wall.connect() as agent, guarded.wall.connect() as in_block:
        in_block.execute("BEGIN")
        with no_record(guarded, tmp_path):
            for text in ("DROP TABLE parent", many):
                with pytest.raises(psycopg.errors.SystemError, match="closed"):
                    agent.execute(text.encode())
                assert agent.info.transaction_status == IDLE
        until_it_works(agent, simple)
        with no_record(guarded, tmp_path), pytest.raises(psycopg.errors.SystemError, match="closed"):
            in_block.execute(many.encode())
        in_block.execute("ROLLBACK")
        until_it_works(in_block, simple)
        with pytest.raises(psycopg.Error, match="more than 1000 rows"):
            in_block.execute(many.encode())
