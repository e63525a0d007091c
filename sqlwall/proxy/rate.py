"""How many statements an agent may send: a bucket of tokens for each agent, and what a segment takes out of it.

Values only, the caller brings the clock. A bucket is one number, the moment at which it is full again (the generic cell
rate algorithm, ITU-T I.371): no task refills it, and a look at it is one comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlwall.session.ledger import Kind
from sqlwall.session.segment import Step, ends_block
from sqlwall.sql.statement import Statement
from sqlwall.wire import frontend
from sqlwall.wire.frames import Frame

_QUERY, _FUNCTION_CALL, _SYNC, _FLUSH, _CLOSE = ord("Q"), ord("F"), ord("S"), ord("H"), ord("C")
_PARSE, _BIND, _DESCRIBE, _EXECUTE = ord("P"), ord("B"), ord("D"), ord("E")

#: Where the text of a statement begins that may end a transaction. It only saves a look at all others.
_ENDING = (b"commit", b"end", b"rollback", b"abort")
#: No message that ends a transaction is longer, and no segment that does has more messages.
_ENDING_BYTES = 256
_ENDING_FRAMES = 6


class Rate:
    """What one agent may still send. Shared by its sessions of one worker; a change of the limit holds at once."""

    __slots__ = ("_full_at", "_interval", "_room", "burst", "limit")

    def __init__(self, limit: float, burst: int, workers: int = 1) -> None:
        self._full_at = -math.inf
        self.change(limit, burst, workers)

    def change(self, limit: float, burst: int, workers: int = 1) -> None:
        """`limit` statements per second, more than 0, and `burst` at once out of a full bucket, over all workers.

        Each worker enforces its share, for they do not tell each other what they forward.
        """
        self.limit = limit
        self.burst = burst
        self._interval = workers / limit
        self._room = self._interval * (-(-burst // workers) - 1)

    def take(self, count: int, now: float) -> float:
        """Take `count` statements and answer 0.0; otherwise take nothing and answer in how many seconds one may come.

        A pipeline goes whole once a single token is there, and the bucket stays empty for as long as it was worth: so
        none is too long to be sent at all, and the rate holds all the same.
        """
        ahead = self._full_at - now
        if ahead > self._room:
            return ahead - self._room
        self._full_at = (self._full_at if ahead > 0.0 else now) + count * self._interval
        return 0.0

    def charge(self, count: int) -> None:
        """What a segment that has been let through turned out to hold beyond what was taken for it."""
        self._full_at += count * self._interval


def cost(frames: Sequence[Frame]) -> int:
    """How many statements a segment asks for, as far as its messages tell. Sync, Flush and Close are free."""
    if len(frames) == 1:
        return 0 if frames[0].type_code in (_SYNC, _FLUSH, _CLOSE) else 1
    parses = binds = describes = executes = 0
    for frame in frames:
        code = frame.type_code
        if code == _BIND:
            binds += 1
        elif code in (_EXECUTE, _QUERY, _FUNCTION_CALL):
            executes += 1
        elif code == _PARSE:
            parses += 1
        elif code == _DESCRIBE:
            describes += 1
    return max(parses, binds, describes, executes)


def may_end_block(frames: Sequence[Frame]) -> bool:
    """Whether a look at what it runs is worth it: it is short, and its texts begin like COMMIT or ROLLBACK."""
    if len(frames) > _ENDING_FRAMES or any(len(frame.raw) > _ENDING_BYTES for frame in frames):
        return False
    for frame in frames:
        if frame.type_code == _QUERY:
            text = frontend.decode_query(frame).text
        elif frame.type_code == _PARSE:
            text = frontend.decode_parse(frame).query
        else:
            continue
        if not text.lstrip().lower().startswith(_ENDING):
            return False
    return True


def only_ends_block(steps: Sequence[Step]) -> bool:
    """Whether a segment does nothing but end a transaction: that is never refused for being too much."""
    runs = False
    for step in steps:
        if step.kind not in (Kind.QUERY, Kind.EXECUTE):
            continue
        found: tuple[Statement | None, ...] = step.statements or tuple(p.statement for p in step.prepared)
        if not found or any(statement is None or not ends_block(statement) for statement in found):
            return False
        runs = True
    return runs
