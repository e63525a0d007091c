"""Whether a snapshot covers all that one transaction changed in one table. Pure: measured numbers in, a decision out.

Let C be the committed rows that were seen to be there for others and gone for the transaction: each is a row that it
changed, whatever the predicate, policy or trigger that led there. The server counts each change of a row at least
once, so that |C| = Δ(updated + deleted) shows that no other row was changed (the cover equation, MECHANICS section 2).
Where counts are higher, because a row was touched twice or a savepoint undone, only a complete look at the table can
tell. The same holds for the rows that the transaction added, against Δ(inserted).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Proof(Enum):
    """How completeness was shown."""

    COUNTED = "counted"
    SCANNED = "scanned"


@dataclass(frozen=True, slots=True)
class Deltas:
    """The server's counts of one table since the transaction's baseline. Never too low, unless counting was off."""

    inserted: int
    updated: int
    deleted: int

    @property
    def gone(self) -> int:
        """Row versions that the transaction ended, at most."""
        return self.updated + self.deleted


@dataclass(frozen=True, slots=True)
class Horizon:
    """What a transaction can see of others'. `oldest` is the xmin of its snapshot; `is_fixed` says that the snapshot is
    that of its first statement (REPEATABLE READ, SERIALIZABLE), so that others may have added rows since.
    """

    oldest: int
    is_fixed: bool

    def reaches(self, xmin: int) -> bool:
        """Whether a committed row version is certainly in the snapshot, by the 32 bits of its xmin.

        One that was written by a transaction that still ran then, or since, may not be. After two thousand million
        transactions an old row looks new; then it is left out, and only the cover equation can accept.
        """
        return not self.is_fixed or xmin <= _FROZEN or (xmin - self.oldest) & 0xFFFFFFFF >= _HALF


#: FrozenTransactionId (access/transam.h); ids are compared modulo 2^32.
_FROZEN: Final = 2
_HALF: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class NotCovered:
    """Why it is not shown. `reason` finishes the first line of the refusal."""

    reason: str


def prove_before(deltas: Deltas, changed: int, *, is_complete: bool, doubtful: int = 0) -> Proof | NotCovered:
    """Whether `changed` rows are all that the transaction updated or deleted.

    `is_complete` says that the whole table was looked at. `doubtful` counts rows left out because they are newer than
    the transaction's snapshot: then only the equation can tell.
    """
    if changed == deltas.gone:
        return Proof.COUNTED
    if not is_complete:
        return NotCovered(f"{changed} of {deltas.gone} changed rows are in the snapshot")
    if changed > deltas.gone:
        return NotCovered(f"{changed} rows seem changed, but the server counted {deltas.gone}")
    if doubtful:
        return NotCovered(f"{doubtful} rows were changed by others meanwhile")
    return Proof.SCANNED


def prove_after(deltas: Deltas, added: int, *, is_complete: bool) -> Proof | NotCovered:
    """Whether `added` rows are all that the transaction inserted and left in the table."""
    if added == deltas.inserted:
        return Proof.COUNTED
    if not is_complete:
        return NotCovered(f"{added} of {deltas.inserted} inserted rows are in the snapshot")
    if added > deltas.inserted:
        return NotCovered(f"{added} rows seem added, but the server counted {deltas.inserted}")
    return Proof.SCANNED
