"""Cancels, timeouts and other people's locks, under agent-safe with an observer: captures end with what they are for."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import asyncpg
import psycopg
import pytest

from sqlwall.proxy.observer import LOCK_TIMEOUT
from tests.e2e.tools import covered, covered_async, find_tool
from tests.e2e.wall import APP
from tests.postgres import Database
from tests.promises.guarded import Guarded, guarded, observer

__all__ = ["guarded", "observer"]

IDLE = psycopg.pq.TransactionStatus.IDLE
FAILED = psycopg.pq.TransactionStatus.INERROR

#: Long, and allowed.
LONG = "SELECT count(*) FROM generate_series(1, 1000000000)"


@contextmanager
def held(database: Database, text: str = "SELECT FROM orders WHERE id = 1 FOR UPDATE") -> Iterator[None]:
    """Somebody else, without a wall, has locked something and does not let go of it."""
    with database.connect() as other, other.transaction():
        other.execute(text.encode())
        yield


def running(database: Database, condition: str) -> str:
    """Wait for a session of the agent's of which this is true; what it runs."""
    deadline = time.monotonic() + 20
    with database.connect() as other:
        while time.monotonic() < deadline:
            found = other.execute(
                "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
                f" AND state = 'active' AND {condition}".encode(),
                (APP,),
            ).fetchone()
            if found is not None:
                return str(found[0])
            time.sleep(0.01)
    raise AssertionError("nothing came to run")


WAITS = "wait_event_type = 'Lock'"


def cancelled(
    database: Database, client: psycopg.Connection[Any], work: Callable[[], Any], condition: str = WAITS
) -> str:
    """Cancel what the client does when the server is at it; what the server was at."""
    seen: list[str] = []

    def cancel() -> None:
        seen.append(running(database, condition))
        client.cancel_safe()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with pytest.raises(psycopg.errors.QueryCanceled):
            work()
    finally:
        thread.join()
    return seen[0]


@pytest.mark.parametrize("prepare", [None, False, True])
def test_a_cancel_reaches_the_capture(guarded: Guarded, prepare: bool | None) -> None:
    text = "UPDATE orders SET note = note || ', mine' WHERE id = 1"
    with covered(guarded, 2), guarded.wall.connect(prepare_threshold=0) as client:
        for note in ("note 1", "note 1, mine"):
            with held(guarded.wall.database):
                if prepare is None:
                    was = cancelled(guarded.wall.database, client, lambda: client.execute(text.encode()))
                else:
                    was = cancelled(
                        guarded.wall.database,
                        client,
                        lambda: client.execute(text, binary=True, prepare=prepare),
                    )
                assert not was.startswith("UPDATE")
                assert client.info.transaction_status == IDLE
                assert client.execute("SELECT note FROM orders WHERE id = 1").fetchone() == (note,)
            assert (
                client.execute(text, binary=prepare is not None, prepare=prepare).statusmessage == "UPDATE 1"
            )


def test_a_cancelled_capture_leaves_the_block_to_its_savepoint(guarded: Guarded) -> None:
    with covered(guarded, 1), guarded.wall.connect() as client:
        client.execute("BEGIN")
        client.execute("UPDATE orders SET note = 'before' WHERE id = 2")
        client.execute("SAVEPOINT a")
        with held(guarded.wall.database):
            cancelled(
                guarded.wall.database, client, lambda: client.execute("DELETE FROM orders WHERE id = 1")
            )
            assert client.info.transaction_status == FAILED
        client.execute("ROLLBACK TO a")
        client.execute("UPDATE orders SET note = 'after' WHERE id = 3")
        client.execute("COMMIT")
        notes = client.execute("SELECT note FROM orders WHERE id < 4 ORDER BY id").fetchall()
        assert notes == [("note 1",), ("before",), ("after",)]


@pytest.mark.parametrize("in_block", [False, True])
def test_a_cancel_reaches_a_foreign_key_that_is_checked_at_commit(guarded: Guarded, in_block: bool) -> None:
    database = guarded.wall.database
    with database.connect() as connection:
        connection.execute(
            "ALTER TABLE orders ALTER CONSTRAINT orders_customer_fkey DEFERRABLE INITIALLY DEFERRED"
        )
    with covered(guarded, 1), guarded.wall.connect() as client:
        with held(database, "SELECT FROM customers WHERE id = 7 FOR UPDATE"):
            if in_block:
                client.execute("BEGIN")
                client.execute("INSERT INTO orders VALUES (1000, 7, 'x')")
            text = b"COMMIT" if in_block else b"INSERT INTO orders VALUES (1000, 7, 'x')"
            cancelled(database, client, lambda: client.execute(text))
            assert client.info.transaction_status == IDLE
            client.execute("INSERT INTO orders VALUES (1000, 8, 'y')")


def test_a_cancel_ends_a_long_read_and_nothing_else(guarded: Guarded) -> None:
    with covered(guarded, 3), guarded.wall.connect() as client:
        for number in (1, 2, 3):
            cancelled(
                guarded.wall.database, client, lambda: client.execute(LONG), "query ~ 'generate_series'"
            )
            client.execute("UPDATE orders SET note = 'on' WHERE id = %s", (number,))


