"""The answer to a statement: what to do, which rule said so, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Action(IntEnum):
    """Ordered by restrictiveness: the maximum over all effects and rules is the verdict."""

    ALLOW = 0
    HOLD = 1
    DENY = 2


class SnapshotPolicy(IntEnum):
    """What a rule wants before a write may commit. `NONE` is a waiver; the stricter of two rules wins."""

    NONE = 0
    REQUIRED = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one statement; None is unlimited.

    `rows` returned or written, `bytes` of result, `time` in seconds; `transaction_rows` written by a whole transaction,
    `share` of one table's rows (0 to 1). `scan` is the size in bytes up to which a table is looked at whole to prove
    that a snapshot covers what was changed in it.
    """

    rows: int | None = None
    bytes: int | None = None
    time: float | None = None
    transaction_rows: int | None = None
    share: float | None = None
    scan: int | None = None


#: Without any bound; one object, so that it is known by identity.
NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a statement. `rule` is the id in the ruleset, or a built-in id such as ``default-deny``.

    `reason` finishes the first line of the error ("no WHERE clause"); `operation` and `target` name the effect that
    decided. `snapshot` is REQUIRED if any effect needs one; `notice` tells the agent which one was taken. `retryable`
    tells it whether the same text may pass.
    `judged` is what enforce mode says: the same as `action` there, and what the record shows in the other modes.
    """

    action: Action
    rule: str
    reason: str
    hint: str = ""
    operation: str = ""
    target: str = ""
    snapshot: SnapshotPolicy = SnapshotPolicy.NONE
    limits: Limits = NO_LIMITS
    notice: bool = False
    retryable: bool = False
    warning: str = ""
    judged: Action = Action.ALLOW
