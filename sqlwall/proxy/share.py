"""How much of a worker's own time one agent's costly texts may take; beyond it they are read in the sandbox, in turn.

Nothing else in a worker runs while it parses. A text of a few kilobytes takes it milliseconds, and an agent with many
sessions can send many at once. Small texts, which nearly all are, are never looked at here.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

from sqlwall.session.examine import Facts

#: Texts up to this are parsed in the worker whoever sends them: it takes about as long as to forward them (bytes).
SMALL_TEXT = 2048
#: The part of a worker's time that the larger texts of one agent may take, and how long at once (seconds).
SHARE = 0.1
ROOM = 0.05


class Cache(Protocol):
    """The worker's facts by text, which parses what it does not know."""

    def knows(self, text: bytes) -> bool:
        """Whether nothing would have to be parsed."""

    def find(self, text: bytes) -> Facts | None:
        """Facts of the text; None while only the sandboxed parser may read it."""


class ParseShare:
    """What is left of one agent's share. Its sessions of one worker have it in common."""

    __slots__ = ("_paid_at", "diverted")

    def __init__(self) -> None:
        self._paid_at = -math.inf
        self.diverted = 0

    def find(self, text: bytes, cache: Cache) -> Facts | None:
        """Facts of a text that is not small; None if it is to be read in the sandbox."""
        if cache.knows(text):
            return cache.find(text)
        started = time.perf_counter()
        if self._paid_at - started > ROOM / SHARE:
            self.diverted += 1
            return None
        found = cache.find(text)
        self._paid_at = max(self._paid_at, started) + (time.perf_counter() - started) / SHARE
        return found
