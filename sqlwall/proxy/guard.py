"""The guarded lane's second half: before an agent's transaction commits, every row that it changed is found, shown to
be all, and made durable outside the database (DESIGN section 4, promise 3).

Which rows are gone is found by a sandwich (MECHANICS, section 2): the observer sees a committed row, the agent's own
transaction no longer sees it, and the observer sees the same version again. So a row that somebody else changed in
between is never taken for one of ours, whatever locks were taken or lost. The observer's image of it is the
before-image.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlwall.errors import SnapshotError
from sqlwall.proxy.keeping import Emptied, Findings, Pages, Refusal, ServerError, Uncovered, lines_of
from sqlwall.proxy.labels import SessionLabels
from sqlwall.proxy.metrics import Counters
from sqlwall.proxy.observer import ForeignKey, Observer, Observers, Table
from sqlwall.proxy.tasks import TaskSet
from sqlwall.rules.verdict import Limits
from sqlwall.session.internal import Answer
from sqlwall.snapshot import proof, queries
from sqlwall.snapshot.images import Tid, batches, copy_line, read_tid
from sqlwall.snapshot.manifest import Change, Manifest, Part
from sqlwall.snapshot.tids import TidSet
from sqlwall.snapshot.witness import Write
from sqlwall.sql.capture import CaptureText, NotCapturable, capture_text
from sqlwall.sql.statement import Statement
from sqlwall.store.snapshots import Snapshots, SnapshotState
from sqlwall.store.stamp import format_time, new_ulid, utc_now

#: Row versions that are asked about at a time.
BATCH = 1000
#: Tables up to this size are looked at whole where a rule says nothing (bytes).
SCAN_LIMIT = 1 << 30
#: Blocks at the end of a table where inserted rows are looked for before the whole is.
TAIL = 64
BLOCK = 8192
#: A share of nothing at all means this: counting has an end.
LEAST_SHARE = 0.001
#: Of a transaction that did nothing to definitions.
NO_FINDINGS = Findings()
#: Isolation levels in which each statement has a snapshot of its own.
_FRESH = frozenset({b"read committed", b"read uncommitted"})
#: Texts whose capture is remembered.
TEXTS_LIMIT = 2_000
#: Statements of one transaction that a manifest names, and characters of each.
STATEMENTS_LIMIT = 100
STATEMENT_LENGTH = 4096

Ask = Callable[[Sequence[bytes]], Awaitable[list[Answer]]]


class CaptureTexts:
    """What capture each text leads to. Shared by a worker's sessions."""

    def __init__(self) -> None:
        self._known: dict[bytes, CaptureText | NotCapturable] = {}

    def find(self, text: bytes, statement: Statement) -> CaptureText | NotCapturable:
        """The capture of a text that holds this one statement."""
        found = self._known.get(text)
        if found is None:
            if len(self._known) >= TEXTS_LIMIT:
                self._known.clear()
            found = self._known[text] = capture_text(text, statement)
        return found


@dataclass(frozen=True, slots=True)
class Keeper:
    """What the guards of a worker share: sessions that see committed rows, where snapshots go, what lists the rows that
    a text will touch, what goes on behind the sessions, and what is counted.
    """

    observers: Observers
    snapshots: Snapshots
    captures: CaptureTexts
    tasks: TaskSet
    counters: Counters


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


