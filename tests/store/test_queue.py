"""The lines of an audit log: in order within one, and from all in turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sqlwall.store.queue import FairQueue


def filled(*items: str) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.append(item[0], item)
    return queue


def test_all_owners_are_taken_from_in_turn() -> None:
    queue = filled("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    assert [item for _, item in queue.take(5)] == ["a1", "b1", "c1", "a2", "b2"]
    assert (len(queue), queue.waiting("a"), queue.waiting("b")) == (2, 2, 0)
    assert [item for _, item in queue.take(5)] == ["a3", "a4"]


def test_what_is_put_back_is_first_again() -> None:
    queue = filled("a1", "a2", "b1", "a3")
    queue.put_back(queue.take(3))
    assert sorted(queue.heads()) == ["a1", "b1"]
    assert [item for _, item in queue.take(9) if item[0] == "a"] == ["a1", "a2", "a3"]


@given(st.lists(st.sampled_from("abc")), st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_nothing_is_lost_and_each_line_keeps_its_order(owners: str, steps: list[tuple[int, bool]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number, owner in enumerate(owners):
        queue.append(owner, (owner, number))
    out: list[tuple[str, int]] = []
    for count, is_failed in steps:
        taken = queue.take(count)
        assert len(taken) <= count
        if is_failed:
            queue.put_back(taken)
        else:
            out += [item for _, item in taken]
    out += [item for _, item in queue.take(len(queue))]
    assert len(queue) == 0
    assert sorted(out, key=lambda item: item[1]) == list(zip(owners, range(len(owners)), strict=True))
    for owner in "abc":
        numbers = [number for other, number in out if other == owner]
        assert numbers == sorted(numbers)
