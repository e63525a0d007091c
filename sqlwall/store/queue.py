"""What waits to be written, in a line for each owner: in order within one, and from all in turn.

So whoever has much waiting does not hold up one who has little. Not thread-safe: the audit log has the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Lines by owner. The one whose turn is next is the first of the dict."""

    __slots__ = ("_count", "_lines")

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        """All that waits; each owner's in order."""
        for line in self._lines.values():
            yield from line

    def waiting(self, owner: str) -> int:
        """How many of this owner wait."""
        return len(self._lines.get(owner, ()))

    def append(self, owner: str, item: T) -> None:
        """Behind all others of the same owner."""
        line = self._lines.get(owner)
        if line is None:
            line = self._lines[owner] = deque()
        line.append(item)
        self._count += 1

    def take(self, limit: int) -> list[tuple[str, T]]:
        """The next ones, at most so many, one of each owner and round again; with their owners."""
        taken: list[tuple[str, T]] = []
        while self._lines and len(taken) < limit:
            if len(self._lines) == 1:
                owner, line = next(iter(self._lines.items()))
                count = min(limit - len(taken), len(line))
                taken += [(owner, line.popleft()) for _ in range(count)]
                if not line:
                    del self._lines[owner]
                continue
            owner = next(iter(self._lines))
            line = self._lines.pop(owner)
            taken.append((owner, line.popleft()))
            if line:
                self._lines[owner] = line  # to the end
        self._count -= len(taken)
        return taken

    def put_back(self, items: Iterable[tuple[str, T]]) -> None:
        """Before all others of their owners, in this order."""
        for owner, item in reversed(list(items)):
            self._lines.setdefault(owner, deque()).appendleft(item)
            self._count += 1

    def heads(self) -> Iterator[T]:
        """The first of each owner: the oldest one is among them."""
        for line in self._lines.values():
            yield line[0]
