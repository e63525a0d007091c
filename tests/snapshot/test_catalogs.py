"""Windows of counters, and what a TRUNCATE may count in them."""

from __future__ import annotations

from dataclasses import replace

from sqlwall.snapshot import catalogs, emptying
from sqlwall.snapshot.catalogs import Explained
from sqlwall.snapshot.emptying import Stored
from sqlwall.snapshot.witness import Accepted, Decision, Refused, Witness, Witnesses, decide
from sqlwall.sql.statement import Operation

BEFORE = {"1": Stored("1", "r", "10", "t"), "2": Stored("1", "i", "20", "i")}
AFTER = {"1": Stored("1", "r", "11", "t"), "2": Stored("1", "i", "21", "i")}


def test_what_was_counted_in_between_is_the_difference() -> None:
    before = catalogs.read_counters([(b"pg_class", b"1", b"2", b"3")])
    after = catalogs.read_counters([(b"pg_class", b"1", b"5", b"3"), (b"pg_type", b"1", b"0", b"0")])
    assert catalogs.between(before, after) == {"pg_class": (0, 3, 0), "pg_type": (1, 0, 0)}
    assert catalogs.between(after, after) == {}
    assert catalogs.total(({"a": (1, 0, 0)}, {"a": (0, 1, 2), "b": (1, 1, 1)})) == {
        "a": (1, 1, 2), "b": (1, 1, 1),
    }  # fmt: skip


def test_one_update_for_each_new_file_is_all_that_a_truncate_counts() -> None:
    assert emptying.unexplained(BEFORE, AFTER, {"pg_class": (0, 2, 0)}) == ""
    assert emptying.unexplained(BEFORE, BEFORE, {}) == ""
    for counted in (
        {},
        {"pg_class": (0, 3, 0)},
        {"pg_class": (0, 2, 1)},
        {"pg_class": (0, 2, 0), "pg_attribute": (1, 0, 0)},
    ):
        assert emptying.unexplained(BEFORE, AFTER, counted)


def test_a_new_file_changes_nothing_else() -> None:
    altered = AFTER | {"2": replace(AFTER["2"], definition="unlogged")}
    assert "definition" in emptying.unexplained(BEFORE, altered, {"pg_class": (0, 2, 0)})
    assert "index" in emptying.unexplained(BEFORE, {"1": AFTER["1"]}, {"pg_class": (0, 1, 0)})


def permitted(operation: Operation, schema: str, name: str) -> Decision:
    return Decision(name != "kept", "kept", must_cover=True)


def witnesses(*relations: tuple[str, Witness], gone: int = 0) -> Witnesses:
    return Witnesses(dict(relations), gone, 0, is_complete=True)


CLASS = ("1259", Witness("pg_catalog", "pg_class", "r", (0, 2, 0), frozenset()))
TABLE = ("1", Witness("public", "t", "r", (0, 0, 0), frozenset({"ExclusiveLock", "AccessExclusiveLock"})))


def test_catalogs_must_have_counted_what_is_explained_and_nothing_else() -> None:
    explained = Explained({"pg_class": (0, 2, 0)}, frozenset({"1"}), frozenset({"1"}))
    found = decide(Witnesses(), witnesses(CLASS, TABLE), permitted, explained=explained)
    assert isinstance(found, Accepted) and [write.oid for write in found.uncovered] == ["1"]
    for wrong in (
        replace(explained, catalogs={}),
        replace(explained, catalogs={"pg_class": (0, 3, 0)}),
        replace(explained, catalogs={"pg_class": (0, 2, 0), "pg_type": (1, 0, 0)}),
        replace(explained, locked=frozenset()),
        replace(explained, gone=1),
    ):
        found = decide(Witnesses(), witnesses(CLASS, TABLE), permitted, explained=wrong)
        assert isinstance(found, Refused)


def test_a_moved_table_is_judged_by_the_name_that_it_had() -> None:
    moved = ("1", Witness("_sqlwall_trash", "t_1", "r", (0, 0, 0), frozenset({"AccessExclusiveLock"})))
    explained = Explained(moved={"1": ("public", "t")})
    assert decide(Witnesses(), witnesses(moved), permitted, explained=explained) == Accepted()
    kept = replace(explained, moved={"1": ("public", "kept")})
    assert isinstance(decide(Witnesses(), witnesses(moved), permitted, explained=kept), Refused)
    written = ("1", replace(moved[1], counts=(0, 0, 1)))
    assert isinstance(decide(Witnesses(), witnesses(written), permitted, explained=explained), Refused)
    touched = ("1", replace(moved[1], modes=moved[1].modes | {"RowExclusiveLock"}))
    assert isinstance(decide(Witnesses(), witnesses(touched), permitted, explained=explained), Refused)
