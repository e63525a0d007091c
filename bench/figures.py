"""What a row of the table is made of: figures, their aims, and the samples of one run. Knows no way to measure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: Columns, in the order of the table.
DIRECT = "direct"
PGBOUNCER = "PgBouncer"
PGPOOL = "pgpool-II"
WALL = "sqlwall"
COLUMNS = (DIRECT, PGBOUNCER, PGPOOL, WALL)


@dataclass(frozen=True, slots=True)
class Aim:
    """What the wall's figure must reach.

    `against` names the column by which it is divided; empty, the figure itself is meant. `less` names a column that is
    taken off both first: what a proxy adds.
    """

    limit: float
    at_least: bool = False
    against: str = PGBOUNCER
    less: str = ""

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. Without an aim it is only told."""

    row: str
    title: str
    unit: str
    aim: Aim | None = None


Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An aim's figure: that of the medians, and the least and the largest of single rounds."""

    value: float
    low: float
    high: float
    is_met: bool


@dataclass(slots=True)
class Run:
    """All that one run has found. `facts` say on what it ran, `notes` what a reader must know of it."""

    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    samples: dict[Figure, Samples] = field(default_factory=dict)

    def add(self, figure: Figure, column: str, value: float) -> None:
        """One sample; those of one round stand at the same place in each column."""
        self.samples.setdefault(figure, {}).setdefault(column, []).append(value)

    def outcome(self, figure: Figure, column: str = WALL) -> Outcome | None:
        """How a column stands to the aim; None without an aim, or where a column is missing."""
        aim, samples = figure.aim, self.samples[figure]
        if aim is None:
            return None
        needed = [column, *filter(None, (aim.against, aim.less))]
        if not all(samples.get(name) for name in needed):
            return None
        value = _compare(aim, {name: statistics.median(samples[name]) for name in needed}, column)
        rounds = zip(*(samples[name] for name in needed), strict=False)
        found = [_compare(aim, dict(zip(needed, one, strict=True)), column) for one in rounds]
        spread = [one for one in found if one is not None]
        if value is None or not spread:
            return None
        is_met = value >= aim.limit if aim.at_least else value <= aim.limit
        return Outcome(value, min(spread), max(spread), is_met)

    def to_json(self) -> dict[str, Any]:
        """Everything, with what the aims came to."""
        figures = []
        for figure, samples in self.samples.items():
            outcome = self.outcome(figure)
            reached = asdict(outcome) if outcome is not None else None
            medians = {name: statistics.median(values) for name, values in samples.items()}
            figures.append(asdict(figure) | {"medians": medians, "reached": reached, "samples": samples})
        return {"facts": self.facts, "notes": self.notes, "figures": figures}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """What `to_json` gave. Medians and outcomes are computed anew."""
        run = cls(dict(data["facts"]), list(data["notes"]))
        for one in data["figures"]:
            aim = Aim(**one["aim"]) if one["aim"] is not None else None
            figure = Figure(one["row"], one["title"], one["unit"], aim)
            run.samples[figure] = {name: list(values) for name, values in one["samples"].items()}
        return run


def _compare(aim: Aim, values: Mapping[str, float], column: str) -> float | None:
    """None where nothing is left to divide by: a peer that adds nothing that can be measured."""
    if not aim.against:
        return values[column]
    base = values[aim.less] if aim.less else 0.0
    divisor = values[aim.against] - base
    return (values[column] - base) / divisor if divisor > 0 else None


def quantile(values: Sequence[float], share: float, width: float = 0.0) -> float:
    """The quantile of values; with a `width`, of values that were rounded to multiples of it, spread over it again.

    Whole microseconds are too coarse where twenty of them are told from twenty-five.
    """
    ordered = sorted(values)
    place = min(int(len(ordered) * share), len(ordered) - 1)
    found = ordered[place]
    if not width:
        return found
    below = sum(1 for value in ordered if value < found)
    alike = sum(1 for value in ordered if value == found)
    return found - width / 2 + width * (len(ordered) * share - below) / alike
