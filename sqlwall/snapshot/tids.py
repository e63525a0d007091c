"""A set of row addresses that stays small: millions of them, nearly all in the same blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlwall.snapshot.images import Tid


class TidSet:
    """Addresses of row versions, each once, in the order of the table. A block of theirs is the bits of one number."""

    __slots__ = ("_blocks", "_count")

    def __init__(self, tids: Iterable[Tid] = ()) -> None:
        self._blocks: dict[int, int] = {}
        self._count = 0
        self.update(tids)

    def add(self, tid: Tid) -> None:
        """Put one in; harmless if it is there."""
        block, bit = tid >> 16, 1 << (tid & 0xFFFF)
        bits = self._blocks.get(block, 0)
        if not bits & bit:
            self._blocks[block] = bits | bit
            self._count += 1

    def update(self, tids: Iterable[Tid]) -> None:
        """Put several in."""
        for tid in tids:
            self.add(tid)

    def clear(self) -> None:
        """Take all out."""
        self._blocks.clear()
        self._count = 0

    def __contains__(self, tid: object) -> bool:
        return isinstance(tid, int) and bool(self._blocks.get(tid >> 16, 0) >> (tid & 0xFFFF) & 1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tid]:
        for block in sorted(self._blocks):
            bits = self._blocks[block]
            while bits:
                low = bits & -bits
                yield block << 16 | low.bit_length() - 1
                bits ^= low
