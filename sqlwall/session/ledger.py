"""The queue of outstanding replies: which are the client's, which are ours and swallowed, which we replace.

PgBouncer's queue of outstanding requests is the model. The ledger sees every backend message once, in order, and never
decides anything: it routes. Message flow is PostgreSQL manual, chapter 54.2 and 54.2.3 (pipelining): after an error in
the extended protocol the server discards messages up to Sync; COPY IN swallows Sync and Flush.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from sqlwall.errors import ProtocolError
from sqlwall.session.prepared import Prepared
from sqlwall.session.refusal import Refusal, over_limit
from sqlwall.wire import backend
from sqlwall.wire.frames import Chunk, Event, Frame

#: Settings whose ParameterStatus the client must not see change: the session ends instead (DESIGN, decision 3).
WATCHED_PARAMETERS: Final = frozenset(
    {
        b"client_encoding",
        b"standard_conforming_strings",
        b"default_transaction_read_only",
        b"session_authorization",
        b"is_superuser",
        b"server_encoding",
        b"integer_datetimes",
        b"in_hot_standby",
    }
)


class Kind(IntEnum):
    """The frontend message whose reply is awaited."""

    PARSE = 0
    BIND = 1
    DESCRIBE = 2
    EXECUTE = 3
    CLOSE = 4
    SYNC = 5
    QUERY = 6


class CopyState(IntEnum):
    """Where a COPY FROM STDIN stands."""

    NONE = 0
    IN = 1
    DONE = 2


_IDLE: Final = ord("I")
_IN_BLOCK: Final = ord("T")


#: Commands whose tag ends in the number of rows that they wrote.
_WRITING: Final = (b"INSERT ", b"UPDATE ", b"DELETE ", b"MERGE ", b"COPY ")


def written_rows(tag: bytes) -> int:
    """How many rows a command has written, by its tag; 0 for one that only reads. COPY TO counts as if it wrote."""
    return int(tag[tag.rindex(b" ") + 1 :]) if tag.startswith(_WRITING) else 0


def _ends_execute(code: int) -> bool:
    return code in (backend.COMMAND_COMPLETE, backend.EMPTY_QUERY_RESPONSE, backend.PORTAL_SUSPENDED)


def _completes(kind: Kind, code: int) -> bool:
    """Whether it is the one message that completes a Parse, Bind or Close."""
    if kind == Kind.BIND:
        return code == backend.BIND_COMPLETE
    if kind == Kind.PARSE:
        return code == backend.PARSE_COMPLETE
    return kind == Kind.CLOSE and code == backend.CLOSE_COMPLETE


class Expectation:
    """One awaited reply.

    `forward` is False for our own statements: their replies are kept in `replies`, their rows in `data`, and nothing is
    relayed. `refusal` stands for the ErrorResponse of a poison that carries `nonce`; with an empty nonce, for any error
    of our own statement. `row_limit` and `byte_limit` are -1 if unlimited. `is_flush` is a Sync of ours that stands for
    the client's Flush. `holds_ready` keeps the ReadyForQuery from the client, who gets it from someone else: from a
    statement of ours that `gives_ready`, or from the shell. `shows_error` lets the client have the error of a message
    of ours that belongs to one of its own. `commits` is a COMMIT behind the gate: whether it came in time is the
    server's to say, so that no limit may make an error of it. The lists are made when they are asked for: of most
    expectations nobody asks.
    """

    __slots__ = (
        "_data",
        "_replies",
        "_tags",
        "byte_limit",
        "bytes",
        "commits",
        "cut",
        "event",
        "failed",
        "forward",
        "gives_ready",
        "holds_ready",
        "is_flush",
        "kind",
        "meaning",
        "name",
        "nonce",
        "over_limit",
        "parked",
        "refusal",
        "row_limit",
        "rows",
        "rule",
        "shows_error",
    )

    def __init__(self, kind: Kind, forward: bool = True, name: bytes = b"") -> None:
        self.kind = kind
        self.forward = forward
        self.name = name
        self.nonce = b""
        self.refusal: Refusal | None = None
        self._replies: list[Frame] | None = None
        self._data: list[bytes] | None = None
        self._tags: list[bytes] | None = None
        self.rows = 0
        self.bytes = 0
        self.row_limit = -1
        self.byte_limit = -1
        self.over_limit: Refusal | None = None
        self.event = ""  # the id of the record that it hit a limit, which the client is shown
        self.cut = False
        self.rule = ""
        self.failed = False
        self.is_flush = False
        self.holds_ready = False
        self.gives_ready = False
        self.shows_error = False
        self.commits = False
        self.parked = b""  # the name of transaction control that a PARSE makes, or that a DEALLOCATE gives up
        self.meaning: tuple[Prepared, ...] = ()

    @property
    def replies(self) -> list[Frame]:
        """What came in answer: to a statement of ours everything, to the client's the error."""
        found = self._replies
        if found is None:
            found = self._replies = []
        return found

    @property
    def data(self) -> list[bytes]:
        """The rows of a statement of ours."""
        found = self._data
        if found is None:
            found = self._data = []
        return found

    @property
    def tags(self) -> list[bytes]:
        """The command tags."""
        found = self._tags
        if found is None:
            found = self._tags = []
        return found

    @property
    def has_dropped_names(self) -> bool:
        """Whether it was a DISCARD ALL or DEALLOCATE ALL."""
        found = self._tags
        return found is not None and found in ([b"DISCARD ALL"], [b"DEALLOCATE ALL"])

    @property
    def has_dropped_controls(self) -> bool:
        """Whether one of its statements was such a one, whatever came behind it."""
        found = self._tags
        return found is not None and (b"DISCARD ALL" in found or b"DEALLOCATE ALL" in found)


