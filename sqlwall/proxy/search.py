"""What one transaction has changed: rows that are gone, and rows that came, until the server's counts are explained.

Which rows are gone is found by a sandwich (MECHANICS, section 2): the observer sees a committed row, the agent's own
transaction no longer sees it, and the observer sees the same version again. So a row that somebody else changed in
between is never taken for one of ours, whatever locks were taken or lost. The observer's image of it is the
before-image.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from sqlwall.proxy.keeping import Emptied, Findings, Refusal, ServerError, Uncovered
from sqlwall.proxy.observer import ForeignKey, Observer, Table
from sqlwall.rules.verdict import Limits
from sqlwall.session.internal import Answer
from sqlwall.snapshot import proof, queries
from sqlwall.snapshot.images import Tid, batches, read_tid
from sqlwall.snapshot.tids import TidSet
from sqlwall.snapshot.witness import Moment, Write

#: Row versions that are asked about at a time.
BATCH = 1000
#: Tables up to this size are looked at whole where a rule says nothing (bytes).
SCAN_LIMIT = 1 << 30
#: Blocks at the end of a table where inserted rows are looked for before the whole is.
TAIL = 64
BLOCK = 8192
#: Blocks of which the agent's session tells the rows of its transaction at a time: some 60,000 rows at most.
SLICE = 256
#: Bytes of images that are held until the proof is had; others are asked for again. Each costs so many more.
IMAGES_LIMIT = 8 << 20
IMAGE_OVERHEAD = 100

Ask = Callable[[Sequence[bytes]], Awaitable[list[Answer]]]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What the observer said while the agent's session was asked for the witnesses: tables by object id, and which of
    their first candidates, a batch at most, stood there.
    """

    tables: Mapping[int, Table]
    standing: Mapping[int, Collection[bytes]]


