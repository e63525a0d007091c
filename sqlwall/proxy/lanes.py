"""The slow lane: one task for each segment around which something has to happen. Plain code that reads top to bottom.

A refusal is put in its place in the pipeline by a poison that the server itself rejects; a permitted write runs in a
read-write transaction whose commit point is behind the gate; the record of either is durable first (promise 10).
Whatever breaks here ends in an error for the client and in nothing forwarded (promise 11).
"""

from __future__ import annotations

import itertools
import logging

from sqlwall.errors import SqlwallError
from sqlwall.proxy.aside import Aside, Line
from sqlwall.proxy.commit import CommitPoint
from sqlwall.session import block
from sqlwall.session import refusal as words
from sqlwall.session.ledger import Expectation, Kind
from sqlwall.session.refusal import Refusal
from sqlwall.session.segment import Act, Segment, Step, chains, ends_transaction, only_rolls_back
from sqlwall.wire import frontend
from sqlwall.wire.backend import TransactionStatus, ready_for_query
from sqlwall.wire.frames import Frame

logger = logging.getLogger(__name__)

_QUERY, _SYNC, _FLUSH, _FUNCTION_CALL = ord("Q"), ord("S"), ord("H"), ord("F")
_IDLE, _FAILED = ord("I"), ord("E")
_IDLE_NOW = ready_for_query(TransactionStatus.IDLE)
_FAILED_NOW = ready_for_query(TransactionStatus.FAILED)

_BEGIN = b"BEGIN READ WRITE"
_COMMIT = b"COMMIT"


