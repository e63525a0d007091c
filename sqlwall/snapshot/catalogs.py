"""Catalogs measured around a statement that changes definitions: what it counted there, and what had to be counted.

A catalog lets its locks go early, so that only its counters tell of a change (MECHANICS, section 14). Where a statement
is known to change definitions, they are read right before and right after it; what such windows do not explain, nobody
permitted. Counters never go back inside a transaction, not even where a savepoint is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Row = Sequence[bytes | None]
#: Rows inserted, updated and deleted in one catalog.
Counts = tuple[int, int, int]
#: Catalogs by name.
Window = Mapping[str, Counts]

_READ: Final = "pg_catalog.pg_stat_get_xact_tuples_"
#: One row per catalog: name, rows inserted, updated, deleted. Like `witness`, only PostgreSQL's own.
COUNTERS: Final = (
    f"SELECT c.relname::pg_catalog.text, {_READ}inserted(c.oid)::pg_catalog.text,"
    f" {_READ}updated(c.oid)::pg_catalog.text, {_READ}deleted(c.oid)::pg_catalog.text FROM pg_catalog.pg_class c"
    " WHERE c.oid OPERATOR(pg_catalog.<) 16384::pg_catalog.oid"
    " AND c.relnamespace OPERATOR(pg_catalog.=) 11::pg_catalog.oid"
    " AND c.relkind OPERATOR(pg_catalog.=) 'r'::pg_catalog.\"char\""
    f" AND ({_READ}inserted(c.oid) OPERATOR(pg_catalog.>) 0 OR {_READ}updated(c.oid) OPERATOR(pg_catalog.>) 0"
    f" OR {_READ}deleted(c.oid) OPERATOR(pg_catalog.>) 0)"
).encode()

NOTHING: Final[Window] = {}


def read_counters(rows: Iterable[Row]) -> Window:
    """The answer to COUNTERS."""
    found: dict[str, Counts] = {}
    for row in rows:
        name, inserted, updated, deleted = [(value or b"").decode() for value in row]
        found[name] = (int(inserted), int(updated), int(deleted))
    return found


def between(before: Window, after: Window) -> Window:
    """What was counted in between; catalogs of which nothing was are left out."""
    found: dict[str, Counts] = {}
    for name, now in after.items():
        then = before.get(name, (0, 0, 0))
        counts = (now[0] - then[0], now[1] - then[1], now[2] - then[2])
        if counts != (0, 0, 0):
            found[name] = counts
    return found


def total(windows: Iterable[Window]) -> Window:
    """What several windows counted together."""
    found: dict[str, Counts] = {}
    for window in windows:
        for name, counts in window.items():
            known = found.get(name, (0, 0, 0))
            found[name] = (known[0] + counts[0], known[1] + counts[1], known[2] + counts[2])
    return found


def times(window: Window, factor: int) -> Window:
    """The same so many times over."""
    return {name: (c[0] * factor, c[1] * factor, c[2] * factor) for name, c in window.items()}


@dataclass(frozen=True, slots=True)
class Explained:
    """What the open transaction did to definitions, as far as that was measured beside each statement.

    `catalogs` is what all of it counted. `locked` are relations that it locked as only definitions are; `emptied` are
    tables that stand empty since a TRUNCATE but for rows of the transaction's own; `restarted` sequences that stand
    where it put them; `moved` tables that are in the trash, with their names before. `gone` counts relations that it
    made and dropped. Object ids are in decimal.
    """

    catalogs: Window = field(default_factory=dict)
    locked: frozenset[str] = frozenset()
    emptied: frozenset[str] = frozenset()
    restarted: frozenset[str] = frozenset()
    moved: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    gone: int = 0


#: Of a transaction that did nothing to definitions.
UNTOUCHED: Final = Explained()
