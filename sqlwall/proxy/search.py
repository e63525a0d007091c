"""What one transaction has changed: rows that are gone, and rows that came, until the server's counts are explained.

Which rows are gone is found by a sandwich (MECHANICS, section 2): the observer sees a committed row, the agent's own
transaction no longer sees it, and the observer sees the same version again. So a row that somebody else changed in
between is never taken for one of ours, whatever locks were taken or lost. The observer's image of it is the
before-image.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlwall.proxy.keeping import Emptied, Findings, Refusal, ServerError, Uncovered, lines_of
from sqlwall.proxy.observer import ForeignKey, Observer, Table
from sqlwall.rules.verdict import Limits
from sqlwall.session.internal import Answer
from sqlwall.snapshot import proof, queries
from sqlwall.snapshot.images import Tid, batches, read_tid
from sqlwall.snapshot.tids import TidSet
from sqlwall.snapshot.witness import Write

#: Row versions that are asked about at a time.
BATCH = 1000
#: Tables up to this size are looked at whole where a rule says nothing (bytes).
SCAN_LIMIT = 1 << 30
#: Blocks at the end of a table where inserted rows are looked for before the whole is.
TAIL = 64
BLOCK = 8192
#: Isolation levels in which each statement has a snapshot of its own.
_FRESH = frozenset({b"read committed", b"read uncommitted"})

Ask = Callable[[Sequence[bytes]], Awaitable[list[Answer]]]


@dataclass(slots=True)
class Evidence:
    """What is found out about one table: row versions that are gone, and those that took their place or came anew."""

    write: Write
    table: Table
    asking: queries.Direct
    horizon: proof.Horizon
    gone: TidSet = field(default_factory=TidSet)
    came: TidSet = field(default_factory=TidSet)
    doubtful: dict[Tid, None] = field(default_factory=dict)  # left out: others may have written them since
    proof: proof.Proof = proof.Proof.COUNTED
    emptied: Emptied | None = None  # by a TRUNCATE: what was there before it

    @property
    def lost(self) -> int:
        """Committed rows that are gone."""
        return self.emptied.before.rows if self.emptied is not None else len(self.gone)

    @property
    def is_explained(self) -> bool:
        """Whether the rows found are all that the server counted."""
        return not isinstance(
            proof.prove_before(self.write.deltas, len(self.gone), is_complete=False), proof.NotCovered
        )


class Search:
    """The search of one transaction. `candidates` are the row versions that captures have listed, by table.

    Raises Refusal for what stays unexplained, ServerError for an error on the agent's session.
    """

    def __init__(
        self, ask: Ask, observer: Observer, limits: Limits, candidates: Mapping[str, Iterable[Tid]]
    ) -> None:
        self._ask = ask
        self._observer = observer
        self._limits = limits
        self._candidates = candidates

    async def changes(self, xid: int, writes: Sequence[Write], findings: Findings) -> list[Evidence]:
        """The tables in which it changed any row, and which. `findings` has those that it emptied."""
        found = await self._known(xid, writes, findings)
        await self._find_gone([evidence for evidence in found if evidence.emptied is None])
        for evidence in found:
            await self._find_came(evidence)
        return [evidence for evidence in found if evidence.lost or evidence.came]

    async def _known(self, xid: int, writes: Sequence[Write], findings: Findings) -> list[Evidence]:
        """What must be known of the tables before their rows can be found."""
        if not writes:
            return []
        emptied = findings.emptied
        tables = await self._observer.tables([int(write.oid) for write in writes if write.oid not in emptied])
        tables |= {kept.table.oid: kept.table for kept in emptied.values()}
        answer = await self._one(queries.reading_rights(write.oid for write in writes))
        rights = {row[0]: row[1:] for row in answer.rows}
        found: list[Evidence] = []
        for write in writes:
            table = tables.get(int(write.oid))
            if table is None or table.names != (write.schema, write.name):
                raise Refusal(Uncovered("the observer does not see the table", write.label, "unseen"))
            if not table.is_readable:
                reason = "the observer may not read all of it; sqlwall provision helps"
                raise Refusal(Uncovered(reason, write.label, "privilege"))
            may_read, is_filtered, isolation, oldest = rights[write.oid.encode()]
            asking = queries.Direct(table.schema, table.name, table.columns, xid)
            if (may_read, is_filtered) != (b"true", b"false"):
                if not self._observer.has_helpers:
                    why = "row security hides rows from" if may_read == b"true" else "it may not be read by"
                    reason = f"{why} the agent's role; sqlwall provision helps"
                    raise Refusal(Uncovered(reason, write.label, "privilege"))
                asking = queries.Helped(table.oid, table.columns, xid)
            horizon = proof.Horizon(int(oldest or b"0"), isolation not in _FRESH)
            found.append(Evidence(write, table, asking, horizon, emptied=emptied.get(write.oid)))
        return found

    async def _find_gone(self, found: Sequence[Evidence]) -> None:
        """The committed rows that the transaction updated or deleted: by what was captured, then by the foreign keys
        that lead on from there, and where these do not explain all, by a look at the whole table.
        """
        open_cases = [evidence for evidence in found if evidence.write.deltas.gone]
        for evidence in open_cases:
            await self._add_gone(evidence, self._candidates.get(evidence.write.oid, ()), is_seen=True)
        open_cases = [evidence for evidence in open_cases if not evidence.is_explained]
        if (open_cases and len(found) > 1) or any(evidence.gone for evidence in open_cases):
            await self._follow_keys(found, open_cases)
        for evidence in open_cases:
            if evidence.is_explained:
                continue
            outcome = proof.prove_before(evidence.write.deltas, len(evidence.gone), is_complete=False)
            assert isinstance(outcome, proof.NotCovered)
            self._check_scan(evidence, outcome.reason)
            evidence.gone.clear()
            await self._scan_gone(evidence)
            if evidence.doubtful:
                await self._settle_doubts(evidence)
            outcome = proof.prove_before(
                evidence.write.deltas, len(evidence.gone), is_complete=True, doubtful=len(evidence.doubtful)
            )
            if isinstance(outcome, proof.NotCovered):
                is_unclear = bool(evidence.doubtful)
                raise Refusal(Uncovered(outcome.reason, evidence.write.label, "not-covered", is_unclear))
            evidence.proof = proof.Proof.SCANNED

    async def _add_gone(self, evidence: Evidence, tids: Iterable[Tid], *, is_seen: bool = False) -> bool:
        """Ask about more rows; whether any of them is gone.

        `is_seen` says that the transaction itself has listed them. Of any other row that it does not see under a fixed
        snapshot, it must first be certain that it once did.
        """
        known = len(evidence.gone)
        for some in batches((tid for tid in tids if tid not in evidence.gone), BATCH):
            for tid, xmin in await self._gone_of(evidence, some):
                if is_seen or evidence.horizon.reaches(xmin):
                    evidence.gone.add(tid)
                else:
                    evidence.doubtful[tid] = None
        return len(evidence.gone) > known

    async def _follow_keys(self, found: Sequence[Evidence], open_cases: Sequence[Evidence]) -> None:
        """What cascades can have reached: rows that refer to rows that are gone, level by level."""
        by_oid = {evidence.table.oid: evidence for evidence in found}
        keys = await self._observer.foreign_keys(list(by_oid))
        asked: set[tuple[ForeignKey, Tid]] = set()
        has_grown = True
        while has_grown and not all(evidence.is_explained for evidence in open_cases):
            has_grown = False
            for key in keys:
                child, parent = by_oid[key.child], by_oid[key.parent]
                new = [tid for tid in parent.gone if (key, tid) not in asked]
                if child.is_explained or not new:
                    continue
                asked.update((key, tid) for tid in new)
                for some in batches(new, BATCH):
                    sql = queries.observe_children(child.table.names, parent.table.names, key.pairs, some)
                    tids = [read_tid(line) async for line in lines_of(self._observer, sql)]
                    has_grown = await self._add_gone(child, tids) or has_grown

    async def _scan_gone(self, found: Evidence) -> None:
        sql = queries.observe_touched(found.table.schema, found.table.name)
        touched = TidSet()
        async for line in lines_of(self._observer, sql):
            touched.add(read_tid(line))
        await self._add_gone(found, touched)

    async def _settle_doubts(self, found: Evidence) -> None:
        """Rows that may be newer than the transaction's snapshot: those that others have ended or locked are none of
        ours, and one that has a newer version for our transaction, while it still stands for others, is.
        """
        table = found.table
        pid = int((await self._one(queries.PID)).rows[0][0] or b"0")
        for tids in batches(list(found.doubtful), BATCH):
            sql = queries.observe_ends(table.schema, table.name, tids, found.asking.xid, pid)
            ends = [line.rpartition(b"\t") async for line in lines_of(self._observer, sql)]
            listed = [_address(version)[0] for version, _, _ in ends]
            answer = await self._one(found.asking.successors(listed))
            newest = [read_tid(row[0] or b"") for row in answer.rows]  # in the order of what was asked
            again = queries.observe_again(table.schema, table.name, listed)
            standing = {line async for line in lines_of(self._observer, again)}
            is_settled = set(tids) - set(listed)
            for tid, heir, (version, _, is_foreign) in zip(listed, newest, ends, strict=True):
                if heir != tid and version in standing:
                    found.gone.add(tid)
                if heir != tid or is_foreign == b"t" or version not in standing:
                    is_settled.add(tid)
            for tid in is_settled:
                del found.doubtful[tid]

    async def _gone_of(self, found: Evidence, tids: Sequence[Tid]) -> list[tuple[Tid, int]]:
        """The sandwich: which of these rows are there for others and gone for the agent's transaction, with xmin."""
        table = found.table
        sql = queries.observe_again(table.schema, table.name, tids)
        before = {line async for line in lines_of(self._observer, sql)}
        if not before:
            return []
        seen = [_address(line)[0] for line in before]
        answer = await self._one(found.asking.visible(seen))
        visible = {read_tid(row[0] or b"") for row in answer.rows}
        missing = [tid for tid in seen if tid not in visible]
        if not missing:
            return []
        again = queries.observe_again(table.schema, table.name, missing)
        return [_address(line) async for line in lines_of(self._observer, again) if line in before]

    async def _find_came(self, found: Evidence) -> None:
        """The rows that the transaction left in the place of others, and those that it added."""
        deltas = found.write.deltas
        if found.emptied is not None:
            await self._find_left(found)
            return
        heirs = found.came
        if deltas.updated:
            for tids in batches(found.gone, BATCH):
                answer = await self._one(found.asking.successors(tids))
                heirs.update(tid for row in answer.rows if (tid := read_tid(row[0] or b"")) not in found.gone)
        if deltas.inserted:
            await self._find_added(found, heirs)

    async def _find_left(self, found: Evidence) -> None:
        """What stands in a table that the transaction has emptied: all of it is its own."""
        answer = await self._one(found.asking.own(0))
        found.came.update(read_tid(row[0] or b"") for row in answer.rows)
        if len(found.came) > found.write.deltas.inserted:
            reason = (
                f"{len(found.came)} rows were added, but the server counted {found.write.deltas.inserted}"
            )
            raise Refusal(Uncovered(reason, found.write.label, "not-covered"))
        found.proof = proof.Proof.SCANNED

    async def _find_added(self, found: Evidence, heirs: TidSet) -> None:
        """Own rows that replace none: at the end of the table, where most go, else anywhere."""
        tail = max(0, found.table.size // BLOCK - TAIL)
        outcome = await self._look_for_added(found, heirs, tail)
        if tail and isinstance(outcome, proof.NotCovered):
            self._check_scan(found, outcome.reason)
            outcome = await self._look_for_added(found, heirs, 0)
        if isinstance(outcome, proof.NotCovered):
            raise Refusal(Uncovered(outcome.reason, found.write.label, "not-covered"))
        if outcome is proof.Proof.SCANNED:
            found.proof = outcome

    async def _look_for_added(
        self, found: Evidence, heirs: TidSet, first_block: int
    ) -> proof.Proof | proof.NotCovered:
        answer = await self._one(found.asking.own(first_block))
        own = TidSet(read_tid(row[0] or b"") for row in answer.rows)
        added = sum(tid not in heirs for tid in own)
        outcome = proof.prove_after(found.write.deltas, added, is_complete=not first_block)
        if not isinstance(outcome, proof.NotCovered):
            heirs.update(own)
        return outcome

    def _check_scan(self, found: Evidence, reason: str) -> None:
        """A complete look costs time and reads: a rule bounds it."""
        limit = SCAN_LIMIT if self._limits.scan is None else self._limits.scan
        if found.table.size > limit:
            what = f"{reason}, and a table of {found.table.size} bytes is not looked at whole"
            raise Refusal(Uncovered(what, found.write.label, "too-large"))

    async def _one(self, sql: bytes) -> Answer:
        (answer,) = await self._ask((sql,))
        if answer.error is not None:
            raise ServerError(answer.error)
        return answer


def _address(line: bytes) -> tuple[Tid, int]:
    """Address and xmin of a row version."""
    tid, _, xmin = line.partition(b"\t")
    return read_tid(tid), int(xmin)
