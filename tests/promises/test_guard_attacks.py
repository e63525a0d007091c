"""Promise 3 against those who know how the proof works: false accepts of a naive cover equation (MECHANICS, section 14)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sqlwall.cli.rulesets import find_ruleset
from sqlwall.snapshot import provision
from sqlwall.store.index import SnapshotState
from tests.e2e.wall import APP, OpenWall
from tests.postgres import Database
from tests.promises.guarded import OBSERVER, Guarded, database_template, guarded, observer

__all__ = ["database_template", "guarded", "observer"]

ROWS = (
    "INSERT INTO {table} SELECT g, CASE WHEN g % 2 = 1 THEN 'a' ELSE 'b' END, g FROM generate_series(1, 10) g"
)

Connection = psycopg.Connection[tuple[Any, ...]]


def check(guarded: Guarded, before: dict[str, Counter[bytes]]) -> None:
    """The snapshots explain all that has changed."""
    guarded.settled()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in guarded.bags().items()}


def secured(guarded: Guarded, *policies: str) -> None:
    """A table with row security that the agent's role is bound by."""
    with guarded.wall.database.connect() as connection:
        connection.execute("CREATE TABLE tenants (id int PRIMARY KEY, tenant text, n int)")
        connection.execute(ROWS.format(table="tenants").encode())
        connection.execute(f"GRANT ALL ON tenants TO {APP}".encode())
        connection.execute("ALTER TABLE tenants ENABLE ROW LEVEL SECURITY")
        for policy in policies:
            connection.execute(f"CREATE POLICY {policy}".encode())


def provisioned(guarded: Guarded) -> None:
    """Our functions are in the database."""
    with guarded.wall.database.connect() as connection:
        for statement in provision.functions(OBSERVER, APP):
            connection.execute(statement.encode())


@contextmanager
def another(guarded: Guarded) -> Iterator[Connection]:
    """A person beside the agent."""
    with guarded.wall.database.connect() as connection:
        yield connection


def test_row_security_without_our_functions_is_refused(guarded: Guarded) -> None:
    secured(guarded, "p ON tenants USING (true)")
    before = guarded.bags()
    with guarded.wall.connect() as agent, pytest.raises(psycopg.Error, match="sqlwall provision"):
        agent.execute("DELETE FROM tenants WHERE id = 1")
    check(guarded, before)
    assert guarded.bags() == before


def test_rows_that_a_policy_hides_are_not_taken_for_deleted_ones(guarded: Guarded) -> None:
    """RLS flip: other rows are deleted than were listed, and then a setting hides all that were listed."""
    secured(
        guarded,
        "seen ON tenants FOR SELECT USING (tenant = current_setting('timezone') OR true)",
        "gone ON tenants FOR DELETE USING (tenant = 'b')",
        "others ON tenants FOR UPDATE USING (tenant = 'a')",
    )
    provisioned(guarded)
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        agent.execute("DELETE FROM tenants WHERE n > 0")
    assert guarded.bags() != before
    check(guarded, before)


def test_a_setting_that_flips_a_policy_hides_nothing_from_the_proof(guarded: Guarded) -> None:
    secured(
        guarded,
        "p ON tenants USING (tenant = CASE current_setting('TimeZone') WHEN 'UTC' THEN 'a' ELSE 'b' END)",
    )
    provisioned(guarded)
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        agent.execute("BEGIN")
        agent.execute("SET LOCAL TimeZone = 'UTC'")
        agent.execute("UPDATE tenants SET n = n WHERE n < 0")
        agent.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
        agent.execute("DELETE FROM tenants WHERE id IN (SELECT id FROM tenants ORDER BY random() LIMIT 3)")
        agent.execute("SET LOCAL TimeZone = 'UTC'")
        agent.execute("COMMIT")
    check(guarded, before)
    assert sum((before["tenants"] - guarded.bags()["tenants"]).values()) == 3