class Lane:
    """The slow lane of one connection."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._session = line.session
        self._ledger = line.session.ledger
        self._aside = Aside(line)
        self._point = CommitPoint(line, self._aside)

    async def cancel(self) -> None:
        """The client cancels: what goes on beside its session for its commit ends, too. Raises UpstreamError."""
        await self._point.cancel()

    def begin(self) -> None:
        """A block is about to begin, its BEGIN past this lane."""
        self._point.begin()

    def may_pass(self, segment: Segment) -> bool:
        """Whether a COMMIT may go past this lane if the server says that its block has written nothing."""
        session = self._session
        return block.only_commits(segment) and not (
            session.has_written
            or session.has_held_cursor
            or session.has_savepoint
            or self._point.has_baseline
        )

    async def run(self, segment: Segment, failure: Frame | None = None) -> None:
        """Drive one segment to its end. Only ConnectionError leaves: the connection is over.

        `failure` is the server's error where it was asked for its COMMIT already.
        """
        self._point.failure = failure
        event = self._line.recorder.new_event()
        if segment.is_ours and segment.frames[0].type_code in (_QUERY, _FUNCTION_CALL):
            # A Query commits what was open before it. It is judged again, as what it is from here on.
            error = await self._end_ours(event)
            if error:
                self._line.send_client(error + _IDLE_NOW)
                return
            segment = self._session.examine(segment.frames)
        try:
            segment = await self._read_large(segment)
            await self._record(segment, event)
        except (SqlwallError, OSError) as error:
            logger.error("segment refused, closed: %s", error)
            self._line.recorder.count_closed()
            for step in segment.steps:
                step.refusal = None  # a refusal that is not on the record is not shown
            refuse_whole(segment, words.internal_failure(event))
        before = self._session.start(segment)
        if before:
            self._line.send_server(before)
        if len(segment.frames) == 1 and segment.frames[0].type_code in (_QUERY, _FUNCTION_CALL):
            await self._run_query(segment.steps[0], event)
        else:
            await self._run_pipeline(segment, event)

    async def _read_large(self, segment: Segment) -> Segment:
        """Texts above the in-process limit, one after the other, in the sandbox."""
        while segment.unread:
            text = segment.unread
            self._line.policy.learn(text, await self._line.analyze_large(text))
            segment = self._session.examine(segment.frames)
        return segment

    async def _record(self, segment: Segment, event: str) -> None:
        """Verdicts on writes, and refusals, are durable before their effect; reads are noted."""
        recorder = self._line.recorder
        writes = self._session.has_written or any(
            step.act in (Act.RECORD, Act.WRITE) for step in segment.steps
        )
        for step in segment.steps:
            if step.act == Act.REFUSE:
                if step.refusal is None:
                    step.refusal = words.denied(step.verdicts[-1], event)
                else:
                    step.refusal = step.refusal.with_event(event)
                await recorder.refusal(step, event)
                continue
            is_gated = step.act in (Act.RECORD, Act.WRITE) or (step.act == Act.COMMIT and writes)
            if is_gated or (
                step.kind in (Kind.EXECUTE, Kind.QUERY)
                and not recorder.read(step)
                and not only_rolls_back(step)
            ):
                await recorder.change(step, event, is_gated=is_gated)

    # -- a Query, or a message that is answered like one

    async def _run_query(self, step: Step, event: str) -> None:
        if step.act == Act.REFUSE:
            await self._refuse_query(step)
        elif step.act == Act.WRITE:
            await self._write_query(step, event)
        elif step.act == Act.COMMIT:
            await self._commit_query(step, event)
        else:
            found = await self._point.before_write(step, event) if step.act == Act.RECORD else None
            if isinstance(found, Frame):
                self._line.send_client(found.raw + _FAILED_NOW)
                return
            if found is not None:
                await self._refuse_query(step)
                return
            if step.act == Act.RECORD and self._point.measures(step):
                await self._run_removal(step)
                return
            expectation = self._forward(step)
            if step.act == Act.BEGIN:
                # One ReadyForQuery for both, with the status that the block really has.
                expectation.holds_ready = True
                self._point.begin()
                self._line.send_server(block.switch_query(self._ledger))
            await self._line.settled()

    async def _run_removal(self, step: Step) -> None:
        """A TRUNCATE inside a block, measured before its ReadyForQuery: the client cannot cancel that."""
        self._forward(step).holds_ready = True
        await self._line.settled()
        error = await self._point.after_write(step)
        owed = error.raw if error is not None else b""
        self._line.send_client(owed + ready_for_query(TransactionStatus(self._ledger.status)))

    async def _refuse_query(self, step: Step) -> None:
        assert step.refusal is not None
        if self._ledger.status == _IDLE and self._session.is_quiet:
            self._line.send_client(step.refusal.to_bytes() + _IDLE_NOW)
            return
        self._line.send_server(self._poisoned(step.refusal, Kind.QUERY))
        await self._line.settled()

    async def _write_query(self, step: Step, event: str) -> None:
        """A permitted write outside a block: the client's Query verbatim, inside a transaction of ours."""
        refused = await self._begin_ours()
        if not refused:
            found = await self._point.before_write(step, event)
            if found is not None:
                refused = found.raw if isinstance(found, Frame) else found.to_bytes()
                await self._aside.roll_back()
        if not refused:
            self._ledger.start_batch()
            self._ledger.hold_from(len(step.statements))
            self._forward(step).holds_ready = True
            await self._line.settled()
            if not self._ledger.failed:
                error = await self._point.after_write(step)
                refused = error.raw if error is not None else await self._point.pass_gate(event, _COMMIT)
                if error is not None:
                    await self._aside.roll_back()
            elif self._ledger.status != _IDLE:
                await self._aside.roll_back()
        held = self._ledger.take_held()
        owed = refused or b"".join((*held, self._point.take_notice()))
        self._line.send_client(owed + _IDLE_NOW)
        self._session.end_transaction()

    async def _commit_query(self, step: Step, event: str) -> None:
        error = await self._point.pass_gate(event, None, chains=chains(step))
        if error:
            self._line.send_client(error + _IDLE_NOW)
            self._session.end_transaction()
            return
        expectation, raw = self._session.dispatch(step)
        assert expectation is not None
        expectation.commits = True
        expectation.holds_ready = has_notice = self._point.has_notice
        self._line.send_server(raw)
        await self._line.settled()
        self._point.begin()
        self._point.settle(is_committed=not expectation.failed and expectation.tags == [b"COMMIT"])
        if has_notice:
            self._line.send_client(
                self._point.take_notice() + ready_for_query(TransactionStatus(self._ledger.status))
            )

    # -- a pipeline of the extended protocol

    async def _run_pipeline(self, segment: Segment, event: str) -> None:
        """Forward step by step, stopping where something has to happen in between."""
        forwarded = itertools.takewhile(lambda step: step.act != Act.REFUSE, segment.steps)
        is_write = any(step.act == Act.WRITE for step in forwarded)
        if is_write and not await self._open_for_write(segment):
            return
        pending: list[bytes] = []
        committing: Expectation | None = None
        for step in segment.steps:
            if step.act == Act.REFUSE:
                assert step.refusal is not None
                pending.append(self._poisoned(step.refusal, step.kind))
                break
            if step.frame is segment.frames[-1] and step.frame.type_code in (_SYNC, _FLUSH):
                break
            if not await self._prepare_step(step, pending, event):
                break
            expectation, raw = self._session.dispatch(step)
            pending.append(raw)
            if step.act in (Act.WRITE, Act.RECORD) and self._point.measures(step):
                if not await self._pause(pending):
                    break
                error = await self._point.after_write(step)
                if error is not None:
                    self._fail_pipeline(error.raw)
                    break
            if step.act == Act.COMMIT and expectation is not None:
                committing = expectation
                committing.commits = True
            if segment.is_turned and ends_transaction(step):
                is_over = await self._turn(step, pending)
                self._settle(committing)
                committing = None  # another's end is not that of this one
                if not is_over:
                    break
            if step.act == Act.BEGIN and step.kind == Kind.EXECUTE:
                self._point.begin()
                pending.append(block.switch(self._ledger, self._aside.new_name()))
        if is_write or segment.is_ours:
            await self._finish_ours(segment, pending, event)
        else:
            await self._finish(segment, pending)
        self._settle(committing)

    def _settle(self, committing: Expectation | None) -> None:
        """What has become of the last COMMIT behind the gate, if there was one."""
        if committing is not None:
            self._point.settle(is_committed=not committing.failed and committing.tags == [b"COMMIT"])
            if self._point.has_notice:
                self._line.send_client(self._point.take_notice())

    async def _prepare_step(self, step: Step, pending: list[bytes], event: str) -> bool:
        """What has to happen before a step is forwarded; False if it must not be, nor anything up to Sync."""
        if step.kind == Kind.BIND and self._point.capture is not None:
            self._point.capture.note_bind(step)
        if step.act == Act.WRITE or (
            step.act == Act.RECORD and (self._point.capture or not self._point.has_baseline)
        ):
            if not await self._pause(pending):
                return False
            found = await self._point.before_write(step, event)
            if isinstance(found, Frame):
                self._fail_pipeline(found.raw)
                return False
            if found is not None:
                pending.append(self._poisoned(found, step.kind))
                return False
        elif step.act == Act.COMMIT:
            if not await self._pause(pending):
                return False
            return await self._gate_in_pipeline(step, event)
        return True

    async def _pause(self, pending: list[bytes]) -> bool:
        """Forward what is pending and wait for its replies; False if something failed: the rest is skipped."""
        if pending:
            self._line.send_server(b"".join(pending) + frontend.flush())
            pending.clear()
            await self._line.settled()
        return not self._ledger.skipping

    async def _turn(self, step: Step, pending: list[bytes]) -> bool:
        """Behind the end of a transaction: False if what stands behind it is skipped.

        Settings that code has changed are told with a Sync: the next transaction must not begin before. And code may
        have made a cursor of the portal's name, so that the transaction goes on where the text says that it has ended.
        """
        pending.append(self._session.sync_for_flush())
        if not await self._pause(pending):
            return False
        if self._ledger.status == _IDLE or chains(step):
            return True
        self._fail_pipeline(words.replaced_control().to_bytes())
        return False

    async def _gate_in_pipeline(self, step: Step, event: str) -> bool:
        """The gate before an Execute of COMMIT. An error is given to the client, and the rest to Sync is skipped."""
        error = await self._point.pass_gate(event, None, chains=chains(step))
        if not error:
            self._point.begin()
            return not self._ledger.skipping
        self._fail_pipeline(error)
        self._session.end_transaction()
        return False

    def _fail_pipeline(self, error: bytes) -> None:
        """An error in the client's pipeline that the server knows nothing of: the rest to Sync is skipped."""
        self._line.send_client(error)
        self._ledger.skipping = True

    async def _finish(self, segment: Segment, pending: list[bytes]) -> None:
        """The end of the segment: the client's Sync, or its Flush, or what stands for it."""
        end = segment.frames[-1]
        if end.type_code == _SYNC:
            self._expect_sync()
            pending.append(end.raw)
        elif end.type_code == _FLUSH:
            if self._session.flushes_as_sync(segment):
                pending.append(self._session.sync_for_flush())
            else:
                pending.append(end.raw)
        else:
            pending.append(frontend.flush())
        self._line.send_server(b"".join(pending))
        await self._line.settled()

    def _expect_sync(self) -> None:
        self._ledger.expect(Expectation(Kind.SYNC))

    async def _open_for_write(self, segment: Segment) -> bool:
        """Open our transaction before the client's first message; False if the server would not."""
        error = await self._begin_ours()
        if error:
            self._fail_pipeline(error)
            await self._finish(segment, [])
            return False
        self._ledger.start_batch()
        return True

    async def _begin_ours(self) -> bytes:
        """Open a read-write transaction of ours and read the counters; the error if the server would not."""
        error = await self._point.note_baseline(_BEGIN)
        if error is None:
            return b""
        if self._ledger.status != _IDLE:
            await self._aside.roll_back()
        return error.raw

    async def _finish_ours(self, segment: Segment, pending: list[bytes], event: str) -> None:
        """At the client's Sync gate and commit our transaction, or roll it back; without one it stays open.

        COPY FROM STDIN swallows the Sync behind it, so that the commit point is the one behind the data.
        """
        pending.append(frontend.flush())
        self._line.send_server(b"".join(pending))
        await self._line.settled()
        if segment.frames[-1].type_code != _SYNC or self._ledger.copied:
            self._session.keep_ours(is_unsettled=segment.standing.is_unsettled)
            return
        owed = await self._end_ours(event) or self._point.take_notice()
        if owed:
            self._line.send_client(owed)
        await self._finish(segment, [])

    async def _end_ours(self, event: str) -> bytes:
        """Commit our transaction through the gate, or roll it back after an error; the error that is still owed."""
        error = b""
        if self._ledger.skipping:
            await self._aside.end_skipping()
            await self._aside.roll_back()
        else:
            error = await self._point.pass_gate(event, _COMMIT)
        self._session.end_transaction()
        return error

    # -- what all of them need

    def _forward(self, step: Step) -> Expectation:
        expectation, raw = self._session.dispatch(step)
        assert expectation is not None
        self._line.send_server(raw)
        return expectation

    def _poison(self, expectation: Expectation, refusal: Refusal) -> bytes:
        nonce = self._line.new_nonce()
        expectation.nonce = nonce.encode()
        expectation.refusal = refusal
        return words.poison(nonce)

    def _poisoned(self, refusal: Refusal, kind: int) -> bytes:
        """A message that fails where the refused one stood: a Query in the place of a Query, otherwise a Parse."""
        expectation = Expectation(Kind.QUERY if kind == Kind.QUERY else Kind.PARSE)
        text = self._poison(expectation, refusal)
        self._ledger.expect(expectation)
        return frontend.query(text) if kind == Kind.QUERY else frontend.parse(text, text)


def refuse_whole(segment: Segment, refusal: Refusal) -> None:
    """Nothing of the segment is forwarded: its first message is refused."""
    if not segment.steps:
        # In a pipeline a Query in its place would bring a ReadyForQuery too many.
        is_query = segment.frames[0].type_code in (_QUERY, _FUNCTION_CALL)
        segment.steps.append(Step(segment.frames[0], Kind.QUERY if is_query else Kind.PARSE))
    for step in segment.steps:
        if step.act == Act.REFUSE and step.refusal is not None:
            continue
        step.act = Act.REFUSE
        step.refusal = refusal
    segment.acts = Act.REFUSE
    segment.unread = b""
