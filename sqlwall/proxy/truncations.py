"""Around a permitted TRUNCATE: before it runs, every row that it removes is read, and what it may count in catalogs is
known right after.

The rows cannot be read later, since it locks readers out. So writers are held off first, then the observer reads all
committed rows into a hold of their own, under the limits of the rule; then the client's own text runs. Catalogs are
measured right before and right after: what is more than a TRUNCATE's own, such as an ALTER in a trigger, stays
unexplained, and the gate refuses it. What counts at the gate is the server's state then, whatever was undone since.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from sqlwall.proxy.gate import Permission
from sqlwall.proxy.guard import Keeper
from sqlwall.proxy.keeping import Ask, Emptied, Findings, Hold, Pages, Refusal, Talk, TooMany, Uncovered
from sqlwall.proxy.labels import SessionLabels
from sqlwall.proxy.observer import Observer, Table
from sqlwall.proxy.search import SCAN_LIMIT
from sqlwall.rules.verdict import Limits
from sqlwall.session.internal import Answer
from sqlwall.snapshot import catalogs, emptying
from sqlwall.snapshot.catalogs import Explained, Window
from sqlwall.snapshot.emptying import Member, OwnedSequence, Stored
from sqlwall.snapshot.manifest import SequenceChange, SequenceState
from sqlwall.sql.removals import Emptying
from sqlwall.sql.statement import Operation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Opening:
    """What there was right before a TRUNCATE ran."""

    tables: Sequence[int]
    files: Mapping[str, Stored]
    counters: Window
    emptied: Mapping[str, Emptied]
    sequences: Mapping[str, tuple[OwnedSequence, SequenceState]]


@dataclass(slots=True)
class _Known:
    """What was seen in the open transaction. Files, by object id and number, that a TRUNCATE made: what a table was
    before all of them, and where a sequence stood.
    """

    emptied: dict[tuple[str, str], Emptied] = field(default_factory=dict)
    restarted: dict[tuple[str, str], tuple[OwnedSequence, SequenceState]] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    reached: set[int] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)
    rows: int = 0
    opening: _Opening | None = None


class Truncations:
    """What one connection's open transaction empties, and what is kept of it."""

    def __init__(self, ask: Ask, keeper: Keeper, labels: SessionLabels) -> None:
        self._talk = Talk(ask)
        self._keeper = keeper
        self._labels = labels
        self._known = _Known()

    def forget(self) -> None:
        """The transaction is over."""
        self._known = _Known()

    async def before(self, wanted: Emptying, limits: Limits, permission: Permission) -> TooMany | None:
        """Keep what the statement is about to remove. Raises Refusal, ServerError and SqlwallError."""
        self._known.opening = None
        (row,) = (await self._talk.run(emptying.resolve([table for table, _ in wanted.tables])))[0].rows
        oids = [int(value or b"0") for value in row]
        if 0 in oids:
            return None  # the server says so itself
        # One that is named both ways is emptied with all below it.
        roots = {
            oid: all(is_only for other, (_, is_only) in zip(oids, wanted.tables, strict=True) if other == oid)
            for oid in oids
        }
        async with self._observer() as observer:
            members = await _reached(observer, roots, wanted)
            sequences = await _sequences(observer, members) if wanted.restarts else ()
        if any(member.kind not in "rpf" for member in members):
            return None  # no table: the server says so itself
        _check_members(members)
        limits = _judge(members, sequences, limits, permission)
        locks = [*emptying.lock(members, roots), *map(emptying.lock_sequence, sequences)]
        if await self._talk.attempt(locks) is not None:
            return None  # it may not, and the server says so itself
        return await self._read(members, sequences, roots, wanted, limits)

    async def _read(
        self,
        members: Sequence[Member],
        sequences: Sequence[OwnedSequence],
        roots: Mapping[int, bool],
        wanted: Emptying,
        limits: Limits,
    ) -> TooMany | None:
        """All that is there, now that nobody can write; then where the catalogs stand."""
        known = self._known
        tables = [member.oid for member in members if member.kind == "r"]
        numbers = [sequence.oid for sequence in sequences]
        (stored,) = await self._talk.run(emptying.storage(tables, numbers))
        files = emptying.read_storage(stored.rows)
        emptied = {
            str(oid): known.emptied[place]
            for oid in tables
            if (place := (str(oid), _file(files, oid))) in known.emptied
        }
        fresh = [member for member in members if member.kind == "r" and str(member.oid) not in emptied]
        async with self._observer() as observer:
            reading = self._observe(observer, members, sequences, roots, wanted, fresh, limits)
            found = await self._while_waiting(observer, reading)
        if isinstance(found, TooMany):
            return found
        states = await self._states(sequences)
        (counted,) = await self._talk.run(catalogs.COUNTERS)
        known.reached.update(member.oid for member in members)
        known.numbers.update(numbers)
        known.opening = _Opening(tables, files, catalogs.read_counters(counted.rows), emptied | found, states)
        return None

    async def _states(
        self, sequences: Sequence[OwnedSequence]
    ) -> dict[str, tuple[OwnedSequence, SequenceState]]:
        texts = [emptying.sequence_state(one.oid, one.schema, one.name) for one in sequences]
        answers = await self._talk.run(*texts)
        return {
            str(sequence.oid): (sequence, _state(answer))
            for sequence, answer in zip(sequences, answers, strict=True)
        }

    async def _observe(
        self,
        observer: Observer,
        members: Sequence[Member],
        sequences: Sequence[OwnedSequence],
        roots: Mapping[int, bool],
        wanted: Emptying,
        fresh: Sequence[Member],
        limits: Limits,
    ) -> dict[str, Emptied] | TooMany:
        """Read these tables, unless what was locked is no longer what the statement reaches."""
        if (await _reached(observer, roots, wanted)) != tuple(members) or (
            wanted.restarts and await _sequences(observer, members) != tuple(sequences)
        ):
            what = "the tables that it reaches were changed just now; try again"
            raise Refusal(Uncovered(what, _labels(members), "moving"))
        tables = await observer.tables([member.oid for member in fresh])
        for member in fresh:
            _check_table(tables.get(member.oid), member, limits)
        return await self._hold(observer, [tables[member.oid] for member in fresh], limits)

    async def _hold(
        self, observer: Observer, tables: Sequence[Table], limits: Limits
    ) -> dict[str, Emptied] | TooMany:
        """Each statement has a hold of its own, so that one that is given up spoils no other."""
        if not tables:
            return {}
        hold = await asyncio.to_thread(Hold, self._keeper.snapshots)
        pages = Pages(hold, None, limits.bytes)
        left = None if limits.transaction_rows is None else max(0, limits.transaction_rows - self._known.rows)
        bound = min((one for one in (limits.rows, left) if one is not None), default=None)
        found: dict[str, Emptied] = {}
        rows = 0
        for table in tables:
            pages.label = ".".join(table.names)
            await pages.begin()
            sql = emptying.observe_all(table.schema, table.name, table.columns)
            # Closed where it is left early, not whenever it is collected: the session goes on to be used.
            async with aclosing(cast("AsyncGenerator[bytes, None]", observer.copy(sql))) as lines:
                async for line in lines:
                    rows += 1
                    if bound is not None and rows > bound:
                        return TooMany(bound)
                    await pages.add((line[:-1],))
            part = await pages.end()
            if limits.share is not None and limits.share < 1 and part.rows > 1:
                what = f"all {part.rows} rows are more than {limits.share:.0%} of the table"
                raise Refusal(Uncovered(what, pages.label, "limit"))
            found[str(table.oid)] = Emptied(table, part, hold)
        self._known.rows += rows
        return found

    # -- behind the statement

    async def after(self) -> None:
        """The statement has run: what it counted. Raises ServerError."""
        opening, self._known.opening = self._known.opening, None
        if opening is None:
            return
        known = self._known
        stored, counted = await self._talk.run(
            emptying.storage(opening.tables, map(int, opening.sequences)), catalogs.COUNTERS
        )
        files = emptying.read_storage(stored.rows)
        window = catalogs.between(opening.counters, catalogs.read_counters(counted.rows))
        if emptying.unexplained(opening.files, files, window):
            return  # the gate sees what is not explained
        known.windows.append(window)
        for oid, emptied in opening.emptied.items():
            if (file := _file(files, oid)) != _file(opening.files, oid):
                known.emptied[oid, file] = emptied
        for oid, found in opening.sequences.items():
            if (file := _file(files, oid)) != (before := _file(opening.files, oid)):
                known.restarted[oid, file] = known.restarted.get((oid, before), found)

    # -- at the gate

    async def find(self) -> Findings:
        """What stands of all that. Raises ServerError."""
        known = self._known
        if not known.reached:
            return Findings(Explained(catalogs.total(known.windows)))
        (stored,) = await self._talk.run(emptying.storage(known.reached, known.numbers))
        files = emptying.read_storage(stored.rows)
        emptied = {oid: kept for (oid, file), kept in known.emptied.items() if _file(files, oid) == file}
        restarted = {oid: kept for (oid, file), kept in known.restarted.items() if _file(files, oid) == file}
        states = await self._states([sequence for sequence, _ in restarted.values()])
        explained = Explained(
            catalogs=catalogs.total(known.windows),
            locked=frozenset(map(str, known.reached)) | frozenset(files),
            emptied=frozenset(emptied),
            restarted=frozenset(restarted),
        )
        changes = tuple(
            SequenceChange(sequence.oid, sequence.schema, sequence.name, before, states[oid][1])
            for oid, (sequence, before) in restarted.items()
            if before != states[oid][1]
        )
        return Findings(explained, emptied, changes)

    # -- talking

    def _observer(self) -> AbstractAsyncContextManager[Observer]:
        return self._keeper.observers.borrow(self._labels.database)

    async def _while_waiting(self, observer: Observer, work: Coroutine[Any, Any, T]) -> T:
        """Let the observer work while the agent's session waits for it, so that a cancel finds something to cancel.

        It waits for a lock that the observer holds meanwhile.
        """
        key = secrets.randbits(62)
        await observer.fetch(emptying.HOLD, (key,))
        working = self._keeper.tasks.spawn(
            _until_done(work, observer, key), f"reading for {self._labels.agent}"
        )
        try:
            await self._talk.look(*emptying.wait(key))
            found = await working
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        if isinstance(found, _Failure):
            raise found.error
        return found


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a task raised: its owner is told, not the log."""

    error: Exception


async def _until_done(work: Coroutine[Any, Any, T], observer: Observer, key: int) -> T | _Failure:
    try:
        try:
            return await work
        finally:
            await observer.fetch(emptying.LET_GO, (key,))
    except Exception as error:  # noqa: BLE001 - raised again by who waits for it
        return _Failure(error)


async def _reached(observer: Observer, roots: Mapping[int, bool], wanted: Emptying) -> tuple[Member, ...]:
    parameters = (list(roots), list(roots.values()), wanted.cascades)
    return emptying.read_members(await observer.fetch(emptying.REACHED, parameters))


async def _sequences(observer: Observer, members: Sequence[Member]) -> tuple[OwnedSequence, ...]:
    oids = [member.oid for member in members]
    return emptying.read_sequences(await observer.fetch(emptying.SEQUENCES, (oids,)))


def _check_members(members: Sequence[Member]) -> None:
    """What cannot be brought back is not removed."""
    for member in members:
        why = (
            "it is a foreign table: emptying it is irreversible" if member.kind == "f"
            else "it is temporary, and nobody else can read it: emptying it is irreversible" if member.is_temporary
            else "it has an index that is not valid and would become so: that is irreversible"
            if member.has_bad_index
            else ""
        )  # fmt: skip
        if why:
            raise Refusal(Uncovered(why, member.label, "irreversible"))


def _judge(
    members: Sequence[Member], sequences: Sequence[OwnedSequence], limits: Limits, permission: Permission
) -> Limits:
    """The rules' word on everything that is reached, and the limits that all of it is under."""
    asked: list[tuple[Operation, Member | OwnedSequence]]
    asked = [(Operation.TRUNCATE, member) for member in members]
    asked += [(Operation.UPDATE, sequence) for sequence in sequences]
    permission.tighten(limits)
    for operation, one in asked:
        decision = permission.decide(operation, one.schema, one.name)
        if not decision.is_permitted:
            what = "it would be emptied" if operation is Operation.TRUNCATE else "it would be restarted"
            raise Refusal(Uncovered(f"{what}, and {decision.reason}", one.label, "not-permitted"))
    return permission.limits


def _check_table(table: Table | None, member: Member, limits: Limits) -> None:
    if table is None or table.names != (member.schema, member.name):
        raise Refusal(Uncovered("the observer does not see the table", member.label, "unseen"))
    if not table.is_readable:
        reason = "the observer may not read all of it; sqlwall provision helps"
        raise Refusal(Uncovered(reason, member.label, "privilege"))
    limit = SCAN_LIMIT if limits.scan is None else limits.scan
    if table.size > limit:
        reason = f"a table of {table.size} bytes is not looked at whole"
        raise Refusal(Uncovered(reason, member.label, "too-large"))


def _labels(members: Iterable[Member]) -> str:
    return ", ".join(member.label for member in members)


def _file(files: Mapping[str, Stored], oid: int | str) -> str:
    stored = files.get(str(oid))
    return stored.file if stored is not None else ""


def _state(answer: Answer) -> SequenceState:
    ((_, last, is_called),) = answer.rows
    return SequenceState(int(last or b"0"), is_called == b"true")
