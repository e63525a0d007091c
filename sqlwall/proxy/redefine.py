"""What undo brings back besides rows: where sequences stood, and tables that were dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from sqlwall.errors import first_line
from sqlwall.snapshot import restart, trash
from sqlwall.snapshot.manifest import Column, Manifest, Move, SequenceChange, SequenceState
from sqlwall.snapshot.undo import Conflict, ConflictKind

Do = Callable[[str], int]
Rows = Callable[..., list[tuple[Any, ...]]]


class Numbers:
    """The sequences of one undo. Nobody draws from them meanwhile, where the undo role may see to that."""

    def __init__(self, do: Do, rows: Rows) -> None:
        self._do = do
        self._rows = rows
        self._known: dict[int, restart.Sequence] = {}
        self._states: dict[int, SequenceState] = {}
        self._first: dict[int, SequenceState] = {}

    def take_back(self, manifest: Manifest) -> tuple[tuple[SequenceChange, ...], tuple[Conflict, ...]]:
        """What undoing one snapshot does to sequences, and what stands against it. Nothing is set yet."""
        done: list[SequenceChange] = []
        conflicts: list[Conflict] = []
        for change in manifest.sequences:
            if change.oid not in self._known and not self._find(change.oid):
                conflicts.append(Conflict(manifest.id, change.label, ConflictKind.MISSING))
                continue
            now = self._states[change.oid]
            state = restart.back(change, now, self._known[change.oid].increment)
            if state is None:
                detail = (
                    f"it stands at {now.last}, was left at {change.after.last}, was at {change.before.last}"
                )
                conflicts.append(Conflict(manifest.id, change.label, ConflictKind.DRAWN, "", detail))
                continue
            self._states[change.oid] = state
            known = self._known[change.oid]
            done.append(SequenceChange(change.oid, known.schema, known.name, now, state))
        return tuple(done), tuple(conflicts)

    def _find(self, oid: int) -> bool:
        found = self._rows(restart.FIND, [oid])
        if not found:
            return False
        sequence = restart.Sequence(*found[0])
        if sequence.is_ours:
            self._do(sequence.lock())
        ((last, is_called),) = self._rows(sequence.state())
        self._known[oid] = sequence
        self._states[oid] = self._first[oid] = SequenceState(last, is_called)
        return True

    @property
    def plan(self) -> Sequence[str]:
        """What will be set, in words."""
        return [
            f"{self._known[oid].label}: at {state.last}{'' if state.is_called else ', not drawn'} again"
            for oid, state in self._states.items()
            if state != self._first[oid]
        ]

    def apply(self) -> None:
        """Set them: the last thing before COMMIT, for where a sequence is not ours no ROLLBACK brings it back."""
        for oid, state in self._states.items():
            if state == self._first[oid]:
                continue
            if self._known[oid].is_ours:
                self._do(self._known[oid].renew())
            self._do(self._known[oid].put(state))


class Redefinition:
    """All of that for one undo, in the order in which it has to happen."""

    def __init__(self, do: Do, rows: Rows) -> None:
        self._numbers = Numbers(do, rows)
        self._tables = Tables(do, rows)
        self._sequences: dict[str, tuple[SequenceChange, ...]] = {}

    def begin(self, manifests: Sequence[Manifest]) -> tuple[Conflict, ...]:
        """Before any row is looked for."""
        return self._tables.begin(manifests)

    def end(self, manifests: Sequence[Manifest]) -> tuple[Conflict, ...]:
        """When all rows are where they belong."""
        conflicts = self._tables.end()
        for manifest in manifests:
            self._sequences[manifest.id], found = self._numbers.take_back(manifest)
            conflicts += found
        return conflicts

    def apply(self) -> None:
        """Right before COMMIT."""
        self._numbers.apply()

    @property
    def plan(self) -> tuple[str, ...]:
        """What is done, in words."""
        return (*self._tables.plan, *self._numbers.plan)

    def values(self, snapshot: str) -> dict[str, Any]:
        """What the manifest of the undo says of it."""
        return {"sequences": self._sequences[snapshot], "moves": self._tables.done(snapshot)}


@dataclass(slots=True)
class _Way:
    """One move on its way back: `done` is what the undo's own snapshot says of it."""

    snapshot: str
    move: Move
    done: Move


