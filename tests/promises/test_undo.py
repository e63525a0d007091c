"""Promise 4: undo restores all to the bit, or nothing; it never touches what somebody has written since."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from sqlwall.errors import SnapshotError, UpstreamError
from sqlwall.proxy.undo import Outcome, Undoer
from sqlwall.snapshot.undo import ConflictKind
from sqlwall.store.index import SnapshotState
from tests.postgres import Server, fresh_database
from tests.promises.guarded import UNDO, Guarded, database_template, guarded, observer
from tests.promises.scripts import SCRIPTS

__all__ = ["database_template", "guarded", "observer"]


def run(guarded: Guarded, *script: str) -> None:
    """As an agent; when it returns, outcomes are noted."""
    with guarded.wall.connect(prepare_threshold=None) as agent:
        for text in script:
            agent.execute(text.encode())
    guarded.settled()


def person(guarded: Guarded, *script: str) -> None:
    """Past the wall."""
    with guarded.wall.database.connect() as connection:
        for text in script:
            connection.execute(text.encode())


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_undo_brings_back_every_bit_and_undo_of_undo_takes_it_away_again(
    guarded: Guarded, script: list[str]
) -> None:
    before = guarded.bags()
    run(guarded, *script)
    after = guarded.bags()
    if before == after:
        return
    rehearsed = guarded.undo(dry_run=True)
    assert rehearsed.conflicts == ()
    assert guarded.bags() == after
    outcome = guarded.undo()
    assert (outcome.conflicts, outcome.restored) == ((), rehearsed.restored)
    assert guarded.bags() == before
    assert all(guarded.snapshots.verify(taken) == [] for taken in outcome.snapshots)
    again = guarded.undo(*outcome.snapshots)
    assert again.conflicts == ()
    assert guarded.bags() == after


CONFLICTS: dict[str, tuple[str, list[str], ConflictKind, str]] = {
    "changed since": (
        "UPDATE parent SET name = 'a' WHERE id = 3",
        ["UPDATE parent SET amount = 7 WHERE id = 3"],
        ConflictKind.CHANGED,
        "id=3",
    ),
    "gone": (
        "UPDATE heap SET v = 'mine' WHERE ctid = '(0,1)'",
        ["DELETE FROM heap WHERE v = 'mine'"],
        ConflictKind.GONE,
        "mine",
    ),
    "gone, with a key": (
        "INSERT INTO parent VALUES (70, 'new', 1)",
        ["DELETE FROM parent WHERE id = 70"],
        ConflictKind.GONE,
        "id=70",
    ),
    "key reused": (
        "DELETE FROM parent WHERE id = 3",
        ["INSERT INTO parent VALUES (3, 'somebody else', 1)"],
        ConflictKind.KEY_REUSED,
        "id=3",
    ),
    "parent gone": (
        "UPDATE grandchild SET child = NULL WHERE id = 59",
        ["DELETE FROM child WHERE id = 60"],
        ConflictKind.PARENT_GONE,
        "id=59",
    ),
    "a person's child of an inserted row": (
        "INSERT INTO parent VALUES (70, 'new', 1)",
        ["INSERT INTO child VALUES (700, 70, 'a person was here')"],
        ConflictKind.CHILD_ADDED,
        "id=700",
    ),
    "unique value taken": (
        "UPDATE named SET name = 'other' WHERE id = 1",
        ["INSERT INTO named VALUES (9, 'one')"],
        ConflictKind.UNIQUE_TAKEN,
        "id=1",
    ),
    "unique value that is checked late taken": (
        "UPDATE late SET name = 'other' WHERE id = 1",
        ["INSERT INTO late VALUES (9, 'one')"],
        ConflictKind.UNIQUE_TAKEN,
        "id=1",
    ),
    "column added": (
        "UPDATE parent SET name = 'a' WHERE id = 3",
        ["ALTER TABLE parent ADD COLUMN more text"],
        ConflictKind.ALTERED,
        "column more was added",
    ),
    "column dropped": (
        "UPDATE parent SET name = 'a' WHERE id = 3",
        ["ALTER TABLE parent DROP COLUMN amount"],
        ConflictKind.ALTERED,
        "column amount was dropped",
    ),
    "column retyped": (
        "UPDATE parent SET name = 'a' WHERE id = 3",
        ["ALTER TABLE parent ALTER COLUMN amount TYPE float8"],
        ConflictKind.ALTERED,
        "amount was numeric and is double precision",
    ),
    "row type altered": (
        "DELETE FROM shaped WHERE id = 1",
        ["ALTER TYPE shape DROP ATTRIBUTE a", "ALTER TYPE shape ADD ATTRIBUTE z int"],
        ConflictKind.ALTERED,
        "row type public.shape of column shapes was altered",
    ),
    "table gone": (
        "UPDATE named SET name = 'a' WHERE id = 1",
        ["DROP TABLE named"],
        ConflictKind.MISSING,
        "public.named",
    ),
    "a trigger that fires always": (
        "UPDATE parent SET name = 'a' WHERE id = 3",
        [
            "CREATE TRIGGER always AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION count_it()",
            "ALTER TABLE parent ENABLE ALWAYS TRIGGER always",
        ],
        ConflictKind.UNSUPPORTED,
        "always",
    ),
}


@pytest.mark.parametrize(("write", "meanwhile", "kind", "named"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_what_stands_against_it_is_named_and_nothing_is_changed(
    guarded: Guarded, write: str, meanwhile: list[str], kind: ConflictKind, named: str
) -> None:
    person(
        guarded,
        "CREATE TABLE named (id int PRIMARY KEY, name text UNIQUE)",
        "CREATE TABLE late (id int PRIMARY KEY, name text UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TYPE shape AS (a int, b int)",
        "CREATE DOMAIN shape_list AS shape[]",
        "CREATE TABLE shaped (id int PRIMARY KEY, shapes shape_list)",
        "INSERT INTO shaped VALUES (1, '{\"(1,2)\"}')",
        "INSERT INTO named VALUES (1, 'one'), (2, 'two')",
        "INSERT INTO late VALUES (1, 'one'), (2, 'two')",
        "GRANT ALL ON named, late, shaped TO PUBLIC",
    )
    run(guarded, write)
    person(guarded, *meanwhile)
    state = guarded.bags()
    for dry_run in (True, False):
        outcome = guarded.undo(dry_run=dry_run)
        assert [conflict.kind for conflict in outcome.conflicts] == [kind]
        assert named in str(outcome.conflicts[0])
        assert not outcome.snapshots
    assert guarded.bags() == state


def test_what_others_changed_beside_it_survives(guarded: Guarded) -> None:
    before = guarded.bags()
    run(guarded, "UPDATE parent SET name = 'a' WHERE id < 4")
    person(
        guarded,
        "UPDATE parent SET name = 'mine' WHERE id = 5",
        "INSERT INTO parent VALUES (99, 'mine', NULL)",
    )
    assert guarded.undo().conflicts == ()
    person(guarded, "UPDATE parent SET name = 'p5' WHERE id = 5", "DELETE FROM parent WHERE id = 99")
    assert guarded.bags() == before


def test_several_go_back_in_reverse_order_and_one_in_between_alone_does_not(guarded: Guarded) -> None:
    before = guarded.bags()
    for name in ("a", "b", "c"):
        run(guarded, f"UPDATE parent SET name = '{name}' WHERE id = 3")
    newest, middle, _ = guarded.snapshots.list()
    assert [conflict.kind for conflict in guarded.undo(middle.id).conflicts] == [ConflictKind.CHANGED]
    assert guarded.undo(newest.id).conflicts == ()
    with pytest.raises(SnapshotError, match="undone already"):
        guarded.undo(newest.id)
    assert guarded.undo().conflicts == ()
    assert guarded.bags() == before


def test_all_of_one_transaction_are_undone_again_together(guarded: Guarded) -> None:
    for name in ("a", "b", "c"):
        run(guarded, f"UPDATE parent SET name = '{name}' WHERE id = 3", "DELETE FROM heap WHERE n = 1")
    after = guarded.bags()
    outcome = guarded.undo()
    assert len(outcome.snapshots) == len(guarded.snapshots.list(state=SnapshotState.COMMITTED)) // 2
    records = [guarded.snapshots.find(taken) for taken in outcome.snapshots]
    assert len({record.xid for record in records}) == 1
    assert guarded.undo(*outcome.snapshots).conflicts == ()
    assert guarded.bags() == after


def test_a_row_that_somebody_holds_is_waited_for_and_then_told(guarded: Guarded) -> None:
    run(guarded, "UPDATE parent SET name = 'a' WHERE id = 3")
    state = guarded.bags()
    with guarded.wall.database.connect() as connection, connection.transaction():
        connection.execute("SELECT FROM parent WHERE id = 3 FOR UPDATE")
        with pytest.raises(UpstreamError, match="nothing was changed, try again"):
            guarded.undo()
    assert guarded.bags() == state
    assert guarded.undo().conflicts == ()


def test_a_child_that_is_added_while_undo_waits_is_seen(guarded: Guarded) -> None:
    run(guarded, "INSERT INTO parent VALUES (70, 'new', 1)")
    with ThreadPoolExecutor(1) as pool, guarded.wall.database.connect() as connection:
        with connection.transaction():
            connection.execute("INSERT INTO child VALUES (700, 70, 'a person was here')")
            undoing = pool.submit(guarded.undo)
            wait_for_lock(guarded)
        outcome = undoing.result()
    assert [conflict.kind for conflict in outcome.conflicts] == [ConflictKind.CHILD_ADDED]


def test_a_row_that_moves_while_undo_waits_is_not_clobbered(guarded: Guarded) -> None:
    run(guarded, "UPDATE parent SET name = 'a' WHERE id = 3")
    with ThreadPoolExecutor(1) as pool, guarded.wall.database.connect() as connection:
        with connection.transaction():
            connection.execute("UPDATE parent SET name = 'a person was here' WHERE id = 3")
            undoing = pool.submit(guarded.undo)
            wait_for_lock(guarded)
        outcome = undoing.result()
        assert [conflict.kind for conflict in outcome.conflicts] == [ConflictKind.CHANGED]
        row = connection.execute("SELECT name FROM parent WHERE id = 3").fetchone()
    assert row == ("a person was here",)


def wait_for_lock(guarded: Guarded) -> None:
    """Until undo waits for somebody."""
    with guarded.wall.database.connect() as connection:
        while not connection.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'sqlwall undo' AND wait_event_type = 'Lock'"
        ).rowcount:
            time.sleep(0.01)


def test_a_snapshot_of_another_database_is_refused(guarded: Guarded, postgres: Server) -> None:
    run(guarded, "UPDATE parent SET name = 'a' WHERE id = 3")
    with fresh_database(postgres) as other:
        elsewhere = Guarded.__new__(Guarded)
        elsewhere.snapshots = guarded.snapshots
        elsewhere.wall = replace(guarded.wall, database=other)
        with pytest.raises(SnapshotError, match="is of another database"):
            elsewhere.undo()


def test_a_damaged_blob_changes_nothing(guarded: Guarded) -> None:
    run(guarded, "UPDATE parent SET name = repeat('a', 1000) || id WHERE id < 9")
    state = guarded.bags()
    (record,) = guarded.snapshots.list()
    path = next(guarded.folder.glob(f"{record.id}*"))
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(SnapshotError, match="damaged"):
        guarded.undo()
    assert guarded.bags() == state


@pytest.mark.parametrize(
    ("write", "is_possible"),
    [
        ("UPDATE heap SET v = 'x' WHERE n = 1", True),
        ("UPDATE computed SET a = 7 WHERE id = 3", True),
        ("UPDATE parent SET name = 'x' WHERE id = 3", False),
        ("UPDATE noisy SET v = 'x' WHERE id = 3", False),
    ],
)
def test_without_the_right_to_switch_triggers_off_only_plain_tables_are_undone(
    guarded: Guarded, write: str, is_possible: bool
) -> None:
    before = guarded.bags()
    run(guarded, write)
    after = guarded.bags()
    person(guarded, f"REVOKE SET ON PARAMETER session_replication_role FROM {UNDO}")
    try:
        outcome = guarded.undo()
    finally:
        person(guarded, f"GRANT SET ON PARAMETER session_replication_role TO {UNDO}")
    assert bool(outcome.conflicts) is not is_possible
    assert all(conflict.kind is ConflictKind.UNSUPPORTED for conflict in outcome.conflicts)
    assert guarded.bags() == (before if is_possible else after)


def test_rehearsal_reads_every_row_back_to_the_byte(guarded: Guarded) -> None:
    run(guarded, "UPDATE types SET id = id + 10 WHERE id < 3", "DELETE FROM parent WHERE id = 3")
    state = guarded.bags()
    for record in guarded.snapshots.list():
        assert guarded.rehearse(record.id) == []
    assert guarded.bags() == state


def test_what_a_type_does_not_show_comes_back_too(guarded: Guarded) -> None:
    """The text of an xml lacks its declaration; that of a regproc may name several functions, and be no input."""
    xml = has_xml(guarded)
    text, texts = ("xml", "xml[]") if xml else ("text", "text[]")
    person(
        guarded,
        f"CREATE DOMAIN page AS {text}",
        "CREATE DOMAIN functions AS regproc[]",
        f"CREATE TABLE shy (id int PRIMARY KEY, a {text}, b {texts}, c page, d regproc, e regoper[], f functions)",
        f"""INSERT INTO shy SELECT g, x, ARRAY[x, NULL], x, 1397, '{{96,0}}', '{{1397}}'
        FROM generate_series(1, 4) g, (VALUES ('<?xml version="1.0" encoding="UTF-8"?><a/>'::{text})) v (x)""",
        "GRANT ALL ON shy TO PUBLIC",
    )
    before = guarded.bags()
    run(guarded, "UPDATE shy SET d = 0 WHERE id = 1", "DELETE FROM shy WHERE id = 2")
    after = guarded.bags()
    assert [guarded.rehearse(record.id) for record in guarded.snapshots.list()] == [[], []]
    outcome = guarded.undo()
    assert outcome.conflicts == ()
    assert guarded.bags() == before
    assert guarded.undo(*outcome.snapshots).conflicts == ()
    assert guarded.bags() == after


def has_xml(guarded: Guarded) -> bool:
    """Whether the server was built with libxml."""
    with guarded.wall.database.connect() as connection:
        try:
            connection.execute("SELECT '<a/>'::xml")
        except psycopg.errors.FeatureNotSupported:
            return False
    return True


def test_a_change_that_a_type_does_not_show_is_a_change(guarded: Guarded) -> None:
    if not has_xml(guarded):
        pytest.skip("the server was built without libxml")
    person(
        guarded,
        "CREATE TABLE shy (id int PRIMARY KEY, a xml, n int)",
        "INSERT INTO shy VALUES (1, '<a/>', 1)",
        "GRANT ALL ON shy TO PUBLIC",
    )
    run(guarded, "UPDATE shy SET n = 2 WHERE id = 1")
    person(guarded, """UPDATE shy SET a = '<?xml version="1.0"?><a/>'""")
    state = guarded.bags()
    (conflict,) = guarded.undo().conflicts
    assert (conflict.kind, conflict.detail) == (ConflictKind.CHANGED, "a")
    assert guarded.bags() == state


def test_a_value_that_is_an_object_stays_that_object_whatever_it_is_called(guarded: Guarded) -> None:
    person(
        guarded,
        "CREATE TABLE named (id int PRIMARY KEY, r regclass)",
        "INSERT INTO named VALUES (1, 'parent'), (2, 'child')",
        "GRANT ALL ON named TO PUBLIC",
    )
    before = guarded.bags()["named"]
    run(guarded, "DELETE FROM named WHERE id = 1")
    person(
        guarded,
        "ALTER TABLE parent RENAME TO elder",
        "ALTER TABLE child RENAME TO parent",
        "ALTER TABLE elder RENAME TO child",
    )
    assert guarded.undo().conflicts == ()
    assert guarded.bags()["named"] == before


def test_what_was_undone_meanwhile_is_not_undone_twice(guarded: Guarded) -> None:
    """Of rows without a key one is as good as another: a second undo would take away somebody else's."""
    run(guarded, "INSERT INTO heap VALUES ('same', 0)")
    (record,) = guarded.snapshots.list()
    assert guarded.undo(record.id).conflicts == ()
    state = guarded.bags()
    with guarded._undoer() as undoer, pytest.raises(SnapshotError, match="undone already"):
        undoer.undo([record], actor="test", dry_run=False)
    assert guarded.bags() == state


