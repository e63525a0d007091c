"""Message boundaries: bytes in any chunking become whole frames, or runs of rows that need not be held.

A message is a type byte, a length word that counts itself, and a body (PostgreSQL manual, chapter "Frontend/Backend
Protocol"). Every length is held against the limit that PostgreSQL's own SocketBackend() (tcop/postgres.c) applies to
that type, so that the wall and the server never disagree about where a message ends. Knows no message's content.

The loops index bytes one by one: compiled, that is six times quicker than struct, and this module is compiled.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

from sqlwall.errors import ProtocolError
from sqlwall.wire.sqlstate import PROGRAM_LIMIT_EXCEEDED

#: libpq/libpq.h. The length word of a message, itself included, may not exceed these.
PQ_SMALL_MESSAGE_LIMIT: Final = 10000
PQ_LARGE_MESSAGE_LIMIT: Final = 0x3FFFFFFE  # MaxAllocSize - 1
#: libpq/pqcomm.h: the startup packet without its length word.
MAX_STARTUP_PACKET_LENGTH: Final = 10000
#: libpq/auth.h: the length word of a password message.
PG_MAX_AUTH_TOKEN_LENGTH: Final = 65535

#: Type byte and length word.
HEADER_LENGTH: Final = 5

_DATA_ROW: Final = 0x44  # 'D' from the backend
_COPY_DATA: Final = 0x64  # 'd' from either side
_PASSWORD: Final = 0x70  # 'p'


class Side(Enum):
    """Who sends the messages. The same type byte means different things from either side."""

    FRONTEND = "frontend"
    BACKEND = "backend"


class Frame:
    """One whole message. `raw` is every byte of it, type byte and length word included: forward it as it is.

    Immutable by its type. A plain class, since one is made per message and a frozen dataclass costs ten times as much.
    """

    __slots__ = ("raw", "type_code")

    def __init__(self, type_code: int, raw: bytes) -> None:
        self.type_code: Final = type_code
        self.raw: Final = raw

    @property
    def body(self) -> bytes:
        """The message without type byte and length word."""
        return self.raw[HEADER_LENGTH:]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self.raw == other.raw and self.type_code == other.type_code

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Frame({chr(self.type_code)!r}, {len(self.raw)} bytes)"


class Chunk:
    """A run of bytes of relayed messages, cut anywhere: DataRow and CopyData, to be forwarded as they are.

    `rows` and `copy_rows` count the DataRow and CopyData messages whose last byte is in `raw`. A backend sends one
    CopyData per row; a frontend cuts its CopyData where it likes. `head` is how many bytes at the start belong to a
    message of which earlier chunks hold the beginning, and `is_open` says that later ones hold the end of the last:
    who stops relaying must still hand out the `head`s until that message is whole.
    """

    __slots__ = ("copy_rows", "head", "is_open", "raw", "rows")

    def __init__(self, raw: bytes, rows: int, copy_rows: int, head: int = 0, is_open: bool = False) -> None:
        self.raw: Final = raw
        self.rows: Final = rows
        self.copy_rows: Final = copy_rows
        self.head: Final = head
        self.is_open: Final = is_open

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Chunk)
            and self.raw == other.raw
            and self.rows == other.rows
            and self.copy_rows == other.copy_rows
            and self.head == other.head
            and self.is_open == other.is_open
        )

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Chunk({len(self.raw)} bytes, rows={self.rows}, copy_rows={self.copy_rows})"


Event: TypeAlias = Frame | Chunk


def _limit_table(large: bytes, small: bytes) -> tuple[int, ...]:
    """The largest length word per type byte; 0 for a type that does not exist, which no length word can satisfy."""
    limits = [0] * 256
    for code in large:
        limits[code] = PQ_LARGE_MESSAGE_LIMIT
    for code in small:
        limits[code] = PQ_SMALL_MESSAGE_LIMIT
    return tuple(limits)


#: SocketBackend() in tcop/postgres.c. 'p' is missing on purpose: after authentication PostgreSQL does not know it.
_FRONTEND_LIMITS: Final = _limit_table(large=b"QFBPd", small=b"XCDEHScf")
#: libpq/protocol.h, what a backend may send. Error texts, notices and descriptions have no smaller bound of their own.
_BACKEND_LIMITS: Final = _limit_table(large=b"DdENATtVSRv", small=b"ZC123nsIGHWcK")


def _relay_table(codes: bytes) -> bytes:
    """A byte per type, 1 for those that are relayed in runs."""
    return bytes([1 if code in codes else 0 for code in range(256)])


#: 'D' from a frontend is Describe.
_FRONTEND_RELAYED: Final = _relay_table(bytes((_COPY_DATA,)))
_BACKEND_RELAYED: Final = _relay_table(bytes((_DATA_ROW, _COPY_DATA)))


def _refusal(side: Side, code: int, length: int, limit: int) -> ProtocolError:
    """Why a header is refused, in PostgreSQL's words where it has any."""
    if limit == 0:
        return ProtocolError(f"invalid {side.value} message type {code}")
    if 4 <= length <= limit:
        return ProtocolError(f"message of {length} bytes is larger than allowed", PROGRAM_LIMIT_EXCEEDED)
    return ProtocolError("invalid message length")