class Ledger:
    """Routes backend messages to the client, to us, or nowhere.

    `out` collects what the client is to be sent; the shell takes it with `take`. `status` is the transaction status of
    the last ReadyForQuery, swallowed ones included. `failed` says that an error came since `start_batch`, `error` is
    the first one. `hold_at` counts down CommandCompletes: at the one that makes it 0 the output is held in `held` until
    `take_held`. `limit_hit` is set when a limit ends a statement: the shell has to cancel it. `is_owed_failure` says
    that such a statement completed all the same and the client still waits for the ReadyForQuery of its failed
    transaction. `new_event` makes the id under which the shell records a limit.
    """

    __slots__ = (
        "_is_late",
        "_is_open",
        "completed",
        "copied",
        "copy",
        "error",
        "failed",
        "held",
        "hold_at",
        "is_fatal",
        "is_holding",
        "is_owed_failure",
        "limit_hit",
        "new_event",
        "out",
        "parameters",
        "queue",
        "skipping",
        "status",
    )

    def __init__(self, new_event: Callable[[], str]) -> None:
        self.new_event = new_event
        self.is_owed_failure = False
        self._is_late = (
            False  # a limit has failed a pipeline that was complete, up to a Sync that has not come yet
        )
        self._is_open = False  # the end of the last relayed row is still to come
        self.queue: deque[Expectation] = deque()
        self.out: list[bytes] = []
        self.held: list[bytes] = []
        self.hold_at = 0
        self.is_holding = False
        self.status = _IDLE
        self.skipping = False
        self.copy = CopyState.NONE
        self.copied = (
            False  # since start_batch an Execute has gone into COPY FROM STDIN: it has swallowed a Sync
        )
        self.failed = False
        self.is_fatal = False
        self.error: Frame | None = None
        self.limit_hit: Expectation | None = None
        self.completed: list[Expectation] = []
        self.parameters: list[Frame] = []

    @property
    def is_settled(self) -> bool:
        """No reply is outstanding: the next segment may be judged."""
        return not self.queue

    def start_batch(self) -> None:
        """Forget earlier errors: the replies from here on are judged on their own."""
        self.failed = False
        self.error = None
        self.copied = False

    def expect(self, expectation: Expectation) -> None:
        """A message was sent to the server. While the server skips to Sync it answers nothing but Sync."""
        if self.skipping and expectation.kind != Kind.SYNC:
            return
        if self._is_late and expectation.forward and expectation.kind == Kind.SYNC:
            expectation.cut = expectation.failed = True
            self._is_late = False
        self.queue.append(expectation)

    def take(self) -> bytes:
        """What the client is to be sent now."""
        if not self.out:
            return b""
        data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        return data

    def hold_from(self, completion: int) -> None:
        """Hold the output from the `completion`-th CommandComplete on, for what follows is owed only after a commit."""
        self.hold_at = completion

    def take_held(self) -> list[bytes]:
        """What was held; holding ends."""
        held = self.held
        self.held = []
        self.hold_at = 0
        self.is_holding = False
        return held

    def receive(self, events: list[Event]) -> None:
        """Route backend messages in order.

        Raises ProtocolError if the server says something that nothing outstanding explains.
        """
        for event in events:
            if isinstance(event, Chunk):
                self._relay_data(event)
            else:
                self._route(event)

    def _emit(self, raw: bytes) -> None:
        if self.is_holding:
            self.held.append(raw)
        else:
            self.out.append(raw)

    def _relay_data(self, chunk: Chunk) -> None:
        if not self.queue:
            raise ProtocolError("the server sent data that nothing asked for")
        head = self.queue[0]
        if not head.forward:
            head.data.append(chunk.raw)
            return
        head.rows += chunk.rows + chunk.copy_rows
        head.bytes += len(chunk.raw)
        if not head.cut and 0 <= head.row_limit < head.rows:
            self.cut(head, f"more than {head.row_limit} rows")
        elif not head.cut and 0 <= head.byte_limit < head.bytes:
            self.cut(head, f"more than {head.byte_limit} bytes")
        if not head.cut:
            self._is_open = chunk.is_open
            self._emit(chunk.raw)
        elif self._is_open:
            # The message whose beginning was relayed has to be completed, and nothing else.
            self._is_open = chunk.is_open and chunk.head == len(chunk.raw)
            self._emit(chunk.raw[: chunk.head])

    def cut(self, head: Expectation, what: str) -> None:
        """A limit ends the statement: nothing more of it is relayed, and its end becomes our error."""
        head.cut = True
        head.event = self.new_event()
        head.over_limit = over_limit(what, head.rule, head.event)
        self.limit_hit = head

    def _route(self, frame: Frame) -> None:
        code = frame.type_code
        if code == backend.NOTICE_RESPONSE or code == backend.NOTIFICATION_RESPONSE:
            self.out.append(frame.raw)
        elif code == backend.PARAMETER_STATUS:
            if frame.raw[5 : frame.raw.index(0, 5)] in WATCHED_PARAMETERS:
                self.parameters.append(frame)
            else:
                self._emit(frame.raw)
        elif code == backend.ERROR_RESPONSE:
            self._route_error(frame)
        elif not self.queue:
            raise ProtocolError(f"the server sent message {chr(code)!r} that nothing asked for")
        elif code == backend.READY_FOR_QUERY:
            self._route_ready(frame)
        else:
            self._route_reply(self.queue[0], frame, code)

    def _route_reply(self, head: Expectation, frame: Frame, code: int) -> None:
        if code == backend.COMMAND_COMPLETE:
            tag = frame.raw[5:-1]
            head.tags.append(tag)
            if not head.cut and 0 <= head.row_limit < written_rows(tag):
                self.cut(head, f"more than {head.row_limit} rows")
        if not head.forward:
            head.replies.append(frame)
        else:
            if self.hold_at and code in (backend.COMMAND_COMPLETE, backend.EMPTY_QUERY_RESPONSE):
                self.hold_at -= 1
                self.is_holding = self.is_holding or self.hold_at == 0
            if not head.cut:
                self._emit(frame.raw)
            elif _ends_execute(code) and head.over_limit is not None and not head.failed:
                self._fail_late(head, head.over_limit)
        self._advance(head, code)

    def _fail_late(self, head: Expectation, refusal: Refusal) -> None:
        """The cancel came too late: the client hears of the limit, not of a completion, nor of what follows to Sync."""
        self._emit(refusal.to_bytes())
        self.failed = True
        head.failed = True
        if head.kind == Kind.QUERY:
            return
        for later in self.queue:
            if later.kind == Kind.SYNC:
                later.cut = later.failed = True
                return
            if later is not head:
                later.forward = False
        # The Sync is still to come.
        self.skipping = self._is_late = True

    def _advance(self, head: Expectation, code: int) -> None:
        """Whether this reply completes what was awaited."""
        if code in (backend.COPY_IN_RESPONSE, backend.COPY_BOTH_RESPONSE):
            self._enter_copy(head)
        elif head.kind == Kind.EXECUTE:
            if _ends_execute(code):
                self._complete(head)
        elif head.kind == Kind.DESCRIBE:
            if code in (backend.ROW_DESCRIPTION, backend.NO_DATA):
                self._complete(head)
            elif code != backend.PARAMETER_DESCRIPTION:
                raise ProtocolError(f"the server answered Describe with message {chr(code)!r}")
        elif head.kind == Kind.QUERY:
            if code == backend.COMMAND_COMPLETE:
                self.copy = CopyState.NONE
        elif _completes(head.kind, code):
            self._complete(head)
        else:
            raise ProtocolError(f"the server sent message {chr(code)!r} out of turn")

    def _complete(self, head: Expectation) -> None:
        self.queue.popleft()
        self.copy = CopyState.NONE
        self.completed.append(head)

    def _enter_copy(self, head: Expectation) -> None:
        self.copy = CopyState.IN
        if head.kind == Kind.EXECUTE:
            self.copied = True
            # COPY mode swallows the Sync that stands behind Execute; the client sends another after its data.
            while len(self.queue) > 1:
                self.queue.pop()

    def _route_error(self, frame: Frame) -> None:
        self.failed = True
        self.copy = CopyState.NONE
        if self.error is None:
            self.error = frame
        if b"\0VFATAL\0" in frame.raw or b"\0VPANIC\0" in frame.raw:
            self.is_fatal = True
            self.out.append(frame.raw)
            return
        if not self.queue:
            self._emit(frame.raw)
            return
        head = self.queue[0]
        head.replies.append(frame)
        is_told = head.cut and head.failed
        head.failed = True
        if head.cut and head.over_limit is not None:
            if not is_told:
                self._emit(head.over_limit.to_bytes())
        elif head.refusal is not None and head.nonce in frame.raw:
            self._emit(head.refusal.to_bytes())
        elif head.forward or head.shows_error:
            self._emit(frame.raw)
        if head.kind == Kind.QUERY:
            return
        self.completed.append(head)
        while self.queue and self.queue[0].kind != Kind.SYNC:
            self.queue.popleft()
        self.skipping = not self.queue

    def _route_ready(self, frame: Frame) -> None:
        head = self.queue.popleft()
        if head.kind != Kind.SYNC and head.kind != Kind.QUERY:
            raise ProtocolError("the server sent ReadyForQuery out of turn")
        self.status = frame.raw[5]
        self.copy = CopyState.NONE
        # Where a Sync of ours stands for the client's Flush, the client's server would skip up to the client's Sync.
        self.skipping = head.is_flush and self.failed
        self.completed.append(head)
        if head.holds_ready or not (head.forward or head.gives_ready):
            head.replies.append(frame)
        elif head.cut and head.failed and self.status == _IN_BLOCK:
            self.is_owed_failure = True
        else:
            self._emit(frame.raw)
