"""What belongs to a transaction's commit point: the counters before its first write, what is captured before each, the
gate, and the snapshot of what it changed (DESIGN section 4, promise 3).
"""

from __future__ import annotations

import asyncio
import logging

from sqlwall.errors import SqlwallError, StoreError
from sqlwall.proxy import gate
from sqlwall.proxy.aside import Aside, Line
from sqlwall.proxy.capture import Capture, removes
from sqlwall.proxy.definitions import Definitions
from sqlwall.proxy.guard import Guard
from sqlwall.proxy.keeping import TooMany
from sqlwall.session import refusal as words
from sqlwall.session.refusal import Refusal
from sqlwall.session.segment import Step
from sqlwall.snapshot.manifest import Manifest
from sqlwall.snapshot.witness import Witnesses
from sqlwall.wire.frames import Frame

logger = logging.getLogger(__name__)

_IDLE, _FAILED = ord("I"), ord("E")


class CommitPoint:
    """That of one connection's transactions, one after the other.

    `baseline` is what the counters said before the open transaction's first write; `capture` is None where no snapshots
    are taken; `prepared` is the snapshot of a transaction whose COMMIT has not been answered yet.
    """

    def __init__(self, line: Line, aside: Aside) -> None:
        self._line = line
        self._aside = aside
        self._session = line.session
        self._ledger = line.session.ledger
        self._baseline: Witnesses | None = None
        self._baseline_of = -1  # the number of the transaction in which it was read
        self._guard: Guard | None = None
        self._definitions: Definitions | None = None
        self.capture: Capture | None = None
        self._prepared: Manifest | None = None
        self.failure: Frame | None = None  # what the server said to what the gate asks first, asked before
        self._notice = b""  # goes to the client once the COMMIT of what is prepared has succeeded
        keeper = line.keeper
        if keeper is not None:
            self._guard = Guard(aside.ask_texts, keeper, line.recorder.guarded)
            self._definitions = Definitions(aside.ask_texts, keeper, line.recorder.guarded)
            self.capture = Capture(aside, self._guard, keeper.captures, self._definitions)

    @property
    def has_baseline(self) -> bool:
        """Whether the baseline was read in the transaction that is open now."""
        return self._baseline_of == self._session.transactions

    @property
    def has_notice(self) -> bool:
        """Whether a rule wants the client to be told of the snapshot."""
        return bool(self._notice)

    def begin(self) -> None:
        """A transaction has begun, or one has ended."""
        self._baseline_of = -1

    async def cancel(self) -> None:
        """The client cancels: what the observer does for its commit ends, too. Raises UpstreamError."""
        if self._guard is not None:
            await self._guard.cancel()

    async def note_baseline(self, *first: bytes) -> Frame | None:
        """Read the counters before the block's first write; `first` are statements that run before.

        An error, such as a cancel, is the client's answer.
        """
        if not first and (self.has_baseline or self._ledger.status == _FAILED):
            return None  # in a failed block the counters are not to be had, and what the client says fails by itself
        found = await gate.read_baseline(self._aside.ask_texts, first)
        if isinstance(found, Frame):
            return found
        self._baseline = found
        self._baseline_of = self._session.transactions
        if self._guard is not None:
            self._guard.forget()
        if self._definitions is not None:
            self._definitions.forget()
        return None

    async def before_write(self, step: Step, event: str) -> Refusal | Frame | None:
        """Baseline and capture before a permitted write; a Frame is the server's error, to be the client's answer."""
        if self._ledger.status == _FAILED:
            return None  # what the client says fails by itself
        error = await self.note_baseline()
        if error is not None or self.capture is None:
            return error
        policy = self._line.policy
        try:
            permission = gate.Permission(policy.ruleset, policy.contexts, can_cover=True)
            found = await self.capture.before(step, permission)
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
        try:
            await self._line.recorder.refusal(step, event)
        except StoreError as failure:
            logger.error("a refusal is not on the record, closed: %s", failure)
            self._line.recorder.count_closed()
            step.refusal = words.internal_failure(event)
        return step.refusal

    def measures(self, step: Step) -> bool:
        """Whether what a message does to definitions has to be measured right behind it: see `after_write`."""
        return self._definitions is not None and removes(step)

    async def after_write(self, step: Step) -> Frame | None:
        """What a statement has done to definitions, measured right behind it, unless the transaction has failed."""
        if self._definitions is None or not removes(step) or self._ledger.status == _FAILED:
            return None
        return await self._definitions.after()

    async def pass_gate(self, event: str, commit: bytes | None, *, chains: bool = False) -> bytes:
        """Let the open transaction be judged, and committed by `commit` if that is given; `chains` says that
        the client's COMMIT opens another block like it.

        Empty if it passed; otherwise the ErrorResponse for the client, and the transaction is rolled back.
        """
        try:
            self._line.policy.refresh()
            if self._guard is not None and self.has_baseline:
                self._guard.look_ahead()
            outcome = (
                gate.Failed(self.failure) if self.failure is not None else await self._examine(chains=chains)
            )
            await self._make_durable(outcome, event)
            if isinstance(outcome, gate.Passed):
                if commit is None:
                    return b""
                answer = await self._aside.ask(commit)
                self.settle(is_committed=answer.error is None)
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
            await self._aside.roll_back()
        self.settle(is_committed=False)
        self._baseline_of = -1
        return error

    async def _examine(self, *, chains: bool) -> gate.Outcome:
        policy = self._line.policy
        return await gate.examine_commit(
            self._aside.ask_texts,
            self._baseline if self.has_baseline else None,
            policy.ruleset,
            policy.contexts,
            holds=self._session.has_held_cursor,
            outlives_lock=self._session.has_savepoint or chains,
            rolled_back=self._session.has_rolled_back,
            has_written=self.has_baseline,
            guard=self._guard,
            find=self._definitions.find if self._definitions is not None else None,
        )

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

    def _prepare(self, kept: Manifest, *, has_notice: bool) -> None:
        """The transaction will be committed once this snapshot is durable."""
        self._prepared = kept
        if has_notice:
            self._notice = words.snapshot_kept(kept.id, kept.rows, sorted(set(kept.relations)))

    def settle(self, *, is_committed: bool) -> None:
        """The outcome of the transaction whose snapshot is prepared is known."""
        if self._prepared is not None and self._guard is not None:
            self._guard.settle(self._prepared, is_committed=is_committed)
        self._prepared = None
        if not is_committed:
            self._notice = b""

    def take_notice(self) -> bytes:
        """What a rule wants the client to be told of the snapshot; empty if nothing."""
        notice, self._notice = self._notice, b""
        return notice
