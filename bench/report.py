"""The table, from what one run has recorded. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.figures import COLUMNS, Figure, Run


def render(run: Run) -> str:
    """The table as Markdown: medians, and least and largest of the rounds; then what a reader must know."""
    columns = [name for name in COLUMNS if any(name in samples for samples in run.samples.values())]
    lines = [
        f"| median (min-max) | {' | '.join(columns)} | ratio or figure | aim | met |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for figure, samples in run.samples.items():
        cells = [cell(samples.get(name, ())) for name in columns]
        lines.append(f"| {figure.title} | {' | '.join(cells)} | {' | '.join(judge(run, figure))} |")
    facts = [f"- {name}: {value}" for name, value in run.facts.items()]
    notes = [f"- {note}" for note in run.notes]
    return "\n".join([*lines, "", *facts, *notes]) + "\n"


def judge(run: Run, figure: Figure) -> tuple[str, str, str]:
    """What is held against the aim, the aim, and whether it is met."""
    if figure.aim is None:
        return "", "", ""
    outcome = run.outcome(figure)
    if outcome is None:
        return "-", str(figure.aim), "not measured"
    shown = _shown(outcome.value, outcome.low, outcome.high)
    against = f" / {figure.aim.against}" if figure.aim.against else ""
    return f"{shown}{against}", str(figure.aim), "yes" if outcome.is_met else "no"


def cell(values: Sequence[float]) -> str:
    """A column's median and spread; of one sample, that."""
    if not values:
        return ""
    return _shown(statistics.median(values), min(values), max(values))


def _shown(value: float, low: float, high: float) -> str:
    if low == high:
        return _number(value)
    return f"{_number(value)} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
