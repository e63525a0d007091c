"""What the bench says of what it has measured; nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bench import plot
from bench.figures import DIRECT, PGBOUNCER, WALL, Aim, Figure, Run, quantile
from bench.processes import BenchError
from bench.report import render

CPU = Figure("prepared", "CPU us per statement", "us", Aim(1.15))
ADDED = Figure("latency", "added p50", "us", Aim(1.5, less=DIRECT))
START = Figure("start", "start to first query", "s", Aim(1.5, against=""))
RATE = Figure("tpcb", "tps", "tps", Aim(0.95, at_least=True))


@pytest.fixture
def run() -> Run:
    made = Run({"cores": 2}, ["a note"])
    for wall, peer in ((22.0, 11.0), (24.0, 12.0), (20.0, 10.0)):
        made.add(CPU, PGBOUNCER, peer)
        made.add(CPU, WALL, wall)
    for column, value in ((DIRECT, 80.0), (PGBOUNCER, 100.0), (WALL, 110.0)):
        made.add(ADDED, column, value)
    made.add(START, WALL, 1.2)
    made.add(RATE, WALL, 960.0)
    made.add(RATE, PGBOUNCER, 1000.0)
    return made


def test_each_line_says_what_is_held_against_its_aim(run: Run) -> None:
    lines = {line.split("|")[1].strip(): line for line in render(run).splitlines() if line.startswith("| ")}
    assert lines["CPU us per statement"].endswith("| 2.00 / PgBouncer | <= 1.15 | no |")
    assert lines["added p50"].endswith("| 1.50 / PgBouncer | <= 1.5 | yes |")
    assert lines["start to first query"].endswith("| 1.20 | <= 1.5 | yes |")
    assert lines["tps"].endswith("| 0.96 / PgBouncer | >= 0.95 | yes |")
    assert "22.0 (20.0-24.0)" in lines["CPU us per statement"]
    assert "- a note" in render(run)


def test_a_peer_that_was_not_there_is_said_to_be_missing() -> None:
    alone = Run()
    alone.add(CPU, WALL, 22.0)
    assert "| - | <= 1.15 | not measured |" in render(alone)


def test_what_was_kept_is_shown_again_as_it_was(run: Run) -> None:
    again = Run.from_json(json.loads(json.dumps(run.to_json())))
    assert render(again) == render(run)


def test_whole_microseconds_are_spread_over_what_they_stand_for() -> None:
    assert quantile([20.0] * 50 + [21.0] * 50, 0.25, 1.0) == 20.0
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0


def test_a_picture_needs_a_name_that_says_its_kind(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"\.png or \.svg"):
        plot.check(tmp_path / "table.txt")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="pictures need matplotlib")
def test_a_picture_is_drawn(run: Run, tmp_path: Path) -> None:
    plot.draw(run, tmp_path / "table.svg")
    assert b"<svg" in (tmp_path / "table.svg").read_bytes()
