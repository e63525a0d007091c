"""Around a permitted DROP TABLE: the table is moved to the trash, and the client's own text drops an empty one instead.

All of it happens on the agent's session inside its transaction, so that whatever undoes the DROP undoes the move. What
PostgreSQL would refuse itself is left to it; what could not be brought back exactly is refused as irreversible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlwall.proxy.guard import Keeper
from sqlwall.proxy.keeping import Ask, Findings, Refusal, Talk, TooMany, Uncovered
from sqlwall.proxy.labels import SessionLabels
from sqlwall.rules.verdict import Limits
from sqlwall.session.internal import Answer
from sqlwall.snapshot import catalogs, emptying, queries, trash
from sqlwall.snapshot.catalogs import Explained, Window
from sqlwall.snapshot.manifest import Move
from sqlwall.snapshot.trash import Candidate
from sqlwall.sql.removals import Removal
from sqlwall.wire.backend import decode_diagnostics

_PROBE = b"SAVEPOINT _sqlwall_probe"
_UNPROBE = (b"ROLLBACK TO SAVEPOINT _sqlwall_probe", b"RELEASE SAVEPOINT _sqlwall_probe")
#: What a table without columns is called that is made and dropped to see what that counts.
_PROBE_NAME = "_sqlwall_probe"
_FRESH = frozenset({"read committed", "read uncommitted"})
#: errcodes.txt: a cursor is open on it, or a trigger is still to fire.
OBJECT_IN_USE = "55006"
_PROVISION = "A superuser makes it: sqlwall provision --drops --apply"


@dataclass(frozen=True, slots=True)
class _Opening:
    """What there was right before a DROP ran: the moves made for it, the empty tables in their places, and what
    dropping these has to count.
    """

    moves: Sequence[Move]
    stubs: Mapping[int, str]
    counters: Window
    expected: Window


@dataclass(slots=True)
class _Known:
    """What was seen in the open transaction. Moves by the table's object id, with the empty table dropped for it."""

    moves: dict[int, tuple[Move, str]] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    locked: set[str] = field(default_factory=set)
    opening: _Opening | None = None