@pytest.mark.parametrize("is_noted", [True, False])
def test_of_two_undos_at_once_one_is_refused(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, is_noted: bool
) -> None:
    """The other one comes between its look at the index and its transaction, and perhaps dies before it says so."""
    run(guarded, "INSERT INTO heap VALUES ('same', 0)")
    (record,) = guarded.snapshots.list()
    before = guarded.bags()["heap"] - Counter([b"same\t0\n"])
    begins = Undoer._in_transaction
    others: list[str] = []

    def overtaken(self: Undoer, *arguments: Any, **options: Any) -> Outcome:
        if not others:
            others.append("begun")
            if not is_noted:
                monkeypatch.setattr(Undoer, "_settle", lambda *_: None)
            others.extend(guarded.undo(record.id).snapshots)
        return begins(self, *arguments, **options)

    monkeypatch.setattr(Undoer, "_in_transaction", overtaken)
    with pytest.raises(SnapshotError, match="undone already" if is_noted else "is being undone by"):
        guarded.undo(record.id)
    monkeypatch.undo()
    assert guarded.bags()["heap"] == before
    with pytest.raises(SnapshotError, match=f"undone already, by {others[1]}"):
        guarded.undo(record.id)
    assert guarded.undo(others[1]).conflicts == ()


def test_functions_of_a_table_find_what_they_name_without_a_schema(guarded: Guarded) -> None:
    """Those of checks, domains, generated columns and indexes run while undo writes."""
    person(
        guarded,
        "CREATE FUNCTION helper(v int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN v; END'",
        "CREATE FUNCTION fine(v int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN helper(v); END'",
        "CREATE DOMAIN small AS int CHECK (fine(VALUE) < 100)",
        "CREATE TABLE checked (id int PRIMARY KEY, v int CHECK (fine(v) > 0), s small,"
        " g int GENERATED ALWAYS AS (fine(id)) STORED)",
        "CREATE INDEX ON checked (fine(v))",
        "INSERT INTO checked (id, v, s) SELECT g, g, g FROM generate_series(1, 9) g",
        "GRANT ALL ON checked TO PUBLIC",
    )
    before = guarded.bags()
    run(guarded, "UPDATE checked SET v = 7, s = 8 WHERE id < 3", "DELETE FROM checked WHERE id = 9")
    after = guarded.bags()
    outcome = guarded.undo()
    assert outcome.conflicts == ()
    assert guarded.bags() == before
    assert guarded.undo(*outcome.snapshots).conflicts == ()
    assert guarded.bags() == after
