"""The gate against a real server: what an open transaction has done, and what the ruleset says to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from sqlwall.proxy import gate
from sqlwall.proxy.gate import Ask, Failed, Outcome, Passed, Refused
from sqlwall.rules.context import Context, StaticCatalog
from sqlwall.rules.loader import load
from sqlwall.session.internal import Answer
from sqlwall.snapshot.witness import Witnesses
from sqlwall.wire import backend
from sqlwall.wire.frames import Frame
from tests.postgres import Database, Server, fresh_database

SCHEMA = """
CREATE TABLE orders (id int PRIMARY KEY, note text);
CREATE TABLE guarded (id int PRIMARY KEY);
CREATE TABLE payroll (id int PRIMARY KEY, salary int);
INSERT INTO orders VALUES (1, 'a'), (2, 'b'); INSERT INTO payroll VALUES (1, 1000);
CREATE VIEW staff AS SELECT * FROM payroll;
CREATE TABLE unique_later (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);

CREATE TABLE sneaky (id int);
CREATE FUNCTION pay() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN UPDATE payroll SET salary = 0; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON sneaky DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION pay();

-- the first trigger puts off the second, which writes
CREATE TABLE twice (id int);
CREATE FUNCTION put_off() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN SET CONSTRAINTS ALL DEFERRED; INSERT INTO sneaky VALUES (1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON twice DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION put_off();

-- and this one never ends
CREATE TABLE endless (id int);
CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN SET CONSTRAINTS ALL DEFERRED; INSERT INTO endless VALUES (1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON endless DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION again();

CREATE FUNCTION write_payroll() RETURNS int LANGUAGE sql AS 'UPDATE payroll SET salary = 1 RETURNING id';
CREATE VIEW writing AS SELECT write_payroll() AS id;
"""

RULES = """
version: 1
name: gate
mode: enforce
rules:
  - id: reads
    operations: [select]
    action: allow
  - id: waived
    operations: [insert, update, delete]
    tables: [public.orders, public.sneaky, public.twice, public.endless, public.unique_later]
    action: allow
    snapshot: none
  - id: covered
    operations: [insert]
    tables: [public.guarded]
    action: allow
    snapshot: required
  - id: no-payroll
    operations: [insert, update, delete]
    tables: [public.payroll]
    action: deny
"""
RULESET = load(RULES, "gate.yaml")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


def context(agent: str = "bot") -> Context:
    return Context(agent, "app", "shop", StaticCatalog())


@pytest.fixture(scope="module")
def shop(postgres: Server) -> Iterator[Database]:
    with fresh_database(postgres) as fresh:
        fresh.execute(SCHEMA.encode())
        yield fresh


@pytest.fixture
async def session(shop: Database) -> AsyncIterator[Connection]:
    """A session inside a transaction that is rolled back."""
    async with await psycopg.AsyncConnection.connect(shop.dsn(), autocommit=True) as connection:
        await connection.execute("BEGIN")
        yield connection
        await connection.execute("ROLLBACK")


def asking(connection: Connection, texts: list[bytes] | None = None) -> Ask:
    """Runs the gate's statements in a session, as the lane does."""

    async def ask(asked: Sequence[bytes]) -> list[Answer]:
        answers: list[Answer] = []
        for text in asked:
            answers.append(await ask_one(text))
            if answers[-1].error is not None:
                break
        return answers + [Answer((), None)] * (len(asked) - len(answers))

    async def ask_one(text: bytes) -> Answer:
        if texts is not None:
            texts.append(text)
        try:
            cursor = await connection.execute(text)
        except psycopg.Error as error:
            raw = backend.error_response(severity="ERROR", sqlstate=error.sqlstate or "", message=str(error))
            return Answer((), Frame(ord("E"), raw))
        rows = await cursor.fetchall() if cursor.description is not None else []
        return Answer(
            tuple(tuple(None if value is None else value.encode() for value in row) for row in rows), None
        )

    return ask


async def commit(
    connection: Connection, *texts: str, holds: bool = False, rolled_back: bool = False
) -> Outcome:
    """What the gate says after a baseline and these statements."""
    ask = asking(connection)
    baseline = await gate.read_baseline(ask)
    assert isinstance(baseline, Witnesses)
    for text in texts:
        await connection.execute(text.encode())
    return await gate.examine_commit(
        ask, baseline, RULESET, (context(),), holds=holds, rolled_back=rolled_back
    )


async def test_a_transaction_that_wrote_nothing_passes_read_only(session: Connection) -> None:
    asked: list[bytes] = []
    await session.execute("SELECT * FROM orders")
    outcome = await gate.examine_commit(
        asking(session, asked), None, RULESET, (context(),), holds=False, rolled_back=False
    )
    assert outcome == Passed(None)
    assert asked[1:] == [b"SET TRANSACTION READ ONLY"]


async def test_a_waived_write_passes_with_its_transaction_id(session: Connection) -> None:
    outcome = await commit(
        session, "UPDATE orders SET note = 'x' WHERE id = 1", "DELETE FROM orders WHERE id = 2"
    )
    row = await (await session.execute("SELECT pg_current_xact_id()::text")).fetchone()
    assert row is not None
    assert outcome == Passed(row[0])


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("UPDATE payroll SET salary = 2", "public.payroll"),
        ("UPDATE staff SET salary = 2", "public.payroll"),
        ("SELECT * FROM writing", "public.payroll"),
        ("INSERT INTO sneaky VALUES (1)", "public.payroll"),
        ("INSERT INTO twice VALUES (1)", "public.payroll"),
        ("CREATE TABLE made (id int)", ""),
        ("TRUNCATE orders", "public.orders"),
        ("SELECT lo_create(0)", "pg_catalog.pg_largeobject_metadata"),
    ],
)
async def test_what_the_ruleset_does_not_permit_is_refused_under_the_servers_name(
    session: Connection, text: str, target: str
) -> None:
    outcome = await commit(session, text)
    assert isinstance(outcome, Refused)
    assert outcome.rule == "gate"
    assert outcome.target == target or not target


