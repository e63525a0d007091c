"""The guarded lane's second half: before an agent's transaction commits, every row that it changed is found, shown to
be all, and made durable outside the database (DESIGN section 4, promise 3).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlwall.errors import SnapshotError
from sqlwall.proxy.keeping import Findings, Pages, Refusal, ServerError, Uncovered, lines_of
from sqlwall.proxy.labels import SessionLabels
from sqlwall.proxy.metrics import Counters
from sqlwall.proxy.observer import Observer, Observers, Table
from sqlwall.proxy.search import BATCH, Ask, Evidence, Search
from sqlwall.proxy.tasks import TaskSet
from sqlwall.rules.verdict import Limits
from sqlwall.snapshot import proof, queries
from sqlwall.snapshot.images import Tid, batches, copy_line
from sqlwall.snapshot.manifest import Change, Manifest, Part
from sqlwall.snapshot.witness import Write
from sqlwall.sql.capture import CaptureText, NotCapturable, capture_text
from sqlwall.sql.statement import Statement
from sqlwall.store.snapshots import Snapshots, SnapshotState
from sqlwall.store.stamp import format_time, new_ulid, utc_now

#: A share of nothing at all means this: counting has an end.
LEAST_SHARE = 0.001
#: Of a transaction that did nothing to definitions.
NO_FINDINGS = Findings()
#: Texts whose capture is remembered.
TEXTS_LIMIT = 2_000
#: Statements of one transaction that a manifest names, and characters of each.
STATEMENTS_LIMIT = 100
STATEMENT_LENGTH = 4096


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
                search = Search(self._ask, observer, limits, self._candidates)
                found = await search.changes(xid, writes, findings)
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
