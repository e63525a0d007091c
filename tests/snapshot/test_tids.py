"""A set of row addresses is a set, sorted, and small."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from sqlwall.snapshot.tids import TidSet

tids = st.builds(lambda block, line: block << 16 | line, st.integers(0, 2**32 - 2), st.integers(0, 0xFFFF))


@given(st.lists(tids), st.lists(tids))
def test_it_is_a_sorted_set(given: list[int], more: list[int]) -> None:
    found = TidSet(given)
    found.update(more)
    assert list(found) == sorted({*given, *more})
    assert len(found) == len({*given, *more})
    assert all(tid in found for tid in given)
    assert not any(tid + 1 in found for tid in given if tid + 1 not in {*given, *more})
    found.clear()
    assert (len(found), list(found)) == (0, [])


def test_rows_take_a_few_bytes_each() -> None:
    tracemalloc.start()
    try:
        found = TidSet(block << 16 | line for block in range(3_400) for line in range(1, 61))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 204_000
    assert used < 1_600_000