class Drops:
    """What one connection's open transaction drops."""

    def __init__(self, ask: Ask, keeper: Keeper, labels: SessionLabels) -> None:
        self._talk = Talk(ask)
        self._keeper = keeper
        self._labels = labels
        self._known = _Known()

    def forget(self) -> None:
        """The transaction is over."""
        self._known = _Known()

    async def before(self, wanted: Removal, limits: Limits) -> TooMany | None:
        """Put the tables into the trash, empty ones into their places. Raises Refusal, ServerError, SqlwallError."""
        self._known.opening = None
        resolved = await self._talk.run(emptying.resolve(wanted.tables))
        oids = sorted({int(value or b"0") for value in resolved[0].rows[0]} - {0})
        if not oids:
            return None  # there is none: the server says so itself
        found = await self._candidates(oids)
        if any(one.kind not in "rp" or one.is_extension or not one.is_ours for one in found):
            return None  # no table, or not the agent's to drop: the server says so itself
        await self._check(found)
        too_many = await self._count(found, limits)
        if too_many is not None:
            return too_many
        if await self._talk.attempt(trash.lock(found)) is not None:
            return None
        again = await self._candidates(oids)
        if [_place(one) for one in again] != [_place(one) for one in found]:
            what = "a table was changed just now; try again"
            raise Refusal(Uncovered(what, _labels(found), "moving"))
        if await self._has_dependents(found, wanted):
            return None  # the server names them itself
        await self._move(found)
        return None

    async def _candidates(self, oids: Sequence[int]) -> list[Candidate]:
        (answer,) = await self._talk.look(trash.candidates(oids))
        return trash.read_candidates(answer.rows)

    async def _check(self, found: Sequence[Candidate]) -> None:
        """What cannot be brought back exactly is not dropped."""
        (answer,) = await self._talk.look(trash.standing())
        standing = trash.read_standing(answer.rows[0])
        for one in found:
            why, hint = _irreversible(one)
            if why:
                raise Refusal(Uncovered(f"it is irreversible: {why}", one.label, "irreversible"), hint)
        target = _labels(found)
        if not standing.may_use_trash:
            why = f"it is irreversible without the schema {trash.SCHEMA}, which is not there for the agent's role"
            raise Refusal(Uncovered(why, target, "irreversible"), _PROVISION)
        if standing.has_event_triggers:
            why = "it is irreversible: event triggers of this database act on it"
            raise Refusal(Uncovered(why, target, "irreversible"))
        if standing.isolation not in _FRESH:
            why = f"it is irreversible in a transaction of isolation level {standing.isolation}"
            raise Refusal(Uncovered(why, target, "irreversible"), "Drop it under READ COMMITTED.")

    async def _count(self, found: Sequence[Candidate], limits: Limits) -> TooMany | None:
        """A table that has more rows than may be deleted may not be dropped either."""
        bounds = [one for one in (limits.rows, limits.transaction_rows) if one is not None]
        if not bounds:
            return None
        rows = sum([await self._rows(one, min(bounds) + 1) for one in found])
        return TooMany(min(bounds)) if rows > min(bounds) else None

    async def _rows(self, one: Candidate, most: int) -> int:
        """How many rows a table has, counted up to `most`; by the observer where the agent's role does not see all."""
        sql = queries.count_rows(one.schema, one.name, most)
        if one.is_readable:
            (answer,) = await self._talk.run(sql.encode())
            return int(_value(answer))
        async with self._keeper.observers.borrow(self._labels.database) as observer:
            ((rows,),) = await observer.fetch(sql.encode())
        return int(rows)

    async def _has_dependents(self, found: Sequence[Candidate], wanted: Removal) -> bool:
        """Whether the server will refuse because of what depends on the tables. Raises Refusal where it would not."""
        (answer,) = await self._talk.look(trash.dependents([one.oid for one in found]))
        dependents = trash.read_dependents(answer.rows)
        if not dependents:
            return False
        if not wanted.cascades and any(one.keeps for one in dependents):
            return True
        named = ", ".join(one.description for one in dependents[:5])
        why = f"it is irreversible, as this would go with it or change: {named}"
        raise Refusal(Uncovered(why, _labels(found), "irreversible"))

    async def _move(self, found: Sequence[Candidate]) -> None:
        oids = [one.oid for one in found]
        columns, parts, keys, bystanders = await self._talk.look(
            trash.columns(oids), trash.parts(oids), trash.keys(oids), trash.bystanders(oids)
        )
        if any(row[-1] == b"true" for row in keys.rows):
            why = "it is irreversible: a foreign key of it is switched off in part"
            raise Refusal(Uncovered(why, _labels(found), "irreversible"))
        moves = trash.plan(found, columns.rows, parts.rows, keys.rows)
        (start,) = await self._talk.run(catalogs.COUNTERS)
        texts = [text for move in moves for text in trash.drop_keys(move, move.schema, move.name)]
        for move in moves:
            texts += [*trash.into_trash(move), trash.make_stub(move.schema, move.name)]
        error = await self._talk.attempt([text.encode() for text in texts])
        if error is not None:
            if decode_diagnostics(error).sqlstate == OBJECT_IN_USE:
                return  # it is in use in this very session, and the server says so itself
            why = "it is irreversible: it could not be moved to the trash"
            raise Refusal(Uncovered(why, _labels(found), "irreversible"))
        expected = [await self._probe(move.schema) for move in moves]
        stubs = await self._talk.look(*(trash.oid_of(move.schema, move.name) for move in moves))
        (end,) = await self._talk.run(catalogs.COUNTERS)
        counters = catalogs.read_counters(end.rows)
        known = self._known
        known.windows.append(catalogs.between(catalogs.read_counters(start.rows), counters))
        known.locked.update((row[0] or b"").decode() for row in bystanders.rows)
        known.locked.update(str(part.oid) for move in moves for part in move.parts)
        known.opening = _Opening(
            moves, {move.oid: _value(one) for move, one in zip(moves, stubs, strict=True)},
            counters, catalogs.total(expected),
        )  # fmt: skip

    async def _probe(self, schema: str) -> Window:
        """What dropping an empty table there counts."""
        answers = await self._talk.run(
            _PROBE,
            trash.make_stub(schema, _PROBE_NAME).encode(),
            catalogs.COUNTERS,
            trash.drop_stub(schema, _PROBE_NAME).encode(),
            catalogs.COUNTERS,
            *_UNPROBE,
        )
        return catalogs.between(*(catalogs.read_counters(answers[place].rows) for place in (2, 4)))

    async def after(self) -> None:
        """The statement has run: whether it did what was meant, and nothing else. Raises ServerError."""
        opening, self._known.opening = self._known.opening, None
        if opening is None:
            return
        (counted,) = await self._talk.run(catalogs.COUNTERS)
        window = catalogs.between(opening.counters, catalogs.read_counters(counted.rows))
        if window != opening.expected:
            return  # the gate sees what is not explained
        self._known.windows.append(window)
        for move in opening.moves:
            self._known.moves[move.oid] = move, opening.stubs[move.oid]

    async def find(self) -> Findings:
        """What stands of all that. Raises ServerError."""
        known = self._known
        explained = catalogs.total(known.windows)
        if not known.moves:
            return Findings(Explained(explained, frozenset(known.locked)))
        (answer,) = await self._talk.look(
            trash.found_at([*known.moves, *(int(stub) for _, stub in known.moves.values())])
        )
        places = {oid: (schema, name) for oid, schema, name in map(_decoded, answer.rows)}
        standing = [
            move
            for move, stub in known.moves.values()
            if places.get(str(move.oid)) == (trash.SCHEMA, move.trash) and stub not in places
        ]
        return Findings(
            Explained(
                catalogs=explained,
                locked=frozenset(known.locked),
                moved={str(move.oid): (move.schema, move.name) for move in standing},
                gone=len(standing),
            ),
            moves=tuple(standing),
        )


def _irreversible(one: Candidate) -> tuple[str, str]:
    """Why a table could not come back as it is, and what helps; empty if it could."""
    reasons = (
        (one.kind == "p", "it is partitioned", ""),
        (one.persistence == "t", "it is temporary", ""),
        (one.is_child, "it is a partition of a table, or inherits from one", ""),
        (one.is_subscribed, "a subscription writes to it", ""),
        (one.is_written, "the transaction has written it before", "Drop it in a transaction of its own."),
        (not one.may_create, f"the agent's role may not create in schema {one.schema}", ""),
    )
    return next(((why, hint) for holds, why, hint in reasons if holds), ("", ""))


def _place(one: Candidate) -> tuple[int, str, str, str, bool]:
    return one.oid, one.schema, one.name, one.kind, one.is_child


def _labels(found: Sequence[Candidate]) -> str:
    return ", ".join(one.label for one in found)


def _decoded(row: Sequence[bytes | None]) -> tuple[str, ...]:
    return tuple((value or b"").decode() for value in row)


def _value(answer: Answer) -> str:
    return (answer.rows[0][0] or b"").decode()
