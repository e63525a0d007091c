"""What `sqlwall doctor` finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Names of one kind that a line for people shows.
SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Ailment:
    """Something to put right: what it is, why it matters, and the SQL or setting that does it."""

    name: str
    why: str
    remedy: str


def some(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
