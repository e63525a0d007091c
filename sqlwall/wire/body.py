"""A message's body, taken apart from front to back, and put together.

The manner and the words are those of PostgreSQL's libpq/pqformat.c: whoever reads a field that is not there, or leaves
bytes unread, has found a violation of the protocol.
"""

from __future__ import annotations

from typing import Final

from sqlwall.errors import ProtocolError
from sqlwall.wire.frames import HEADER_LENGTH, Frame


class BodyReader:
    """Reads one frame's body. Every method raises ProtocolError where it does not hold what is asked for.

    End with `finish`: a body is consumed to its last byte.
    """

    def __init__(self, frame: Frame) -> None:
        self._raw: Final = frame.raw
        self._position = HEADER_LENGTH

    def byte(self) -> int:
        """One byte, as pq_getmsgbyte()."""
        if self._position >= len(self._raw):
            raise ProtocolError("no data left in message")
        value = self._raw[self._position]
        self._position += 1
        return value

    def uint16(self) -> int:
        """A count, 0 to 65535."""
        raw = self._raw
        position = self._position
        if len(raw) - position < 2:
            raise ProtocolError("insufficient data left in message")
        self._position = position + 2
        return (raw[position] << 8) | raw[position + 1]

    def int16(self) -> int:
        """A format code, attribute number or type size."""
        value = self.uint16()
        return value - 0x10000 if value >= 0x8000 else value

    def uint32(self) -> int:
        """An object id."""
        raw = self._raw
        position = self._position
        if len(raw) - position < 4:
            raise ProtocolError("insufficient data left in message")
        self._position = position + 4
        return (
            (raw[position] << 24) | (raw[position + 1] << 16) | (raw[position + 2] << 8) | raw[position + 3]
        )

    def int32(self) -> int:
        """A length (-1 is NULL), row count or type modifier."""
        value = self.uint32()
        return value - 0x100000000 if value >= 0x80000000 else value

    def take(self, length: int) -> bytes:
        """Exactly `length` bytes, as pq_getmsgbytes()."""
        position = self._position
        if length < 0 or length > len(self._raw) - position:
            raise ProtocolError("insufficient data left in message")
        self._position = position + length
        return self._raw[position : position + length]

    def skip(self, length: int) -> None:
        """As `take`, for bytes that nobody looks at."""
        if length < 0 or length > len(self._raw) - self._position:
            raise ProtocolError("insufficient data left in message")
        self._position += length

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._raw) - self._position)

    def string(self) -> bytes:
        """A C string, without its NUL, as pq_getmsgrawstring()."""
        position = self._position
        stop = self._raw.find(b"\0", position)
        if stop < 0:
            raise ProtocolError("invalid string in message")
        self._position = stop + 1
        return self._raw[position:stop]

    def value(self) -> bytes | None:
        """A length and that many bytes; None for the length -1."""
        length = self.int32()
        return None if length == -1 else self.take(length)

    def has_more(self) -> bool:
        """Whether the body goes on."""
        return self._position < len(self._raw)

    def finish(self) -> None:
        """The body must end here, as pq_getmsgend()."""
        if self._position != len(self._raw):
            raise ProtocolError("invalid message format")


def frame_bytes(type_code: int, body: bytes) -> bytes:
    """One encoded message."""
    return bytes((type_code,)) + (len(body) + 4).to_bytes(4, "big") + body


def c_string(text: bytes) -> bytes:
    """`text` and its NUL. A NUL inside would end the string early and turn the rest into something else."""
    if b"\0" in text:
        raise ValueError("a C string cannot hold a NUL")
    return text + b"\0"


def int16_bytes(value: int) -> bytes:
    """Two bytes, big-endian, signed."""
    return value.to_bytes(2, "big", signed=True)


def uint16_bytes(value: int) -> bytes:
    """Two bytes, big-endian, for counts."""
    return value.to_bytes(2, "big")


def int32_bytes(value: int) -> bytes:
    """Four bytes, big-endian, signed."""
    return value.to_bytes(4, "big", signed=True)


def uint32_bytes(value: int) -> bytes:
    """Four bytes, big-endian, for object ids."""
    return value.to_bytes(4, "big")


def value_bytes(value: bytes | None) -> bytes:
    """A length and that many bytes; None is the length -1."""
    return b"\xff\xff\xff\xff" if value is None else int32_bytes(len(value)) + value
