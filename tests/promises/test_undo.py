"""Promise 4: undo restores all to the bit, or nothing; it never touches what somebody has written since."""

from __future__ import annotations

import pytest

from tests.promises.guarded import Guarded, database_template, guarded, observer
from tests.promises.scripts import SCRIPTS

__all__ = ["database_template", "guarded", "observer"]


def run(guarded: Guarded, *script: str) -> None:
    """As an agent; when it returns, outcomes are noted."""
    with guarded.wall.connect(prepare_threshold=None) as agent:
        for text in script:
            agent.execute(text.encode())
    guarded.settled()


def person(guarded: Guarded, *script: str) -> None:
    """Past the wall."""
    with guarded.wall.database.connect() as connection:
        for text in script:
            connection.execute(text.encode())


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_undo_brings_back_every_bit_and_undo_of_undo_takes_it_away_again(
    guarded: Guarded, script: list[str]
) -> None:
    before = guarded.bags()
    run(guarded, *script)
    after = guarded.bags()
    if before == after:
        return
    rehearsed = guarded.undo(dry_run=True)
    assert rehearsed.conflicts == ()
    assert guarded.bags() == after
    outcome = guarded.undo()
    assert (outcome.conflicts, outcome.restored) == ((), rehearsed.restored)
    assert guarded.bags() == before
    assert all(guarded.snapshots.verify(taken) == [] for taken in outcome.snapshots)
    again = guarded.undo(*outcome.snapshots)
    assert again.conflicts == ()
    assert guarded.bags() == after