def test_our_functions_are_out_of_the_agents_reach(guarded: Guarded) -> None:
    provisioned(guarded)
    with guarded.wall.connect() as agent:
        for text in (
            "SELECT _sqlwall.visible('heap'::regclass, '{\"(0,1)\"}')",
            "SELECT * FROM _sqlwall.own_images('heap'::regclass, 5, '{\"(0,1)\"}')",
            "SELECT \"_sqlwall\".own(1, 2, '(0,0)')",
            "SET search_path = _sqlwall",
            'SET search_path = public, "_sqlwall"',
        ):
            with pytest.raises(psycopg.Error, match="sqlwall"):
                agent.execute(text.encode())


def test_rows_that_somebody_else_deletes_earn_no_credit(guarded: Guarded) -> None:
    """Savepoint credit: listed and locked, the lock is undone, another deletes them, and the agent deletes others."""
    before = guarded.bags()
    with guarded.wall.connect() as agent, another(guarded) as person:
        agent.execute("BEGIN")
        agent.execute("SAVEPOINT a")
        agent.execute("UPDATE parent SET name = 'x' WHERE id IN (11, 12, 13) AND random() < 0")
        agent.execute("ROLLBACK TO a")
        person.execute(
            "DELETE FROM grandchild WHERE child IN (SELECT id FROM child WHERE parent IN (11, 12, 13))"
        )
        person.execute("DELETE FROM child WHERE parent IN (11, 12, 13)")
        person.execute("DELETE FROM parent WHERE id IN (11, 12, 13)")
        before = guarded.bags()
        agent.execute(
            "UPDATE parent SET name = 'mine' WHERE id IN (SELECT id FROM parent ORDER BY random() LIMIT 3)"
        )
        agent.execute("COMMIT")
    check(guarded, before)


def test_what_another_changes_meanwhile_is_not_in_the_snapshot(guarded: Guarded) -> None:
    with guarded.wall.connect() as agent, another(guarded) as person:
        agent.execute("BEGIN")
        agent.execute("UPDATE heap SET n = 50 WHERE n = 1")
        person.execute("UPDATE heap SET n = 60 WHERE n = 2")
        person.execute("INSERT INTO heap VALUES ('person', 70)")
        before = guarded.bags()
        agent.execute("COMMIT")
    check(guarded, before)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_scan_takes_no_other_transaction_for_ours(guarded: Guarded, level: str) -> None:
    """Counts cannot decide here, so that the whole table is looked at, while others have rows locked and changed."""
    with guarded.wall.connect() as agent, another(guarded) as person, another(guarded) as locker:
        agent.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
        agent.execute("UPDATE heap SET n = n + 10 WHERE n = 1")
        agent.execute("UPDATE heap SET n = n + 10 WHERE n = 11")
        person.execute("UPDATE heap SET v = 'theirs' WHERE n = 2")
        locker.execute("BEGIN")
        locker.execute("SELECT FROM heap WHERE n = 2 FOR UPDATE")
        locker.execute("UPDATE heap SET v = 'open' WHERE n = 0")
        before = guarded.bags()
        outcome = "committed"
        try:
            agent.execute("COMMIT")
        except psycopg.errors.InsufficientPrivilege as refused:
            assert "others" in str(refused) or "counted" in str(refused)
            outcome = "refused"
        locker.execute("ROLLBACK")
    check(guarded, before)
    assert outcome == "committed" or level != "READ COMMITTED"


def test_a_deferred_trigger_writes_before_the_proof(guarded: Guarded) -> None:
    with another(guarded) as person:
        person.execute(
            "CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN SET CONSTRAINTS ALL DEFERRED; UPDATE heap SET v = 'later' WHERE n = NEW.id; RETURN NULL; END $$"
        )
        person.execute(
            "CREATE CONSTRAINT TRIGGER later AFTER UPDATE ON counted DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION later()"
        )
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        agent.execute("UPDATE counted SET touched = 5 WHERE id = 1")
    assert guarded.bags()["heap"] != before["heap"]
    check(guarded, before)


