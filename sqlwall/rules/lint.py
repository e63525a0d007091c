"""What a person should know about a ruleset that loads without error: rules in vain, doors left open, waivers.

Compares rules with rules; judges no statement. Where it is not sure that one rule covers another it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from sqlwall.rules.builtin import is_forbidden_setting
from sqlwall.rules.context import RelationKind
from sqlwall.rules.match import (
    BoundedCheck,
    Check,
    FunctionCheck,
    KindCheck,
    QualifiedGlob,
    SettingCheck,
    SubjectCheck,
    TableCheck,
)
from sqlwall.rules.ruleset import Mode, Rule, Ruleset
from sqlwall.rules.verdict import Action, SnapshotPolicy
from sqlwall.rules.when import WhenCheck
from sqlwall.sql.statement import WRITE_OPERATIONS, Operation


class Concern(Enum):
    """What kind of thing a finding is about."""

    MODE = "mode"
    UNREACHABLE = "unreachable"
    NO_EFFECT = "no-effect"
    DANGEROUS = "dangerous"
    WAIVER = "waiver"
    UNBOUNDED = "unbounded"
    SENSITIVE = "sensitive"
    FOREIGN = "foreign"
    UNTESTED = "untested"


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark. `rule` and `line` are empty and 0 where the ruleset as a whole is meant."""

    concern: Concern
    message: str
    rule: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        subject = f"rule {self.rule!r}: " if self.rule else ""
        return f"{where}{subject}{self.message} [{self.concern.value}]"


def lint(ruleset: Ruleset) -> tuple[Finding, ...]:
    """Every remark, those on the whole ruleset first, the others in the order of the file."""
    general = (*_mode(ruleset), *_open_reads(ruleset))
    single = [
        finding
        for rule in ruleset.rules
        for check in (_unreachable, _no_effect, _dangerous, _waiver, _unbounded, _untested)
        for finding in check(rule, ruleset)
    ]
    return (*general, *sorted(single, key=lambda finding: finding.line))


#: What an agent gains where a rule allows it; the words end "this lets an agent".
_DANGEROUS: tuple[tuple[Operation, str], ...] = (
    (Operation.COPY_PROGRAM, "run programs on the server"),
    (Operation.COPY_FILE, "read and write files on the server"),
    (Operation.DO, "run code that nobody can judge"),
    (Operation.CALL, "run procedures, which may end transactions"),
    (Operation.ROLE, "become another role"),
    (Operation.GRANT, "hand out privileges"),
    (Operation.ALTER, "change definitions"),
    (Operation.CREATE, "create functions and triggers that run as others"),
    (Operation.DROP, "drop what it may; only tables can be brought back"),
    (Operation.TRUNCATE, "empty whole tables"),
    (Operation.LOCK, "stop everybody else by a lock"),
    (Operation.NOTIFY, "set off whatever listens"),
    (Operation.MAINTENANCE, "start work that loads the whole server"),
)


def _mode(ruleset: Ruleset) -> Iterator[Finding]:
    if ruleset.mode is not Mode.ENFORCE:
        message = f"mode {ruleset.mode.value} protects nothing: every statement is forwarded"
        yield Finding(Concern.MODE, message, file=ruleset.file)


def _open_reads(ruleset: Ruleset) -> Iterator[Finding]:
    """Reads that tell secrets or have remote effects, unless a rule denies them by kind."""
    kinds = (
        (RelationKind.SENSITIVE, Concern.SENSITIVE, "catalogs with credentials or other people's data"),
        (RelationKind.FOREIGN, Concern.FOREIGN, "foreign tables, where reading can write on another server"),
    )
    for kind, concern, what in kinds:
        for rule in ruleset.by_operation[Operation.SELECT]:
            if rule.action is Action.ALLOW and _may_concern(rule, kind) and not _denies(ruleset, kind):
                message = f"lets an agent read {what}; deny kinds: [{kind.value}]"
                yield Finding(concern, message, rule.id, ruleset.file, rule.line)
                break


def _may_concern(rule: Rule, kind: RelationKind) -> bool:
    for check in rule.checks:
        if isinstance(check, KindCheck) and kind not in check.kinds:
            return False
        if kind is RelationKind.SENSITIVE and isinstance(check, TableCheck):
            return any(
                pattern.schema is None or pattern.schema.test("pg_catalog") for pattern in check.patterns
            )
    return True


def _denies(ruleset: Ruleset, kind: RelationKind) -> bool:
    """Whether a rule speaks of the kind; a condition on it is somebody's decision."""
    return any(
        rule.action is Action.DENY
        and all(
            isinstance(check, WhenCheck) or (isinstance(check, KindCheck) and kind in check.kinds)
            for check in rule.checks
        )
        for rule in ruleset.by_operation[Operation.SELECT]
    )


def _unreachable(rule: Rule, ruleset: Ruleset) -> Iterator[Finding]:
    """A rule that another one answers for wherever it matches."""
    for other in ruleset.rules:
        if other is rule or not covers(other, rule):
            continue
        if other.action > rule.action:
            message = f"never decides: rule {other.id!r} is stricter wherever this one matches"
            yield _on(Concern.UNREACHABLE, message, rule, ruleset)
        elif (
            rule.snapshot is SnapshotPolicy.NONE
            and rule.operations & WRITE_OPERATIONS
            and all(other.snapshot_for(operation) for operation in rule.operations & WRITE_OPERATIONS)
        ):
            message = (
                f"the waiver has no effect: rule {other.id!r} asks for a snapshot wherever this one matches"
            )
            yield _on(Concern.NO_EFFECT, message, rule, ruleset)


