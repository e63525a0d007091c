"""The guarded lane's second half: before an agent's transaction commits, every row that it changed is found, shown to
be all, and made durable outside the database (DESIGN section 4, promise 3).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from sqlwall.errors import SnapshotError, SqlwallError, UpstreamError
from sqlwall.proxy.counters import Counters
from sqlwall.proxy.keeping import Findings, Pages, Refusal, ServerError, Uncovered
from sqlwall.proxy.labels import SessionLabels
from sqlwall.proxy.observer import BlockedError, Observer, Observers, Table
from sqlwall.proxy.search import (
    BATCH,
    IMAGES_PLACE,
    Ahead,
    Ask,
    Evidence,
    Search,
    look_ahead,
    looking,
)
from sqlwall.proxy.tasks import TaskSet
from sqlwall.rules.verdict import Limits
from sqlwall.snapshot import proof, queries
from sqlwall.snapshot.images import Tid, batches
from sqlwall.snapshot.manifest import Change, Manifest, Part
from sqlwall.snapshot.tids import TidSet
from sqlwall.snapshot.witness import Moment, Write
from sqlwall.sql.capture import CaptureText, NotCapturable, capture_text
from sqlwall.sql.statement import Statement
from sqlwall.store.audit import AuditLog
from sqlwall.store.index import SnapshotState, settling
from sqlwall.store.snapshots import Snapshots, SnapshotWriter
from sqlwall.store.stamp import format_time, new_ulid, utc_now
from sqlwall.wire.backend import error_response
from sqlwall.wire.frames import Frame

logger = logging.getLogger(__name__)

#: A share of nothing at all means this: counting has an end.
LEAST_SHARE = 0.001
#: Of a transaction that did nothing to definitions.
NO_FINDINGS = Findings()
#: Texts whose capture is remembered.
TEXTS_LIMIT = 2_000
#: Statements of one transaction that a manifest names, and characters of each.
STATEMENTS_LIMIT = 100
STATEMENT_LENGTH = 4096


#: What a client is told whose cancel has hit the observer instead of its own session: what the server would say.
_CANCELLED = Frame(
    ord("E"),
    error_response(severity="ERROR", sqlstate="57014", message="canceling statement due to user request"),
)


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
    """What the guards of a worker share: sessions that see committed rows, where snapshots go, who writes into their
    index, what lists the rows that a text will touch, what goes on behind the sessions, and what is counted.
    """

    observers: Observers
    snapshots: Snapshots
    audit: AuditLog
    captures: CaptureTexts
    tasks: TaskSet
    counters: Counters


class Taken:
    """A snapshot that is written, but not durable yet: `enter` is its row in the index, `keep` makes its blob durable.

    Both must be done before COMMIT, in any order: with the row alone, the transaction has certainly not been committed.
    """

    __slots__ = ("_database", "_observers", "_writer", "manifest")

    def __init__(
        self, manifest: Manifest, writer: SnapshotWriter, observers: Observers, database: str
    ) -> None:
        self.manifest = manifest
        self._writer = writer
        self._observers = observers
        self._database = database

    def enter(self, connection: Connection) -> None:
        """Enter it as prepared, as part of a transaction of the store."""
        self._writer.enter(self.manifest, connection)

    async def keep(self) -> None:
        """Make the blob durable; nothing of it stays if that fails. Raises SqlwallError."""
        try:
            # From here on nobody else is ever given this xid: a blob that is there stands for the transaction.
            async with self._observers.borrow(self._database) as observer:
                await observer.run(queries.FLUSH)
            await asyncio.to_thread(self._writer.keep)
        except BaseException:
            await asyncio.to_thread(self._writer.abort)
            raise


class Guard:
    """The guard of one connection. `candidates` are the row versions that captures have listed, by table."""

    def __init__(self, ask: Ask, keeper: Keeper, labels: SessionLabels) -> None:
        self._ask = ask
        self._keeper = keeper
        self._labels = labels
        self._candidates: dict[str, dict[Tid, None]] = {}
        self._statements: list[str] = []
        self._ahead: asyncio.Task[Ahead | SqlwallError] | None = None
        self._working: set[Observer] = set()  # for a commit that its client may cancel
        self._is_cancelled = False
        self._locks_tables = False  # as TRUNCATE and DROP do, so that nobody else can look at them

    def forget(self) -> None:
        """The transaction is over."""
        self._candidates.clear()
        self._statements.clear()
        self._locks_tables = False

    def look_ahead(self) -> None:
        """Let the observer look at what was captured, while the agent's session is asked for the witnesses."""
        if self._candidates and self._ahead is None and not self._locks_tables:
            self._ahead = self._keeper.tasks.spawn(self._look_ahead(), f"look ahead for {self._labels.agent}")

    def stop_looking(self) -> None:
        """The commit point is over: what was found ahead is of no use any more."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
        self._is_cancelled = False

    @asynccontextmanager
    async def _observe(self) -> AsyncIterator[Observer]:
        async with self._keeper.observers.borrow(self._labels.database) as observer:
            self._working.add(observer)
            try:
                yield observer
            finally:
                self._working.discard(observer)

    async def _look_ahead(self) -> Ahead | SqlwallError:
        try:
            async with self._observe() as observer:
                return await look_ahead(observer, self._candidates)
        except SqlwallError as error:
            return error  # for who asks, if anybody does

    async def _take_ahead(self) -> Ahead | None:
        ahead, self._ahead = self._ahead, None
        found = await ahead if ahead is not None else None
        if isinstance(found, SqlwallError):
            raise found
        return found

    def note_statement(self, text: bytes) -> None:
        """A text that is about to write."""
        if len(self._statements) < STATEMENTS_LIMIT:
            self._statements.append(text.decode("utf-8", "replace")[:STATEMENT_LENGTH])

    def note_removal(self) -> None:
        """A statement that locks tables against everybody is about to run."""
        self._locks_tables = True

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
        moment: Moment,
        writes: Sequence[Write],
        limits: Limits,
        ruleset: str,
        findings: Findings = NO_FINDINGS,
    ) -> Taken | Uncovered | None:
        """Take the snapshot of all that the open transaction has changed in these tables; None if that is nothing.

        `findings` are what it did to definitions: of a table that it emptied, all rows were read before.

        Raises ServerError, and SqlwallError where observer or store cannot be used.
        """
        started = time.perf_counter()
        counters = self._keeper.counters
        try:
            async with self._observe() as observer:
                search = Search(self._ask, observer, limits, self._candidates, await self._take_ahead())
                found = await search.changes(xid, moment, writes, findings)
                _check_limits(found, limits, is_single=len(self._statements) == 1)
                if not found and not findings.is_something:
                    return None
                if limits.share is not None:
                    await _check_share(found, observer, limits.share)
                taken = await self._write(xid, found, observer, ruleset, limits.bytes, findings)
        except Refusal as refusal:
            counters.snapshot_taken(f"refused: {refusal.uncovered.kind}")
            return refusal.uncovered
        except UpstreamError as error:
            if self._is_cancelled:
                raise ServerError(_CANCELLED) from error
            if not isinstance(error, BlockedError):
                raise
            names = ", ".join(write.label for write in writes)
            counters.snapshot_taken("refused: locked")
            return Uncovered("others wait for a lock that keeps the observer out", names, "locked", True)
        counters.covering.observe(time.perf_counter() - started)
        return taken

    async def cancel(self) -> None:
        """The client cancels while the observer works for its commit: end that. Raises UpstreamError."""
        for observer in list(self._working):
            self._is_cancelled = True
            await observer.cancel()

    def settle(self, manifest: Manifest, *, is_committed: bool) -> None:
        """The transaction's end is known. Should this not be written down, the server is asked for it later."""
        state = SnapshotState.COMMITTED if is_committed else SnapshotState.ABORTED
        self._keeper.counters.snapshot_taken(state.value)
        if not self._keeper.audit.note_beside(settling(manifest.id, state)):
            logger.warning("snapshot %s is settled later: the store takes nothing now", manifest.id)

    # -- the snapshot

    async def _write(
        self,
        xid: int,
        found: Sequence[Evidence],
        observer: Observer,
        ruleset: str,
        limit: int | None,
        findings: Findings,
    ) -> Taken:
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
            writer.finish_writing(manifest)
        except BaseException:
            await asyncio.to_thread(writer.abort)
            raise
        return Taken(manifest, writer, self._keeper.observers, labels.database)

    async def _store_before(self, found: Evidence, observer: Observer, pages: Pages) -> Part:
        table = found.table
        if found.emptied is not None:
            return await pages.copy(found.emptied)
        await pages.begin()
        known, unknown = _divide(found.gone, found.before)
        await pages.add(known)
        rows = len(known)
        for tids in batches(unknown, BATCH):
            sql = queries.observe_rows(table.schema, table.name, table.columns, tids)
            async for lines in observer.pages(sql):
                await pages.add(line.split(b"\t", 2)[2] if table.columns else b"" for line in lines)
                rows += len(lines)
        if rows != len(found.gone):
            raise SnapshotError(f"{rows} of {len(found.gone)} changed rows could be read")
        return await pages.end()

    async def _store_after(self, found: Evidence, pages: Pages) -> Part:
        await pages.begin()
        known, unknown = _divide(found.came, found.after)
        await pages.add(known)
        rows = 0
        for tids in batches(unknown, BATCH):
            answers = await self._ask(looking(found.asking.own_images(tids)))
            for answer in answers:
                if answer.error is not None:
                    raise ServerError(answer.error)
            images = answers[IMAGES_PLACE]
            read = found.asking.read_images(images.rows, images.lines)
            await pages.add(image for _, image in read)
            rows += len(read)
        if rows > len(unknown):
            raise SnapshotError("a row was read twice")
        return await pages.end()


def _divide(tids: TidSet, images: Mapping[Tid, bytes]) -> tuple[list[bytes], TidSet]:
    """The images that are there, and the rows whose images are not."""
    if not images:
        return [], tids
    known, unknown = list[bytes](), TidSet()
    for tid in tids:
        image = images.get(tid)
        if image is None:
            unknown.add(tid)
        else:
            known.append(image)
    return known, unknown


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
    rows = int(await observer.run(queries.count_rows(table.schema, table.name, enough)) or b"0")
    return rows if rows < enough else None