class FrameReader:
    """Cuts one side's bytes into frames. Time is linear in the bytes fed, however they are chunked.

    `largest` is a limit of our own below PostgreSQL's, since a frame is held until it is whole. After a ProtocolError
    the reader stays failed: the boundaries of what follows are unknown.
    """

    def __init__(self, side: Side, largest: int = PQ_LARGE_MESSAGE_LIMIT) -> None:
        self._side: Final = side
        self._largest: Final = largest
        self._limits: Final = _FRONTEND_LIMITS if side is Side.FRONTEND else _BACKEND_LIMITS
        self._partial = bytearray()
        self._needed = 0
        self.failure: ProtocolError | None = None

    @property
    def buffered(self) -> int:
        """Bytes held of a message that is not complete yet."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes.

        A frame ahead of a violation is never lost: it is returned, `failure` is set, and the next call raises. With
        nothing to return the violation is raised at once.
        """
        self._raise_failure()
        frames: list[Frame] = []
        position = self._resume(data, frames) if self._partial else 0
        if self.failure is None:
            self._cut(data, position, frames)
        if not frames:
            self._raise_failure()
        return frames

    def _raise_failure(self) -> None:
        """Apart from `feed`, where mypyc would take `failure` for None to the end once it was None at the start."""
        if self.failure is not None:
            raise self.failure

    def _cut(self, data: bytes, position: int, frames: list[Frame]) -> None:
        end = len(data)
        limits = self._limits
        largest = self._largest
        while end - position >= HEADER_LENGTH:
            code = data[position]
            length = (
                (data[position + 1] << 24)
                | (data[position + 2] << 16)
                | (data[position + 3] << 8)
                | data[position + 4]
            )
            if length < 4 or length > limits[code] or length > largest:
                self._fail(code, length)
                return
            stop = position + 1 + length
            if stop > end:
                self._needed = 1 + length
                self._partial = bytearray(data[position:])
                return
            frames.append(Frame(code, data[position:stop]))
            position = stop
        if position < end:
            if limits[data[position]] == 0:
                self._fail(data[position], 0)
                return
            self._needed = HEADER_LENGTH
            self._partial = bytearray(data[position:])

    def _resume(self, data: bytes, frames: list[Frame]) -> int:
        """Adds to the incomplete message what belongs to it and no more; returns how many bytes that were."""
        partial = self._partial
        taken = 0
        if len(partial) < HEADER_LENGTH:
            taken = min(HEADER_LENGTH - len(partial), len(data))
            partial += data[:taken]
            if len(partial) < HEADER_LENGTH:
                return taken
            length = int.from_bytes(partial[1:HEADER_LENGTH], "big")
            if length < 4 or length > self._limits[partial[0]] or length > self._largest:
                self._fail(partial[0], length)
                return taken
            self._needed = 1 + length
        stop = min(taken + self._needed - len(partial), len(data))
        partial += data[taken:stop]
        if len(partial) == self._needed:
            frames.append(Frame(partial[0], bytes(partial)))
            self._partial = bytearray()
        return stop

    def _fail(self, code: int, length: int) -> None:
        self.failure = _refusal(self._side, code, length, self._limits[code])
        self._partial = bytearray()


