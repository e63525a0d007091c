"""What undo must leave whole where triggers and foreign keys are switched off: keys that refer, either way, unique keys
that are checked late, and the server's own counts of what was written.

It asks and compares in the transaction of the undo; what to put back is the business of `proxy.undo`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlwall.snapshot import undo
from sqlwall.snapshot.undo import Conflict, ConflictKind, KeyColumn, Reference, Restore

#: Rows inserted and deleted.
Counts = tuple[int, int]
_NOTHING: Final[Counts] = (0, 0)


class Conflicts(Exception):  # noqa: N818 - an answer, not a fault
    """Leaves the depths with what stands against an undo."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        super().__init__("conflicts")
        self.conflicts = tuple(conflicts)


def check_none(conflicts: Sequence[Conflict]) -> None:
    """Raise what stands against it, if anything does."""
    if conflicts:
        raise Conflicts(conflicts)


def key_columns(columns: Sequence[Sequence[str]]) -> tuple[KeyColumn, ...]:
    """A key as `undo.KEYS` says it."""
    return tuple(KeyColumn(*column) for column in columns)


class Integrity:
    """That of one transaction; `do` runs a statement in it, `rows` a query. Every method raises Conflicts."""

    def __init__(self, do: Callable[[str], int], rows: Callable[..., list[tuple[Any, ...]]]) -> None:
        self._do = do
        self._rows = rows
        # Counters of the session's earlier transactions are still there (MECHANICS, section 1).
        self._earlier = {oid: counts for oid, _, *counts in rows(undo.WRITTEN)}

    def references(self, restores: Sequence[Restore]) -> list[Reference]:
        """The foreign keys that these tables have, and those that refer to one of them."""
        oids = [restore.oid for restore in restores]
        labels = {restore.oid: restore.label for restore in restores}
        found: list[Reference] = []
        for name, child, parent, children, parents, pairs, key, is_period, is_enforced in self._rows(
            undo.REFERENCES, [oids, oids]
        ):
            if not is_enforced:
                continue
            if is_period:
                what = labels[(children or parents)[0]]
                raise Conflicts(
                    [Conflict("", what, ConflictKind.UNSUPPORTED, "", f"foreign key {name} has a PERIOD")]
                )
            found.append(
                Reference(name, tuple(child), tuple(parent), tuple(children), tuple(parents),
                          tuple(tuple(pair) for pair in pairs), tuple(key))
            )  # fmt: skip
        return found

    def check(self, which: str, restores: Sequence[Restore], references: Sequence[Reference]) -> None:
        """The constraints that nothing has checked. `which` is the snapshot, if it is only one."""
        by_oid = {restore.oid: restore for restore in restores}
        conflicts = [
            conflict for reference in references for conflict in self._broken(which, by_oid, reference)
        ]
        for oid, name, _, is_immediate, is_btree, is_null_equal, columns in self._rows(
            undo.KEYS, [list(by_oid)]
        ):
            if is_immediate:
                continue
            restore = by_oid[oid]
            if not is_btree or is_null_equal:
                what = f"constraint {name} is deferrable"
                conflicts.append(Conflict(which, restore.label, ConflictKind.UNSUPPORTED, "", what))
                continue
            conflicts += [
                Conflict(which, restore.label, ConflictKind.UNIQUE_TAKEN, row, name)
                for (row,) in self._rows(restore.duplicates(key_columns(columns)))
            ]
        check_none(conflicts)

    def _broken(self, which: str, by_oid: Mapping[int, Restore], reference: Reference) -> list[Conflict]:
        """Rows whose parent is gone, and rows of others that refer to what is taken away."""
        conflicts: list[Conflict] = []
        for restore in (by_oid[oid] for oid in reference.children):
            self._do(restore.hold_parents(reference))
            conflicts += [
                Conflict(which, restore.label, ConflictKind.PARENT_GONE, row, reference.name)
                for (row,) in self._rows(restore.orphans(reference))
            ]
        child = f"{reference.child[0]}.{reference.child[1]}"
        for restore in (by_oid[oid] for oid in reference.parents):
            conflicts += [
                Conflict(which, child, ConflictKind.CHILD_ADDED, row, f"{restore.label}, {reference.name}")
                for (row,) in self._rows(restore.abandoned(reference))
            ]
        return conflicts

    def check_written(self, labels: Mapping[int, str], expected: Mapping[int, Counts]) -> None:
        """The server's own counts of this transaction: nothing but these rows was written, by tables' object ids."""
        conflicts: list[Conflict] = []
        for oid, name, *counts in self._rows(undo.WRITTEN):
            before = self._earlier.get(oid, (0, 0, 0))
            inserted, updated, deleted = (now - then for now, then in zip(counts, before, strict=True))
            if updated or expected.get(oid, _NOTHING) != (inserted, deleted):
                conflicts.append(Conflict("", labels.get(oid, name), ConflictKind.SIDE_EFFECT))
        check_none(conflicts)
