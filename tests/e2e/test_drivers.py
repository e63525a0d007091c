"""Real drivers through the wall: what agents and their tools do all day."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pg8000.dbapi
import pg8000.native
import psycopg
import psycopg2
import psycopg2.extras
import pytest
from psycopg import sql

from tests.e2e.wall import RunningWall


def native(wall: RunningWall) -> pg8000.native.Connection:
    """A pg8000 connection through the wall."""
    host, port = wall.address
    return pg8000.native.Connection(
        "bot", password=wall.password, host=host, port=port, database=wall.database.name
    )


# -- psycopg 3


def test_psycopg_reads_in_every_mode(wall: RunningWall) -> None:
    with wall.connect() as client:
        assert client.execute("SELECT count(*) FROM orders").fetchone() == (100,)
        assert client.execute("SELECT note FROM orders WHERE id = %s", (7,)).fetchone() == ("note 7",)
        for number in range(8):
            row = client.execute(
                "SELECT id FROM orders WHERE id = %s", (number + 1,), prepare=True
            ).fetchone()
            assert row == (number + 1,)
        found = client.execute("SELECT id, note FROM orders WHERE id < %s ORDER BY id", (3,), binary=True)
        assert found.fetchall() == [(1, "note 1"), (2, "note 2")]
        client.execute("SELECT 1; SELECT 2")


def test_psycopg_pipelines_reads(wall: RunningWall) -> None:
    with wall.connect() as client, client.pipeline() as pipeline:
        cursors = [client.execute("SELECT id FROM orders WHERE id = %s", (n,)) for n in range(1, 30)]
        pipeline.sync()
        assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(1, 30)]
        first = client.execute("SELECT 1")
        assert first.fetchone() == (1,)  # asks with a Flush
        assert client.execute("SELECT 2").fetchone() == (2,)


def test_psycopg_server_side_cursors_fetch_in_steps(wall: RunningWall) -> None:
    with wall.connect(autocommit=False) as client:
        with client.cursor(name="steps") as cursor:
            cursor.itersize = 10
            cursor.execute("SELECT id FROM orders ORDER BY id")
            assert [row[0] for row in cursor] == list(range(1, 101))
        with client.cursor(name="scrolls", scrollable=True) as cursor:
            cursor.execute("SELECT id FROM orders ORDER BY id")
            cursor.scroll(50)
            assert cursor.fetchone() == (51,)
            cursor.scroll(-10)
            assert cursor.fetchone() == (42,)


def test_psycopg_holds_a_cursor_over_the_end_of_its_transaction(wall: RunningWall) -> None:
    with wall.connect(autocommit=False) as client:
        cursor = client.cursor(name="held", withhold=True)
        cursor.execute("SELECT id FROM orders ORDER BY id")
        assert cursor.fetchone() == (1,)
        client.commit()
        assert cursor.fetchone() == (2,)
        cursor.close()


def test_psycopg_copies_out(wall: RunningWall) -> None:
    with wall.connect() as client:
        cursor = client.cursor()
        with cursor.copy("COPY (SELECT id, note FROM orders WHERE id < 3 ORDER BY id) TO STDOUT") as copy:
            assert b"".join(copy) == b"1\tnote 1\n2\tnote 2\n"
        with cursor.copy("COPY orders (id) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4"])
            assert sorted(row[0] for row in copy.rows()) == list(range(1, 101))
        with cursor.copy("COPY (SELECT %s::int) TO STDOUT", (5,)) as copy:
            assert list(copy.rows()) == [("5",)]
        assert client.execute("SELECT 1").fetchone() == (1,)


def test_psycopg_copies_in_where_a_rule_waives_it(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        with client.cursor().copy("COPY orders (id, note) FROM STDIN") as copy:
            for number in range(200, 300):
                copy.write_row((number, "copied"))
        with client.transaction():
            with client.cursor().copy("COPY orders (id, note) FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(["int4", "text"])
                copy.write_row((300, "binary"))
            assert client.execute("SELECT note FROM orders WHERE id = 300").fetchone() == ("binary",)
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            with client.cursor().copy("COPY orders (id, note) FROM STDIN") as copy:
                copy.write(b"no columns\n" * 3)
        with pytest.raises(ZeroDivisionError):
            with client.cursor().copy("COPY orders (id, note) FROM STDIN") as copy:
                copy.write_row((400, "left behind"))
                raise ZeroDivisionError
        assert client.execute("SELECT count(*) FROM orders WHERE id >= 200").fetchone() == (101,)
        assert client.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_psycopg_writes_where_a_rule_waives_it(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        assert client.execute("INSERT INTO orders VALUES (1000, 1, 'simple')").statusmessage == "INSERT 0 1"
        row = client.execute(
            "INSERT INTO orders VALUES (%s, 1, %s) RETURNING id, note", (1001, "x")
        ).fetchone()
        assert row == (1001, "x")
        client.execute(
            "UPDATE orders SET note = 'a' WHERE id = 1000; UPDATE orders SET note = 'b' WHERE id = 1001"
        )
        assert client.execute("SELECT note FROM orders WHERE id > 999 ORDER BY id").fetchall() == [
            ("a",),
            ("b",),
        ]
        with client.cursor() as cursor:
            cursor.executemany("INSERT INTO orders VALUES (%s, 1, 'many')", [(n,) for n in range(2000, 2020)])
            assert cursor.rowcount == 20
            cursor.executemany(
                "INSERT INTO orders VALUES (%s, 1, 'many') RETURNING id", [(3000,), (3001,)], returning=True
            )
            assert cursor.fetchone() == (3000,)
        with client.transaction():
            client.execute("DELETE FROM orders WHERE id = %s", (1000,))
            with pytest.raises(ZeroDivisionError), client.transaction():
                client.execute("DELETE FROM orders WHERE id = %s", (1001,))
                raise ZeroDivisionError
        assert client.execute("SELECT id FROM orders WHERE id IN (1000, 1001)").fetchall() == [(1001,)]


def test_psycopg_pipelines_waived_writes(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        with client.pipeline():
            for number in range(500, 520):
                client.execute("INSERT INTO orders VALUES (%s, 1, 'piped')", (number,))
        with client.pipeline() as pipeline, client.transaction():
            client.execute("UPDATE orders SET note = 'again' WHERE id = 500")
            pipeline.sync()
        assert client.execute("SELECT count(*), max(note) FROM orders WHERE id >= 500").fetchone() == (
            20,
            "piped",
        )
        assert client.execute("SELECT note FROM orders WHERE id = 500").fetchone() == ("again",)


async def test_async_psycopg_runs_in_step(wall: RunningWall) -> None:
    async with await psycopg.AsyncConnection.connect(wall.dsn(), autocommit=True) as client:
        cursor = await client.execute("SELECT count(*) FROM orders")
        assert await cursor.fetchone() == (100,)
        cursor = await client.execute("SELECT count(*) FROM orders WHERE id < %s", (11,))
        assert await cursor.fetchone() == (10,)


# -- psycopg2


def test_psycopg2_reads_and_writes(writing_wall: RunningWall) -> None:
    client = psycopg2.connect(writing_wall.dsn())
    try:
        cursor = client.cursor()
        cursor.execute("SELECT note FROM orders WHERE id = %s", (3,))
        assert cursor.fetchone() == ("note 3",)
        cursor.execute("INSERT INTO orders VALUES (%s, %s, %s)", (700, 1, "psycopg2"))
        client.commit()
        psycopg2.extras.execute_values(
            cursor, "INSERT INTO orders (id, note) VALUES %s", [(701, "a"), (702, "b")]
        )
        client.rollback()
        cursor.execute("SELECT id FROM orders WHERE id >= 700")
        assert cursor.fetchall() == [(700,)]
        with client.cursor(name="steps") as steps:
            steps.itersize = 7
            steps.execute("SELECT id FROM orders ORDER BY id")
            assert len(list(steps)) == 101
        client.rollback()
        client.set_session(autocommit=True)
        cursor.execute("UPDATE orders SET note = 'auto' WHERE id = 700")
        assert cursor.rowcount == 1
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("DELETE FROM orders")
        cursor.execute("SELECT note FROM orders WHERE id = 700")
        assert cursor.fetchone() == ("auto",)
    finally:
        client.close()


def test_psycopg2_sets_up_its_sessions(wall: RunningWall) -> None:
    client = psycopg2.connect(wall.dsn())
    try:
        client.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
        cursor = client.cursor()
        cursor.execute("SHOW transaction_isolation")
        assert cursor.fetchone() == ("serializable",)
        client.rollback()
        client.set_client_encoding("UTF8")
        client.reset()
    finally:
        client.close()


# -- asyncpg


async def test_asyncpg_reads_and_writes(writing_wall: RunningWall) -> None:
    client = await asyncpg.connect(writing_wall.dsn())
    try:
        assert await client.fetchval("SELECT count(*) FROM orders") == 100
        assert await client.fetchval("SELECT note FROM orders WHERE id = $1", 4) == "note 4"
        statement = await client.prepare("SELECT note FROM orders WHERE id = $1")
        assert [await statement.fetchval(n) for n in (1, 2, 3)] == ["note 1", "note 2", "note 3"]
        assert await client.execute("INSERT INTO orders VALUES (800, 1, 'simple')") == "INSERT 0 1"
        assert await client.execute("INSERT INTO orders VALUES ($1, 1, 'ext')", 801) == "INSERT 0 1"
        await client.executemany("INSERT INTO orders VALUES ($1, 1, 'many')", [(n,) for n in range(810, 830)])
        async with client.transaction():
            await client.execute("DELETE FROM orders WHERE id = $1", 800)
            async with client.transaction():
                await client.execute("DELETE FROM orders WHERE id = $1", 801)
            async for row in client.cursor("SELECT id FROM orders ORDER BY id", prefetch=10):
                assert row["id"] > 0
        with pytest.raises(ZeroDivisionError):
            async with client.transaction(isolation="serializable"):
                await client.execute("DELETE FROM orders WHERE id = 810")
                raise ZeroDivisionError
        assert await client.fetchval("SELECT count(*) FROM orders WHERE id >= 800") == 20
    finally:
        await client.close()


async def test_asyncpg_copies_in_and_out(writing_wall: RunningWall) -> None:
    client = await asyncpg.connect(writing_wall.dsn())
    try:
        records = [(n, 1, "copied") for n in range(900, 1000)]
        result = await client.copy_records_to_table(
            "orders", records=records, columns=["id", "customer", "note"]
        )
        assert result == "COPY 100"
        chunks: list[bytes] = []

        async def keep(data: bytes) -> None:
            chunks.append(data)

        await client.copy_from_query("SELECT id FROM orders WHERE id > $1", 997, output=keep)
        assert b"".join(chunks) == b"998\n999\n"
        await client.copy_from_table("customers", output=keep, format="binary")
        async with client.transaction():
            await client.copy_records_to_table(
                "orders", records=[(2000, 1, "b")], columns=["id", "customer", "note"]
            )
        assert await client.fetchval("SELECT count(*) FROM orders WHERE id >= 900") == 101
    finally:
        await client.close()


async def test_asyncpg_pools_reset_their_connections(wall: RunningWall) -> None:
    async with asyncpg.create_pool(wall.dsn(), min_size=1, max_size=2) as pool:
        for _ in range(3):
            async with pool.acquire() as client:
                assert await client.fetchval("SELECT 1") == 1


# -- pg8000


def test_pg8000_reads_and_writes(writing_wall: RunningWall) -> None:
    client = native(writing_wall)
    try:
        assert client.run("SELECT count(*) FROM orders") == [[100]]
        assert client.run("SELECT note FROM orders WHERE id = :id", id=5) == [["note 5"]]
        statement = client.prepare("SELECT note FROM orders WHERE id = :id")
        assert [statement.run(id=n) for n in (1, 2)] == [[["note 1"]], [["note 2"]]]
        statement.close()
        client.run("INSERT INTO orders VALUES (:id, 1, 'pg8000')", id=600)
        client.run("BEGIN")
        client.run("DELETE FROM orders WHERE id = :id", id=600)
        client.run("ROLLBACK")
        assert client.run("SELECT note FROM orders WHERE id = 600") == [["pg8000"]]
        with pytest.raises(pg8000.exceptions.DatabaseError) as refused:
            client.run("DELETE FROM orders")
        assert refused.value.args[0]["C"] == "42501"
        assert client.run("SELECT 1") == [[1]]
    finally:
        client.close()


def test_pg8000_copies_in_and_out(writing_wall: RunningWall) -> None:
    import io

    client = native(writing_wall)
    try:
        out = io.BytesIO()
        client.run("COPY (SELECT 1, 2) TO STDOUT", stream=out)
        assert out.getvalue() == b"1\t2\n"
        client.run("BEGIN")
        client.run("COPY orders (id, note) FROM STDIN", stream=io.BytesIO(b"650\tx\n651\ty\n"))
        client.run("COMMIT")
        assert client.run("SELECT count(*) FROM orders WHERE id >= 650") == [[2]]
    finally:
        client.close()


# -- what all of them do


@pytest.mark.parametrize(
    "text",
    [
        "DISCARD ALL",
        "RESET ALL",
        "DEALLOCATE ALL",
        "SET application_name = 'x'",
        "SET TIME ZONE 'UTC'",
        "SET search_path = public",
        "SET client_encoding = 'UTF8'",
        "SET statement_timeout = '10s'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SELECT pg_advisory_unlock_all()",
        "CLOSE ALL",
        "UNLISTEN *",
        "SHOW server_version",
        "SELECT version()",
        "SELECT pg_catalog.version(), current_schema(), current_database()",
    ],
)
def test_what_pools_and_tools_send_passes(writing_wall: RunningWall, text: str) -> None:
    with writing_wall.connect() as client:
        client.execute(text.encode())
        client.execute("INSERT INTO orders VALUES (1000, 1, 'still writes')")
        assert client.execute("SELECT count(*) FROM orders").fetchone() == (101,)


def test_a_session_is_shown_as_read_write(wall: RunningWall) -> None:
    with wall.connect(target_session_attrs="read-write") as client:
        assert client.info.parameter_status("default_transaction_read_only") == "off"
        client.execute("DISCARD ALL")
        assert client.info.parameter_status("default_transaction_read_only") == "off"
    with pytest.raises(psycopg.OperationalError):
        wall.connect(target_session_attrs="read-only")


def test_identifiers_and_values_of_every_kind_come_through(wall: RunningWall) -> None:
    values: list[Any] = ["a'b", 'q"q', "snow ☃", "back\\slash", b"\0\xff", None, 1.5, [1, 2], {"a": 1}]
    with wall.connect() as client:
        for value in values:
            given = psycopg.types.json.Jsonb(value) if isinstance(value, dict) else value
            assert client.execute("SELECT %s", (given,)).fetchone() == (value,)
        for value in values[:4]:
            assert client.execute(sql.SQL("SELECT {}").format(sql.Literal(value))).fetchone() == (value,)


async def test_many_agents_work_at_once(writing_wall: RunningWall) -> None:
    async def work(number: int) -> None:
        client = await asyncpg.connect(writing_wall.dsn())
        try:
            for step in range(5):
                await client.execute("INSERT INTO orders VALUES ($1, 1, 'w')", 10_000 + number * 10 + step)
                await client.fetchval("SELECT count(*) FROM orders")
        finally:
            await client.close()

    await asyncio.gather(*(work(number) for number in range(10)))
    with writing_wall.connect() as client:
        assert client.execute("SELECT count(*) FROM orders WHERE id >= 10000").fetchone() == (50,)
