"""Transactions through the wall: who may write where, what the gate finds at a commit, what stays as PostgreSQL has it."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import pq

from sqlwall.wire import frontend
from tests.e2e.wall import WAIVED, OpenWall, RunningWall, waiving
from tests.e2e.wire import FLUSH, SYNC, RawClient, codes, errors, rows, run, states, status, tags

IDLE, IN_BLOCK, FAILED = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR


# -- the read-only lock


def test_a_block_is_read_write_only_where_the_ruleset_permits_writes(open_wall: OpenWall) -> None:
    for ruleset, shown in ((waiving(*WAIVED), "off"), ("read-only", "on")):
        with open_wall(ruleset).connect() as client:
            client.execute("BEGIN")
            assert client.execute("SHOW transaction_read_only").fetchone() == (shown,)
            client.execute("ROLLBACK")
            assert client.execute("SHOW transaction_read_only").fetchone() == ("on",)


def test_begin_read_only_stays_read_only(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        for text in ("BEGIN READ ONLY", "START TRANSACTION READ ONLY"):
            client.execute(text.encode())
            assert client.execute("SHOW transaction_read_only").fetchone() == ("on",)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                client.execute("INSERT INTO orders VALUES (1000, 1, 'x')")
            client.execute("ROLLBACK")


def test_the_isolation_level_may_be_the_first_thing_in_a_block(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        client.execute("BEGIN")
        client.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert client.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        client.execute("UPDATE orders SET note = 'x' WHERE id = 1")
        client.execute("COMMIT")
        client.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert client.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
        client.execute("COMMIT")
    with writing_wall.connect(autocommit=False) as client:
        client.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        client.execute("UPDATE orders SET note = 'y' WHERE id = 1")
        client.commit()


def test_a_block_can_be_made_read_only_but_not_read_write(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        client.execute("BEGIN")
        client.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute("SET TRANSACTION READ WRITE")
        client.execute("ROLLBACK")


# -- waived writes


def test_a_simple_waived_write_answers_as_the_server_does(writing_wall: RunningWall) -> None:
    with RawClient(writing_wall.dsn()) as client:
        found = client.query("INSERT INTO orders VALUES (1000, 1, 'x') RETURNING id")
        assert codes(found) == "TDCZ"
        assert (rows(found), tags(found), status(found)) == ([(b"1000",)], [b"INSERT 0 1"], "I")
        found = client.query(
            "UPDATE orders SET note = 'y' WHERE id = 1000; SELECT note FROM orders WHERE id = 1000"
        )
        assert codes(found) == "CTDCZ"
        assert rows(found) == [(b"y",)]
        found = client.query("SELECT 1; DELETE FROM orders WHERE id = 1000; ;")
        assert codes(found) == "TDCCZ"


def test_an_extended_waived_write_answers_as_the_server_does(writing_wall: RunningWall) -> None:
    with RawClient(writing_wall.dsn()) as client:
        text = "INSERT INTO orders VALUES ($1, 1, 'x') RETURNING id"
        found = client.ask(
            frontend.parse(b"s", text.encode(), [23]),
            frontend.describe(frontend.Kind.STATEMENT, b"s"),
            frontend.bind(b"", b"s", [b"1000"]),
            frontend.execute(b""),
            frontend.bind(b"", b"s", [b"1001"]),
            frontend.execute(b""),
            SYNC,
        )
        assert codes(found) == "1tT2DC2DCZ"
        assert (rows(found), status(found)) == ([(b"1000",), (b"1001",)], "I")
        found = client.ask(frontend.bind(b"", b"s", [b"1000"]), frontend.execute(b""), SYNC)
        assert states(found) == ["23505"]
        assert status(found) == "I"
        found = client.ask(frontend.bind(b"", b"s", [b"1002"]), frontend.execute(b""), SYNC)
        assert codes(found) == "2DCZ"


def test_a_waived_write_in_a_block_is_committed_or_rolled_back(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        client.execute("BEGIN")
        client.execute("INSERT INTO orders VALUES (1000, 1, 'x')")
        client.execute("ROLLBACK")
        client.execute("BEGIN")
        client.execute("INSERT INTO orders VALUES (%s, 1, 'x')", (1001,))
        assert client.execute("COMMIT").statusmessage == "COMMIT"
        assert client.execute("SELECT id FROM orders WHERE id >= 1000").fetchall() == [(1001,)]


def test_savepoints_undo_a_part_of_a_block(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        client.execute("BEGIN")
        client.execute("INSERT INTO orders VALUES (1000, 1, 'kept')")
        client.execute("SAVEPOINT a")
        client.execute("INSERT INTO orders VALUES (1001, 1, 'gone')")
        client.execute("ROLLBACK TO a")
        with pytest.raises(psycopg.errors.UniqueViolation):
            client.execute("INSERT INTO orders VALUES (1000, 1, 'twice')")
        client.execute("ROLLBACK TO SAVEPOINT a")
        client.execute("INSERT INTO orders VALUES (1002, 1, 'kept')")
        client.execute("RELEASE a")
        client.execute("COMMIT")
        assert client.execute("SELECT id FROM orders WHERE id >= 1000").fetchall() == [(1000,), (1002,)]


def test_commit_and_chain_opens_the_next_block_behind_the_gate(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        client.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        client.execute("INSERT INTO orders VALUES (1000, 1, 'x')")
        client.execute("COMMIT AND CHAIN")
        assert client.info.transaction_status == IN_BLOCK
        assert client.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        client.execute("INSERT INTO orders VALUES (1001, 1, 'x')")
        client.execute("ROLLBACK AND CHAIN")
        before = writing_wall.state()
        client.execute("UPDATE watched SET v = 2 WHERE id = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute("COMMIT AND CHAIN")
        assert client.info.transaction_status == IDLE
        assert writing_wall.state() == before
        assert client.execute("SELECT id FROM orders WHERE id >= 1000").fetchall() == [(1000,)]


def test_select_for_update_may_commit(open_wall: OpenWall) -> None:
    with open_wall("agent-safe").connect() as client:
        client.execute("BEGIN")
        client.execute("SELECT * FROM orders WHERE id = 1 FOR UPDATE")
        assert client.execute("COMMIT").statusmessage == "COMMIT"


def test_every_write_is_on_the_record_before_it_runs(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client:
        client.execute("INSERT INTO orders VALUES (1000, 1, 'x')")
        with client.transaction():
            client.execute("UPDATE orders SET note = 'y' WHERE id = %s", (1000,))
        client.execute("PREPARE p AS DELETE FROM orders WHERE id = 1000")
        with client.transaction():
            client.execute("EXECUTE p")
    kept = [(record["kind"], record["statement"] or record["operation"]) for record in writing_wall.audit()]
    writes = [
        entry for entry in kept if entry[1] and entry[1].startswith(("INSERT", "UPDATE", "EXECUTE", "COMMIT"))
    ]
    assert writes == [
        ("statement", "INSERT INTO orders VALUES (1000, 1, 'x')"),
        ("outcome", "COMMIT"),
        ("statement", "UPDATE orders SET note = 'y' WHERE id = $1"),
        ("statement", "COMMIT"),
        ("outcome", "COMMIT"),
        ("statement", "EXECUTE p"),
        ("statement", "COMMIT"),
        ("outcome", "COMMIT"),
    ]


def test_a_write_and_a_query_without_sync_are_refused_together(writing_wall: RunningWall) -> None:
    with RawClient(writing_wall.dsn()) as client:
        client.send(run("INSERT INTO orders VALUES (1000, 1, 'x')"), frontend.query(b"SELECT 1"))
        found = client.until("E")
        assert codes(found) == "12E"
        assert errors(found)[0].constraint == "mixed-write"
        assert client.silence()  # as behind any error of a pipeline: everything up to Sync is skipped
        assert codes(client.ask(SYNC)) == "Z"
        assert rows(client.query("SELECT count(*) FROM orders")) == [(b"100",)]


def test_a_query_behind_a_flushed_write_commits_it(writing_wall: RunningWall) -> None:
    with RawClient(writing_wall.dsn()) as client:
        client.send(run("INSERT INTO orders VALUES (1000, 1, 'x')"), FLUSH)
        assert codes(client.until("C")) == "12C"
        found = client.query("SELECT count(*) FROM orders")
        assert (rows(found), status(found)) == ([(b"101",)], "I")


def test_a_query_behind_a_flushed_write_that_may_not_commit_is_refused(writing_wall: RunningWall) -> None:
    before = writing_wall.state()
    with RawClient(writing_wall.dsn()) as client:
        client.send(run("UPDATE watched SET v = 2 WHERE id = 1"), FLUSH)
        assert codes(client.until("C")) == "12C"
        found = client.query("SELECT count(*) FROM orders")
        assert codes(found) == "EZ"
        assert (states(found), status(found)) == (["42501"], "I")
        assert rows(client.query("SELECT 1")) == [(b"1",)]
    assert writing_wall.state() == before


# -- the gate


@pytest.mark.parametrize(
    ("text", "relation"),
    [
        ("UPDATE watched SET v = 2 WHERE id = 1", "public.payroll"),
        ("INSERT INTO watched VALUES (2, 2)", "public.payroll"),
        ("DELETE FROM parents WHERE id = 1", "public.payslips"),
    ],
)
@pytest.mark.parametrize("way", ["simple", "extended", "block", "pipeline", "string"])
def test_what_a_write_sets_off_elsewhere_is_rolled_back(
    writing_wall: RunningWall, text: str, relation: str, way: str
) -> None:
    before = writing_wall.state()
    with RawClient(writing_wall.dsn()) as client:
        if way == "simple":
            found = client.query(text)
        elif way == "extended":
            found = client.ask(run(text), SYNC)
        elif way == "string":
            found = client.query(f"SELECT 1; {text}; SELECT 2")
        elif way == "block":
            client.query("BEGIN")
            assert status(client.query(text)) == "T"
            found = client.query("COMMIT")
        else:
            found = client.ask(run("BEGIN"), run(text), run("COMMIT"), SYNC)
        error = errors(found)[0]
        assert error.sqlstate == "42501"
        assert error.message.startswith(f"sqlwall denied COMMIT of {relation} [gate]: ")
        assert error.message.endswith("The transaction was rolled back. Do not retry unchanged.")
        assert status(found) == "I"
        assert rows(client.query("SELECT 1")) == [(b"1",)]
    assert writing_wall.state() == before


def test_a_view_is_no_way_around_a_table_rule(open_wall: OpenWall) -> None:
    wall = open_wall(waiving(*WAIVED, "staff"))
    before = wall.state()
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"COMMIT of public\.payroll \[gate\]"):
            client.execute("UPDATE staff SET salary = 5 WHERE id = 1")
    assert wall.state() == before


def test_an_allowed_function_that_writes_elsewhere_is_rolled_back(open_wall: OpenWall) -> None:
    wall = open_wall(waiving(*WAIVED, functions=("public.raise_salaries", "public.calm_raise")))
    before = wall.state()
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            client.execute("SELECT raise_salaries()")
        client.execute("BEGIN")
        client.execute("SELECT raise_salaries()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"COMMIT of public\.payroll \[gate\]"):
            client.execute("COMMIT")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"COMMIT of public\.payroll \[gate\]"):
            client.execute("INSERT INTO orders SELECT 1000 + raise_salaries(), 1, 'x'")
    assert wall.state() == before


def test_a_key_from_a_sequence_needs_a_waiver_for_the_sequence(open_wall: OpenWall) -> None:
    ruleset = waiving("notes")
    wall = open_wall(ruleset.replace("kinds: [sequence]", "kinds: [matview]"))
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            client.execute("INSERT INTO notes (body) VALUES ('x')")
        assert "public.notes_id_seq" in str(caught.value)
        assert client.execute("SELECT count(*) FROM notes").fetchone() == (0,)
    with open_wall(ruleset).connect() as client:
        assert client.execute("INSERT INTO notes (body) VALUES ('x') RETURNING body").fetchone() == ("x",)


def test_a_deferred_constraint_fails_the_commit_in_the_servers_words(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as client, writing_wall.database.connect() as direct:
        seen = []
        for connection in (client, direct):
            connection.execute("BEGIN")
            connection.execute("UPDATE slots SET slot = 2 WHERE id = 1")
            with pytest.raises(psycopg.errors.UniqueViolation) as caught:
                connection.execute("COMMIT")
            assert connection.info.transaction_status == IDLE
            diag = caught.value.diag
            seen.append((diag.message_primary, diag.message_detail, diag.constraint_name, diag.table_name))
        assert seen[0] == seen[1]
        with pytest.raises(psycopg.errors.UniqueViolation):
            client.execute("UPDATE slots SET slot = 2 WHERE id = 1")
        client.execute("BEGIN")
        client.execute("UPDATE slots SET slot = 2 WHERE id = 1")
        client.execute("UPDATE slots SET slot = 1 WHERE id = 2")
        client.execute("COMMIT")
        assert client.execute("SELECT slot FROM slots ORDER BY id").fetchall() == [(2,), (1,)]


def test_a_deferred_constraint_can_fail_a_commit_in_a_pipeline(writing_wall: RunningWall) -> None:
    with RawClient(writing_wall.dsn()) as client:
        found = client.ask(
            run("BEGIN"), run("UPDATE slots SET slot = 2 WHERE id = 1"), run("COMMIT"), run("SELECT 1"), SYNC
        )
        assert codes(found) == "12C12C12EZ"
        assert (states(found), status(found)) == (["23505"], "I")
        assert rows(client.ask(run("SELECT 1"), SYNC)) == [(b"1",)]


def test_the_counters_of_earlier_transactions_are_not_held_against_a_later_one(
    writing_wall: RunningWall,
) -> None:
    with writing_wall.connect() as client:
        for number in range(5):
            client.execute("INSERT INTO orders VALUES (%s, 1, 'x')", (1000 + number,))
            with client.transaction():
                client.execute("DELETE FROM orders WHERE id = %s", (1000 + number,))
                client.execute("UPDATE notes SET body = 'x' WHERE id = 1")
