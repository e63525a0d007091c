"""Event ids and times as the store writes them: ULIDs, and UTC in a fixed-width text that is also what gets hashed."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(high + low for high in _CROCKFORD for low in _CROCKFORD)
_TIME_SHAPE = "%Y-%m-%dT%H:%M:%S.%fZ"


#: The last id of this process, and who may change it.
_last = 0
_changing = threading.Lock()


def new_ulid() -> str:
    """A 26-character id: 48 bits of Unix milliseconds, 80 random bits, in Crockford's base 32 (a ULID).

    Each is above all that this process made before, also within a millisecond and when the clock is set back: snapshots
    are undone in the order of their ids.
    """
    global _last  # noqa: PLW0603 - what the lock beside it is for
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    with _changing:
        if value <= _last:
            value = _last + 1 + int.from_bytes(os.urandom(5), "big")
        _last = value
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


def utc_now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """`moment` in UTC with microseconds, 27 characters, sortable as text: ``2026-01-31T12:00:00.000001Z``."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    """The inverse of `format_time`. Raises ValueError for any other shape."""
    return datetime.strptime(text, _TIME_SHAPE).replace(tzinfo=UTC)
