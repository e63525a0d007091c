"""Pools, libpq's choice of sessions and asyncpg, under agent-safe with an observer: what they wrote is in the snapshots."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extensions
import psycopg_pool
import pytest

from tests.e2e.tools import covered, covered_async, modelled
from tests.promises.guarded import Guarded, guarded, observer

__all__ = ["guarded", "modelled", "observer"]

# -- pools


@pytest.mark.parametrize("reset", ["RESET ALL", "DISCARD ALL"])
def test_a_psycopg_pool_resets_its_sessions(guarded: Guarded, reset: str) -> None:
    def clean(connection: psycopg.Connection[Any]) -> None:
        connection.autocommit = True
        connection.execute(reset.encode())
        connection.autocommit = False

    with covered(guarded, 6):
        with psycopg_pool.ConnectionPool(
            guarded.wall.dsn(),
            min_size=1,
            max_size=2,
            reset=clean,
            check=psycopg_pool.ConnectionPool.check_connection,
        ) as pool:
            for number in range(6):
                with pool.connection() as client:
                    client.execute("SET statement_timeout = '9s'")
                    client.execute("UPDATE orders SET note = %s WHERE id = %s", ("pooled", number + 1))
                with pytest.raises(psycopg.errors.InsufficientPrivilege), pool.connection() as client:
                    client.execute("DELETE FROM orders")
                with pool.connection() as client:
                    assert client.execute("SHOW statement_timeout").fetchone() == ("0",)


@pytest.mark.parametrize("reset", ["RESET ALL", "DISCARD ALL"])
def test_a_session_that_is_reset_goes_on_as_new(guarded: Guarded, reset: str) -> None:
    with covered(guarded, 4), guarded.wall.connect(prepare_threshold=0) as client:
        for number in range(1, 5):
            client.execute("SET timezone = 'Asia/Tokyo'")
            client.execute("UPDATE orders SET note = %s WHERE id = %s", ("reset", number))
            client.execute(reset.encode())
            if reset == "DISCARD ALL":
                client._prepared.clear()  # psycopg knows of DEALLOCATE ALL only
            assert client.execute("SHOW timezone").fetchone() != ("Asia/Tokyo",)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                client.execute("UPDATE orders SET note = 'all'")


@pytest.mark.parametrize("attributes", ["any", "read-write", "primary", "prefer-standby"])
def test_libpq_finds_the_session_that_it_wants(guarded: Guarded, attributes: str) -> None:
    with covered(guarded, 2):
        with guarded.wall.connect(target_session_attrs=attributes) as client:
            client.execute("UPDATE orders SET note = 'libpq' WHERE id = 1")
        older = psycopg2.connect(guarded.wall.dsn(), target_session_attrs=attributes)
        try:
            older.cursor().execute("UPDATE orders SET note = 'psycopg2' WHERE id = 2")
            older.commit()
        finally:
            older.close()


@pytest.mark.parametrize("attributes", ["read-only", "standby"])
def test_libpq_finds_no_session_that_is_not_there(guarded: Guarded, attributes: str) -> None:
    with pytest.raises(
        psycopg.OperationalError, match=r"session is not read-only|server is not in hot standby"
    ):
        guarded.wall.connect(target_session_attrs=attributes)


@pytest.mark.parametrize("attributes", ["any", "primary", "read-write", "prefer-standby"])
async def test_asyncpg_finds_the_session_that_it_wants(guarded: Guarded, attributes: str) -> None:
    async with covered_async(guarded, 1):
        client = await asyncpg.connect(guarded.wall.dsn(), target_session_attrs=attributes)
        try:
            await client.execute("UPDATE orders SET note = 'asyncpg' WHERE id = 1")
        finally:
            await client.close()


# -- asyncpg


async def test_asyncpg_writes_are_covered(guarded: Guarded) -> None:
    async with covered_async(guarded, 5):
        client = await asyncpg.connect(guarded.wall.dsn())
        try:
            update = await client.prepare("UPDATE orders SET note = $2 WHERE id = $1 RETURNING note")
            assert await update.fetchval(1, "one") == "one"
            assert await update.fetchval(2, "two") == "two"
            assert (
                await client.copy_records_to_table(
                    "orders",
                    records=[(n, 1, "copied") for n in range(200, 250)],
                    columns=["id", "customer", "note"],
                )
                == "COPY 50"
            )
            await client.executemany("INSERT INTO notes (body) VALUES ($1)", [("a",), ("b",), ("c",)])
            async with client.transaction(isolation="repeatable_read"):
                await client.execute("DELETE FROM orders WHERE id = $1", 3)
                with pytest.raises(ZeroDivisionError):
                    async with client.transaction():
                        await client.execute("DELETE FROM orders WHERE id = $1", 4)
                        raise ZeroDivisionError
                with pytest.raises(asyncpg.UniqueViolationError):
                    async with client.transaction():
                        await client.execute("INSERT INTO orders VALUES (5, 1, 'twice')")
                found = [
                    row["id"] async for row in client.cursor("SELECT id FROM orders WHERE id < 7 ORDER BY id")
                ]
                assert found == [1, 2, 4, 5, 6]
            async with client.transaction(readonly=True, isolation="serializable", deferrable=True):
                assert await client.fetchval("SELECT count(*) FROM orders") == 149
        finally:
            await client.close()


async def test_asyncpg_learns_the_types_of_the_database(modelled: Guarded) -> None:
    async with covered_async(modelled, 2):
        client = await asyncpg.connect(modelled.wall.dsn())
        try:
            await client.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=str)
            row = await client.fetchrow(
                "INSERT INTO people (name, feels, home, share, tags, extra) VALUES ($1, $2, $3, $4, $5, $6)"
                " RETURNING feels, home, share, tags",
                "Cyd", "happy", ("Elm", 7), 12, ["x"], "{}",
            )  # fmt: skip
            assert (row["feels"], row["home"]["number"], row["tags"]) == ("happy", 7, ["x"])
            moods = await client.fetch("SELECT ARRAY['sad', 'ok']::mood[] AS moods, home FROM people")
            assert moods[0]["moods"] == ["sad", "ok"]
            statement = await client.prepare("SELECT * FROM people WHERE feels = ANY ($1::mood[])")
            assert [column.name for column in statement.get_attributes()][:3] == ["id", "name", "feels"]
            assert "Plan" in (await statement.explain(["ok"]))[0]
            await client.reload_schema_state()
            assert len(await statement.fetch(["happy"])) == 2
            await client.execute("UPDATE people SET feels = $1 WHERE name = $2", "ok", "Bob")
        finally:
            await client.close()


async def test_an_asyncpg_pool_resets_its_sessions(guarded: Guarded) -> None:
    async def work(pool: asyncpg.Pool, number: int) -> None:
        async with pool.acquire() as client:
            await client.execute("SET timezone = 'Asia/Tokyo'")
            async with client.transaction():
                await client.execute("UPDATE orders SET note = 'pooled' WHERE id = $1", number)
        async with pool.acquire() as client:
            assert await client.fetchval("SHOW timezone") != "Asia/Tokyo"

    async with covered_async(guarded, 8):
        async with asyncpg.create_pool(guarded.wall.dsn(), min_size=1, max_size=3) as pool:
            await asyncio.gather(*(work(pool, number) for number in range(1, 9)))