class Tables:
    """The tables of one undo that were dropped, or brought back.

    Tables come back before rows do, which may be theirs, and get their foreign keys after, when all that they refer to
    is there again; to the trash they go the other way round.
    """

    def __init__(self, do: Do, rows: Rows) -> None:
        self._do = do
        self._rows = rows
        self._ways: list[_Way] = []

    def begin(self, manifests: Sequence[Manifest]) -> tuple[Conflict, ...]:
        """Before rows: bring back what was dropped, take off the foreign keys of what goes again."""
        self._ways = [
            _Way(manifest.id, move, replace(move, is_removed=not move.is_removed, digest=""))
            for manifest in manifests
            for move in manifest.moves
        ]
        going = [way for way in self._ways if not way.move.is_removed]
        conflicts = [self._bring_back(way) for way in self._ways if way.move.is_removed]
        conflicts += [self._check_going(way, [one.move.oid for one in going]) for way in going]
        found = tuple(conflict for conflict in conflicts if conflict is not None)
        if not found:
            found = self._check_dependents(going)
        for way in going if not found else ():
            for sql in trash.drop_keys(way.move, way.move.schema, way.move.name):
                self._do(sql)
        return found

    def end(self) -> tuple[Conflict, ...]:
        """After rows: the rest."""
        conflicts = [self._tie(way) if way.move.is_removed else self._put_away(way) for way in self._ways]
        return tuple(found for found in conflicts if found is not None)

    def done(self, snapshot: str) -> tuple[Move, ...]:
        """What the undo of one snapshot did."""
        return tuple(way.done for way in self._ways if way.snapshot == snapshot)

    @property
    def plan(self) -> Sequence[str]:
        """What is done, in words."""
        return [
            f"{way.move.label}: {'brought back from' if way.move.is_removed else 'put again into'} the trash"
            for way in self._ways
        ]

    def _bring_back(self, way: _Way) -> Conflict | None:
        move = way.move
        found = self._check(way, trash.SCHEMA, move.trash, {part.oid: part.trash for part in move.parts})
        if found is not None:
            return found
        failure = self._attempt(trash.out_of_trash(move))
        if failure is None:
            return None
        if isinstance(failure, (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject)):
            return Conflict(way.snapshot, move.label, ConflictKind.NAME_TAKEN, "", first_line(failure))
        if isinstance(failure, psycopg.errors.InvalidSchemaName):
            return Conflict(way.snapshot, move.label, ConflictKind.MISSING, "", "its schema is gone")
        raise failure

    def _check_going(self, way: _Way, going: Sequence[int]) -> Conflict | None:
        """Whether a table that goes again is as it was brought back; the keys that it had in the trash stay on it."""
        move = way.move
        found = self._check(way, move.schema, move.name, {part.oid: part.name for part in move.parts})
        if found is not None:
            return found
        known = {(key.name, key.definition, key.comment) for key in move.keys}
        every = {(row[1], row[2], row[3]) for row in self._text(trash.keys([move.oid]))}
        outward = {
            (row[1], row[2], row[3]) for row in self._text(trash.keys(going)) if int(row[0]) == move.oid
        }
        if known <= every and outward <= known:
            return None
        return Conflict(way.snapshot, move.label, ConflictKind.ALTERED, "", "its foreign keys are others")

    def _check_dependents(self, going: Sequence[_Way]) -> tuple[Conflict, ...]:
        found = self._text(trash.dependents([way.move.oid for way in going])) if going else []
        if not found:
            return ()
        named = ", ".join(str(one[0]) for one in found[:5])
        first = going[0]
        return (Conflict(first.snapshot, first.move.label, ConflictKind.DEPENDED_ON, "", named),)

    def _check(self, way: _Way, schema: str, name: str, parts: dict[int, str]) -> Conflict | None:
        """Whether a table is where it was left, as it was left."""
        move = way.move
        places = {
            int(oid): (at, called) for oid, at, called in self._text(trash.found_at([move.oid, *parts]))
        }
        if places.get(move.oid) != (schema, name):
            return Conflict(way.snapshot, move.label, ConflictKind.MISSING)
        columns = tuple(
            Column(c, t, int(n), g, i) for _, c, t, n, g, i in self._text(trash.columns([move.oid]))
        )
        theirs = {int(oid): name for _, oid, _, name in self._text(trash.parts([move.oid]))}
        if columns != move.columns or theirs != parts:
            return Conflict(way.snapshot, move.label, ConflictKind.ALTERED)
        return None

    def _tie(self, way: _Way) -> Conflict | None:
        """Foreign keys again, each checked by the server; then what tells whether rows are changed from now on."""
        move = way.move
        for key in move.keys:
            failure = self._attempt(trash.add_key(move, key))
            if isinstance(failure, psycopg.errors.ForeignKeyViolation):
                return Conflict(way.snapshot, move.label, ConflictKind.PARENT_GONE, "", key.name)
            if isinstance(failure, (psycopg.errors.UndefinedTable, psycopg.errors.InvalidForeignKey,
                                    psycopg.errors.UndefinedColumn, psycopg.errors.DatatypeMismatch)):  # fmt: skip
                detail = f"{key.name}: {first_line(failure)}"
                return Conflict(way.snapshot, move.label, ConflictKind.ALTERED, "", detail)
            if failure is not None:
                raise failure
        ((digest,),) = self._rows(trash.digest(move.schema, move.name, move.columns))
        way.done = replace(way.done, digest=digest)
        return None

    def _put_away(self, way: _Way) -> Conflict | None:
        move = way.move
        ((digest,),) = self._rows(trash.digest(move.schema, move.name, move.columns))
        if move.digest and digest != move.digest:
            return Conflict(way.snapshot, move.label, ConflictKind.CHANGED, "", "rows of it")
        for sql in trash.into_trash(move):
            self._do(sql)
        return None

    def _attempt(self, texts: Sequence[str]) -> psycopg.Error | None:
        """All of them or none; the error that came."""
        self._do("SAVEPOINT redefine")
        try:
            for sql in texts:
                self._do(sql)
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise
            self._do("ROLLBACK TO redefine")
            return error
        self._do("RELEASE redefine")
        return None

    def _text(self, sql: bytes) -> list[tuple[Any, ...]]:
        return self._rows(sql.decode())