def covers(wider: Rule, rule: Rule) -> bool:
    """Whether `wider` surely matches every effect that `rule` matches: each of its checks is one that `rule` makes."""
    return rule.operations <= wider.operations and all(
        any(_implies(narrow, check) for narrow in rule.checks) or _is_universal(check)
        for check in wider.checks
    )


def _implies(narrow: Check, wide: Check) -> bool:
    if isinstance(narrow, TableCheck) and isinstance(wide, TableCheck):
        return all(any(_within(one, other) for other in wide.patterns) for one in narrow.patterns)
    if isinstance(narrow, KindCheck) and isinstance(wide, KindCheck):
        return narrow.kinds <= wide.kinds
    return type(narrow) is type(wide) and narrow.describe() == wide.describe()


def _within(narrow: QualifiedGlob, wide: QualifiedGlob) -> bool:
    """Whether every name of one pattern is one of the other: the same words, or a star against anything."""
    if narrow.source == wide.source:
        return True
    if narrow.schema is None or wide.schema is None:
        return False
    schemas = wide.schema.source in ("*", narrow.schema.source)
    return schemas and wide.name.source in ("*", narrow.name.source)


def _is_universal(check: Check) -> bool:
    """Whether a check excludes no relation at all."""
    return isinstance(check, KindCheck) and check.kinds == frozenset(RelationKind)


def _no_effect(rule: Rule, ruleset: Ruleset) -> Iterator[Finding]:
    """What sqlwall itself refuses cannot be allowed."""
    if rule.action is Action.DENY:
        return
    if Operation.TWO_PHASE in rule.operations:
        yield _on(Concern.NO_EFFECT, "sqlwall refuses two-phase commands under every ruleset", rule, ruleset)
    for check in rule.checks:
        if not isinstance(check, SettingCheck) or not rule.operations & {Operation.SET, Operation.RESET}:
            continue
        for pattern in check.patterns:
            if is_forbidden_setting(pattern.source):
                message = f"sqlwall refuses {pattern.source} under every ruleset"
                yield _on(Concern.NO_EFFECT, message, rule, ruleset)


def _dangerous(rule: Rule, ruleset: Ruleset) -> Iterator[Finding]:
    if rule.action is Action.DENY:
        return
    for operation, what in _DANGEROUS:
        if operation in rule.operations and not any(isinstance(check, SubjectCheck) for check in rule.checks):
            held = "after approval " if rule.action is Action.HOLD else ""
            message = f"{operation.value}: {held}this lets an agent {what}"
            yield _on(Concern.DANGEROUS, message, rule, ruleset)
    for check in rule.checks:
        if isinstance(check, FunctionCheck) and any(
            pattern.name.source.strip("*") == ""
            for pattern in (*check.functions, *check.operators, *check.types)
        ):
            yield _on(
                Concern.DANGEROUS, "allows functions by a star: every one created later too", rule, ruleset
            )
        if isinstance(check, SettingCheck) and rule.operations & {Operation.SET}:
            for pattern in check.patterns:
                if pattern.source.strip("*") in ("", "app."):
                    message = f"settings {pattern.source}: row security may trust a custom setting"
                    yield _on(Concern.DANGEROUS, message, rule, ruleset)


def _waiver(rule: Rule, ruleset: Ruleset) -> Iterator[Finding]:
    if rule.action is Action.DENY or rule.snapshot is not SnapshotPolicy.NONE:
        return
    if any(isinstance(check, KindCheck) and check.kinds == {RelationKind.SEQUENCE} for check in rule.checks):
        return  # nothing brings a sequence back: what is waived could not be had
    waived = sorted(operation.value for operation in rule.operations & WRITE_OPERATIONS)
    if waived:
        where = next(
            (check.describe() for check in rule.checks if isinstance(check, TableCheck)), "every table"
        )
        message = f"waives the snapshot for {', '.join(waived)} on {where}: these writes cannot be undone"
        yield _on(Concern.WAIVER, message, rule, ruleset)


def _unbounded(rule: Rule, ruleset: Ruleset) -> Iterator[Finding]:
    """Updates and deletes without a bound, where no rule refuses them."""
    writes = rule.operations & {Operation.UPDATE, Operation.DELETE}
    if rule.action is not Action.ALLOW or not writes:
        return
    if any(isinstance(check, BoundedCheck) and check.bounded for check in rule.checks):
        return
    refused = {
        operation
        for other in ruleset.rules
        if other.action is not Action.ALLOW
        and all(isinstance(check, BoundedCheck) and not check.bounded for check in other.checks)
        for operation in other.operations
    }
    if not writes <= refused:
        message = (
            "allows UPDATE or DELETE without WHERE; add bounded: true, or a rule that denies bounded: false"
        )
        yield _on(Concern.UNBOUNDED, message, rule, ruleset)


def _untested(rule: Rule, ruleset: Ruleset) -> Iterator[Finding]:
    if not any(case.expect.rule == rule.id for case in ruleset.cases):
        yield _on(Concern.UNTESTED, "no case expects this rule", rule, ruleset)


def _on(concern: Concern, message: str, rule: Rule, ruleset: Ruleset) -> Finding:
    return Finding(concern, message, rule.id, ruleset.file, rule.line)