def test_a_block_that_catches_its_error_is_covered(guarded: Guarded) -> None:
    with another(guarded) as person:
        person.execute(
            "CREATE FUNCTION try_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " BEGIN UPDATE heap SET n = n / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;"
            " BEGIN DELETE FROM heap WHERE n = 2; RAISE EXCEPTION 'x'; EXCEPTION WHEN raise_exception THEN NULL; END;"
            " RETURN NEW; END $$"
        )
        person.execute("CREATE TRIGGER tries AFTER UPDATE ON counted FOR EACH ROW EXECUTE FUNCTION try_it()")
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        agent.execute("UPDATE counted SET touched = 5 WHERE id = 1")
    check(guarded, before)


@pytest.mark.parametrize("name", ["_sqlwall_capture", "_sqlwall_images", "_SQLWALL_capture"])
def test_our_savepoints_cannot_be_forged(guarded: Guarded, name: str) -> None:
    with guarded.wall.connect() as agent:
        agent.execute("BEGIN")
        with pytest.raises(psycopg.Error, match="sqlwall"):
            agent.execute(f'SAVEPOINT "{name}"'.encode())
        agent.execute("ROLLBACK")


def test_a_cancel_while_rows_are_listed_cancels_the_statement(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent, another(guarded) as person:
        person.execute("BEGIN")
        person.execute("UPDATE parent SET name = 'held' WHERE id = 1")
        caught: list[psycopg.Error] = []

        def write() -> None:
            try:
                agent.execute("UPDATE parent SET name = 'mine' WHERE id = 1")
            except psycopg.Error as error:
                caught.append(error)

        writing = threading.Thread(target=write)
        writing.start()
        deadline = time.monotonic() + 10
        with another(guarded) as watcher:
            while not watcher.execute("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'").rowcount:
                assert time.monotonic() < deadline
        agent.cancel_safe(timeout=5)
        writing.join(10)
        assert not writing.is_alive()
        assert [error.sqlstate for error in caught] == ["57014"]
        person.execute("ROLLBACK")
        assert agent.execute("SELECT name FROM parent WHERE id = 1").fetchone() == ("p1",)
    assert guarded.bags() == before
    assert not guarded.snapshots.list(state=SnapshotState.COMMITTED)


def test_a_cancel_while_the_observer_works_for_a_commit_is_the_answer(guarded: Guarded) -> None:
    """Somebody waits to alter the table: the observer has to wait behind, and the agent's own session is idle."""
    before = guarded.bags()
    with guarded.wall.connect() as agent, another(guarded) as person, another(guarded) as watcher:
        agent.execute("BEGIN")
        agent.execute("UPDATE parent SET name = 'mine' WHERE id = 1")

        def wait_for(waiting: bytes) -> None:
            deadline = time.monotonic() + 10
            while not watcher.execute(
                b"SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND " + waiting
            ).rowcount:
                assert time.monotonic() < deadline

        caught: list[psycopg.Error] = []

        def commit() -> None:
            try:
                agent.execute("COMMIT")
            except psycopg.Error as error:
                caught.append(error)

        locking = threading.Thread(
            target=lambda: person.execute("LOCK TABLE parent IN ACCESS EXCLUSIVE MODE")
        )
        person.execute("BEGIN")
        locking.start()
        wait_for(b"query ~ '^LOCK'")
        committing = threading.Thread(target=commit)
        committing.start()
        wait_for(b"application_name = 'sqlwall observer'")
        agent.cancel_safe(timeout=5)
        committing.join(4)  # less than the observer would wait for the lock
        assert not committing.is_alive()
        assert [error.sqlstate for error in caught] == ["57014"]
        locking.join(10)
        person.execute("ROLLBACK")
        assert agent.execute("SELECT name FROM parent WHERE id = 1").fetchone() == ("p1",)
    assert guarded.bags() == before
    assert not guarded.snapshots.list(state=SnapshotState.COMMITTED)


def test_an_error_of_the_predicate_is_the_statements_own(guarded: Guarded) -> None:
    with guarded.wall.connect() as agent, guarded.wall.database.connect() as direct:
        text = "UPDATE parent SET name = 'x' WHERE amount / (id - 7) > 1 AND id > 0"
        errors: list[dict[str, Any]] = []
        for connection in (direct, agent):
            with pytest.raises(psycopg.errors.DivisionByZero) as caught:
                connection.execute(text.encode())
            errors.append(
                {key: getattr(caught.value.diag, key) for key in ("message_primary", "sqlstate", "context")}
            )
        assert errors[0] == errors[1]
        agent.execute("BEGIN")
        with pytest.raises(psycopg.errors.DivisionByZero):
            agent.execute(text.encode())
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            agent.execute("SELECT 1")
        agent.execute("ROLLBACK")


def test_a_loop_of_single_rows_meets_the_limit_of_the_transaction(guarded: Guarded) -> None:
    with another(guarded) as person:
        person.execute("INSERT INTO heap SELECT 'bulk', 1000 + g FROM generate_series(1, 6000) g")
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        agent.execute("BEGIN")
        for start in range(1000, 7000, 500):
            agent.execute(f"DELETE FROM heap WHERE n BETWEEN {start + 1} AND {start + 500}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="more than 5000"):
            agent.execute("COMMIT")
        assert agent.execute("SELECT 1").fetchone() == (1,)
    assert guarded.bags() == before


def test_a_write_of_most_of_a_table_is_refused_whatever_its_words(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        for statement, limit in (
            ("UPDATE parent SET name = 'x' WHERE id + 1 > id", 10),
            ("DELETE FROM heap WHERE length(v) < 100", 15),
            ("DELETE FROM parted WHERE part = 1", 5),
            ("UPDATE parent SET name = 'x' WHERE id < 12", 10),
        ):
            with pytest.raises(
                psycopg.errors.ConfigurationLimitExceeded, match=f"more than {limit} rows. Nothing was"
            ):
                agent.execute(statement.encode())
        for statement in (
            "MERGE INTO parent p USING parent q ON p.id = q.id WHEN MATCHED THEN UPDATE SET name = 'x'",
            "WITH w AS (DELETE FROM heap WHERE n >= 0 RETURNING 1) SELECT count(*) FROM w",
        ):
            with pytest.raises(
                psycopg.errors.InsufficientPrivilege, match="rows are more than 50% of the table"
            ):
                agent.execute(statement.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="18 of 20 rows"), agent.transaction():
            for number in range(1, 19):
                agent.execute("UPDATE parent SET name = 'x' WHERE id = %s", (number,))
    assert guarded.bags() == before


def test_half_of_a_table_and_its_only_row_may_be_written(guarded: Guarded) -> None:
    with guarded.wall.connect() as agent:
        assert agent.execute("UPDATE parent SET name = 'x' WHERE id < 11").rowcount == 10
        assert agent.execute("UPDATE counted SET touched = 5 WHERE id = 1").rowcount == 1


def test_bytes_of_changed_rows_are_bounded(
    open_wall: OpenWall, database: Database, observer: tuple[str, str], tmp_path: Path
) -> None:
    text, _ = find_ruleset("agent-safe")
    folder = tmp_path / "snapshots"
    bounded = Guarded(
        open_wall(
            text.replace("share: 50%}", "bytes: 10KiB}", 1),
            observer__dsn=database.dsn(*observer),
            snapshots__url=str(folder),
        ),
        folder,
    )
    before = bounded.bags()
    with bounded.wall.connect() as agent:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="more bytes than the rule allows"):
            agent.execute("UPDATE parent SET name = repeat('x', 6000) WHERE id < 3")
        assert bounded.bags() == before
        agent.execute("UPDATE parent SET name = repeat('x', 6000) WHERE id = 1")
    assert bounded.snapshots.list()
    assert len(list(folder.iterdir())) == 1
