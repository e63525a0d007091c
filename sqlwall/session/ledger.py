"""The queue of outstanding replies: which are the client's, which are ours and swallowed, which we replace.

PgBouncer's queue of outstanding requests is the model. The ledger sees every backend message once, in order, and never
decides anything: it routes. Message flow is PostgreSQL manual, chapter 54.2 and 54.2.3 (pipelining): after an error in
the extended protocol the server discards messages up to Sync; COPY IN swallows Sync and Flush.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from sqlwall.errors import ProtocolError
from sqlwall.session.prepared import Prepared
from sqlwall.session.refusal import Refusal
from sqlwall.wire.frames import Chunk, Frame


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


#: The one backend message that completes each kind; EXECUTE and QUERY have several and are handled by name.
_COMPLETION = {Kind.PARSE: ord("1"), Kind.BIND: ord("2"), Kind.CLOSE: ord("3")}
_EXECUTE_ENDS = frozenset(b"CIs")
_ASYNCHRONOUS = frozenset(b"NA")

_ERROR, _READY, _PARAMETER = ord("E"), ord("Z"), ord("S")
_ROW_DESCRIPTION, _NO_DATA, _PARAMETERS = ord("T"), ord("n"), ord("t")
_IDLE = ord("I")
_COPY_IN, _COPY_BOTH, _COMPLETE = ord("G"), ord("W"), ord("C")


class Expectation:
    """One awaited reply.

    `forward` is False for our own statements: their replies are kept in `replies` and not relayed. `refusal` stands for
    the ErrorResponse of a poison that carries `nonce`. `rows` counts what was relayed, `row_limit` is -1 if unlimited.
    """

    __slots__ = (
        "byte_limit",
        "bytes",
        "failed",
        "forward",
        "kind",
        "meaning",
        "name",
        "nonce",
        "over_limit",
        "refusal",
        "replies",
        "row_limit",
        "rows",
        "rule",
        "tags",
    )

    def __init__(self, kind: Kind, forward: bool = True, name: bytes = b"") -> None:
        self.kind = kind
        self.forward = forward
        self.name = name
        self.nonce = b""
        self.refusal: Refusal | None = None
        self.replies: list[Frame] = []
        self.rows = 0
        self.bytes = 0
        self.row_limit = -1
        self.byte_limit = -1
        self.over_limit: Refusal | None = None
        self.rule = ""
        self.tags: list[bytes] = []
        self.failed = False
        self.meaning: tuple[Prepared, ...] = ()


class Ledger:
    """Routes backend messages to the client, to us, or nowhere.

    `out` collects what the client is to be sent; the shell takes it with `take`. `status` is the transaction status of
    the last ReadyForQuery, swallowed ones included. `failed` says that an error came since `start_batch`.
    """

    __slots__ = (
        "completed",
        "copy",
        "error",
        "failed",
        "held",
        "hold_armed",
        "limit_hit",
        "out",
        "parameters",
        "queue",
        "skipping",
        "status",
    )

    def __init__(self) -> None:
        self.queue: deque[Expectation] = deque()
        self.out: list[bytes] = []
        self.held: list[bytes] = []
        self.hold_armed = False
        self.status = _IDLE
        self.skipping = False
        self.copy = CopyState.NONE
        self.failed = False
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
        self.completed.clear()

    def expect(self, expectation: Expectation) -> None:
        """A message was sent to the server. While the server skips to Sync it answers nothing but Sync."""
        if self.skipping and expectation.kind != Kind.SYNC:
            return
        self.queue.append(expectation)

    def take(self) -> bytes:
        """What the client is to be sent now."""
        if not self.out:
            return b""
        data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        return data

    def release_held(self) -> None:
        """Let go what was held for a commit."""
        self.out.extend(self.held)
        self.drop_held()

    def drop_held(self) -> None:
        """Forget what was held: the commit did not happen."""
        self.held.clear()
        self.hold_armed = False

    def receive(self, events: list[Frame | Chunk]) -> None:
        """Route backend messages in order.

        Raises ProtocolError if the server says something that nothing outstanding explains.
        """
        for event in events:
            if isinstance(event, Chunk):
                self._relay_data(event)
            else:
                self._route(event)

    def _emit(self, raw: bytes, is_completion: bool = False) -> None:
        if self.held or (self.hold_armed and is_completion):
            self.held.append(raw)
        else:
            self.out.append(raw)

    def _relay_data(self, chunk: Chunk) -> None:
        if not self.queue:
            raise ProtocolError("the server sent data that nothing asked for")
        head = self.queue[0]
        if not head.forward:
            return
        head.rows += chunk.rows
        head.bytes += len(chunk.raw)
        if head.over_limit is not None:
            return
        if 0 <= head.row_limit < head.rows or 0 <= head.byte_limit < head.bytes:
            self.limit_hit = head
            return
        self._emit(chunk.raw)

    def _route(self, frame: Frame) -> None:
        code = frame.type_code
        if code in _ASYNCHRONOUS:
            self.out.append(frame.raw)
        elif code == _PARAMETER:
            self.parameters.append(frame)
        elif code == _ERROR:
            self._route_error(frame)
        elif not self.queue:
            raise ProtocolError(f"the server sent message {chr(code)!r} that nothing asked for")
        elif code == _READY:
            self._route_ready(frame)
        else:
            self._route_reply(self.queue[0], frame, code)

    def _route_reply(self, head: Expectation, frame: Frame, code: int) -> None:
        if not head.forward:
            head.replies.append(frame)
        elif head.over_limit is None:
            self._emit(frame.raw, code == _COMPLETE)
        elif code == _COMPLETE:
            # The cancel came too late: the client hears of the limit, not of a completion.
            self._emit(head.over_limit.to_bytes())
            self.failed = True
        if code == _COMPLETE:
            head.tags.append(frame.body[:-1])
        if code in (_COPY_IN, _COPY_BOTH):
            self._enter_copy(head)
        elif head.kind == Kind.EXECUTE:
            if code in _EXECUTE_ENDS:
                self._complete(head)
        elif head.kind == Kind.DESCRIBE:
            if code in (_ROW_DESCRIPTION, _NO_DATA):
                self._complete(head)
            elif code != _PARAMETERS:
                raise ProtocolError(f"the server answered Describe with message {chr(code)!r}")
        elif head.kind == Kind.QUERY:
            if code == _COMPLETE:
                self.copy = CopyState.NONE
        elif code == _COMPLETION.get(head.kind, -1):
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
            # COPY mode swallows the Sync that stands behind Execute; the client sends another after its data.
            while len(self.queue) > 1:
                self.queue.pop()

    def _route_error(self, frame: Frame) -> None:
        self.failed = True
        self.copy = CopyState.NONE
        if not self.queue:
            self.out.append(frame.raw)
            self.error = frame
            return
        head = self.queue[0]
        head.replies.append(frame)
        head.failed = True
        if self.error is None:
            self.error = frame
        if head.over_limit is not None:
            self._emit(head.over_limit.to_bytes())
        elif head.refusal is not None and head.nonce in frame.raw:
            self._emit(head.refusal.to_bytes())
        elif head.forward:
            self._emit(frame.raw)
        if head.kind == Kind.QUERY:
            return
        self.completed.append(head)
        while self.queue and self.queue[0].kind != Kind.SYNC:
            self.queue.popleft()
        self.skipping = not self.queue

    def _route_ready(self, frame: Frame) -> None:
        head = self.queue.popleft()
        if head.kind not in (Kind.SYNC, Kind.QUERY):
            raise ProtocolError("the server sent ReadyForQuery out of turn")
        self.status = frame.raw[5]
        self.skipping = False
        self.copy = CopyState.NONE
        self.completed.append(head)
        if head.forward:
            self._emit(frame.raw)
        else:
            head.replies.append(frame)
