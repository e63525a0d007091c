"""The SELECT that lists the rows that an UPDATE or DELETE is about to touch (first version: none)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlwall.sql.statement import Operation, Relation, Statement


@dataclass(frozen=True, slots=True)
class CaptureText:
    """The text of a capture, and which parameters it uses."""

    sql: bytes
    parameters: tuple[int, ...]
    relation: Relation
    operation: Operation

    def with_limit(self, most: int) -> bytes:
        """The text, listing at most so many rows."""
        return self.sql + b" LIMIT " + str(most).encode()


@dataclass(frozen=True, slots=True)
class NotCapturable:
    """Why there is none."""

    reason: str


def capture_text(text: bytes, statement: Statement) -> CaptureText | NotCapturable:
    """The capture of a statement."""
    return NotCapturable("not made yet")
