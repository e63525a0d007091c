"""Promise 3: what a guarded transaction commits is what it was before, less the before-images, plus the after-images."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from sqlwall.store.snapshots import SnapshotState
from tests.e2e.wall import OpenWall
from tests.postgres import Database
from tests.promises.guarded import Guarded, database_template, guarded, observer

__all__ = ["database_template", "guarded", "observer"]

#: Each a script of statements, each statement a Query of its own.
SCRIPTS: dict[str, list[str]] = {
    "update by key": ["UPDATE parent SET name = 'x' WHERE id = 3"],
    "update of no row": ["UPDATE parent SET name = 'x' WHERE id = 999"],
    "delete with a cascade over two levels": ["DELETE FROM parent WHERE id IN (2, 3)"],
    "key update with a cascade": ["UPDATE parent SET id = 100 WHERE id = 5"],
    "insert": ["INSERT INTO parent VALUES (50, 'new', 1.50)"],
    "insert of several": ["INSERT INTO parent SELECT g, 'n', NULL FROM generate_series(60, 70) g"],
    "upsert": ["INSERT INTO parent VALUES (1, 'one', 1), (51, 'two', 2) ON CONFLICT (id) DO UPDATE SET name = excluded.name"],
    "merge": [
        "MERGE INTO parent p USING (VALUES (1, 'm'), (80, 'n')) AS s (id, name) ON p.id = s.id"
        " WHEN MATCHED THEN UPDATE SET name = s.name WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.name, 0)"
    ],
    "writable CTE": [
        "WITH gone AS (DELETE FROM heap WHERE n = 1 RETURNING *) INSERT INTO parent SELECT 90, v, n FROM gone LIMIT 1"
    ],
    "no primary key and equal rows": ["UPDATE heap SET n = 9 WHERE n = 2", "DELETE FROM heap WHERE n = 0"],
    "a trigger that touches one row often": ["UPDATE noisy SET v = v || '!' WHERE id < 6"],
    "partitions": ["UPDATE parted SET v = 'w' WHERE id < 6", "UPDATE parted SET part = 2 WHERE id = 2"],
    "a view": ["UPDATE parents SET name = 'through the view' WHERE id = 7"],
    "generated column": ["UPDATE computed SET a = 7 WHERE id = 3"],
    "odd names and values": ["UPDATE odd SET \"a\"\"b\" = 'x' WHERE \"select\" = 1"],
    "quoted relation": ['DELETE FROM "Weird Name" AS w WHERE w.id = 2'],
    "types": ["UPDATE types SET id = id + 10 WHERE id < 3"],
    "inheritance": ["UPDATE grown SET base = 5 WHERE id > 0"],
    "using": ["DELETE FROM child c USING parent p WHERE c.parent = p.id AND p.id = 4"],
    "from": ["UPDATE child c SET note = p.name FROM parent p WHERE c.parent = p.id AND p.id < 4"],
    "random rows": ["DELETE FROM grandchild WHERE id IN (SELECT id FROM grandchild ORDER BY random() LIMIT 5)"],
    "block": ["BEGIN", "UPDATE parent SET name = 'a' WHERE id = 1", "UPDATE parent SET name = 'b' WHERE id = 1", "COMMIT"],
    "insert then update then delete": [
        "BEGIN", "INSERT INTO parent VALUES (52, 'x', 1)", "UPDATE parent SET name = 'y' WHERE id = 52",
        "INSERT INTO parent VALUES (53, 'x', 1)", "DELETE FROM parent WHERE id = 53", "COMMIT",
    ],
    "savepoints": [
        "BEGIN", "SAVEPOINT a", "DELETE FROM heap WHERE n = 1", "ROLLBACK TO a",
        "UPDATE heap SET v = 'other' WHERE n = 2", "RELEASE a", "SAVEPOINT b", "INSERT INTO heap VALUES ('late', 1)",
        "RELEASE b", "COMMIT",
    ],
    "savepoint credit": [
        "BEGIN", "SAVEPOINT a", "UPDATE heap SET n = n WHERE n = 1 AND v = 'nothing'", "ROLLBACK TO a",
        "DELETE FROM heap WHERE n = 2 AND v = 'same'", "COMMIT",
    ],
    "repeatable read": [
        "BEGIN ISOLATION LEVEL REPEATABLE READ", "UPDATE parent SET name = 'r' WHERE id = 9", "COMMIT",
    ],
    "serializable": ["BEGIN ISOLATION LEVEL SERIALIZABLE", "DELETE FROM heap WHERE n = 1", "COMMIT"],
    "several statements in one Query": ["UPDATE parent SET name = 'a' WHERE id = 1; DELETE FROM heap WHERE n = 1"],
    "prepared by SQL": ["PREPARE p AS UPDATE parent SET name = 'z' WHERE id = $1", "EXECUTE p(4)"],
    "a cursor": [
        "BEGIN", "DECLARE c CURSOR FOR SELECT * FROM heap WHERE n = 1 FOR UPDATE", "FETCH 1 FROM c",
        "UPDATE heap SET v = 'here' WHERE CURRENT OF c", "COMMIT",
    ],
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_what_is_committed_is_in_the_snapshot(guarded: Guarded, script: list[str], protocol: str) -> None:
    before = guarded.bags()
    with guarded.wall.connect(prepare_threshold=None) as agent:
        for text in script:
            if protocol == "extended" and ";" not in text:
                agent.execute(text, binary=True)
            else:
                agent.execute(text.encode())
    guarded.settled()
    after = guarded.bags()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in after.items()}
    if before != after:
        assert guarded.snapshots.list(state=SnapshotState.COMMITTED)


def test_parameters_reach_the_capture(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        for prepare in (False, True, True):
            agent.execute(
                "UPDATE parent SET name = %s, amount = %s WHERE id = %s", ("x", 1, 3), prepare=prepare
            )
            agent.execute("DELETE FROM heap WHERE n = %b AND v = %t", (1, "same"), prepare=prepare)
    guarded.settled()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in guarded.bags().items()}


def test_copy_in_is_covered(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent, agent.cursor() as cursor:
        with cursor.copy("COPY parent FROM STDIN") as copy:
            for number in range(200, 300):
                copy.write_row((number, "copied", None))
    guarded.settled()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in guarded.bags().items()}


def test_more_rows_than_the_rule_allows_are_refused_before_the_write(guarded: Guarded) -> None:
    with guarded.wall.database.connect() as connection:
        connection.execute("INSERT INTO heap SELECT 'bulk', 100 FROM generate_series(1, 1500)")
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        with pytest.raises(psycopg.Error) as caught:
            agent.execute("DELETE FROM heap WHERE n = 100")
        assert caught.value.sqlstate == "53400"
        assert "Nothing was executed" in str(caught.value)
        assert agent.execute("SELECT 1").fetchone() == (1,)
    assert guarded.bags() == before


def test_a_cascade_counts_against_the_limit(guarded: Guarded) -> None:
    with guarded.wall.database.connect() as connection:
        connection.execute("INSERT INTO child SELECT g, 1, 'many' FROM generate_series(1000, 2500) g")
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="rows"):
            agent.execute("DELETE FROM parent WHERE id = 1")
    guarded.settled()
    assert guarded.bags() == before


def test_a_rule_without_its_observer_is_refused(
    open_wall: OpenWall, database: Database, tmp_path: Path
) -> None:
    wall = open_wall(
        observer__dsn=database.dsn("nobody_there", "x"), snapshots__url=str(tmp_path / "snapshots")
    )
    with wall.connect() as agent, pytest.raises(psycopg.Error) as caught:
        agent.execute("UPDATE parent SET name = 'x' WHERE id = 1")
    assert caught.value.sqlstate == "58000"
    with database.connect() as connection:
        assert connection.execute("SELECT name FROM parent WHERE id = 1").fetchone() == ("p1",)


def test_images_do_not_depend_on_the_agents_settings_and_leave_them_alone(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        for text in (
            "SET datestyle = 'German'",
            "SET intervalstyle = 'iso_8601'",
            "SET extra_float_digits = -10",
        ):
            agent.execute(text.encode())
        agent.execute("UPDATE types SET id = id + 100 WHERE id = 1")
        assert agent.execute("SHOW datestyle").fetchone() == ("German, DMY",)
        assert agent.info.parameter_status("DateStyle") == "German, DMY"
        assert agent.execute("SHOW extra_float_digits").fetchone() == ("-10",)
    guarded.settled()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in guarded.bags().items()}