async def test_the_rule_that_refuses_is_named(session: Connection) -> None:
    outcome = await commit(session, "UPDATE staff SET salary = 2")
    assert isinstance(outcome, Refused) and "[no-payroll]" in outcome.reason


async def test_a_table_that_no_rule_speaks_of_is_refused(session: Connection) -> None:
    outcome = await commit(
        session, "DELETE FROM guarded", "INSERT INTO guarded VALUES (1)", "DELETE FROM guarded"
    )
    assert isinstance(outcome, Refused)


async def test_a_write_that_needs_a_snapshot_is_refused_as_long_as_none_covers_it(
    session: Connection,
) -> None:
    outcome = await commit(session, "INSERT INTO guarded VALUES (1)")
    assert outcome == Refused("INSERT: no snapshot covers it [covered]", "gate", "public.guarded")


async def test_constraints_that_put_each_other_off_for_ever_are_refused(session: Connection) -> None:
    outcome = await commit(session, "INSERT INTO endless VALUES (1)")
    assert isinstance(outcome, Refused) and "deferred" in outcome.reason


async def test_a_trigger_that_the_transactions_snapshot_does_not_show_is_waited_for_too(
    shop: Database, session: Connection
) -> None:
    """It was made since, and puts itself off for ever."""
    await session.execute("ROLLBACK")
    await session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await session.execute("SELECT * FROM orders")
    shop.execute(
        b"CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET CONSTRAINTS ALL DEFERRED;"
        b" INSERT INTO orders SELECT max(id) + 1 FROM orders; RETURN NULL; END $$;"
        b"CREATE CONSTRAINT TRIGGER later AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED"
        b" FOR EACH ROW EXECUTE FUNCTION more()"
    )
    try:
        outcome = await commit(session, "INSERT INTO orders VALUES (100, 'x')")
        await session.execute("ROLLBACK")
    finally:
        shop.execute(b"DROP FUNCTION more() CASCADE")
    assert isinstance(outcome, Refused) and "deferred" in outcome.reason


