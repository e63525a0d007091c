"""The slow lane: one task for each segment around which something has to happen. Plain code that reads top to bottom.

A refusal is put in its place in the pipeline by a poison that the server itself rejects; a permitted write runs in a
read-write transaction whose commit point is behind the gate; the record of either is durable first (promise 10).
Whatever breaks here ends in an error for the client and in nothing forwarded (promise 11).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Sequence
from typing import Protocol

from sqlwall.errors import SqlwallError, StoreError
from sqlwall.proxy import gate
from sqlwall.proxy.capture import Capture, removes
from sqlwall.proxy.definitions import Definitions
from sqlwall.proxy.guard import Guard, Keeper
from sqlwall.proxy.keeping import TooMany
from sqlwall.proxy.policy import SessionPolicy
from sqlwall.proxy.record import Recorder
from sqlwall.session import refusal as words
from sqlwall.session.internal import Answer, Internal, TypesOfStatement
from sqlwall.session.ledger import Expectation, Kind
from sqlwall.session.refusal import Refusal
from sqlwall.session.segment import Act, Segment, Step, only_rolls_back
from sqlwall.session.session import Session
from sqlwall.snapshot.manifest import Manifest
from sqlwall.snapshot.witness import Witnesses
from sqlwall.sql.statement import Statement, Unparsable
from sqlwall.wire import frontend
from sqlwall.wire.backend import TransactionStatus, ready_for_query
from sqlwall.wire.frames import Frame

logger = logging.getLogger(__name__)

_QUERY, _SYNC, _FLUSH, _FUNCTION_CALL = ord("Q"), ord("S"), ord("H"), ord("F")
_IDLE, _FAILED = ord("I"), ord("E")
_IDLE_NOW = ready_for_query(TransactionStatus.IDLE)
_FAILED_NOW = ready_for_query(TransactionStatus.FAILED)

_READ_WRITE = b"SET TRANSACTION READ WRITE"
_BEGIN = b"BEGIN READ WRITE"
_COMMIT = b"COMMIT"


#: A client may send cancels as fast as it likes; each can hit one attempt.
ROLLBACK_ATTEMPTS = 20


class Line(Protocol):
    """What a lane needs of its connection."""

    session: Session
    policy: SessionPolicy
    recorder: Recorder
    keeper: Keeper | None

    def send_server(self, data: bytes) -> None:
        """Write upstream."""

    def send_client(self, data: bytes) -> None:
        """Write to the client, behind everything that the ledger has for it."""

    def settled(self) -> Awaitable[None]:
        """Wait until every reply is in. Raises ConnectionError once either side is gone."""

    def analyze_large(self, text: bytes) -> Awaitable[tuple[Statement, ...] | Unparsable]:
        """Facts from the sandboxed parser."""

    def new_nonce(self) -> str:
        """Random hex digits that no agent can guess."""


class Lane:
    """The slow lane of one connection. `baseline` is what the counters said before the open block's first write.

    `guard` and `capture` are None where no snapshots are taken; `prepared` is the snapshot of a transaction whose
    COMMIT has not been answered yet.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._session = line.session
        self._ledger = line.session.ledger
        self._baseline: Witnesses | None = None
        self._baseline_of = -1  # the number of the transaction in which it was read
        self._guard: Guard | None = None
        self._capture: Capture | None = None
        self._definitions: Definitions | None = None
        self._prepared: Manifest | None = None
        self._notice = b""  # goes to the client once the COMMIT of what is prepared has succeeded
        keeper = line.keeper
        if keeper is not None:
            self._guard = Guard(self._ask_texts, keeper, line.recorder.guarded)
            self._definitions = Definitions(self._ask_texts, keeper, line.recorder.guarded)
            self._capture = Capture(self, self._guard, keeper.captures, self._definitions)

    @property
    def _has_baseline(self) -> bool:
        """Whether the baseline was read in the transaction that is open now."""
        return self._baseline_of == self._session.transactions

    async def cancel(self) -> None:
        """The client cancels: what the observer does for its commit ends, too. Raises UpstreamError."""
        if self._guard is not None:
            await self._guard.cancel()

    async def run(self, segment: Segment) -> None:
        """Drive one segment to its end. Only ConnectionError leaves: the connection is over."""
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
            refuse_whole(segment, words.internal_failure(event))
        self._session.start(segment)
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
            found = await self._before_write(step, event) if step.act == Act.RECORD else None
            if isinstance(found, Frame):
                self._line.send_client(found.raw + _FAILED_NOW)
                return
            if found is not None:
                await self._refuse_query(step)
                return
            if step.act == Act.RECORD and self._definitions is not None and removes(step):
                await self._run_removal(step)
                return
            expectation = self._forward(step)
            if step.act == Act.BEGIN:
                # One ReadyForQuery for both, with the status that the block really has.
                expectation.holds_ready = True
                self._baseline_of = -1
                self._line.send_server(self._splice() + frontend.sync())
                self._expect_sync()
            await self._line.settled()

    async def _run_removal(self, step: Step) -> None:
        """A TRUNCATE inside a block, measured before its ReadyForQuery: the client cannot cancel that."""
        self._forward(step).holds_ready = True
        await self._line.settled()
        error = await self._after_write(step)
        owed = error.raw if error is not None else b""
        self._line.send_client(owed + ready_for_query(TransactionStatus(self._ledger.status)))

    async def _after_write(self, step: Step) -> Frame | None:
        """What a statement has done to definitions, measured right behind it, unless the transaction has failed."""
        if self._definitions is None or not removes(step) or self._ledger.status == _FAILED:
            return None
        return await self._definitions.after()

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
            found = await self._before_write(step, event)
            if found is not None:
                refused = found.raw if isinstance(found, Frame) else found.to_bytes()
                await self._roll_back()
        if not refused:
            self._ledger.start_batch()
            self._ledger.hold_from(len(step.statements))
            self._forward(step).holds_ready = True
            await self._line.settled()
            if not self._ledger.failed:
                error = await self._after_write(step)
                refused = error.raw if error is not None else await self._pass_gate(event, _COMMIT)
                if error is not None:
                    await self._roll_back()
            elif self._ledger.status != _IDLE:
                await self._roll_back()
        held = self._ledger.take_held()
        owed = refused or b"".join((*held, self._take_notice()))
        self._line.send_client(owed + _IDLE_NOW)
        self._session.end_transaction()

    async def _commit_query(self, step: Step, event: str) -> None:
        error = await self._pass_gate(event, None)
        if error:
            self._line.send_client(error + _IDLE_NOW)
            self._session.end_transaction()
            return
        expectation = self._forward(step)
        expectation.holds_ready = has_notice = bool(self._notice)
        await self._line.settled()
        self._baseline_of = -1
        self._settle(is_committed=not expectation.failed and expectation.tags == [b"COMMIT"])
        if has_notice:
            self._line.send_client(
                self._take_notice() + ready_for_query(TransactionStatus(self._ledger.status))
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
            expectation = self._session.expect_step(step)
            pending.append(step.frame.raw)
            if self._definitions is not None and step.act in (Act.WRITE, Act.RECORD) and removes(step):
                if not await self._pause(pending):
                    break
                error = await self._after_write(step)
                if error is not None:
                    self._fail_pipeline(error.raw)
                    break
            if step.act == Act.COMMIT:
                committing = expectation
            if step.act == Act.BEGIN and step.kind == Kind.EXECUTE:
                self._baseline_of = -1
                pending.append(self._splice())
        if is_write or segment.is_ours:
            await self._finish_ours(segment, pending, event)
        else:
            await self._finish(segment, pending)
        if committing is not None:
            self._settle(is_committed=not committing.failed and committing.tags == [b"COMMIT"])
            if self._notice:
                self._line.send_client(self._take_notice())

    async def _prepare_step(self, step: Step, pending: list[bytes], event: str) -> bool:
        """What has to happen before a step is forwarded; False if it must not be, nor anything up to Sync."""
        if step.kind == Kind.BIND and self._capture is not None:
            self._capture.note_bind(step)
        if step.act == Act.WRITE or (step.act == Act.RECORD and (self._capture or not self._has_baseline)):
            if not await self._pause(pending):
                return False
            found = await self._before_write(step, event)
            if isinstance(found, Frame):
                self._fail_pipeline(found.raw)
                return False
            if found is not None:
                pending.append(self._poisoned(found, step.kind))
                return False
        elif step.act == Act.COMMIT:
            if not await self._pause(pending):
                return False
            return await self._gate_in_pipeline(event)
        return True

    async def _pause(self, pending: list[bytes]) -> bool:
        """Forward what is pending and wait for its replies; False if something failed: the rest is skipped."""
        if pending:
            self._line.send_server(b"".join(pending) + frontend.flush())
            pending.clear()
            await self._line.settled()
        return not self._ledger.skipping

    async def _gate_in_pipeline(self, event: str) -> bool:
        """The gate before an Execute of COMMIT. An error is given to the client, and the rest to Sync is skipped."""
        error = await self._pass_gate(event, None)
        if not error:
            self._baseline_of = -1
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
        error = await self._note_baseline(_BEGIN)
        if error is None:
            return b""
        if self._ledger.status != _IDLE:
            await self._roll_back()
        return error.raw

    async def _finish_ours(self, segment: Segment, pending: list[bytes], event: str) -> None:
        """At the client's Sync gate and commit our transaction, or roll it back; without one it stays open.

        COPY FROM STDIN swallows the Sync behind it, so that the commit point is the one behind the data.
        """
        pending.append(frontend.flush())
        self._line.send_server(b"".join(pending))
        await self._line.settled()
        if segment.frames[-1].type_code != _SYNC or self._ledger.copied:
            self._session.keep_ours()
            return
        owed = await self._end_ours(event) or self._take_notice()
        if owed:
            self._line.send_client(owed)
        await self._finish(segment, [])

    async def _end_ours(self, event: str) -> bytes:
        """Commit our transaction through the gate, or roll it back after an error; the error that is still owed."""
        error = b""
        if self._ledger.skipping:
            await self._swallowed_sync()
            await self._roll_back()
        else:
            error = await self._pass_gate(event, _COMMIT)
        self._session.end_transaction()
        return error

    async def _swallowed_sync(self) -> None:
        """End the server's skipping with a Sync of our own."""
        self._ledger.expect(Expectation(Kind.SYNC, forward=False))
        self._line.send_server(frontend.sync())
        await self._line.settled()

    # -- what all of them need

    async def _pass_gate(self, event: str, commit: bytes | None) -> bytes:
        """Let the open transaction be judged, and committed by `commit` if that is given.

        Empty if it passed; otherwise the ErrorResponse for the client, and the transaction is rolled back.
        """
        policy = self._line.policy
        try:
            policy.refresh()
            if self._guard is not None and self._has_baseline:
                self._guard.look_ahead()
            outcome = await gate.examine_commit(
                self._ask_texts,
                self._baseline if self._has_baseline else None,
                policy.ruleset,
                policy.contexts,
                holds=self._session.has_held_cursor,
                rolled_back=self._session.has_rolled_back,
                has_written=self._has_baseline,
                guard=self._guard,
                find=self._definitions.find if self._definitions is not None else None,
            )
            await self._make_durable(outcome, event)
            if isinstance(outcome, gate.Passed):
                if commit is None:
                    return b""
                answer = await self._ask(commit)
                self._settle(is_committed=answer.error is None)
                if answer.error is None:
                    return b""
                error = answer.error.raw
            elif isinstance(outcome, gate.Failed):
                error = outcome.error.raw
            else:
                error = words.gate_refused(
                    outcome.reason, outcome.rule, outcome.target, event, retryable=outcome.retryable
                ).to_bytes()
        except (StoreError, SqlwallError, ValueError, IndexError) as failure:
            logger.error("gate closed: %s", failure)
            self._line.recorder.count_closed()
            error = words.rolled_back(event).to_bytes()
        finally:
            if self._guard is not None:
                self._guard.stop_looking()
        if self._ledger.status != _IDLE:
            await self._roll_back()
        self._settle(is_committed=False)
        self._baseline_of = -1
        return error

    async def _make_durable(self, outcome: gate.Outcome, event: str) -> None:
        """The record of a commit, and its snapshot, before the COMMIT. Raises SqlwallError."""
        recorder = self._line.recorder
        taken = outcome.snapshot if isinstance(outcome, gate.Passed) else None
        if taken is None:
            await recorder.gate(outcome, event)
            return
        assert isinstance(outcome, gate.Passed)
        self._prepare(taken.manifest, has_notice=outcome.notice)
        kept, recorded = await asyncio.gather(
            taken.keep(), recorder.gate(outcome, event), return_exceptions=True
        )
        if isinstance(kept, Exception):
            self._prepared = None
            await recorder.lost(taken.manifest, kept, event)
        for failure in (kept, recorded):
            if failure is not None:
                raise failure

    async def _roll_back(self) -> None:
        """Roll back, whatever cancels reach the server meanwhile. Raises SqlwallError if it stays impossible."""
        for _ in range(ROLLBACK_ATTEMPTS):
            await self._ask(b"ROLLBACK")
            if self._ledger.status == _IDLE:
                return
        raise SqlwallError("a transaction could not be rolled back")

    async def _note_baseline(self, *first: bytes) -> Frame | None:
        """Read the counters before the block's first write; `first` are statements that run before.

        An error, such as a cancel, is the client's answer.
        """
        if self._has_baseline or self._ledger.status == _FAILED:
            return None  # in a failed block the counters are not to be had, and what the client says fails by itself
        found = await gate.read_baseline(self._ask_texts, first)
        if isinstance(found, Frame):
            return found
        self._baseline = found
        self._baseline_of = self._session.transactions
        if self._guard is not None:
            self._guard.forget()
        if self._definitions is not None:
            self._definitions.forget()
        return None

    async def _before_write(self, step: Step, event: str) -> Refusal | Frame | None:
        """Baseline and capture before a permitted write; a Frame is the server's error, to be the client's answer."""
        if self._ledger.status == _FAILED:
            return None  # what the client says fails by itself
        error = await self._note_baseline()
        if error is not None or self._capture is None:
            return error
        policy = self._line.policy
        try:
            permission = gate.Permission(policy.ruleset, policy.contexts, can_cover=True)
            found = await self._capture.before(step, permission)
        except SqlwallError as failure:
            logger.error("nothing was kept of what would be removed, closed: %s", failure)
            self._line.recorder.count_closed()
            step.refusal = words.internal_failure(event)
            return step.refusal
        if found is None or isinstance(found, Frame):
            return found
        if isinstance(found, TooMany):
            step.refusal = words.too_many_rows(step.verdicts[-1], found.limit, event)
        else:
            step.verdicts = (found,)
            step.refusal = words.denied(found, event)
        await self._line.recorder.refusal(step, event)
        return step.refusal

    def _prepare(self, kept: Manifest, *, has_notice: bool) -> None:
        """The transaction will be committed once this snapshot is durable."""
        self._prepared = kept
        if has_notice:
            self._notice = words.snapshot_kept(kept.id, kept.rows, sorted(set(kept.relations)))

    def _settle(self, *, is_committed: bool) -> None:
        """The outcome of the transaction whose snapshot is prepared is known."""
        if self._prepared is not None and self._guard is not None:
            self._guard.settle(self._prepared, is_committed=is_committed)
        self._prepared = None
        if not is_committed:
            self._notice = b""

    def _take_notice(self) -> bytes:
        """What a rule wants the client to be told of the snapshot; empty if nothing."""
        notice, self._notice = self._notice, b""
        return notice

    async def _ask(self, sql: bytes) -> Answer:
        """Run one statement of ours, on an idle line or inside an explicit transaction, where a Sync is harmless."""
        (answer,) = await self.ask_all((self.new_internal(sql),))
        return answer

    async def _ask_texts(self, texts: Sequence[bytes]) -> list[Answer]:
        return await self.ask_all([self.new_internal(sql) for sql in texts])

    def new_internal(
        self, sql: bytes, types: Sequence[int] = (), bound: frontend.Bind | None = None
    ) -> Internal:
        """See `capture.Asking`."""
        return Internal(self._name(), sql, types, bound)

    async def ask_all(self, internals: Sequence[Internal]) -> list[Answer]:
        """See `capture.Asking`. The server skips those behind one that fails."""
        last = len(internals) - 1
        self._line.send_server(
            b"".join(one.messages(self._ledger, sync=place == last) for place, one in enumerate(internals))
        )
        await self._line.settled()
        return [internal.answer() for internal in internals]

    async def ask_types(self, statement: TypesOfStatement) -> tuple[int, ...] | Frame:
        """See `capture.Asking`."""
        self._line.send_server(statement.messages(self._ledger))
        await self._line.settled()
        return statement.answer()

    def _splice(self) -> bytes:
        """Our switch to read-write behind the client's BEGIN."""
        internal = Internal(self._name(), _READ_WRITE)
        return internal.messages(self._ledger, sync=False, on_error=words.rolled_back(""))

    def _name(self) -> bytes:
        return words.poison(self._line.new_nonce())

    def _forward(self, step: Step) -> Expectation:
        expectation = self._session.expect_step(step)
        assert expectation is not None
        self._line.send_server(step.frame.raw)
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
