"""What an agent sees of a refusal: a PostgreSQL error, in its place, with the transaction in its proper state."""

from __future__ import annotations

import asyncpg
import psycopg
import pytest
from psycopg import pq

from sqlwall.wire import frontend
from tests.e2e.wall import RunningWall
from tests.e2e.wire import SYNC, RawClient, codes, errors, rows, run, states, status

IDLE, IN_BLOCK, FAILED = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR


def refused(client: psycopg.Connection, text: str, *values: object) -> psycopg.errors.Diagnostic:
    """The refusal of a text."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
        client.execute(text.encode(), values or None)
    return caught.value.diag


def test_a_refusal_says_all_that_there_is_to_say(wall: RunningWall) -> None:
    with wall.connect() as client:
        found = refused(client, "DELETE FROM orders")
    assert found.message_primary == (
        "sqlwall denied DELETE on public.orders [bounded-writes-only]: no WHERE clause."
        " Nothing was executed. Do not retry unchanged."
    )
    assert (found.severity, found.sqlstate, found.constraint_name) == (
        "ERROR",
        "42501",
        "bounded-writes-only",
    )
    assert found.message_detail is not None
    assert found.message_detail.startswith("rule=bounded-writes-only retryable=false event=")
    assert found.message_hint == "Add a WHERE clause that selects only the rows you mean."
    event = found.message_detail.rpartition("=")[2]
    record = next(record for record in wall.audit() if record["event"] == event)
    assert (record["kind"], record["agent"], record["rule"]) == ("refusal", "bot", "bounded-writes-only")
    assert record["statement"] == "DELETE FROM orders"


def test_a_refusal_outside_a_block_leaves_the_session_idle(wall: RunningWall) -> None:
    with wall.connect() as client:
        refused(client, "DROP TABLE orders")
        assert client.info.transaction_status == IDLE
        refused(client, "DELETE FROM orders WHERE id > %s OR true", 5)
        assert client.info.transaction_status == IDLE
        assert client.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("values", [(), (1,)])
def test_a_refusal_in_a_block_fails_the_block(wall: RunningWall, values: tuple[object, ...]) -> None:
    text = "DROP TABLE orders" if not values else "DELETE FROM orders WHERE true OR id = %s"
    with wall.connect() as client:
        client.execute("BEGIN")
        refused(client, text, *values)
        assert client.info.transaction_status == FAILED
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            client.execute("SELECT 1")
        assert client.execute("COMMIT").statusmessage == "ROLLBACK"
        assert client.info.transaction_status == IDLE


def test_a_savepoint_saves_a_block_from_a_refusal(wall: RunningWall) -> None:
    with wall.connect() as client, client.transaction():
        with pytest.raises(psycopg.errors.InsufficientPrivilege), client.transaction():
            client.execute("TRUNCATE orders")
        assert client.info.transaction_status == IN_BLOCK
        assert client.execute("SELECT count(*) FROM orders").fetchone() == (100,)


def test_a_refusal_in_a_pipeline_aborts_what_follows(wall: RunningWall) -> None:
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), client.pipeline() as pipeline:
            first = client.execute("SELECT 1")
            client.execute("DELETE FROM orders")
            third = client.execute("SELECT 3")
            pipeline.sync()
        assert first.fetchone() == (1,)
        with pytest.raises(psycopg.errors.Error):
            third.fetchone()
        assert client.execute("SELECT 4").fetchone() == (4,)


def test_the_replies_around_a_refusal_are_those_of_the_server(wall: RunningWall) -> None:
    with RawClient(wall.dsn()) as client:
        found = client.ask(run("SELECT 1"), run("DELETE FROM orders"), run("SELECT 3"), SYNC)
        assert codes(found) == "12DCEZ"
        assert (states(found), status(found)) == (["42501"], "I")
        found = client.ask(run("BEGIN"), run("DROP TABLE orders"), run("COMMIT"), SYNC)
        assert codes(found) == "12CEZ"
        assert status(found) == "E"
        assert status(client.query("ROLLBACK")) == "I"
        found = client.query("SELECT 1; DELETE FROM orders; SELECT 2")
        assert codes(found) == "EZ"
        found = client.ask(run("SELECT 5"), SYNC)
        assert rows(found) == [(b"5",)]


async def test_asyncpg_sees_a_refusal_when_it_prepares(wall: RunningWall) -> None:
    client = await asyncpg.connect(wall.dsn())
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError) as caught:
            await client.prepare("DELETE FROM orders WHERE true")
        assert "[bounded-writes-only]" in str(caught.value)
        assert caught.value.constraint_name == "bounded-writes-only"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await client.fetch("DROP TABLE orders")
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await client.prepare("SELEC 1")
        assert await client.fetchval("SELECT $1::int", 1) == 1
    finally:
        await client.close()


def test_executemany_is_refused_as_one(wall: RunningWall) -> None:
    before = wall.state()
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.cursor().executemany("DELETE FROM orders WHERE id = %s", [(1,), (2,)])
        assert client.execute("SELECT 1").fetchone() == (1,)
    assert wall.state() == before


def test_a_refusal_behind_waived_writes_is_told_as_such_and_undoes_them(writing_wall: RunningWall) -> None:
    before = writing_wall.state()
    with RawClient(writing_wall.dsn()) as client:
        found = client.ask(
            run("INSERT INTO orders VALUES (1000, 1, 'x')"), run("DELETE FROM payroll WHERE id = 1"), SYNC
        )
        assert states(found) == ["42501"]
        assert codes(found) == "12CEZ"
        assert status(found) == "I"
        assert rows(client.query("SELECT count(*) FROM orders")) == [(b"100",)]
    assert writing_wall.state() == before


def test_a_syntax_error_is_the_servers_own(wall: RunningWall) -> None:
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.SyntaxError) as caught:
            client.execute("SELEC 1")
        assert caught.value.diag.message_primary == 'syntax error at or near "SELEC"'
        assert caught.value.diag.statement_position == "1"


def test_errors_of_the_server_come_through_unchanged(wall: RunningWall) -> None:
    with wall.connect() as client, wall.database.connect() as direct:
        for text in ("SELECT nothing FROM orders", "SELECT 1/0", "SELECT * FROM nowhere", "SELECT 'x'::int"):
            seen = []
            for connection in (client, direct):
                with pytest.raises(psycopg.Error) as caught:
                    connection.execute(text.encode())
                diag = caught.value.diag
                seen.append((diag.sqlstate, diag.message_primary, diag.statement_position, diag.message_hint))
            assert seen[0] == seen[1]


def test_names_of_our_own_are_refused(wall: RunningWall) -> None:
    with RawClient(wall.dsn()) as client:
        for message in (
            frontend.parse(b"_sqlwall_x", b"SELECT 1"),
            frontend.bind(b"_sqlwall_x", b""),
            frontend.describe(frontend.Kind.STATEMENT, b"_sqlwall_x"),
            frontend.close(frontend.Kind.PORTAL, b"_sqlwall_x"),
        ):
            found = client.ask(message, SYNC)
            assert codes(found) == "EZ"
            assert errors(found)[0].constraint == "reserved-name"


def test_statements_and_portals_that_are_not_there_are_told_in_the_servers_words(wall: RunningWall) -> None:
    with RawClient(wall.dsn()) as client, RawClient(wall.database.dsn()) as direct:
        for messages in (
            frontend.bind(b"", b"nope"),
            frontend.execute(b"nope"),
            frontend.parse(b"", b"SELECT 1; SELECT 2"),
            frontend.query(b"EXECUTE nope"),
        ):
            ours, theirs = (
                [(e.sqlstate, e.message) for e in errors(c.ask(messages, SYNC))] for c in (client, direct)
            )
            assert ours == theirs
            for peer in (client, direct):
                peer.drain(0.05)