async def test_a_constraint_that_fails_is_the_servers_own_error(session: Connection) -> None:
    outcome = await commit(session, "INSERT INTO unique_later VALUES (1), (1)")
    assert isinstance(outcome, Failed)
    assert backend.decode_diagnostics(outcome.error).sqlstate == "23505"


async def test_a_held_cursor_behind_a_write_is_refused(session: Connection) -> None:
    outcome = await commit(
        session, "INSERT INTO orders VALUES (9, 'x')", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", holds=True
    )
    assert outcome == Refused("a WITH HOLD cursor runs at COMMIT, behind the gate", "with-hold", "")


async def test_a_held_cursor_that_writes_at_commit_cannot(session: Connection) -> None:
    outcome = await commit(session, "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM writing", holds=True)
    assert outcome == Passed(None)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await session.execute("COMMIT")


async def test_a_transaction_that_has_written_has_no_baseline(session: Connection) -> None:
    await session.execute("INSERT INTO orders VALUES (10, 'x')")
    assert await gate.read_baseline(asking(session)) is None


async def test_without_a_baseline_the_gate_still_decides(session: Connection) -> None:
    await session.execute("UPDATE payroll SET salary = 3")
    outcome = await gate.examine_commit(
        asking(session), None, RULESET, (context(),), holds=False, rolled_back=False
    )
    assert isinstance(outcome, Refused) and outcome.target == "public.payroll"


async def test_a_failed_transaction_is_the_servers_own_error(session: Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await session.execute("SELECT 1 / 0")
    found = await gate.read_baseline(asking(session))
    assert isinstance(found, Frame)
    outcome = await gate.examine_commit(
        asking(session), None, RULESET, (context(),), holds=False, rolled_back=False
    )
    assert isinstance(outcome, Failed)
    assert backend.decode_diagnostics(outcome.error).sqlstate == "25P02"


async def test_a_write_undone_by_rollback_to_may_commit_if_it_is_known(session: Connection) -> None:
    texts = ("SAVEPOINT s", "UPDATE orders SET note = 'y'", "ROLLBACK TO s")
    assert isinstance(await commit(session, *texts, rolled_back=True), Passed)
    assert isinstance(await commit_again(session, rolled_back=False), Refused)


async def commit_again(connection: Connection, *, rolled_back: bool) -> Outcome:
    return await gate.examine_commit(
        asking(connection), None, RULESET, (context(),), holds=False, rolled_back=rolled_back
    )


async def test_each_context_must_permit_it_and_none_permits_nothing(session: Connection) -> None:
    text = RULES.replace(
        "action: allow\n    snapshot: none", "agents: [bot]\n    action: allow\n    snapshot: none"
    )
    ruleset = load(text, "gate.yaml")
    await session.execute("INSERT INTO orders VALUES (11, 'x')")

    async def examine(*contexts: Context) -> Outcome:
        return await gate.examine_commit(
            asking(session), None, ruleset, contexts, holds=False, rolled_back=False
        )

    assert isinstance(await examine(context("bot")), Passed)
    assert isinstance(await examine(context("bot"), context("other")), Refused)
    assert isinstance(await examine(context("other"), context("bot")), Refused)
    assert isinstance(await examine(), Refused)


async def test_an_answer_that_is_none_leaves_the_gate_closed() -> None:
    async def ask(texts: Sequence[bytes]) -> list[Answer]:
        return [Answer((), None) for _ in texts]

    with pytest.raises(IndexError):
        await gate.examine_commit(ask, None, RULESET, (context(),), holds=False, rolled_back=False)

    async def ask_half(texts: Sequence[bytes]) -> list[Answer]:
        return [Answer(((b"77",),) if b"xact_id" in text else (), None) for text in texts]

    outcome = await gate.examine_commit(ask_half, None, RULESET, (context(),), holds=False, rolled_back=True)
    assert isinstance(outcome, Refused)
