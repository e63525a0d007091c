"""Where undo sets a sequence that a TRUNCATE restarted: never where a number would be drawn twice. SQL and a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlwall.snapshot.images import qualify, quote_identifier, quote_literal
from sqlwall.snapshot.manifest import SequenceChange, SequenceState

#: What a sequence is now. The parameter is its object id.
FIND: Final = """
SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text, s.seqincrement,
  pg_has_role(c.relowner, 'USAGE')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
WHERE c.oid = %s::oid
"""


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence as it is now. `is_ours` says that the undo role may do what its owner may."""

    schema: str
    name: str
    owner: str
    increment: int
    is_ours: bool

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.schema}.{self.name}"

    def lock(self) -> str:
        """Nobody draws from it until the end. Its owner stays who it was."""
        return f"ALTER SEQUENCE {qualify(self.schema, self.name)} OWNER TO {quote_identifier(self.owner)}"

    def state(self) -> str:
        """Where it stands."""
        return f"SELECT last_value, is_called FROM {qualify(self.schema, self.name)}"

    def renew(self) -> str:
        """Give it a new file, which nobody sees before COMMIT and a ROLLBACK takes away; `put` alone is at once."""
        return f"ALTER SEQUENCE {qualify(self.schema, self.name)} RESTART"

    def put(self, state: SequenceState) -> str:
        """Let it stand there."""
        name = quote_literal(qualify(self.schema, self.name))
        return f"SELECT setval({name}::regclass, {int(state.last)}, {'true' if state.is_called else 'false'})"


def back(change: SequenceChange, now: SequenceState, increment: int) -> SequenceState | None:
    """Where a sequence goes when the change is undone; None if numbers drawn since would be drawn again."""
    if now == change.after or is_ahead(change.before, now, increment):
        return change.before
    return None


def is_ahead(one: SequenceState, other: SequenceState, increment: int) -> bool:
    """Whether all that the other has handed out lies behind it too."""
    if one.last == other.last:
        return one.is_called or not other.is_called
    return (one.last > other.last) == (increment > 0)