class AuthenticationReader:
    """Reads the client's answers while it logs in: messages of type 'p' and nothing else, one at a time.

    One at a time because what follows the last answer is read under other limits and by another reader: `rest` hands
    it over. The message and its limit are those of recv_password_packet() in libpq/auth.c.
    """

    def __init__(self, limit: int = PG_MAX_AUTH_TOKEN_LENGTH) -> None:
        self._limit: Final = limit
        self._buffer = bytearray()
        self.failure: ProtocolError | None = None

    def feed(self, data: bytes) -> Frame | None:
        """The next answer if it is complete. Feed empty bytes to ask whether another one is already here."""
        if self.failure is not None:
            raise self.failure
        buffer = self._buffer
        buffer += data
        if not buffer:
            return None
        if buffer[0] != _PASSWORD:
            self.failure = ProtocolError(f"expected password response, got message type {buffer[0]}")
            raise self.failure
        if len(buffer) < HEADER_LENGTH:
            return None
        length = int.from_bytes(buffer[1:HEADER_LENGTH], "big")
        if length < 4 or length > self._limit:
            self.failure = ProtocolError("invalid message length")
            raise self.failure
        if len(buffer) < 1 + length:
            return None
        frame = Frame(_PASSWORD, bytes(buffer[: 1 + length]))
        del buffer[: 1 + length]
        return frame

    def rest(self) -> bytes:
        """What came after the answers returned so far; the caller now owns it."""
        rest = bytes(self._buffer)
        self._buffer = bytearray()
        return rest