def test_a_cancel_ends_a_pipeline_at_the_capture(guarded: Guarded) -> None:
    def pipe() -> None:
        with client.pipeline():
            client.execute("UPDATE orders SET note = 'piped' WHERE id = 2")
            client.execute("UPDATE orders SET note = 'piped' WHERE id = 1")
            client.execute("UPDATE orders SET note = 'piped' WHERE id = 3")

    with covered(guarded, 1), guarded.wall.connect(autocommit=False) as client:
        with held(guarded.wall.database):
            cancelled(guarded.wall.database, client, pipe)
            client.rollback()
        pipe()
        client.commit()


async def test_asyncpg_gives_up_waiting_for_a_row(guarded: Guarded) -> None:
    text = "UPDATE orders SET note = 'mine' WHERE id = $1"
    async with covered_async(guarded, 2):
        client = await asyncpg.connect(guarded.wall.dsn())
        try:
            with held(guarded.wall.database):
                with pytest.raises(asyncio.TimeoutError):
                    await client.execute(text, 1, timeout=0.3)
                task = asyncio.ensure_future(client.execute(text, 1))
                await asyncio.to_thread(running, guarded.wall.database, WAITS)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await client.execute(text, 2)
                with pytest.raises(asyncio.TimeoutError):
                    async with client.transaction():
                        await client.execute(text, 3)
                        await client.execute(text, 1, timeout=0.3)
            assert await client.execute(text, 1) == "UPDATE 1"
        finally:
            await client.close()


async def test_asyncpg_gives_up_a_long_read(guarded: Guarded) -> None:
    async with asyncpg.create_pool(guarded.wall.dsn(), min_size=1, max_size=1) as pool:
        for _ in range(3):
            task = asyncio.ensure_future(pool.fetchval(LONG))
            await asyncio.to_thread(running, guarded.wall.database, "query ~ 'generate_series'")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await pool.fetchval("SELECT $1::int", 1) == 1


def test_psql_is_interrupted(guarded: Guarded) -> None:
    script = f"UPDATE orders SET note = 'psql' WHERE id = 2;\n{LONG};\nUPDATE orders SET note = 'psql' WHERE id = 1;\n"
    with covered(guarded, 1):
        ran = subprocess.Popen(
            [find_tool("psql"), "-X", guarded.wall.dsn()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert ran.stdin is not None
        ran.stdin.write(script)
        ran.stdin.flush()
        running(guarded.wall.database, "query ~ 'generate_series'")
        ran.send_signal(signal.SIGINT)
        out, errors = ran.communicate(timeout=30)
    assert "canceling statement due to user request" in errors
    assert out == "UPDATE 1\n"  # a script that is interrupted ends


def test_timeouts_of_the_agents_own_end_the_capture(guarded: Guarded) -> None:
    with covered(guarded, 1), guarded.wall.connect() as client:
        with held(guarded.wall.database):
            client.execute("SET lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                client.execute("UPDATE orders SET note = 'x' WHERE id = 1")
            client.execute("RESET lock_timeout")
            client.execute("SET statement_timeout = '100ms'")
            with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
                client.execute("UPDATE orders SET note = 'x' WHERE id = 1")
        client.execute("UPDATE orders SET note = 'x' WHERE id = 1")


def test_a_serialization_failure_is_told_and_can_be_retried(guarded: Guarded) -> None:
    with guarded.wall.connect(autocommit=False) as client:
        client.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        client.execute("SELECT count(*) FROM orders")
        with guarded.wall.database.connect() as other:
            other.execute("UPDATE orders SET note = 'theirs' WHERE id = 1")
        with pytest.raises(psycopg.errors.SerializationFailure):
            client.execute("UPDATE orders SET note = note || ', mine' WHERE id = 1")
        client.rollback()
        with covered(guarded, 1):
            client.execute("UPDATE orders SET note = note || ', mine' WHERE id = 1")
            client.commit()
        assert client.execute("SELECT note FROM orders WHERE id = 1").fetchone() == ("theirs, mine",)


def test_somebody_who_waits_for_the_table_does_not_stop_a_commit_for_ever(guarded: Guarded) -> None:
    """The observer stands behind them, they behind the agent: the wall gives way, and the agent tries again."""
    database = guarded.wall.database
    with guarded.wall.connect() as client, ThreadPoolExecutor() as elsewhere:
        client.execute("BEGIN")
        client.execute("UPDATE orders SET note = 'x' WHERE id = 1")
        altered = elsewhere.submit(alter, database)
        try:
            waiting(database)
            begun = time.monotonic()
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
                client.execute("COMMIT")
            assert time.monotonic() - begun < 2 * LOCK_TIMEOUT / 1000
            assert client.info.transaction_status == IDLE
            altered.result(10)
        finally:
            client.execute("ROLLBACK")
        told = caught.value.diag
        assert told.message_primary == (
            "sqlwall denied COMMIT of public.orders [snapshot-locked]: others wait for a lock that keeps the observer out."
            " The transaction was rolled back. Retry the transaction."
        )
        assert "retryable=true" in str(told.message_detail)
        with covered(guarded, 1):
            client.execute("BEGIN")
            client.execute("UPDATE orders SET note = 'x' WHERE id = 1")
            client.execute("COMMIT")
        assert client.execute("SELECT note, more FROM orders WHERE id = 1").fetchone() == ("x", None)


def alter(database: Database) -> None:
    """What needs the table for itself."""
    with database.connect() as other:
        other.execute("ALTER TABLE orders ADD COLUMN more int")


def waiting(database: Database) -> None:
    """Wait until somebody waits for a whole table."""
    deadline = time.monotonic() + 20
    with database.connect() as other:
        while not other.execute("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'").rowcount:
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)