class Guard:
    """The guard of one connection. `candidates` are the row versions that captures have listed, by table."""

    def __init__(self, ask: Ask, keeper: Keeper, labels: SessionLabels) -> None:
        self._ask = ask
        self._keeper = keeper
        self._labels = labels
        self._candidates: dict[str, dict[Tid, None]] = {}
        self._statements: list[str] = []

    def forget(self) -> None:
        """The transaction is over."""
        self._candidates.clear()
        self._statements.clear()

    def note_statement(self, text: bytes) -> None:
        """A text that is about to write."""
        if len(self._statements) < STATEMENTS_LIMIT:
            self._statements.append(text.decode("utf-8", "replace")[:STATEMENT_LENGTH])

    def note_candidates(self, oid: str, tids: Sequence[Tid]) -> None:
        """Rows that the next write may change."""
        self._candidates.setdefault(oid, {}).update(dict.fromkeys(tids))

    async def exceeded(self, changed: Mapping[str, int], share: float) -> int | None:
        """How many rows may be changed, if one of these tables (by object id) would lose more than its share."""
        several = {int(oid): rows for oid, rows in changed.items() if rows > 1}
        if not several:
            return None
        async with self._keeper.observers.borrow(self._labels.database) as observer:
            for oid, table in (await observer.tables(list(several))).items():
                if not table.is_readable:
                    continue  # the gate says so
                rows = await _too_few(table, several[oid], observer, share)
                if rows is not None:
                    return max(1, int(rows * share))
        return None

    async def cover(
        self,
        xid: int,
        writes: Sequence[Write],
        limits: Limits,
        ruleset: str,
        findings: Findings = NO_FINDINGS,
    ) -> Manifest | Uncovered | None:
        """Take the snapshot of all that the open transaction has changed in these tables; None if that is nothing.

        `findings` are what it did to definitions: of a table that it emptied, all rows were read before.

        When it returns a manifest, the snapshot is durable and in state prepared. Raises ServerError, and SqlwallError
        where observer or store cannot be used.
        """
        started = time.perf_counter()
        counters = self._keeper.counters
        try:
            async with self._keeper.observers.borrow(self._labels.database) as observer:
                found = await self._known(xid, writes, observer, findings)
                await self._find_gone(
                    [evidence for evidence in found if evidence.emptied is None], observer, limits
                )
                for evidence in found:
                    await self._find_came(evidence, limits)
                found = [evidence for evidence in found if evidence.lost or evidence.came]
                _check_limits(found, limits, is_single=len(self._statements) == 1)
                if not found and not findings.is_something:
                    return None
                if limits.share is not None:
                    await _check_share(found, observer, limits.share)
                manifest = await self._write(xid, found, observer, ruleset, limits.bytes, findings)
        except Refusal as refusal:
            counters.snapshot_taken(f"refused: {refusal.uncovered.kind}")
            return refusal.uncovered
        counters.snapshot_taken("prepared")
        counters.covering.observe(time.perf_counter() - started)
        return manifest

    def settle(self, manifest: Manifest, *, is_committed: bool) -> None:
        """The transaction's end is known. Should this not be written down, the server is asked for it later."""
        state = SnapshotState.COMMITTED if is_committed else SnapshotState.ABORTED
        self._keeper.counters.snapshot_taken(state.value)
        settling = asyncio.to_thread(self._keeper.snapshots.settle, manifest.id, state)
        self._keeper.tasks.spawn(settling, f"settling of snapshot {manifest.id}")

    # -- what is there

    async def _known(
        self, xid: int, writes: Sequence[Write], observer: Observer, findings: Findings
    ) -> list[Evidence]:
        """What must be known of the tables before their rows can be found."""
        if not writes:
            return []
        emptied = findings.emptied
        tables = await observer.tables([int(write.oid) for write in writes if write.oid not in emptied])
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
                if not observer.has_helpers:
                    why = "row security hides rows from" if may_read == b"true" else "it may not be read by"
                    reason = f"{why} the agent's role; sqlwall provision helps"
                    raise Refusal(Uncovered(reason, write.label, "privilege"))
                asking = queries.Helped(table.oid, table.columns, xid)
            horizon = proof.Horizon(int(oldest or b"0"), isolation not in _FRESH)
            found.append(Evidence(write, table, asking, horizon, emptied=emptied.get(write.oid)))
        return found

    async def _find_gone(self, found: Sequence[Evidence], observer: Observer, limits: Limits) -> None:
        """The committed rows that the transaction updated or deleted: by what was captured, then by the foreign keys
        that lead on from there, and where these do not explain all, by a look at the whole table.
        """
        open_cases = [evidence for evidence in found if evidence.write.deltas.gone]
        for evidence in open_cases:
            await self._add_gone(
                evidence, self._candidates.get(evidence.write.oid, ()), observer, is_seen=True
            )
        open_cases = [evidence for evidence in open_cases if not evidence.is_explained]
        if (open_cases and len(found) > 1) or any(evidence.gone for evidence in open_cases):
            await self._follow_keys(found, open_cases, observer)
        for evidence in open_cases:
            if evidence.is_explained:
                continue
            outcome = proof.prove_before(evidence.write.deltas, len(evidence.gone), is_complete=False)
            assert isinstance(outcome, proof.NotCovered)
            self._check_scan(evidence, limits, outcome.reason)
            evidence.gone.clear()
            await self._scan_gone(evidence, observer)
            if evidence.doubtful:
                await self._settle_doubts(evidence, observer)
            outcome = proof.prove_before(
                evidence.write.deltas, len(evidence.gone), is_complete=True, doubtful=len(evidence.doubtful)
            )
            if isinstance(outcome, proof.NotCovered):
                raise Refusal(Uncovered(outcome.reason, evidence.write.label, "not-covered"))
            evidence.proof = proof.Proof.SCANNED

    async def _add_gone(
        self, evidence: Evidence, tids: Iterable[Tid], observer: Observer, *, is_seen: bool = False
    ) -> bool:
        """Ask about more rows; whether any of them is gone.

        `is_seen` says that the transaction itself has listed them. Of any other row that it does not see under a fixed
        snapshot, it must first be certain that it once did.
        """
        known = len(evidence.gone)
        for some in batches((tid for tid in tids if tid not in evidence.gone), BATCH):
            for tid, xmin in await self._gone_of(evidence, some, observer):
                if is_seen or evidence.horizon.reaches(xmin):
                    evidence.gone.add(tid)
                else:
                    evidence.doubtful[tid] = None
        return len(evidence.gone) > known

    async def _follow_keys(
        self, found: Sequence[Evidence], open_cases: Sequence[Evidence], observer: Observer
    ) -> None:
        """What cascades can have reached: rows that refer to rows that are gone, level by level."""
        by_oid = {evidence.table.oid: evidence for evidence in found}
        keys = await observer.foreign_keys(list(by_oid))
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
                    tids = [read_tid(line) async for line in lines_of(observer, sql)]
                    has_grown = await self._add_gone(child, tids, observer) or has_grown

    async def _scan_gone(self, found: Evidence, observer: Observer) -> None:
        sql = queries.observe_touched(found.table.schema, found.table.name)
        touched = TidSet()
        async for line in lines_of(observer, sql):
            touched.add(read_tid(line))
        await self._add_gone(found, touched, observer)

    async def _settle_doubts(self, found: Evidence, observer: Observer) -> None:
        """Rows that may be newer than the transaction's snapshot: those that others have ended or locked are none of
        ours, and one that has a newer version for our transaction, while it still stands for others, is.
        """
        table = found.table
        pid = int((await self._one(queries.PID)).rows[0][0] or b"0")
        for tids in batches(list(found.doubtful), BATCH):
            sql = queries.observe_ends(table.schema, table.name, tids, found.asking.xid, pid)
            ends = [line.rpartition(b"\t") async for line in lines_of(observer, sql)]
            listed = [_address(version)[0] for version, _, _ in ends]
            answer = await self._one(found.asking.successors(listed))
            newest = [read_tid(row[0] or b"") for row in answer.rows]  # in the order of what was asked
            again = queries.observe_again(table.schema, table.name, listed)
            standing = {line async for line in lines_of(observer, again)}
            is_settled = set(tids) - set(listed)
            for tid, heir, (version, _, is_foreign) in zip(listed, newest, ends, strict=True):
                if heir != tid and version in standing:
                    found.gone.add(tid)
                if heir != tid or is_foreign == b"t" or version not in standing:
                    is_settled.add(tid)
            for tid in is_settled:
                del found.doubtful[tid]

    async def _gone_of(
        self, found: Evidence, tids: Sequence[Tid], observer: Observer
    ) -> list[tuple[Tid, int]]:
        """The sandwich: which of these rows are there for others and gone for the agent's transaction, with xmin."""
        table = found.table
        sql = queries.observe_again(table.schema, table.name, tids)
        before = {line async for line in lines_of(observer, sql)}
        if not before:
            return []
        seen = [_address(line)[0] for line in before]
        answer = await self._one(found.asking.visible(seen))
        visible = {read_tid(row[0] or b"") for row in answer.rows}
        missing = [tid for tid in seen if tid not in visible]
        if not missing:
            return []
        again = queries.observe_again(table.schema, table.name, missing)
        return [_address(line) async for line in lines_of(observer, again) if line in before]

    async def _find_came(self, found: Evidence, limits: Limits) -> None:
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
            await self._find_added(found, heirs, limits)

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

    async def _find_added(self, found: Evidence, heirs: TidSet, limits: Limits) -> None:
        """Own rows that replace none: at the end of the table, where most go, else anywhere."""
        tail = max(0, found.table.size // BLOCK - TAIL)
        outcome = await self._look_for_added(found, heirs, tail)
        if tail and isinstance(outcome, proof.NotCovered):
            self._check_scan(found, limits, outcome.reason)
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

    def _check_scan(self, found: Evidence, limits: Limits, reason: str) -> None:
        """A complete look costs time and reads: a rule bounds it."""
        limit = SCAN_LIMIT if limits.scan is None else limits.scan
        if found.table.size > limit:
            what = f"{reason}, and a table of {found.table.size} bytes is not looked at whole"
            raise Refusal(Uncovered(what, found.write.label, "too-large"))

    # -- the snapshot

    async def _write(
        self,
        xid: int,
        found: Sequence[Evidence],
        observer: Observer,
        ruleset: str,
        limit: int | None,
        findings: Findings,
    ) -> Manifest:
        identifier = new_ulid()
        writer = self._keeper.snapshots.writer(identifier)
        pages = Pages(writer, self._keeper.counters, limit)
        try:
            changes: list[Change] = []
            for evidence in found:
                pages.label = evidence.write.label
                before = await self._store_before(evidence, observer, pages)
                after = await self._store_after(evidence, pages)
                changes.append(_change(evidence, before, after))
            labels = self._labels
            manifest = Manifest(
                identifier,
                format_time(utc_now()),
                labels.agent,
                labels.session,
                labels.database,
                observer.identity.database_oid,
                observer.identity.system,
                observer.identity.server_version,
                str(xid),
                ruleset,
                tuple(self._statements),
                tuple(changes),
                findings.sequences,
                findings.moves,
            )
            # From here on nobody else is ever given this xid. Both are waited for: no thread may be left with the blob.
            both = await asyncio.gather(
                observer.fetch(queries.FLUSH),
                asyncio.to_thread(writer.seal, manifest),
                return_exceptions=True,
            )
            for outcome in both:
                if isinstance(outcome, BaseException):
                    raise outcome
            await asyncio.to_thread(writer.enter, manifest)
        except BaseException:
            await asyncio.to_thread(writer.abort)
            raise
        return manifest

    async def _store_before(self, found: Evidence, observer: Observer, pages: Pages) -> Part:
        table = found.table
        if found.emptied is not None:
            return await pages.copy(found.emptied)
        await pages.begin()
        rows = 0
        for tids in batches(found.gone, BATCH):
            sql = queries.observe_rows(table.schema, table.name, table.columns, tids)
            async for line in lines_of(observer, sql):
                await pages.add(line.split(b"\t", 2)[2] + b"\n" if table.columns else b"\n")
                rows += 1
        if rows != len(found.gone):
            raise SnapshotError(f"{rows} of {len(found.gone)} changed rows could be read")
        return await pages.end()

    async def _store_after(self, found: Evidence, pages: Pages) -> Part:
        await pages.begin()
        rows = 0
        for tids in batches(found.came, BATCH):
            for row in await self._images(found, tids):
                await pages.add(copy_line(row))
                rows += 1
        if rows > len(found.came):
            raise SnapshotError("a row was read twice")
        return await pages.end()

    async def _images(self, found: Evidence, tids: Sequence[Tid]) -> Sequence[queries.Row]:
        """Rows that only the agent's transaction sees, under settings that its client never sees changed.

        One pipeline up to Sync, so that no ParameterStatus is sent in between; ROLLBACK TO brings the settings back.
        """
        answers = await self._ask(
            (
                b"SAVEPOINT _sqlwall_images",
                queries.exact_settings(),
                found.asking.own_images(tids),
                b"ROLLBACK TO SAVEPOINT _sqlwall_images",
                b"RELEASE SAVEPOINT _sqlwall_images",
            )
        )
        for answer in answers:
            if answer.error is not None:
                raise ServerError(answer.error)
        return found.asking.read_images(answers[2].rows)

    async def _one(self, sql: bytes) -> Answer:
        (answer,) = await self._ask((sql,))
        if answer.error is not None:
            raise ServerError(answer.error)
        return answer


def _address(line: bytes) -> tuple[Tid, int]:
    """Address and xmin of a row version."""
    tid, _, xmin = line.partition(b"\t")
    return read_tid(tid), int(xmin)


def _change(found: Evidence, before: Part, after: Part) -> Change:
    table, deltas = found.table, found.write.deltas
    if found.emptied is not None:
        deltas = proof.Deltas(len(found.came), 0, found.lost)
    return Change(
        table.oid,
        table.schema,
        table.name,
        table.columns,
        table.key,
        deltas.inserted,
        deltas.updated,
        deltas.deleted,
        before,
        after,
        found.proof.value,
    )


def _check_limits(found: Sequence[Evidence], limits: Limits, *, is_single: bool) -> None:
    """Rows really changed, by whatever means, against what the rules allow in one transaction.

    A transaction of a single statement is held to that statement's limit too, so that cascades and triggers count.
    """
    total = sum(max(evidence.lost, len(evidence.came)) for evidence in found)
    bounds = [limits.transaction_rows, limits.rows if is_single else None]
    limit = min((bound for bound in bounds if bound is not None), default=total)
    if total > limit:
        names = ", ".join(evidence.write.label for evidence in found)
        raise Refusal(Uncovered(f"the transaction changed {total} rows, more than {limit}", names, "limit"))


async def _check_share(found: Sequence[Evidence], observer: Observer, share: float) -> None:
    """No more than this share of any table's rows; a single row is always within it.

    Counts no further than it takes to know, so that a large table costs no more than the rows that were changed.
    """
    for evidence in found:
        gone = len(evidence.gone)
        if gone < 2 or evidence.emptied is not None:  # of an emptied table it was asked before
            continue
        rows = await _too_few(evidence.table, gone, observer, share)
        if rows is not None:
            what = f"{gone} of {rows} rows are more than {share:.0%} of the table"
            raise Refusal(Uncovered(what, evidence.write.label, "limit"))


async def _too_few(table: Table, changed: int, observer: Observer, share: float) -> int | None:
    """How many rows a table has, if that is too few for so many to be changed."""
    enough = math.ceil(changed / max(share, LEAST_SHARE))
    ((rows,),) = await observer.fetch(queries.count_rows(table.schema, table.name, enough))
    return int(rows) if rows < enough else None
