"""Turns at something that serves one at a time: among those who wait, whoever has had the least of it is next.

Time is what is shared, not the number of turns (start-time fair queueing, Goyal, Vin and Cheng 1996): somebody whose
every turn takes seconds does not get more of it than somebody who needs little. Within one owner first come, first
served. Nobody gains by having stayed away.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Who is served and who waits, by owner."""

    __slots__ = ("_floor", "_had", "_is_taken", "_waiting")

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._had: dict[str, float] = {}  # seconds, of those who are or lately were here
        self._floor = 0.0  # what the one that was served last had had

    def waiting(self, owner: str) -> int:
        """How many of this owner wait."""
        return len(self._waiting.get(owner, ()))

    async def take(self, owner: str) -> None:
        """Wait for a turn; `release` ends it. One who is cancelled meanwhile leaves the turn to the next."""
        self._had[owner] = max(self._had.get(owner, 0.0), self._floor)
        if not self._is_taken:
            self._is_taken = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.release(owner, 0.0)  # it was given in the same moment
            else:
                self._leave(owner, turn)
            raise

    def release(self, owner: str, seconds: float) -> None:
        """The turn is over, and took so long."""
        self._had[owner] = self._had.get(owner, self._floor) + seconds
        while self._waiting:
            following = min(self._waiting, key=self._had.__getitem__)
            queue = self._waiting[following]
            turn = queue.popleft()
            if not queue:
                del self._waiting[following]
            if not turn.done():
                self._floor = self._had[following]
                turn.set_result(None)
                return
        self._is_taken = False
        self._had.clear()
        self._floor = 0.0

    def _leave(self, owner: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(owner)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]
