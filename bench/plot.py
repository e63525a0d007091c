"""The table as a picture: how far each figure is from its aim. Needs matplotlib, which nothing else here does."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from bench.figures import PGPOOL, WALL, Figure, Outcome, Run
from bench.processes import BenchError

SUFFIXES = (".png", ".svg")
_MET, _MISSED, _PEER = "#2a7f3f", "#b3261e", "#777777"


def check(path: Path) -> None:
    """Raises BenchError before anything is measured for a picture that could not be made."""
    if path.suffix not in SUFFIXES:
        raise BenchError(f"--plot {path}: write a name that ends in {' or '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib: run pip install 'sqlwall[bench]'")


def distance(figure: Figure, outcome: Outcome) -> tuple[float, float, float]:
    """Value, least and most as multiples of the aim, turned so that up to 1 is met."""
    assert figure.aim is not None
    parts = [part / figure.aim.limit for part in (outcome.value, outcome.low, outcome.high)]
    if not figure.aim.at_least:
        return parts[0], parts[1], parts[2]
    value, high, low = (1 / part if part > 0 else float("inf") for part in parts)
    return value, low, high


def draw(run: Run, path: Path) -> None:
    """Write the picture. Raises BenchError without matplotlib."""
    check(path)
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figures = [figure for figure in run.samples if run.outcome(figure) is not None]
    picture, axes = pyplot.subplots(figsize=(11, 1.5 + 0.42 * len(figures)), layout="constrained")
    for place, figure in enumerate(figures):
        _draw_line(axes, run, figure, place)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(importlib.import_module("matplotlib.ticker").FormatStrFormatter("%g"))
    axes.set_yticks(range(len(figures)), [figure.title for figure in figures])
    axes.invert_yaxis()
    axes.set_xlabel(
        "multiple of the aim (log scale); up to 1 is met. Dot: median, bar: least to largest round"
    )
    axes.set_title(f"{run.facts.get('sqlwall', 'sqlwall')} against its aims")
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend(handles=_legend(pyplot), loc="best")
    picture.savefig(path, dpi=140)
    pyplot.close(picture)


def _draw_line(axes: Any, run: Run, figure: Figure, place: int) -> None:
    for column in (PGPOOL, WALL):
        outcome = run.outcome(figure, column)
        if outcome is None:
            continue
        value, low, high = distance(figure, outcome)
        if value <= 0:
            continue  # nothing that a log scale could show
        colour = _PEER if column == PGPOOL else _MET if outcome.is_met else _MISSED
        axes.plot(
            [max(low, value / 100), min(high, value * 100)],
            [place, place],
            color=colour,
            linewidth=2,
            alpha=0.5,
        )
        axes.plot([value], [place], "D" if column == PGPOOL else "o", color=colour, markersize=6)


def _legend(pyplot: Any) -> list[Any]:
    """One entry for each kind of dot."""
    kinds = (("o", _MET, "sqlwall, met"), ("o", _MISSED, "sqlwall, not met"), ("D", _PEER, "pgpool-II"))
    return [
        pyplot.Line2D([], [], marker=marker, color=colour, linestyle="none", label=label)
        for marker, colour, label in kinds
    ]