class Scanner:
    """Cuts one side's bytes into frames, but relays row data in runs without holding or copying it.

    DataRow (backend) and CopyData (both) come as `Chunk`s, cut wherever the bytes were cut; everything else comes as a
    whole `Frame`, in order. All events' `raw` joined are the input. A caller that wants the rows of a statement after
    all feeds its chunks into a `FrameReader`: a run never spans two results, a frame is always between.

    `largest` is our own limit on frames, which are held until whole; relayed messages are bound by PostgreSQL's limit.
    """

    def __init__(self, side: Side, largest: int = PQ_LARGE_MESSAGE_LIMIT) -> None:
        self._side: Final = side
        self._largest: Final = largest
        self._limits: Final = _FRONTEND_LIMITS if side is Side.FRONTEND else _BACKEND_LIMITS
        self._relayed: Final = _FRONTEND_RELAYED if side is Side.FRONTEND else _BACKEND_RELAYED
        self._partial = bytearray()
        self._needed = 0
        self._relay_code = 0
        self._relay_left = 0
        self.failure: ProtocolError | None = None

    @property
    def buffered(self) -> int:
        """Bytes held of a message that is not complete yet, at most `largest` and the header."""
        return len(self._partial)

    @property
    def is_inside_message(self) -> bool:
        """Whether part of a message has been handed out and its end has not: nothing may be written in between."""
        return self._relay_left > 0

    def feed(self, data: bytes) -> list[Event]:
        """What `data` completes or continues. Violations are reported as `FrameReader.feed` reports them."""
        self._raise_failure()
        events: list[Event] = []
        position = self._resume(data, events) if self._partial else 0
        if self.failure is None and position < len(data):
            self._cut(data, position, events)
        if not events:
            self._raise_failure()
        return events

    def _raise_failure(self) -> None:
        """Apart from `feed`, where mypyc would take `failure` for None to the end once it was None at the start."""
        if self.failure is not None:
            raise self.failure

    def _cut(self, data: bytes, position: int, events: list[Event]) -> None:
        if self._relay_left > 0:
            self._relay(data, position, events)
            return
        self._cut_run(data, position, position, events)

    def _relay(self, data: bytes, position: int, events: list[Event]) -> None:
        """Hands on the rest of a relayed message, and the run that follows it."""
        stop = position + self._relay_left
        if stop > len(data):
            self._relay_left = stop - len(data)
            events.append(Chunk(data[position:], 0, 0, len(data) - position, is_open=True))
            return
        self._relay_left = 0
        self._cut_run(data, position, stop, events)

    def _cut_run(self, data: bytes, start: int, position: int, events: list[Event]) -> None:
        """Cuts from `position`. If that is behind `start`, the end of a relayed message lies between them."""
        head = position - start
        copy_rows = 1 if head > 0 and self._relay_code == _COPY_DATA else 0
        rows = 1 - copy_rows if head > 0 else 0
        end = len(data)
        relayed = self._relayed
        while end - position >= HEADER_LENGTH:
            code = data[position]
            length = (
                (data[position + 1] << 24)
                | (data[position + 2] << 16)
                | (data[position + 3] << 8)
                | data[position + 4]
            )
            if relayed[code] == 0:
                if position > start:
                    events.append(Chunk(data[start:position], rows, copy_rows, head))
                    rows = copy_rows = head = 0
                start = self._cut_frame(data, position, code, length, events)
                if start == position:
                    return
                position = start
                continue
            if length < 4 or length > PQ_LARGE_MESSAGE_LIMIT:
                self._fail(code, length)
                break
            position += 1 + length
            if position > end:
                self._relay_code = code
                self._relay_left = position - end
                position = end
                break
            if code == _COPY_DATA:
                copy_rows += 1
            else:
                rows += 1
        if position > start:
            events.append(Chunk(data[start:position], rows, copy_rows, head, self._relay_left > 0))
        if position < end and self.failure is None:
            self._hold_header(data[position:])

    def _cut_frame(self, data: bytes, position: int, code: int, length: int, events: list[Event]) -> int:
        """The position behind the frame at `position`; the same one if it is incomplete or refused."""
        if length < 4 or length > self._limits[code] or length > self._largest:
            self._fail(code, length)
            return position
        stop = position + 1 + length
        if stop > len(data):
            self._needed = 1 + length
            self._partial = bytearray(data[position:])
            return position
        events.append(Frame(code, data[position:stop]))
        return stop

    def _hold_header(self, start: bytes) -> None:
        """Keeps the first bytes of a header: until it is whole nobody knows what the message is."""
        if self._limits[start[0]] == 0:
            self._fail(start[0], 0)
            return
        self._needed = HEADER_LENGTH
        self._partial = bytearray(start)

    def _resume(self, data: bytes, events: list[Event]) -> int:
        """Adds to the held message what belongs to it and no more; returns how many bytes that were."""
        partial = self._partial
        taken = 0
        if len(partial) < HEADER_LENGTH:
            taken = min(HEADER_LENGTH - len(partial), len(data))
            partial += data[:taken]
            if len(partial) < HEADER_LENGTH:
                return taken
            code = partial[0]
            length = int.from_bytes(partial[1:HEADER_LENGTH], "big")
            if self._relayed[code] != 0:
                self._relay_header(code, length, events)
                return taken
            if length < 4 or length > self._limits[code] or length > self._largest:
                self._fail(code, length)
                return taken
            self._needed = 1 + length
        stop = min(taken + self._needed - len(partial), len(data))
        partial += data[taken:stop]
        if len(partial) == self._needed:
            events.append(Frame(partial[0], bytes(partial)))
            self._partial = bytearray()
        return stop

    def _relay_header(self, code: int, length: int, events: list[Event]) -> None:
        """The held header turned out to be that of a relayed message: hand it out, the body follows as it comes."""
        if length < 4 or length > PQ_LARGE_MESSAGE_LIMIT:
            self._fail(code, length)
            return
        ended = 1 if length == 4 else 0
        copy_rows = ended if code == _COPY_DATA else 0
        events.append(Chunk(bytes(self._partial), ended - copy_rows, copy_rows, 0, is_open=ended == 0))
        self._partial = bytearray()
        self._relay_code = code
        self._relay_left = length - 4

    def _fail(self, code: int, length: int) -> None:
        self.failure = _refusal(self._side, code, length, self._limits[code])
        self._partial = bytearray()


class BackendScanner(Scanner):
    """A `Scanner` for what the server sends: DataRow and CopyData are relayed, the rest are frames."""

    def __init__(self, largest: int = PQ_LARGE_MESSAGE_LIMIT) -> None:
        super().__init__(Side.BACKEND, largest)


class FrontendScanner(Scanner):
    """A `Scanner` for what the client sends: CopyData is relayed, the rest are frames."""

    def __init__(self, largest: int = PQ_LARGE_MESSAGE_LIMIT) -> None:
        super().__init__(Side.FRONTEND, largest)
