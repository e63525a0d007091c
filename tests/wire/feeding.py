"""Ways of handing bytes to a reader, and streams of messages to hand to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hypothesis import strategies as st

from sqlwall.errors import ProtocolError
from sqlwall.wire.frames import Frame, Side

T = TypeVar("T")

FRONTEND_CODES = b"QFBPdXCDEHScf"
BACKEND_CODES = b"DdENATtVSRvZC123nsIGHWcK"


def codes(side: Side) -> bytes:
    """Every type that a side may send."""
    return FRONTEND_CODES if side is Side.FRONTEND else BACKEND_CODES


def message(code: int, body: bytes) -> bytes:
    """A message, spelled out apart from the code under test."""
    return bytes([code]) + (4 + len(body)).to_bytes(4, "big") + body


def frame(code: str, body: bytes) -> Frame:
    """A frame of any type and body, as a reader would cut it."""
    return Frame(ord(code), message(ord(code), body))


def streams(side: Side) -> st.SearchStrategy[list[bytes]]:
    """Whole messages, one after the other."""
    return st.lists(st.builds(message, st.sampled_from(codes(side)), st.binary(max_size=30)), max_size=8)


def chunked(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """The same bytes, cut at these places (modulo their length); some pieces may be empty."""
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    for start, stop in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:stop]


CUTS = st.lists(st.integers(0, 10**6), max_size=10)


def outcome(decode: Callable[[], T]) -> T | str:
    """What a decoder answers, or what it says is wrong; anything else it raises is the test's failure."""
    try:
        return decode()
    except ProtocolError as error:
        assert len(error.sqlstate) == 5
        assert str(error)
        return str(error)
