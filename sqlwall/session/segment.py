"""A segment: the frontend messages up to a Query, Sync or Flush, examined before any of them is forwarded.

Each message becomes a Step that says how it has to travel. The last answer of every examination is the refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from sqlwall.rules.verdict import Action, SnapshotPolicy, Verdict
from sqlwall.session.prepared import Prepared
from sqlwall.session.refusal import Refusal
from sqlwall.sql.statement import (
    WRITE_OPERATIONS,
    Effect,
    Operation,
    Statement,
    Transaction,
    TransactionControl,
    Unparsable,
)
from sqlwall.wire.frames import Frame


class Act(IntEnum):
    """How a message travels, ordered by how much has to happen around it."""

    FORWARD = 0
    RECORD = 1  # durable record first, then forward
    BEGIN = 2  # opens a transaction block; our read-write or read-only switch goes behind it
    COMMIT = 3  # a commit point of a read-write transaction: the gate stands before it
    WRITE = (
        4  # a permitted write outside a transaction block: needs a read-write transaction of ours around it
    )
    REFUSE = 5


@dataclass(slots=True)
class Step:
    """One frontend message and what is to happen to it."""

    frame: Frame
    kind: int
    act: Act = Act.FORWARD
    name: bytes = b""
    prepared: tuple[Prepared, ...] = ()
    statements: tuple[Statement, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    refusal: Refusal | None = None
    text: bytes = b""


@dataclass(slots=True)
class Standing:
    """Where the transaction stands while a segment is examined: what it will be if all so far succeeds."""

    in_block: bool
    is_failed: bool
    is_writable: bool


#: Operations that need a read-write transaction though they name no row.
_DEFINING = frozenset(
    {
        Operation.CREATE,
        Operation.ALTER,
        Operation.DROP,
        Operation.GRANT,
        Operation.TRUNCATE,
        Operation.CALL,
        Operation.DO,
    }
)
_CHANGING = WRITE_OPERATIONS | _DEFINING


def is_change(statement: Statement) -> bool:
    """Whether running the statement itself changes anything. PREPARE only stores a text."""
    first = statement.effects[0].operation if statement.effects else Operation.UNKNOWN
    if first is Operation.PREPARE:
        return False
    return any(effect.operation in _CHANGING for effect in statement.effects)


def body_changes(statement: Statement) -> bool:
    """Whether EXECUTE of this PREPARE, or this statement itself, changes anything."""
    return any(effect.operation in _CHANGING for effect in statement.effects)


def control_of(statement: Statement) -> TransactionControl | None:
    """Its transaction control, if it is one."""
    return statement.control


def asks_read_write(statement: Statement) -> bool:
    """Whether the text asks for a writable transaction by name."""
    control = statement.control
    return control is not None and control.read_only is False


def opens_block(statement: Statement) -> bool:
    """BEGIN or START TRANSACTION."""
    return statement.control is not None and statement.control.verb is Transaction.BEGIN


def commits(statement: Statement) -> bool:
    """COMMIT or END."""
    return statement.control is not None and statement.control.verb is Transaction.COMMIT


def ends_block(statement: Statement) -> bool:
    """COMMIT, END, ROLLBACK or ABORT, unless a new block is chained to it."""
    control = statement.control
    return (
        control is not None
        and control.verb in (Transaction.COMMIT, Transaction.ROLLBACK)
        and not control.chain
    )


def needs_snapshot(statement: Statement, verdict: Verdict) -> bool:
    """Whether the verdict wants a before-image that has to be taken first."""
    return (
        verdict.action is Action.ALLOW
        and verdict.snapshot is SnapshotPolicy.REQUIRED
        and body_changes(statement)
    )


def unparsable_verdict(fault: Unparsable) -> Verdict:
    """The record's view of a text that is no statement."""
    return Verdict(Action.DENY, "unparsable", fault.message, operation=Operation.UNKNOWN.value)


def unparsable_refusal(fault: Unparsable) -> Refusal:
    """What PostgreSQL itself says of such a text."""
    return Refusal(fault.sqlstate, fault.message, position=fault.position)


def first_write(statement: Statement) -> Effect | None:
    """The effect to name when a write is refused."""
    return next((effect for effect in statement.effects if effect.operation in _CHANGING), None)
