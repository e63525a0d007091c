"""The gate's questions against a real server: what each kind of write leaves behind, and what is decided from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, LiteralString

import psycopg
import pytest

from sqlwall.snapshot.witness import (
    BASELINE_QUERY,
    WITNESS_QUERY,
    XID_QUERY,
    Accepted,
    Decision,
    Refused,
    Witness,
    Witnesses,
    decide,
    decode_witnesses,
)
from sqlwall.sql.statement import Operation
from tests.postgres import Database, Server, fresh_database

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
INSERT INTO t SELECT g, 0 FROM generate_series(1, 20) g;
CREATE TABLE other (id int);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE);
INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1);
CREATE TABLE late (id int PRIMARY KEY, p int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE logged (id int);
CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO other VALUES (1); RETURN NULL; END $$;
CREATE TRIGGER log AFTER INSERT ON logged FOR EACH ROW EXECUTE FUNCTION log();
CREATE TABLE parted (k int, v int) PARTITION BY LIST (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
INSERT INTO parted VALUES (1, 1);
CREATE VIEW staff AS SELECT * FROM t;
CREATE VIEW acting AS SELECT * FROM t;
CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM other; RETURN NEW; END $$;
CREATE TRIGGER act INSTEAD OF UPDATE ON acting FOR EACH ROW EXECUTE FUNCTION act();
INSERT INTO other VALUES (7);
CREATE SEQUENCE seq;
CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY, n int);
CREATE MATERIALIZED VIEW kept AS SELECT 1 AS one;
CREATE FUNCTION run(command text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE command; END $$;
CREATE FUNCTION unseen(command text) RETURNS void LANGUAGE plpgsql SET track_counts = off AS
  $$ BEGIN EXECUTE command; END $$;
CREATE FUNCTION caught() RETURNS void LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO other VALUES (1); RAISE EXCEPTION 'x'; EXCEPTION WHEN raise_exception THEN NULL; END $$;
SELECT lo_create(4711);
"""

EVERYTHING = {Operation.INSERT, Operation.UPDATE, Operation.DELETE}


