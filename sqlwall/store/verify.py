"""Reads the audit record back: walks the chains to find what was altered, taken out, moved or cut, and exports them.

Everything streams; memory grows with the number of writers, not of records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from sqlwall.store.chain import FIELDS, NO_HASH, Head, digest
from sqlwall.store.database import reading
from sqlwall.store.schema import AUDIT, HEADS

_COLUMNS = tuple(AUDIT.c[name] for name in (*FIELDS, "hash"))


class FaultKind(Enum):
    """What is wrong with a record, or with a chain's end."""

    ALTERED = "altered"
    MISSING = "missing"
    BROKEN = "broken"
    CUT = "cut"
    FORGED = "forged"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, at a place in a chain."""

    kind: FaultKind
    writer: str
    sequence: int
    event: str
    why: str

    def __str__(self) -> str:
        event = f" (event {self.event})" if self.event else ""
        return f"{self.kind.value}: record {self.sequence} of {self.writer}{event}: {self.why}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a walk over all chains found."""

    records: int
    faults: tuple[Fault, ...]
    heads: tuple[Head, ...]


def verify(engine: Engine, outside: Sequence[Head] = ()) -> Report:
    """Walk every chain from genesis to head; `outside` are heads that were kept elsewhere. Raises StoreError."""
    with reading(engine) as connection:
        stored = {head.writer: head for head in _heads(connection)}
        kept = {head.writer: head for head in outside}
        writers = list(connection.scalars(sa.select(AUDIT.c.writer).distinct().order_by(AUDIT.c.writer)))
        faults: list[Fault] = []
        records = 0
        for writer in sorted({*writers, *stored, *kept}):
            count, found = _walk(connection, writer, stored.get(writer), kept.get(writer))
            records += count
            faults.extend(found)
        return Report(records, tuple(faults), tuple(stored.values()))


def _walk(
    connection: Connection, writer: str, head: Head | None, kept: Head | None
) -> tuple[int, list[Fault]]:
    """One chain: each record against its own hash and the one before, then the end against the heads."""
    faults: list[Fault] = []
    expected, previous, last, count = 0, NO_HASH, -1, 0
    is_kept_seen = kept is None
    rows = connection.execution_options(yield_per=1000).execute(
        sa.select(*_COLUMNS).where(AUDIT.c.writer == writer).order_by(AUDIT.c.sequence)
    )
    for row in rows:
        *values, stored_hash = row
        sequence, event = int(row.sequence), str(row.event)
        count += 1
        if sequence != expected:
            faults.append(_missing(writer, expected, sequence))
        elif row.prev_hash != previous:
            faults.append(
                Fault(FaultKind.BROKEN, writer, sequence, event, "it does not follow the record before it")
            )
        if _digest(values) != stored_hash:
            faults.append(
                Fault(FaultKind.ALTERED, writer, sequence, event, "its content does not match its hash")
            )
        if kept is not None and sequence == kept.sequence:
            is_kept_seen = True
            if stored_hash != kept.hash:
                why = "the head kept outside has another hash: the chain was written anew"
                faults.append(Fault(FaultKind.FORGED, writer, sequence, event, why))
        expected, previous, last = sequence + 1, stored_hash, sequence
    faults.extend(_check_end(writer, last, previous, head))
    if kept is not None and not is_kept_seen:
        why = f"the head kept outside is record {kept.sequence}"
        faults.append(Fault(FaultKind.CUT, writer, last + 1, "", why))
    return count, faults


def _check_end(writer: str, last: int, last_hash: str, head: Head | None) -> list[Fault]:
    if head is None:
        return [Fault(FaultKind.CUT, writer, last + 1, "", "the chain has no head")]
    if last < head.sequence:
        return [Fault(FaultKind.CUT, writer, last + 1, "", f"the head is record {head.sequence}")]
    if last > head.sequence or last_hash != head.hash:
        return [
            Fault(FaultKind.FORGED, writer, head.sequence, "", "the head is not the hash of the last record")
        ]
    return []


def _missing(writer: str, expected: int, found: int) -> Fault:
    what = f"record {expected}" if found == expected + 1 else f"records {expected} to {found - 1}"
    return Fault(FaultKind.MISSING, writer, expected, "", f"{what} should stand before record {found}")


def _digest(values: Sequence[object]) -> str:
    """The hash of what is stored; of nothing at all if it is of a kind that is never stored."""
    try:
        return digest(values)
    except (ValueError, UnicodeError):
        return ""


def heads(engine: Engine) -> tuple[Head, ...]:
    """Where each chain ends. Raises StoreError."""
    with reading(engine) as connection:
        return tuple(_heads(connection))


def _heads(connection: Connection) -> Iterator[Head]:
    rows = connection.execute(
        sa.select(HEADS.c.writer, HEADS.c.sequence, HEADS.c.hash).order_by(HEADS.c.writer)
    )
    for row in rows:
        yield Head(row.writer, int(row.sequence), row.hash)


def tail(engine: Engine, limit: int, agent: str | None = None) -> tuple[dict[str, Any], ...]:
    """The last records of all chains, the oldest first, as columns and values. Raises StoreError."""
    query = sa.select(*_COLUMNS).order_by(AUDIT.c.position.desc()).limit(limit)
    if agent is not None:
        query = query.where(AUDIT.c.agent == agent)
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return tuple(dict(row) for row in reversed(rows))


def export(engine: Engine) -> Iterator[str]:
    """Every record as a line of JSON in the order of writing, then each head. Raises StoreError."""
    with reading(engine) as connection:
        found = list(_heads(connection))
        rows = connection.execution_options(yield_per=1000).execute(
            sa.select(*_COLUMNS).order_by(AUDIT.c.position)
        )
        for row in rows.mappings():
            yield json.dumps(dict(row), ensure_ascii=False)
        for head in found:
            yield json.dumps({"head": str(head)})
