"""Where undo sets a sequence: never where it would hand out a number twice."""

from __future__ import annotations

import pytest

from sqlwall.snapshot.manifest import SequenceChange, SequenceState
from sqlwall.snapshot.restart import back

State = SequenceState


@pytest.mark.parametrize(
    ("before", "after", "now", "increment", "is_back"),
    [
        (State(30, True), State(1, False), State(1, False), 1, True),
        (State(30, True), State(1, False), State(5, True), 1, True),
        (State(30, True), State(1, False), State(30, True), 1, True),
        (State(30, True), State(1, False), State(31, True), 1, False),
        (State(30, True), State(40, True), State(40, True), 1, True),
        (State(30, True), State(40, True), State(41, True), 1, False),
        (State(1, False), State(1, False), State(1, True), 1, False),
        (State(-30, True), State(-1, False), State(-5, True), -1, True),
        (State(-30, True), State(-1, False), State(-31, True), -1, False),
    ],
)
def test_a_sequence_goes_back_if_nothing_that_was_drawn_since_lies_ahead(
    before: State, after: State, now: State, increment: int, is_back: bool
) -> None:
    change = SequenceChange(1, "public", "s", before, after)
    assert back(change, now, increment) == (before if is_back else None)
