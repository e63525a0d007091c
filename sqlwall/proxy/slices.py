"""A segment of many messages: examined and forwarded in slices, between which the loop serves everybody else.

Nothing else of a worker runs while one segment is examined, and a client may send a hundred thousand messages before
its Sync.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

from sqlwall.errors import ProtocolError, SqlwallError
from sqlwall.proxy.policy import SessionPolicy
from sqlwall.session.segment import Segment, Step
from sqlwall.session.session import Session
from sqlwall.sql.statement import Statement, Unparsable
from sqlwall.wire.frames import Frame

#: A segment of more messages is a long one.
LONG_SEGMENT = 64
#: Seconds after which the others have their turn.
SLICE = 0.002


class Line(Protocol):
    """What is needed of the connection."""

    session: Session
    policy: SessionPolicy
    is_closing: bool

    async def analyze_large(self, text: bytes) -> tuple[Statement, ...] | Unparsable:
        """Facts from the sandboxed parser."""

    def refuse_closed(self, frames: list[Frame], error: SqlwallError) -> Segment:
        """A segment that is refused because something of ours is broken."""

    def note_reads(self, steps: list[Step]) -> bool:
        """Put reads on the record; False if the store cannot take them."""

    def send_server(self, data: bytes) -> None:
        """Write upstream."""


async def examine(line: Line, frames: list[Frame]) -> Segment:
    """As `Session.examine`, with the texts read that only the sandbox may read. Raises ProtocolError."""
    try:
        line.policy.refresh()
        examination = line.session.begin_examination(frames)
        started = perf_counter()
        while True:
            is_over = examination.advance()
            unread = examination.segment.unread
            if unread:
                line.policy.learn(unread, await line.analyze_large(unread))
                examination.go_back()
            elif is_over:
                return examination.segment
            elif perf_counter() - started > SLICE:
                started = await _let_others(line)
    except ProtocolError:
        raise
    except SqlwallError as error:
        return line.refuse_closed(frames, error)


async def forward(line: Line, segment: Segment) -> bool:
    """As `Session.forward`, and written upstream. False if the store cannot take its reads: then nothing has been."""
    steps = segment.steps
    parts = [steps[place : place + LONG_SEGMENT] for place in range(0, len(steps), LONG_SEGMENT)]
    started = perf_counter()
    for part in parts:
        if not line.note_reads(part):
            return False
        if perf_counter() - started > SLICE:
            started = await _let_others(line)
    before = line.session.start(segment, [])
    if before:
        line.send_server(before)
    for part in parts:
        line.send_server(line.session.forward_part(segment, part))
        if perf_counter() - started > SLICE:
            started = await _let_others(line)
    return True


async def _let_others(line: Line) -> float:
    """One turn of the loop for all others; returns the time. Raises ConnectionError once the connection is over."""
    await asyncio.sleep(0)
    if line.is_closing:
        raise ConnectionAbortedError("the connection is over")
    return perf_counter()
