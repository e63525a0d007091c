"""A ruleset as it is judged by: rules with their checks, and an index by operation that is built once, at load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from sqlwall.rules.context import Context, RelationKind
from sqlwall.rules.match import CHANGING_OPERATIONS, Act, Check
from sqlwall.rules.verdict import NO_LIMITS, Action, Limits, SnapshotPolicy
from sqlwall.sql.statement import WRITE_OPERATIONS, Operation, Statement


class Mode(Enum):
    """How much a verdict binds. Only ENFORCE protects anything."""

    OBSERVE = "observe"
    WARN = "warn"
    ENFORCE = "enforce"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It matches an effect of one of its operations if every check holds.

    `snapshot` is None where the file does not say: required for writes, nothing for the rest. `line` is where it
    stands in its file.
    """

    id: str
    action: Action
    operations: frozenset[Operation]
    checks: tuple[Check, ...] = ()
    snapshot: SnapshotPolicy | None = None
    notice: bool = False
    limits: Limits = NO_LIMITS
    message: str = ""
    hint: str = ""
    line: int = 0

    def matches(self, act: Act, statement: Statement, context: Context) -> bool:
        """Whether the rule speaks about this effect; the operation was looked up by the caller."""
        for check in self.checks:  # noqa: SIM110 - a generator costs more than the checks themselves
            if not check.holds(act, statement, context):
                return False
        return True

    def snapshot_for(self, operation: Operation) -> SnapshotPolicy:
        """What the rule wants before a write of this kind may commit; silence means required."""
        if self.snapshot is not None:
            return self.snapshot
        return SnapshotPolicy.REQUIRED if operation in WRITE_OPERATIONS else SnapshotPolicy.NONE


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a case must come to; None where the case does not say."""

    action: Action
    rule: str | None = None
    snapshot: SnapshotPolicy | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A text and the verdict it must get, beside the rules that give it.

    The keys after `expect` say who asks and what the database has: kinds of relations, extensions by name of function,
    types that run no code.
    """

    sql: str
    expect: Expectation
    agent: str = "agent"
    user: str = "agent"
    database: str = "postgres"
    application_name: str = ""
    search_path: tuple[str, ...] = ("public",)
    relations: Mapping[str, RelationKind] = field(default_factory=lambda: MappingProxyType({}))
    extensions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    inert: frozenset[str] = frozenset()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A whole file. `digest` is the SHA-256 of its text: the name under which a verdict goes on the record.

    `permits_writes` says whether any rule lets anything be changed: without one, no transaction needs to be read-write.
    """

    name: str
    version: int
    mode: Mode
    rules: tuple[Rule, ...]
    description: str = ""
    cases: tuple[Case, ...] = ()
    file: str = ""
    digest: str = ""
    by_operation: Mapping[Operation, tuple[Rule, ...]] = field(init=False, repr=False, compare=False)
    permits_writes: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        index = {
            operation: tuple(rule for rule in self.rules if operation in rule.operations)
            for operation in Operation
        }
        object.__setattr__(self, "by_operation", MappingProxyType(index))
        permits = self.mode is not Mode.ENFORCE or any(
            rule.action is not Action.DENY and rule.operations & CHANGING_OPERATIONS for rule in self.rules
        )
        object.__setattr__(self, "permits_writes", permits)
