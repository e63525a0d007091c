"""Who is next: whoever has had the least, and nobody is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from sqlwall.sql.turns import Turns


async def hold(turns: Turns, owner: str, seconds: float, order: list[str]) -> None:
    await turns.take(owner)
    order.append(owner)
    await asyncio.sleep(0)
    turns.release(owner, seconds)


async def test_time_is_shared_and_not_the_number_of_turns() -> None:
    turns, order = Turns(), []  # type: Turns, list[str]
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(hold(turns, "long", 3.0, order))
        for _ in range(8):
            group.create_task(hold(turns, "short", 1.0, order))
    names = {"long": "L", "short": "s"}
    assert "".join(names[owner] for owner in order) == "LsssLsssLssL"


async def test_one_who_comes_late_has_no_credit_for_having_been_away() -> None:
    turns = Turns()
    order: list[str] = []
    async with asyncio.TaskGroup() as group:

        async def bring_late() -> None:
            await hold(turns, "early", 10.0, order)
            for _ in range(4):
                group.create_task(hold(turns, "late", 10.0, order))

        for _ in range(4):
            group.create_task(hold(turns, "early", 10.0, order))
        group.create_task(bring_late())
        for _ in range(4):
            group.create_task(hold(turns, "early", 10.0, order))
    assert order[:5] == ["early"] * 5
    assert order[5:].count("late") == 4
    assert order[5:9].count("late") <= 3, "they share from here on"


async def test_one_who_leaves_is_passed_over_and_a_turn_given_to_him_goes_on() -> None:
    turns = Turns()
    order: list[str] = []
    await turns.take("first")
    waiting = [asyncio.ensure_future(hold(turns, "a", 1.0, order)) for _ in range(3)]
    await asyncio.sleep(0)
    assert turns.waiting("a") == 3
    waiting[1].cancel()
    turns.release("first", 1.0)
    waiting[0].cancel()  # it has just been given the turn
    for cancelled in waiting[:2]:
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    await waiting[2]
    assert order == ["a"]
    await asyncio.wait_for(turns.take("b"), 5)
    assert turns.waiting("a") == 0