async def look_ahead(observer: Observer, candidates: Mapping[str, Iterable[Tid]]) -> Ahead:
    """Ask about the tables in which rows were captured."""
    tables = await observer.tables([int(oid) for oid in candidates])
    standing: dict[int, Collection[bytes]] = {}
    for oid, table in tables.items():
        if table.is_readable:
            first = list(islice(candidates[str(oid)], BATCH))
            sql = queries.observe_again(table.schema, table.name, first)
            standing[oid] = await _gather(observer, sql)
    return Ahead(tables, standing)


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
    #: What was brought along with other answers: images of gone rows, newest versions of rows, images of those.
    before: dict[Tid, bytes] = field(default_factory=dict)
    heirs: dict[Tid, Tid] = field(default_factory=dict)
    after: dict[Tid, bytes] = field(default_factory=dict)
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
    """The search of one transaction. `candidates` are the row versions that captures have listed, by table; `ahead` is
    what is known of them already.

    Raises Refusal for what stays unexplained, ServerError for an error on the agent's session.
    """

    def __init__(
        self,
        ask: Ask,
        observer: Observer,
        limits: Limits,
        candidates: Mapping[str, Iterable[Tid]],
        ahead: Ahead | None,
    ) -> None:
        self._ask = ask
        self._observer = observer
        self._limits = limits
        self._candidates = candidates
        self._ahead = ahead if ahead is not None else Ahead({}, {})
        self._room = IMAGES_LIMIT

    async def changes(
        self, xid: int, moment: Moment, writes: Sequence[Write], findings: Findings
    ) -> list[Evidence]:
        """The tables in which it changed any row, and which. `findings` has those that it emptied."""
        found = await self._known(xid, moment, writes, findings)
        await self._find_gone([evidence for evidence in found if evidence.emptied is None])
        for evidence in found:
            await self._find_came(evidence)
        return [evidence for evidence in found if evidence.lost or evidence.came]

    async def _known(
        self, xid: int, moment: Moment, writes: Sequence[Write], findings: Findings
    ) -> list[Evidence]:
        """What must be known of the tables before their rows can be found."""
        emptied = findings.emptied
        tables = dict(self._ahead.tables)
        wanted = {int(write.oid) for write in writes if write.oid not in emptied}
        if not wanted <= tables.keys():
            tables |= await self._observer.tables(sorted(wanted - tables.keys()))
        tables |= {kept.table.oid: kept.table for kept in emptied.values()}
        horizon = proof.Horizon(moment.oldest, not moment.is_fresh)
        found: list[Evidence] = []
        for write in writes:
            table = tables.get(int(write.oid))
            if table is None or table.names != (write.schema, write.name):
                raise Refusal(Uncovered("the observer does not see the table", write.label, "unseen"))
            if not table.is_readable:
                reason = "the observer may not read all of it; sqlwall provision helps"
                raise Refusal(Uncovered(reason, write.label, "privilege"))
            asking = queries.Direct(table.schema, table.name, table.columns, xid)
            if not write.rights.reads_all:
                if not self._observer.has_helpers:
                    why = "row security hides rows from" if write.rights.may_read else "it may not be read by"
                    reason = f"{why} the agent's role; sqlwall provision helps"
                    raise Refusal(Uncovered(reason, write.label, "privilege"))
                asking = queries.Helped(table.oid, table.columns, xid)
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
            for known in (evidence.gone, evidence.before, evidence.heirs, evidence.after):
                known.clear()
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
        standing = self._ahead.standing.get(evidence.table.oid) if is_seen else None
        for some in batches((tid for tid in tids if tid not in evidence.gone), BATCH):
            gone = await self._gone_of(evidence, some, standing, is_seen=is_seen)
            standing = None  # of the first batch only
            for tid, xmin in gone:
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
                    tids = list(map(read_tid, await _gather(self._observer, sql)))
                    has_grown = await self._add_gone(child, tids) or has_grown

    async def _scan_gone(self, found: Evidence) -> None:
        sql = queries.observe_touched(found.table.schema, found.table.name)
        touched = TidSet()
        async for lines in self._observer.pages(sql):
            touched.update(map(read_tid, lines))
        await self._add_gone(found, touched)

    async def _settle_doubts(self, found: Evidence) -> None:
        """Rows that may be newer than the transaction's snapshot: those that others have ended or locked are none of
        ours, and one that has a newer version for our transaction, while it still stands for others, is.
        """
        table = found.table
        pid = int((await self._one(queries.PID)).rows[0][0] or b"0")
        for tids in batches(list(found.doubtful), BATCH):
            sql = queries.observe_ends(table.schema, table.name, tids, found.asking.xid, pid)
            ends = [line.rpartition(b"\t") for line in await _gather(self._observer, sql)]
            listed = [_address(version)[0] for version, _, _ in ends]
            answer = await self._one(found.asking.successors(listed))
            newest = _tids(answer)  # in the order of what was asked
            again = queries.observe_again(table.schema, table.name, listed)
            standing = set(await _gather(self._observer, again))
            is_settled = set(tids) - set(listed)
            for tid, heir, (version, _, is_foreign) in zip(listed, newest, ends, strict=True):
                if heir != tid and version in standing:
                    found.gone.add(tid)
                if heir != tid or is_foreign == b"t" or version not in standing:
                    is_settled.add(tid)
            for tid in is_settled:
                del found.doubtful[tid]

    async def _gone_of(
        self,
        found: Evidence,
        tids: Sequence[Tid],
        standing: Collection[bytes] | None,
        *,
        is_seen: bool,
    ) -> list[tuple[Tid, int]]:
        """The sandwich: which of these rows are there for others and gone for the agent's transaction, with xmin.

        `standing` is its first layer, if that is known. Of rows that the transaction has listed itself nearly all will
        be gone, so that their images and successors are brought along, as far as there is room for them.
        """
        table = found.table
        if standing is None:
            standing = await _gather(self._observer, queries.observe_again(table.schema, table.name, tids))
        if not standing:
            return []
        seen = [_address(line) for line in standing]
        visible = await self._visible(found, [tid for tid, _ in seen], is_seen=is_seen)
        missing = {tid: xmin for tid, xmin in seen if tid not in visible}
        if not missing:
            return []
        brings = is_seen and self._room > 0
        columns = table.columns if brings else ()
        gone: list[tuple[Tid, int]] = []
        again = queries.observe_rows(table.schema, table.name, columns, missing)
        async for lines in self._observer.pages(again):
            for line in lines:
                address, xmin, *image = line.split(b"\t", 2)
                tid = read_tid(address)
                if missing[tid] != int(xmin):
                    continue
                gone.append((tid, missing[tid]))
                if brings:
                    self._bring(found.before, tid, image[0] if image else b"")
        return gone

    async def _visible(self, found: Evidence, tids: Sequence[Tid], *, is_seen: bool) -> Collection[Tid]:
        """Which of these rows the agent's transaction still sees."""
        texts = [found.asking.visible(tids)]
        has_heirs = is_seen and found.write.deltas.updated > 0
        if has_heirs:
            texts.append(found.asking.successors(tids))
            if self._room > 0:
                texts += looking(found.asking.heir_images(tids))
        answers = await self._all(texts)
        if has_heirs:
            found.heirs.update(zip(tids, _tids(answers[1]), strict=True))
        if len(answers) > 2:
            images = answers[2 + IMAGES_PLACE]
            for tid, image in found.asking.read_images(images.rows, images.lines):
                self._bring(found.after, tid, image)
        return set(_tids(answers[0]))

    def _bring(self, images: dict[Tid, bytes], tid: Tid, image: bytes) -> None:
        if self._room > 0:
            self._room -= len(image) + IMAGE_OVERHEAD
            images[tid] = image

    async def _find_came(self, found: Evidence) -> None:
        """The rows that the transaction left in the place of others, and those that it added."""
        deltas = found.write.deltas
        if found.emptied is not None:
            await self._find_left(found)
            return
        heirs = found.came
        if deltas.updated:
            known, unknown = found.heirs, [tid for tid in found.gone if tid not in found.heirs]
            heirs.update(
                heir
                for tid, heir in known.items()
                if heir != tid and tid in found.gone and heir not in found.gone
            )
            for tids in batches(unknown, BATCH):
                answer = await self._one(found.asking.successors(tids))
                heirs.update(tid for tid in _tids(answer) if tid not in found.gone)
        if deltas.inserted:
            await self._find_added(found, heirs)

    async def _find_left(self, found: Evidence) -> None:
        """What stands in a table that the transaction has emptied: all of it is its own."""
        async for tids in self._own(found, 0):
            found.came.update(tids)
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
        own = TidSet()
        async for tids in self._own(found, first_block):
            own.update(tids)
        added = sum(tid not in heirs for tid in own)
        outcome = proof.prove_after(found.write.deltas, added, is_complete=not first_block)
        if not isinstance(outcome, proof.NotCovered):
            heirs.update(own)
        return outcome

    async def _own(self, found: Evidence, first_block: int) -> AsyncIterator[Iterable[Tid]]:
        """The rows that the transaction wrote and sees, some blocks at a time."""
        block = first_block
        if found.asking.is_cut_cheaply:
            while block + SLICE < found.table.size // BLOCK:
                yield _tids(await self._one(found.asking.own(block, block + SLICE)))
                block += SLICE
        yield _tids(await self._one(found.asking.own(block)))

    def _check_scan(self, found: Evidence, reason: str) -> None:
        """A complete look costs time and reads: a rule bounds it."""
        limit = SCAN_LIMIT if self._limits.scan is None else self._limits.scan
        if found.table.size > limit:
            what = f"{reason}, and a table of {found.table.size} bytes is not looked at whole"
            raise Refusal(Uncovered(what, found.write.label, "too-large"))

    async def _one(self, sql: bytes) -> Answer:
        (answer,) = await self._all((sql,))
        return answer

    async def _all(self, texts: Sequence[bytes]) -> list[Answer]:
        answers = await self._ask(texts)
        for answer in answers:
            if answer.error is not None:
                raise ServerError(answer.error)
        return answers


#: Where the answer to what is looked for stands among those to `looking`.
IMAGES_PLACE = 2


def looking(sql: bytes) -> tuple[bytes, ...]:
    """A question for images on the agent's session, under settings that its client never sees changed.

    One pipeline up to Sync, so that no ParameterStatus is sent in between; ROLLBACK TO brings the settings back.
    """
    return (
        b"SAVEPOINT _sqlwall_images",
        queries.exact_settings(),
        sql,
        b"ROLLBACK TO SAVEPOINT _sqlwall_images",
        b"RELEASE SAVEPOINT _sqlwall_images",
    )


async def _gather(observer: Observer, sql: str) -> list[bytes]:
    """All lines of a COPY TO STDOUT."""
    return [line async for lines in observer.pages(sql) for line in lines]


def _tids(answer: Answer) -> list[Tid]:
    """The answer to a question for addresses."""
    return [read_tid(row[0] or b"") for row in answer.rows]


def _address(line: bytes) -> tuple[Tid, int]:
    """Address and xmin of a row version."""
    tid, _, xmin = line.partition(b"\t")
    return read_tid(tid), int(xmin)
