"""Event ids and times as the store writes them: ULIDs, and UTC in a fixed-width text that is also what gets hashed."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime
from typing import Final

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple([high + low for high in _CROCKFORD for low in _CROCKFORD])
_TIME_SHAPE: Final = "%Y-%m-%dT%H:%M:%S.%fZ"


_TIME_LENGTH: Final = len("2026-01-31T12:00:00.000001")
_FORTY_BITS: Final = 2**40 - 1

#: The last id of this process, and who may change it.
_last = 0
_changing = threading.Lock()


def new_ulid() -> str:
    """A 26-character id: 48 bits of Unix milliseconds, 80 random bits, in Crockford's base 32 (a ULID).

    Each is above all that this process made before, also within a millisecond and when the clock is set back: snapshots
    are undone in the order of their ids.
    """
    return new_ulids(1)[0]


def new_ulids(count: int) -> list[str]:
    """Several at once, in order."""
    global _last  # noqa: PLW0603 - what the lock beside it is for
    random = os.urandom(10 + 5 * count)
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(random[:10], "big")
    values: list[int] = []
    with _changing:
        for start in range(10, len(random), 5):
            if value <= _last:
                value = _last + 1 + int.from_bytes(random[start : start + 5], "big")
            _last = value
            values.append(value)
    return [_letters(value) for value in values]


def _letters(value: int) -> str:
    """In three parts of at most 50 bits, since arithmetic on longer numbers is slow."""
    high, middle, low = value >> 80, value >> 40 & _FORTY_BITS, value & _FORTY_BITS
    return (
        _PAIRS[high >> 40] + _PAIRS[high >> 30 & 1023] + _PAIRS[high >> 20 & 1023] + _PAIRS[high >> 10 & 1023]
        + _PAIRS[high & 1023] + _PAIRS[middle >> 30] + _PAIRS[middle >> 20 & 1023] + _PAIRS[middle >> 10 & 1023]
        + _PAIRS[middle & 1023] + _PAIRS[low >> 30] + _PAIRS[low >> 20 & 1023] + _PAIRS[low >> 10 & 1023]
        + _PAIRS[low & 1023]
    )  # fmt: skip


def utc_now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """`moment` in UTC with microseconds, 27 characters, sortable as text: ``2026-01-31T12:00:00.000001Z``."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:_TIME_LENGTH] + "Z"


def parse_time(text: str) -> datetime:
    """The inverse of `format_time`. Raises ValueError for any other shape."""
    return datetime.strptime(text, _TIME_SHAPE).replace(tzinfo=UTC)