class Session:
    """An agent's session as the gate sees it: a transaction, and our questions in it."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.connection = connection

    def run(self, *commands: LiteralString) -> Session:
        for command in commands:
            self.connection.execute(command)
        return self

    def ask(self, query: bytes) -> list[list[bytes | None]]:
        result = self.connection.pgconn.exec_(query)
        assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, result.error_message
        return [[result.get_value(r, c) for c in range(result.nfields)] for r in range(result.ntuples)]

    def xid(self) -> bytes | None:
        return self.ask(XID_QUERY)[0][0]

    def baseline(self) -> Witnesses:
        return decode_witnesses(self.ask(BASELINE_QUERY))

    def witnesses(self) -> Witnesses:
        return decode_witnesses(self.ask(WITNESS_QUERY))

    def written(self, baseline: Witnesses | None = None) -> dict[str, set[Operation]] | Refused:
        """Which operations on which relations would have to be permitted; or the refusal that needs no rule."""
        asked: dict[str, set[Operation]] = {}

        def permitted(operation: Operation, schema: str, name: str) -> Decision:
            asked.setdefault(name if schema == "public" else f"{schema}.{name}", set()).add(operation)
            return Decision(True, "")

        answer = decide(baseline, self.witnesses(), permitted)
        return answer if isinstance(answer, Refused) else asked


@pytest.fixture(scope="module")
def shop(postgres: Server) -> Iterator[Database]:
    with fresh_database(postgres) as fresh:
        with fresh.connect() as connection:
            connection.execute(SCHEMA.encode())
        yield fresh


@pytest.fixture
def session(shop: Database) -> Iterator[Session]:
    with shop.connect() as connection:
        connection.execute("BEGIN")
        yield Session(connection)
        connection.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("INSERT INTO t VALUES (100)", {"t": {Operation.INSERT}}),
        ("UPDATE t SET n = 1 WHERE id = 1", {"t": {Operation.UPDATE}}),
        ("DELETE FROM t WHERE id = 1", {"t": {Operation.DELETE}}),
        ("INSERT INTO t VALUES (1) ON CONFLICT (id) DO UPDATE SET n = 2", {"t": {Operation.UPDATE}}),
        (
            "MERGE INTO t USING (VALUES (1), (101)) s(id) ON s.id = t.id WHEN MATCHED THEN DELETE"
            " WHEN NOT MATCHED THEN INSERT VALUES (s.id, 0)",
            {"t": {Operation.INSERT, Operation.DELETE}},
        ),
        ("COPY other FROM PROGRAM 'echo 5'", {"other": {Operation.INSERT}}),
        (
            "WITH d AS (DELETE FROM t WHERE id = 2 RETURNING id) INSERT INTO other SELECT id FROM d",
            {"t": {Operation.DELETE}, "other": {Operation.INSERT}},
        ),
        ("SELECT run('DELETE FROM t WHERE id = 3')", {"t": {Operation.DELETE}}),
        ("DO $$ BEGIN UPDATE other SET id = 1; END $$", {"other": {Operation.UPDATE}}),
        ("DELETE FROM parent WHERE id = 1", {"parent": {Operation.DELETE}, "child": {Operation.DELETE}}),
        ("INSERT INTO logged VALUES (1)", {"logged": {Operation.INSERT}, "other": {Operation.INSERT}}),
        ("INSERT INTO parted VALUES (2, 2)", {"parted_2": {Operation.INSERT}}),
        (
            "UPDATE parted SET k = 2 WHERE v = 1",
            {"parted_1": {Operation.DELETE}, "parted_2": {Operation.INSERT}},
        ),
        ("UPDATE staff SET n = 9 WHERE id = 4", {"t": {Operation.UPDATE}}),
        ("UPDATE acting SET n = 9 WHERE id = 4", {"other": {Operation.DELETE}}),
        ("SELECT nextval('seq')", {"seq": {Operation.UPDATE}}),
        ("SELECT setval('seq', 40)", {"seq": {Operation.UPDATE}}),
        (
            "INSERT INTO numbered (n) VALUES (1)",
            {"numbered": {Operation.INSERT}, "numbered_id_seq": {Operation.UPDATE}},
        ),
        ("SELECT * FROM t WHERE id = 5 FOR UPDATE", {}),
        ("SELECT * FROM t WHERE id = 5 FOR KEY SHARE", {}),
    ],
)
def test_a_write_is_witnessed_under_the_servers_own_names(
    session: Session, command: LiteralString, expected: dict[str, set[Operation]]
) -> None:
    before = session.baseline()
    session.run(command)
    assert session.xid() is not None
    assert session.written(before) == expected


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("TRUNCATE other", "other"),
        ("SELECT run('TRUNCATE other')", "other"),
        ("CREATE TABLE made (id int)", ""),
        ("SELECT run('CREATE TABLE made (id int)')", ""),
        ("SELECT run('CREATE TEMP TABLE made (id int)')", ""),
        ("SELECT run('CREATE TABLE x (i int); DROP TABLE x')", "behind the statement"),
        ("ALTER TABLE other ADD COLUMN extra int", ""),
        ("CREATE INDEX ON other (id)", ""),
        ("DROP TABLE other", ""),
        ("SELECT run('GRANT SELECT ON other TO PUBLIC')", "catalog"),
        ("SELECT run('REVOKE ALL ON SCHEMA public FROM PUBLIC')", "catalog"),
        ("SELECT run('CREATE ROLE sqlwall_test_never')", "catalog"),
        ("SELECT run('ALTER ROLE CURRENT_USER SET work_mem = ''1MB''')", "catalog"),
        ("SELECT run('ALTER DATABASE template1 SET work_mem = ''1MB''')", "catalog"),
        ("SELECT run('COMMENT ON ROLE pg_monitor IS ''x''')", "catalog"),
        ("SELECT run('GRANT pg_read_all_data TO CURRENT_USER')", "catalog"),
        ("SELECT run('CREATE FUNCTION f() RETURNS int LANGUAGE sql AS ''SELECT 1''')", "catalog"),
        ("SELECT run('CREATE OR REPLACE VIEW staff AS SELECT id, n FROM t WHERE true')", ""),
        ("SELECT run('CREATE RULE r AS ON INSERT TO other DO NOTHING')", ""),
        ("SELECT run('CREATE POLICY p ON other')", ""),
        ("SELECT run('ALTER TABLE logged DISABLE TRIGGER ALL')", ""),
        ("SELECT run('ANALYZE other')", ""),
        ("SELECT run('CREATE PUBLICATION p')", "catalog"),
        ("SELECT run('CREATE STATISTICS s ON id, n FROM t')", ""),
        ("REFRESH MATERIALIZED VIEW kept", ""),
        ("SELECT lo_unlink(4711)", "catalog"),
        ("SELECT lo_create(0)", "catalog"),
        ("SELECT lo_put(4711, 0, 'x')", "catalog"),
        ("LOCK TABLE other IN EXCLUSIVE MODE; INSERT INTO t VALUES (99)", "LOCK TABLE"),
        ("SELECT pg_logical_emit_message(true, 'a', 'b')", "no witness"),
        ("SELECT pg_current_xact_id()", "no witness"),
    ],
)
def test_what_no_rule_about_rows_can_permit_is_refused(
    session: Session, command: LiteralString, part: str
) -> None:
    before = session.baseline()
    session.run(command)
    assert session.xid() is not None
    answer = session.written(before)
    assert isinstance(answer, Refused), answer
    assert part in f"{answer.reason} {answer.relation}"


@pytest.mark.parametrize(
    "command",
    ["SELECT * FROM t", "NOTIFY x", "SELECT pg_advisory_xact_lock(1)", "UPDATE t SET n = 1 WHERE false"],
)
def test_what_writes_nothing_takes_no_id(session: Session, command: LiteralString) -> None:
    assert session.run(command).xid() is None


def test_a_row_lock_does_not_cover_for_a_large_object(session: Session) -> None:
    before = session.baseline()
    session.run("SELECT * FROM t WHERE id = 1 FOR UPDATE", "SELECT lo_unlink(4711)")
    assert isinstance(session.written(before), Refused)


def test_a_second_nextval_is_witnessed_though_it_takes_no_id_of_its_own(session: Session) -> None:
    session.run("SELECT nextval('seq')", "COMMIT", "BEGIN")
    before = session.baseline()
    session.run("SELECT nextval('seq')", "INSERT INTO other VALUES (1)")
    assert session.written(before) == {"other": {Operation.INSERT}, "seq": {Operation.UPDATE}}


def test_reading_a_sequence_of_the_session_counts_as_writing_it(session: Session) -> None:
    """currval locks it as nextval does: the two cannot be told apart."""
    session.run("SELECT nextval('seq')", "COMMIT", "BEGIN")
    before = session.baseline()
    session.run("SELECT currval('seq')", "INSERT INTO other VALUES (1)")
    assert session.written(before) == {"other": {Operation.INSERT}, "seq": {Operation.UPDATE}}


def test_deferred_foreign_keys_show_once_they_are_immediate(session: Session) -> None:
    before = session.baseline()
    session.run("INSERT INTO late VALUES (1, 1)", "SET CONSTRAINTS ALL IMMEDIATE")
    assert session.written(before) == {"late": {Operation.INSERT}}


def test_counters_of_earlier_transactions_are_not_this_ones(session: Session) -> None:
    session.run("DELETE FROM t WHERE id = 10", "CREATE TABLE x ()", "ROLLBACK", "BEGIN")
    before = session.baseline()
    session.run("INSERT INTO t VALUES (200)")
    assert session.written(before) == {"t": {Operation.INSERT}}


def test_without_a_baseline_earlier_counters_count(session: Session) -> None:
    session.run("DELETE FROM t WHERE id = 10", "ROLLBACK", "BEGIN", "INSERT INTO t VALUES (200)")
    assert session.written(None) == {"t": {Operation.INSERT, Operation.DELETE}}


def test_a_catalog_changed_earlier_is_no_witness_for_an_id_of_now(session: Session) -> None:
    session.run("CREATE TABLE x ()", "ROLLBACK", "BEGIN")
    before = session.baseline()
    session.run("SELECT pg_logical_emit_message(true, 'a', 'b')")
    assert isinstance(session.written(before), Refused)


def test_a_rolled_back_savepoint_takes_its_locks_with_it(session: Session) -> None:
    before = session.baseline()
    session.run("INSERT INTO other VALUES (1)", "SAVEPOINT s", "DELETE FROM t", "ROLLBACK TO s")
    assert session.written(before) == {"other": {Operation.INSERT}}


def test_a_released_savepoint_keeps_them(session: Session) -> None:
    before = session.baseline()
    session.run("SAVEPOINT s", "DELETE FROM t WHERE id = 1", "RELEASE s")
    assert session.written(before) == {"t": {Operation.DELETE}}


def test_a_truncate_that_was_rolled_back_does_not_hide_a_write_before_it(session: Session) -> None:
    """Its own counts come back; those of the catalogs stay, so that the transaction is refused for more than it did."""
    before = session.baseline()
    session.run("DELETE FROM other", "SAVEPOINT s", "TRUNCATE other", "ROLLBACK TO s")
    (other,) = (found for found in session.witnesses().relations.values() if found.name == "other")
    assert other.counts[2] > 0
    assert isinstance(session.written(before), Refused)


def test_an_id_left_by_a_rolled_back_write_needs_to_be_told(session: Session) -> None:
    before = session.baseline()
    session.run("SAVEPOINT s", "INSERT INTO other VALUES (1)", "ROLLBACK TO s")
    assert session.xid() is not None
    assert isinstance(session.written(before), Refused)
    now = session.witnesses()
    assert decide(before, now, lambda *_: Decision(False, ""), rolled_back=True) == Accepted()


def test_a_write_undone_inside_a_function_is_still_counted_where_its_lock_is(session: Session) -> None:
    before = session.baseline()
    session.run("DELETE FROM other", "SELECT caught()")
    assert session.written(before) == {"other": {Operation.DELETE, Operation.INSERT}}


def test_a_locked_table_without_a_count_needs_leave_for_everything(session: Session) -> None:
    """Code of a superuser may switch the counters off; an UPDATE that found no row looks just the same."""
    before = session.baseline()
    session.run("SELECT unseen('DELETE FROM t')")
    assert session.written(before) == {"t": EVERYTHING}


def test_an_update_that_finds_no_row_looks_like_any_write(session: Session) -> None:
    before = session.baseline()
    session.run("UPDATE t SET n = 1 WHERE false", "INSERT INTO other VALUES (1)")
    assert session.written(before) == {"t": EVERYTHING, "other": {Operation.INSERT}}


def test_the_gate_sees_what_a_newer_table_suffers_under_an_old_snapshot(
    shop: Database, session: Session
) -> None:
    """Under REPEATABLE READ pg_class is as old as the snapshot: a table made since then has no name there."""
    session.run("ROLLBACK", "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1")
    shop.execute("CREATE TABLE newer (id int)")
    try:
        session.run("INSERT INTO newer VALUES (1)")
        answer = session.written(session.baseline())
        assert isinstance(answer, Refused)
        assert "behind the statement" in answer.reason
    finally:
        session.run("ROLLBACK")
        shop.execute("DROP TABLE newer")
        session.run("BEGIN")


HOSTILE = """
CREATE TEMP TABLE pg_locks (pid int, locktype text, relation oid, mode text);
CREATE TEMP TABLE pg_class (oid oid, relname name, relnamespace oid, relkind "char");
CREATE TEMP TABLE pg_namespace (oid oid, nspname name);
CREATE TEMP TABLE mine (relation oid, mode text);
CREATE SCHEMA evil;
CREATE FUNCTION evil.no(anyelement, anyelement) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.oid_no(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.text_no(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.int_no(bigint, int) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.oid_no);
CREATE OPERATOR evil.< (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.oid_no);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.text_no);
CREATE OPERATOR evil.> (LEFTARG = bigint, RIGHTARG = int, FUNCTION = evil.int_no);
CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 0';
CREATE FUNCTION evil.pg_current_xact_id_if_assigned() RETURNS xid8 LANGUAGE sql AS 'SELECT NULL::xid8';
CREATE FUNCTION evil.pg_stat_get_xact_tuples_inserted(oid) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
CREATE FUNCTION evil.count() RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (false);
CREATE DOMAIN evil.oid AS pg_catalog.oid CHECK (false);
"""


def test_hostile_names_and_search_paths_blind_nobody(database: Database) -> None:
    with database.connect() as connection:
        session = Session(connection)
        connection.execute(("CREATE TABLE t (id int);" + HOSTILE).encode())
        session.run("SET search_path = evil, pg_temp, pg_catalog, public")
        is_new = connection.info.server_version >= 160000
        session.run("SET debug_parallel_query = on" if is_new else "SET force_parallel_mode = on", "BEGIN")
        before = session.baseline()
        session.run("INSERT INTO public.t VALUES (1)")
        assert session.xid() is not None
        assert session.written(before) == {"t": {Operation.INSERT}}
        session.run("ROLLBACK")


def test_a_plain_role_sees_its_own_witnesses(shop: Database, postgres: Server) -> None:
    with shop.connect() as connection:
        session = Session(connection)
        connection.execute("CREATE ROLE sqlwall_test_plain")
        connection.execute("GRANT INSERT ON other TO sqlwall_test_plain")
        try:
            session.run("SET ROLE sqlwall_test_plain", "BEGIN")
            before = session.baseline()
            session.run("INSERT INTO other VALUES (1)")
            assert session.written(before) == {"other": {Operation.INSERT}}
        finally:
            with suppress(psycopg.Error):
                session.run("ROLLBACK")
            session.run("RESET ROLE", "DROP OWNED BY sqlwall_test_plain", "DROP ROLE sqlwall_test_plain")


ROW = frozenset({"RowExclusiveLock"})


def always(operation: Operation, schema: str, name: str) -> Decision:
    return Decision(True, "")


def never(operation: Operation, schema: str, name: str) -> Decision:
    return Decision(False, f"no {operation.value}")


def complete(*witnesses: Witness, row_locks: int = 0, gone: int = 0) -> Witnesses:
    return Witnesses({str(i): w for i, w in enumerate(witnesses)}, gone, row_locks, is_complete=True)


def test_an_answer_that_is_not_complete_is_refused() -> None:
    inserted = Witness("public", "t", "r", (1, 0, 0), ROW)
    assert isinstance(decide(None, Witnesses({"1": inserted}), always), Refused)
    assert isinstance(decide(None, decode_witnesses([]), always), Refused)
    assert decide(None, complete(inserted), always) == Accepted()


def test_a_refusal_names_the_relation_and_the_operation() -> None:
    deleted = Witness("public", "t", "r", (0, 0, 3), ROW)
    assert decide(None, complete(deleted), never) == Refused(
        "DELETE: no delete", "public.t", Operation.DELETE
    )


def test_an_id_without_any_witness_is_refused_and_one_with_row_locks_is_not() -> None:
    assert isinstance(decide(None, complete(), always), Refused)
    assert decide(None, complete(row_locks=1), never) == Accepted()


@pytest.mark.parametrize("kind", ["v", "p", "i", "I", "t"])
def test_what_others_tell_of_is_no_witness_by_itself(kind: str) -> None:
    assert isinstance(decide(None, complete(Witness("public", "x", kind, (0, 0, 0), ROW)), always), Refused)


@pytest.mark.parametrize("kind", ["f", "c", "?", ""])
def test_a_kind_that_is_not_known_to_have_rows_is_refused(kind: str) -> None:
    assert isinstance(decide(None, complete(Witness("public", "x", kind, (1, 0, 0), ROW)), always), Refused)


@pytest.mark.parametrize(
    "mode",
    [
        "ShareUpdateExclusiveLock",
        "ShareLock",
        "ShareRowExclusiveLock",
        "ExclusiveLock",
        "AccessExclusiveLock",
    ],
)
@pytest.mark.parametrize("kind", ["r", "v", "p", "i", "S", "m"])
def test_a_lock_that_rows_do_not_need_is_refused(mode: str, kind: str) -> None:
    locked = Witness("public", "x", kind, (1, 0, 0), ROW | {mode})
    assert isinstance(decide(None, complete(locked), always), Refused)


def test_counters_that_were_flushed_since_the_baseline_count_in_full() -> None:
    before = Witnesses({"0": Witness("public", "t", "r", (5, 0, 9), ROW)})
    now = complete(Witness("public", "t", "r", (1, 0, 0), ROW))
    assert decide(before, now, lambda o, *_: Decision(o is Operation.INSERT, "")) == Accepted()


@pytest.mark.parametrize("row", [[b"1"], [b"1"] * 9, [b"1", b"s", b"n", b"r", b"x", b"0", b"0", None]])
def test_rows_that_are_no_answer_raise(row: list[bytes | None]) -> None:
    with pytest.raises(ValueError, match=r"values to unpack|invalid literal"):
        decode_witnesses([row])
