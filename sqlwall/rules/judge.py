"""The decision: facts about a statement, who asks, and a ruleset; out comes one verdict. Deny overrides; default deny.

Every effect must be covered by a rule. The most restrictive answer over all effects and all rules wins, whatever their
order in the file. Nothing here looks at text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from sqlwall.rules.builtin import (
    DEFAULT_DENY,
    RESERVED_NAME,
    UNPARSABLE,
    is_reserved,
    refuse_effect,
    refuse_statement,
)
from sqlwall.rules.context import Context, RelationKind, kind_of_schema, ordinary_schema
from sqlwall.rules.match import Act
from sqlwall.rules.ruleset import Mode, Rule, Ruleset
from sqlwall.rules.verdict import NO_LIMITS, Action, Limits, SnapshotPolicy, Verdict
from sqlwall.sql.functions import is_builtin_operator, is_builtin_type, is_pure, is_sensitive_catalog
from sqlwall.sql.statement import Bounded, Effect, FunctionName, Operation, Relation, Statement, Unparsable

_Number = TypeVar("_Number", int, float)


def judge(statement: Statement, context: Context, ruleset: Ruleset) -> Verdict:
    """The verdict on one statement, as the ruleset's mode has it."""
    verdict = _enforced(statement, context, ruleset)
    return verdict if ruleset.mode is Mode.ENFORCE else _relaxed(verdict, ruleset.mode)


def judge_unparsable(unparsable: Unparsable, ruleset: Ruleset) -> Verdict:
    """The verdict on a text that has no statements: it may mean anything to the server, so it is refused."""
    verdict = Verdict(Action.DENY, UNPARSABLE, unparsable.message, operation="PARSE", judged=Action.DENY)
    return verdict if ruleset.mode is Mode.ENFORCE else _relaxed(verdict, ruleset.mode)


def judge_witness(
    operation: Operation,
    schema: str,
    name: str,
    context: Context,
    ruleset: Ruleset,
    *,
    columns: tuple[str, ...] = (),
) -> Verdict:
    """The gate's question: may this agent do what the server says was done, and is it waived?

    `schema` and `name` are the server's own; nothing is looked up by search_path. ALLOW with `SnapshotPolicy.NONE` is a
    waiver. A bound is a property of a text, so that a measured write counts as bounded. `columns` are those that the
    judged texts named for this relation; left empty, as for a write by a trigger, rules about columns fail closed.
    The server cannot tell a MERGE or COPY from the INSERT, UPDATE or DELETE that it comes to: where no rule speaks of
    the measured operation, one that allows the statement will do.
    """
    subject = "table" if operation is Operation.DROP else None  # nothing else that is dropped gets so far
    effect = Effect(operation, Relation(schema, name), subject, columns=columns)
    verdict = _witnessed(effect, schema, name, context, ruleset)
    if verdict.rule == DEFAULT_DENY:
        for cause in _CAUSES.get(operation, ()):
            other = _witnessed(replace(effect, operation=cause), schema, name, context, ruleset)
            if other.action is Action.ALLOW:
                verdict = replace(other, operation=_shown(operation.value))
                break
    return verdict if ruleset.mode is Mode.ENFORCE else _relaxed(verdict, ruleset.mode)


#: Statements that come to an operation without being called by its name.
_CAUSES: Mapping[Operation, tuple[Operation, ...]] = MappingProxyType(
    {
        Operation.INSERT: (Operation.COPY_IN, Operation.MERGE),
        Operation.UPDATE: (Operation.MERGE,),
        Operation.DELETE: (Operation.MERGE,),
    }
)


def _witnessed(effect: Effect, schema: str, name: str, context: Context, ruleset: Ruleset) -> Verdict:
    known = context.catalog.resolve(Relation(schema, name))
    act = _act_on(effect, schema, name, known.kind if known is not None else RelationKind.UNKNOWN)
    statement = Statement(_shown(effect.operation.value), (effect,), 0, 0)
    return _judge_act(act, statement, context, ruleset)


