"""The cover equation, over every small case."""

from __future__ import annotations

import itertools

import pytest

from sqlwall.snapshot.proof import Deltas, NotCovered, Proof, prove_after, prove_before

CHANGES = list(itertools.product(range(4), repeat=3))


@pytest.mark.parametrize(("changed", "updated", "deleted"), CHANGES)
def test_counts_prove_a_snapshot_only_if_they_are_equal(changed: int, updated: int, deleted: int) -> None:
    outcome = prove_before(Deltas(7, updated, deleted), changed, is_complete=False)
    assert (outcome is Proof.COUNTED) == (changed == updated + deleted)
    assert isinstance(outcome, NotCovered) == (changed != updated + deleted)


@pytest.mark.parametrize(("changed", "updated", "deleted"), CHANGES)
def test_a_complete_look_proves_what_was_counted_too_high_but_nothing_that_was_counted_too_low(
    changed: int, updated: int, deleted: int
) -> None:
    outcome = prove_before(Deltas(7, updated, deleted), changed, is_complete=True)
    assert isinstance(outcome, NotCovered) == (changed > updated + deleted)


def test_rows_left_out_of_a_complete_look_leave_only_the_equation() -> None:
    assert isinstance(prove_before(Deltas(0, 2, 0), 1, is_complete=True, doubtful=1), NotCovered)
    assert prove_before(Deltas(0, 1, 0), 1, is_complete=True, doubtful=1) is Proof.COUNTED


@pytest.mark.parametrize(("added", "inserted"), list(itertools.product(range(4), repeat=2)))
def test_inserted_rows_are_proven_likewise(added: int, inserted: int) -> None:
    deltas = Deltas(inserted, 5, 5)
    assert (prove_after(deltas, added, is_complete=False) is Proof.COUNTED) == (added == inserted)
    assert isinstance(prove_after(deltas, added, is_complete=True), NotCovered) == (added > inserted)
