"""One conversation: cuts the client's messages into segments, has them examined, routes the server's replies.

Sans-I/O. The shell feeds frontend frames and backend events, and asks for the next segment. A segment whose steps all
FORWARD is written upstream as it came; any other is driven by the shell's slow lane (`proxy.lanes`), which uses the
same names and the same ledger. One segment is in flight at a time (DESIGN section 4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from sqlwall.errors import ProtocolError
from sqlwall.session.examine import KINDS, Examination, Policy, standing_of
from sqlwall.session.ledger import CopyState, Expectation, Kind, Ledger
from sqlwall.session.prepared import Names, kept_name
from sqlwall.session.segment import Act, Segment, Standing, Step, makes_savepoint, rolls_back_to, starts_copy
from sqlwall.wire import frontend, sqlstate
from sqlwall.wire.frames import Event, Frame

_IDLE: Final = ord("I")

#: Prepared statements and portals that a session may have; a client that never forgets one is not served for ever.
NAMES_LIMIT: Final = 20_000
#: Messages of one segment: each costs us some ten times its bytes until its reply is in.
MESSAGES_LIMIT: Final = 500_000
#: A COPY FROM STDIN whose client waits with its Sync stands within so many messages; further back is not looked.
COPY_LIMIT: Final = 256


class Session:
    """State of one conversation. `held_bytes` is what waits for the end of its segment."""

    def __init__(self, policy: Policy, segment_limit: int, new_event: Callable[[], str]) -> None:
        self.policy = policy
        self.segment_limit = segment_limit
        self.ledger = Ledger(new_event)
        self.statements = Names()
        self.portals = Names()
        self.is_writable = False  # the open transaction block may be read-write
        self.has_held_cursor = False  # a WITH HOLD cursor was declared in the open transaction
        self.has_written = False  # a permitted write ran in the open transaction
        self.has_rolled_back = False  # and a ROLLBACK TO may have undone it
        self.has_savepoint = False  # a SAVEPOINT may be open
        #: Grows whenever none is open any more: what was read in an earlier one says nothing of a later one.
        self.transactions = 0
        self.waiting: deque[Frame] = deque()
        self.held_bytes = 0
        self.is_terminated = False
        self._ends_waiting = 0
        self._flushed: Standing | None = None
        self._left: dict[bytes, None] = {}  # names of transaction control that the server may still know
        self._keeps_portals = False  # WITH HOLD: portals may outlive their transaction

    # -- from the client

    def receive(self, frames: list[Frame]) -> None:
        """Queue frontend messages. Raises ProtocolError for a segment over the limit."""
        for frame in frames:
            self.waiting.append(frame)
            self.held_bytes += len(frame.raw)
            if _ends_segment(frame.type_code) or frame.type_code == frontend.TERMINATE:
                self._ends_waiting += 1
        if self._ends_waiting or self.ledger.copy != CopyState.NONE:
            return
        if len(self.waiting) > MESSAGES_LIMIT:
            raise ProtocolError(
                f"a pipeline of over {MESSAGES_LIMIT} messages without Sync", sqlstate.PROGRAM_LIMIT_EXCEEDED
            )
        if self.held_bytes > self.segment_limit:
            raise ProtocolError(
                f"a pipeline of over {self.segment_limit} bytes without Sync", sqlstate.PROGRAM_LIMIT_EXCEEDED
            )

    def copy_data(self) -> list[Frame]:
        """Messages of a COPY FROM STDIN under way, to be forwarded as they are.

        Sync and Flush before CopyDone are what the server swallows; they are dropped here, which is the same and keeps
        the count of ReadyForQuery certain.
        """
        forward: list[Frame] = []
        while self.waiting and self.ledger.copy == CopyState.IN:
            code = self.waiting[0].type_code
            if code == frontend.TERMINATE:
                break
            frame = self._next()
            if _is_copy(code):
                forward.append(frame)
                if code != frontend.COPY_DATA:
                    self.ledger.copy = CopyState.DONE
                    if self.ledger.queue[0].kind == Kind.EXECUTE:
                        # The server keeps its answer to itself until Sync, which waits here for that answer.
                        forward.append(Frame(frontend.FLUSH, frontend.flush()))
            elif code not in (frontend.SYNC, frontend.FLUSH):
                raise ProtocolError(f"unexpected message type 0x{code:02X} during COPY from stdin")
        return forward

    def _next(self) -> Frame:
        frame = self.waiting.popleft()
        self.held_bytes -= len(frame.raw)
        if _ends_segment(frame.type_code) or frame.type_code == frontend.TERMINATE:
            self._ends_waiting -= 1
        return frame

    @property
    def is_quiet(self) -> bool:
        """The server waits for nothing of ours and has nothing open but, perhaps, a transaction block."""
        return self._flushed is None and not self.ledger.skipping and not self.ledger.queue

    def next_frames(self) -> list[Frame] | None:
        """The next whole segment, to be examined; None if there is none yet or one is still in flight."""
        if self.ledger.queue:
            return None
        if not self._ends_waiting and not self._end_at_copy():
            return None
        frames: list[Frame] = []
        while True:
            frame = self._next()
            code = frame.type_code
            if code == frontend.TERMINATE:
                self.is_terminated = True
                return None
            if _is_copy(code):
                if frames and self._starts_copy(frames):
                    # Data right behind it: the segment ends here, as below.
                    self._put_back([frame])
                    frames.append(Frame(frontend.FLUSH, frontend.flush()))
                    break
                if not self._ends_waiting:
                    return None
                continue  # outside COPY the server accepts and ignores these (PostgresMain)
            if self.ledger.skipping and code != frontend.SYNC:
                if not self._ends_waiting:
                    return None
                continue  # the server discards everything up to Sync
            if code == frontend.FLUSH and frames and self._is_flush_idle():
                continue  # what the client asks for with it, its next Sync or Flush brings as well
            frames.append(frame)
            if _ends_segment(code):
                break
            if not self._ends_waiting:
                # Only ignored messages brought an end; the rest waits for its own.
                self._put_back(frames)
                return None
        return frames

    def _is_flush_idle(self) -> bool:
        """Whether another Sync or Flush has already come behind a Flush, and no Query or end before it."""
        if not self._ends_waiting:
            return False
        for frame in self.waiting:
            code = frame.type_code
            if code in (frontend.SYNC, frontend.FLUSH):
                return True
            if _ends_segment(code) or code == frontend.TERMINATE or _is_copy(code):
                return False
        return False

    def _end_at_copy(self) -> bool:
        """End the segment behind an Execute of COPY FROM STDIN: some clients send Sync only behind their data.

        PostgreSQL answers such an Execute at once; a Flush of ours changes nothing about that.
        """
        if not 0 < len(self.waiting) <= COPY_LIMIT or self.ledger.skipping:
            return False
        if not self._starts_copy(self.waiting):
            return False
        flush = Frame(frontend.FLUSH, frontend.flush())
        self.waiting.append(flush)
        self.held_bytes += len(flush.raw)
        self._ends_waiting += 1
        return True

    def _starts_copy(self, frames: Sequence[Frame]) -> bool:
        """Whether the last of these is an Execute of COPY FROM STDIN."""
        if frames[-1].type_code != frontend.EXECUTE:
            return False
        portal = kept_name(frontend.execute_portal(frames[-1]))
        texts: dict[bytes, tuple[bytes, ...]] = {}
        found: tuple[bytes, ...] = tuple(p.text for p in self.portals.find(portal) or ())
        for frame in frames:
            if frame.type_code == frontend.PARSE:
                parsed = frontend.decode_parse(frame)
                texts[kept_name(parsed.name)] = (parsed.query,)
            elif frame.type_code == frontend.BIND:
                target, name = map(kept_name, frontend.bind_names(frame))
                if target == portal:
                    known = tuple(p.text for p in self.statements.find(name) or ())
                    found = texts.get(name, known)
        return any(starts_copy(self.policy.facts(text)) for text in found)

    def _put_back(self, frames: list[Frame]) -> None:
        for frame in reversed(frames):
            self.waiting.appendleft(frame)
            self.held_bytes += len(frame.raw)

    def examine(self, frames: list[Frame]) -> Segment:
        """Say of every message how it travels. Repeated after the sandbox has read a text that was too large."""
        examination = self.begin_examination(frames)
        examination.run()
        return examination.segment

    def begin_examination(self, frames: list[Frame]) -> Examination:
        """The same for a segment that is too long to be examined at once."""
        self.statements.begin()
        self.portals.begin()
        segment = Segment(frames, self.standing())
        return Examination(self.policy, self.statements, self.portals, segment)

    def standing(self) -> Standing:
        flushed = self._flushed
        if flushed is not None:
            return flushed.copy()
        return standing_of(self.ledger.status, is_writable=self.is_writable)

    # -- towards the server

    def start(self, segment: Segment, steps: list[Step] | None = None) -> bytes:
        """The segment is about to be forwarded: what it may bring about counts from now on.

        Where not all steps go at once, `steps` are the first of them, and `forward_part` counts the others. Returns
        what has to be sent before: see `dispatch`.
        """
        self.ledger.start_batch()
        self.is_writable = self.is_writable or segment.may_write
        self._count(segment.steps if steps is None else steps)
        if segment.frames[-1].type_code == frontend.FLUSH:
            self._flushed = None if self.flushes_as_sync(segment) else segment.standing
        if len(self.statements.confirmed) + len(self.portals.confirmed) > NAMES_LIMIT:
            raise ProtocolError(
                f"more than {NAMES_LIMIT} prepared statements", sqlstate.PROGRAM_LIMIT_EXCEEDED
            )
        if not self._left or self.ledger.skipping:
            return b""
        return b"".join([self._close_control(name) for name in self._left]) + frontend.flush()

    def _count(self, steps: list[Step]) -> None:
        for step in steps:
            self.has_written = self.has_written or step.act == Act.RECORD
            for statement in step.statements:
                self.has_rolled_back = self.has_rolled_back or (self.has_written and rolls_back_to(statement))
                self.has_held_cursor = self.has_held_cursor or statement.hold
                self.has_savepoint = self.has_savepoint or makes_savepoint(statement)
            for prepared in step.prepared:
                if prepared.statement is not None:
                    again = self.has_written and rolls_back_to(prepared.statement)
                    self.has_rolled_back = self.has_rolled_back or again
                    self.has_held_cursor = self.has_held_cursor or prepared.statement.hold
                    self.has_savepoint = self.has_savepoint or makes_savepoint(prepared.statement)

    def flushes_as_sync(self, segment: Segment) -> bool:
        """Whether its Flush may go as a Sync: only Parse, Describe and Close, and no transaction to be ended by it.

        So no implicit transaction stays open behind it, which a later BEGIN READ WRITE could not become (MECHANICS 14).
        """
        return (
            self.ledger.status == _IDLE
            and self._flushed is None
            and all(_only_prepares(frame.type_code) for frame in segment.frames)
        )

    def expect_step(self, step: Step) -> Expectation | None:
        """Record that a client's message goes upstream; None for Flush, which has no reply."""
        code = step.frame.type_code
        if code == frontend.FLUSH:
            return None
        expectation = Expectation(KINDS[code], name=step.name)
        if step.verdicts and step.kind in (Kind.EXECUTE, Kind.QUERY):
            _limit(expectation, step)
        expectation.meaning = step.prepared
        self.ledger.expect(expectation)
        return expectation

    def dispatch(self, step: Step) -> tuple[Expectation | None, bytes]:
        """The bytes of one message, whose replies are expected from now on; None for Flush, which has no reply.

        The server is never left with transaction control under a name: a function's dynamic SQL could EXECUTE it, and
        so COMMIT behind the gate, which PostgreSQL keeps it from saying itself. So it is parsed for each message that
        needs it, and closed again in the same write; nobody's code runs in between. What an error has kept from being
        closed is in `_left` up to the next segment, and the server runs nothing before that.
        """
        control = step.control
        if control is None:
            return self.expect_step(step), step.frame.raw
        name = step.source
        is_query = step.kind == Kind.QUERY
        parts: list[bytes] = []
        if step.kind != Kind.PARSE:
            parsed = Expectation(Kind.PARSE, forward=False)
            parsed.parked = name
            parsed.shows_error = not is_query
            self.ledger.expect(parsed)
            # For a DEALLOCATE anything will do: its portal may be a cursor of somebody's code by now.
            is_freed = step.kind in (Kind.EXECUTE, Kind.QUERY)
            parts.append(frontend.parse(name, b"" if is_freed else control.text))
            if is_query:  # behind an error the server would skip it
                self.ledger.expect(Expectation(Kind.SYNC, forward=False))
                parts.append(frontend.sync())
        expectation = self.expect_step(step)
        if expectation is not None:
            expectation.parked = name
        parts.append(step.frame.raw)
        parts.append(self._close_control(name))
        if is_query:
            parts.append(frontend.flush())
        return expectation, b"".join(parts)

    def _close_control(self, name: bytes) -> bytes:
        self.ledger.expect(Expectation(Kind.CLOSE, forward=False, name=b"S" + name))
        return frontend.close(frontend.Kind.STATEMENT, name)

    def forward(self, segment: Segment) -> bytes:
        """The bytes of a fast segment; its replies are expected from now on."""
        before = self.start(segment, [])
        return before + self.forward_part(segment, segment.steps)

    def forward_part(self, segment: Segment, steps: list[Step]) -> bytes:
        """The bytes of some steps of a fast segment that has been started with none of them, in order."""
        self._count(steps)
        raws = [self.dispatch(step)[1] for step in steps]
        if len(steps) == 1 and steps[0].frame.type_code != frontend.FLUSH:
            return raws[0]
        end = segment.frames[-1]
        if end.type_code == frontend.FLUSH and steps[-1].frame is end and self.flushes_as_sync(segment):
            raws[-1] = self.sync_for_flush()
        return b"".join(raws)

    def sync_for_flush(self) -> bytes:
        """A Sync of ours in the place of the client's Flush."""
        expectation = Expectation(Kind.SYNC, forward=False)
        expectation.is_flush = True
        self.ledger.expect(expectation)
        return frontend.sync()

    # -- from the server

    def receive_server(self, events: list[Event]) -> None:
        """Route backend events and learn from them what the session's names stand for."""
        ledger = self.ledger
        ledger.receive(events)
        if ledger.completed:
            for done in ledger.completed:
                if ledger.status == _IDLE and (done.kind == Kind.SYNC or done.kind == Kind.QUERY):
                    self.transactions += 1  # whoever's it was: the server may have set its counters to zero
                if done.parked or not done.forward:
                    self._learn_parked(done)
                if done.forward:
                    self._learn(done)
            ledger.completed.clear()
            # A notice or notification between two segments settles nothing: the next one may be under examination.
            if not ledger.queue:
                self.statements.settle()
                self.portals.settle()

    def keep_ours(self, *, is_unsettled: bool = False) -> None:
        """The block of ours around the client's implicit transaction stays open: no Sync has ended that yet."""
        self._flushed = Standing(
            in_block=True, is_writable=True, has_run=True, is_ours=True, is_unsettled=is_unsettled
        )
        self.is_writable = True

    def end_transaction(self) -> None:
        """No transaction block is open any more."""
        self.transactions += 1
        self._flushed = None
        self.is_writable = False
        self._keeps_portals = self._keeps_portals or self.has_held_cursor
        self.has_held_cursor = self.has_written = self.has_rolled_back = self.has_savepoint = False
        if not self._keeps_portals:
            self.portals.clear()

    def _learn_parked(self, done: Expectation) -> None:
        """What the server knows of transaction control by name: see `dispatch`."""
        if done.failed:
            return
        if done.kind == Kind.PARSE:
            if done.parked:
                self._left[done.parked] = None
        elif done.kind == Kind.CLOSE:
            self._left.pop(done.name[1:], None)
        elif done.parked and done.tags == [b"DEALLOCATE"]:
            self.statements.forget(done.parked)

    def _learn(self, done: Expectation) -> None:
        kind = done.kind
        if kind == Kind.SYNC or kind == Kind.QUERY:
            self._flushed = None
            if self.ledger.status == _IDLE:
                self.end_transaction()
            if done.has_dropped_controls:
                self.statements.forget_controls()
        if done.failed:
            return
        if kind == Kind.PARSE:
            self.statements.confirm(done.name, done.meaning)
        elif kind == Kind.BIND:
            self.portals.confirm(done.name, done.meaning)
        elif kind == Kind.CLOSE:
            names = self.statements if done.name[:1] == b"S" else self.portals
            names.forget(done.name[1:])
        elif done.has_dropped_names:
            self.statements.clear()


def _ends_segment(code: int) -> bool:
    return code in (frontend.QUERY, frontend.SYNC, frontend.FLUSH, frontend.FUNCTION_CALL)


def _is_copy(code: int) -> bool:
    return code in (frontend.COPY_DATA, frontend.COPY_DONE, frontend.COPY_FAIL)


def _only_prepares(code: int) -> bool:
    return code in (frontend.PARSE, frontend.DESCRIBE, frontend.CLOSE, frontend.FLUSH)


def _limit(expectation: Expectation, step: Step) -> None:
    for verdict in step.verdicts:
        rows, size = verdict.limits.rows, verdict.limits.bytes
        if rows is not None and (expectation.row_limit < 0 or rows < expectation.row_limit):
            expectation.row_limit = rows
            expectation.rule = verdict.rule
        if size is not None and (expectation.byte_limit < 0 or size < expectation.byte_limit):
            expectation.byte_limit = size
            expectation.rule = verdict.rule