def strictest(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict for a text of several statements, which is refused or allowed whole. There is at least one."""
    found = list(verdicts)
    assert found
    if len(found) == 1:
        return found[0]
    worst = max(found, key=lambda verdict: (verdict.action, verdict.judged))
    return replace(
        worst,
        snapshot=max(verdict.snapshot for verdict in found),
        limits=tightest(verdict.limits for verdict in found),
    )


def _enforced(statement: Statement, context: Context, ruleset: Ruleset) -> Verdict:
    refusal = refuse_statement(statement, permits_writes=ruleset.permits_writes)
    if refusal is not None:
        return _builtin(refusal, statement.tag, "")
    decided: Verdict | None = None
    snapshot = SnapshotPolicy.NONE
    limits = last = NO_LIMITS
    for act in acts(statement, context):
        verdict = _judge_act(act, statement, context, ruleset)
        if verdict.action is Action.DENY:
            return verdict
        snapshot = max(snapshot, verdict.snapshot)
        if verdict.limits is not NO_LIMITS and verdict.limits is not last:
            limits, last = tightest((limits, verdict.limits)), verdict.limits
        if decided is None or _weight(verdict) > _weight(decided):
            decided = verdict
    if decided is not None:
        if decided.snapshot is snapshot and decided.limits is limits:
            return decided
        return replace(decided, snapshot=snapshot, limits=limits)
    return _builtin((DEFAULT_DENY, "no rule allows it"), statement.tag, "")


def _weight(verdict: Verdict) -> tuple[Action, SnapshotPolicy, bool]:
    """Which of several effects names the verdict: a write over what it reads, anything over a plain read."""
    return verdict.action, verdict.snapshot, verdict.operation != "SELECT"


def _judge_act(act: Act, statement: Statement, context: Context, ruleset: Ruleset) -> Verdict:
    """What the rules say about one effect: the strictest rule that matches, else the default."""
    refusal = refuse_act(act)
    if refusal is not None:
        return _builtin(refusal, act.operation.value, act.target)
    chosen: Rule | None = None
    covering: list[Rule] = []
    for rule in ruleset.by_operation[act.operation]:
        if rule.matches(act, statement, context):
            if chosen is None or rule.action > chosen.action:
                chosen = rule
            covering.append(rule)
    if chosen is None:
        return _builtin((DEFAULT_DENY, "no rule allows it"), act.operation.value, act.target)
    return Verdict(
        action=chosen.action,
        rule=chosen.id,
        reason=reason(chosen, act) if chosen.action is not Action.ALLOW else "",
        hint=chosen.hint,
        operation=_shown(act.operation.value),
        target=act.target,
        snapshot=_snapshot(chosen, covering, act.operation),
        limits=chosen.limits if len(covering) == 1 else tightest(rule.limits for rule in covering),
        notice=any(rule.notice for rule in covering),
        retryable=chosen.action is Action.HOLD,
        judged=chosen.action,
    )


def _snapshot(chosen: Rule, covering: list[Rule], operation: Operation) -> SnapshotPolicy:
    """The strictest of the rules that let the effect pass: one waiver does not lift what another rule asks for."""
    if chosen.action is Action.DENY:
        return SnapshotPolicy.NONE
    return max(rule.snapshot_for(operation) for rule in covering)


def refuse_act(act: Act) -> tuple[str, str] | None:
    """The built-in refusal of an effect under its resolved name, if there is one."""
    if is_reserved(act.name) or is_reserved(act.schema) or is_reserved(act.effect.subject):
        return RESERVED_NAME, "the name is one of sqlwall's own"
    return refuse_effect(act.effect)


def reason(rule: Rule, act: Act) -> str:
    """The rest of the first line: the rule's own words, or the fact that decided."""
    if rule.message:
        return rule.message.format(operation=_shown(act.operation.value), target=act.target, rule=rule.id)
    if act.effect.bounded is Bounded.NO_WHERE:
        return "no WHERE clause"
    if act.effect.bounded is Bounded.ALWAYS_TRUE:
        return "the WHERE clause is always true"
    if rule.action is Action.HOLD:
        return "a person must approve it"
    return f"rule {rule.id} refuses it"


def acts(statement: Statement, context: Context) -> Iterator[Act]:
    """Every effect under the server's names: the statement's own, and one for each call not known to be pure."""
    for effect in statement.effects:
        yield act_of(effect, context)
    for function in statement.functions:
        if function.schema not in {None, "pg_catalog"} or not is_known(function, context.server_major):
            yield from calls(function, context)
        elif (
            function.schema is None
            and context.catalog.overloaded(function.name, function.kind)
            and context.catalog.reachable(function, statement)
        ):
            yield from calls(function, context, spare_builtin=True)
    for name in statement.columns:
        if context.catalog.column_is_function(name):
            call = FunctionName(None, name, "function", 1)
            yield from calls(call, context, spare_builtin=is_known(call, context.server_major))


def is_known(function: FunctionName, server_major: int) -> bool:
    """Whether PostgreSQL's own function, operator or type of that name only computes."""
    match function.kind:
        case "function":
            return is_pure(function.name, function.arguments, server_major)
        case "operator":
            return is_builtin_operator(function.name)
        case "type":
            return is_builtin_type(function.name, server_major)
        case _:
            return False


def calls(function: FunctionName, context: Context, *, spare_builtin: bool = False) -> Iterator[Act]:
    """One FUNCTION effect per home that the call could reach: each must be allowed."""
    effect = Effect(Operation.FUNCTION, subject=function.name)
    reached = False
    for home in context.catalog.homes(function):
        reached = True
        if home.is_inert or (spare_builtin and home.schema == "pg_catalog"):
            continue
        yield Act(
            Operation.FUNCTION,
            effect,
            schema=home.schema,
            name=function.name,
            function_kind=function.kind,
            extension=home.extension,
        )
    if not reached:
        yield Act(
            Operation.FUNCTION,
            effect,
            schema=function.schema or "",
            name=function.name,
            function_kind=function.kind,
        )


def act_of(effect: Effect, context: Context) -> Act:
    """The effect under the name that the server would use now.

    A relation that the server does not know is judged as what it would become, so that the server can say so itself.
    """
    relation = effect.relation
    if relation is None:
        return Act(effect.operation, effect)
    resolved = context.catalog.resolve(relation)
    if resolved is not None:
        return _act_on(effect, resolved.schema, resolved.name, resolved.kind)
    schema = relation.schema or ordinary_schema(context.search_path)
    return _act_on(effect, schema, relation.name, RelationKind.UNKNOWN)


def _act_on(effect: Effect, schema: str, name: str, kind: RelationKind) -> Act:
    """An effect on a relation; PostgreSQL's own schemas decide the kind, whatever the catalog says."""
    by_schema = kind_of_schema(schema)
    if by_schema is not RelationKind.UNKNOWN:
        kind = by_schema
    if kind is RelationKind.CATALOG and is_sensitive_catalog(name):
        kind = RelationKind.SENSITIVE
    return Act(effect.operation, effect, schema, name, kind)


def _builtin(refusal: tuple[str, str], operation: str, target: str) -> Verdict:
    rule, why = refusal
    return Verdict(Action.DENY, rule, why, operation=_shown(operation), target=target, judged=Action.DENY)


def _relaxed(verdict: Verdict, mode: Mode) -> Verdict:
    """What observe and warn make of it: everything passes, without limits or snapshots; the record has the rest."""
    warning = ""
    if mode is Mode.WARN and verdict.action is not Action.ALLOW:
        target = f" on {verdict.target}" if verdict.target else ""
        warning = f"sqlwall would refuse {verdict.operation}{target} [{verdict.rule}]: {verdict.reason}"
    return replace(
        verdict,
        action=Action.ALLOW,
        snapshot=SnapshotPolicy.NONE,
        limits=NO_LIMITS,
        retryable=False,
        warning=warning,
    )


def tightest(several: Iterable[Limits]) -> Limits:
    """The smallest of each bound; None bounds nothing."""
    found: list[Limits] = []
    for limits in several:
        if limits is not NO_LIMITS and not (found and limits is found[-1]):
            found.append(limits)
    if len(found) < 2:
        return found[0] if found else NO_LIMITS
    return Limits(
        rows=_least(limits.rows for limits in found),
        bytes=_least(limits.bytes for limits in found),
        time=_least(limits.time for limits in found),
        transaction_rows=_least(limits.transaction_rows for limits in found),
        share=_least(limits.share for limits in found),
        scan=_least(limits.scan for limits in found),
    )


def _least(values: Iterable[_Number | None]) -> _Number | None:
    return min((value for value in values if value is not None), default=None)


def _shown(operation: str) -> str:
    """An operation as a person writes it: COPY PROGRAM, not copy_program."""
    return operation.upper().replace("_", " ")
