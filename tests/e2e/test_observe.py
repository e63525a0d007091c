"""Modes observe and warn: everything passes, and what enforcement would have said is on the record, or told as well."""

from __future__ import annotations

import time

import pytest

from sqlwall.wire.frames import Frame
from tests.e2e.wall import OpenWall, RunningWall, waiving
from tests.e2e.wire import SYNC, RawClient, run

DROPS = "DROP TABLE IF EXISTS nothing_there"


def open_in(open_wall: OpenWall, mode: str) -> RunningWall:
    ruleset = waiving("orders")
    assert "mode: enforce" in ruleset
    return open_wall(ruleset.replace("mode: enforce", f"mode: {mode}"))


def recorded(wall: RunningWall) -> dict[str, tuple[str, str]]:
    """Of each text on the record, what enforcement would have done and how often it came; once there is any."""
    for _ in range(50):
        rows = [row for row in wall.audit() if row["kind"] == "statement"]
        if rows:
            break
        time.sleep(0.1)
    return {row["statement"]: (row["action"], row["outcome"]) for row in rows}


def warnings(frames: list[Frame]) -> int:
    return sum(b"sqlwall would refuse" in frame.raw for frame in frames)


@pytest.mark.parametrize("mode", ["observe", "warn"])
def test_equal_texts_are_one_record_that_says_how_many(open_wall: OpenWall, mode: str) -> None:
    wall = open_in(open_wall, mode)
    told = 0
    with RawClient(wall.dsn()) as client:
        for _ in range(3):
            told += warnings(client.query(DROPS))
        told += warnings(client.ask(run(DROPS), run(DROPS), SYNC))
        client.query("SELECT 1")
    assert told == (5 if mode == "warn" else 0)
    found = recorded(wall)
    assert found[DROPS] == ("deny", "5 times")
    assert found["SELECT 1"] == ("allow", "once")


@pytest.mark.parametrize("text", [f"SELECT 1; {DROPS}", f"{DROPS}; SELECT 1"])
def test_a_text_of_several_statements_is_warned_about_for_the_worst_of_them(
    open_wall: OpenWall, text: str
) -> None:
    wall = open_in(open_wall, "warn")
    with RawClient(wall.dsn()) as client:
        assert warnings(client.query(text)) == 1
    assert recorded(wall)[text] == ("deny", "once")
