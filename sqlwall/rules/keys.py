"""The tables of a ruleset file: every key, its shape and its meaning. `loader` reads by them; `schema` shows them."""

from __future__ import annotations

import string
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node

from sqlwall.rules.context import RelationKind
from sqlwall.rules.match import (
    SETTING_OPERATIONS,
    AgentCheck,
    BoundedCheck,
    Check,
    ColumnCheck,
    FunctionCheck,
    KindCheck,
    SettingCheck,
    SubjectCheck,
    TableCheck,
    compile_function,
    compile_glob,
    compile_operator,
    compile_table,
)
from sqlwall.rules.ruleset import Case, Expectation, Mode, Rule
from sqlwall.rules.shapes import (
    Bad,
    Compiled,
    Fields,
    Flag,
    Key,
    ListOf,
    Measure,
    Report,
    Sql,
    TableOf,
    Text,
    Whole,
    Word,
    nearest,
)
from sqlwall.rules.verdict import NO_LIMITS, Action, Limits, SnapshotPolicy
from sqlwall.rules.when import ConditionError, WhenCheck, compile_condition
from sqlwall.sql.statement import WRITE_OPERATIONS, Operation

#: The words a message may contain in braces.
PLACEHOLDERS = ("operation", "target", "rule")

ACTIONS: Mapping[str, Action] = {"allow": Action.ALLOW, "hold": Action.HOLD, "deny": Action.DENY}
SNAPSHOTS: Mapping[str, SnapshotPolicy] = {"required": SnapshotPolicy.REQUIRED, "none": SnapshotPolicy.NONE}
MODES: Mapping[str, Mode] = {mode.value: mode for mode in Mode}
KINDS: Mapping[str, RelationKind] = {kind.value: kind for kind in RelationKind}
#: What could not be established is no word of a ruleset: no rule may speak of it.
OPERATIONS: Mapping[str, Operation] = {
    operation.value: operation for operation in Operation if operation is not Operation.UNKNOWN
}
SIZE_UNITS: Mapping[str, float] = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIME_UNITS: Mapping[str, float] = {"ms": 0.001, "s": 1, "min": 60}
SHARE_UNITS: Mapping[str, float] = {"%": 0.01}


def compile_template(text: str) -> str:
    """A message: only the known placeholders, without conversions or attributes."""
    for _, name, specification, conversion in string.Formatter().parse(text):
        if name is None:
            continue
        if name not in PLACEHOLDERS:
            raise ValueError(f"unknown placeholder {{{name}}} in the message{nearest(name, PLACEHOLDERS)}")
        if specification or conversion:
            raise ValueError(f"write {{{name}}} without conversion or format")
    return text


def compile_when(text: str) -> Any:
    """A CEL expression; the problem gets the nearest valid word."""
    try:
        return compile_condition(text)
    except ConditionError as error:
        raise ValueError(f"when: {error}{nearest(error.word, error.choices)}") from error


def compile_setting(text: str) -> Any:
    """A setting's name or glob, folded as PostgreSQL folds it."""
    return compile_glob(text.lower())


def build_limits(values: Mapping[str, Any], node: Node, report: Report) -> Limits:
    """`limits:`; sizes come as numbers of bytes, times as seconds."""
    size, scan = values.get("bytes"), values.get("scan")
    return Limits(
        rows=values.get("rows"),
        bytes=None if size is None else int(size),
        time=values.get("time"),
        transaction_rows=values.get("transaction_rows"),
        share=values.get("share"),
        scan=None if scan is None else int(scan),
    )


def build_rule(values: Mapping[str, Any], node: Node, report: Report) -> Rule:
    """One rule with its checks, after the questions that no single key can answer."""
    rule = Rule(
        id=values["id"],
        action=values["action"],
        operations=frozenset(values["operations"]),
        checks=_checks(values),
        snapshot=values.get("snapshot"),
        notice=values.get("notice", False),
        limits=values.get("limits", NO_LIMITS),
        message=values.get("message", ""),
        hint=values.get("hint", ""),
        line=node.start_mark.line + 1,
    )
    complaints = list(_contradictions(rule, values))
    for key, message in complaints:
        report.add(_place(node, key), f"rule {rule.id!r}: {message}")
    if complaints:
        raise Bad
    return rule


def _checks(values: Mapping[str, Any]) -> tuple[Check, ...]:
    """Cheapest and most selective first; `when` last, for it costs more than the rest together."""
    action: Action = values["action"]
    checks: list[Check] = []
    if "bounded" in values:
        checks.append(BoundedCheck(values["bounded"]))
    if "agents" in values:
        checks.append(AgentCheck(values["agents"]))
    if "kinds" in values:
        checks.append(KindCheck(frozenset(values["kinds"]), action))
    if "tables" in values:
        checks.append(TableCheck(values["tables"], action))
    if any(key in values for key in CODE_KEYS):
        checks.append(FunctionCheck(**{key: values[key] for key in CODE_KEYS if key in values}))
    if "settings" in values:
        checks.append(SettingCheck(values["settings"]))
    if "subjects" in values:
        checks.append(SubjectCheck(values["subjects"]))
    if "columns" in values:
        checks.append(ColumnCheck(values["columns"], action))
    if "when" in values:
        checks.append(WhenCheck(values["when"], action))
    return tuple(checks)


#: Keys that name code which a statement would run.
CODE_KEYS = ("functions", "operators", "types", "extensions")

#: Operations that a rule may not allow wholesale: it must say which functions, which settings.
_CODE_OPERATIONS = frozenset({Operation.FUNCTION, Operation.CALL})
_SETTING_CHANGES = SETTING_OPERATIONS - {Operation.SHOW}


def _contradictions(rule: Rule, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if rule.action is Action.DENY:
        found += [
            (key, f"{key!r} means nothing on a rule that denies")
            for key in ("limits", "snapshot")
            if key in values
        ]
        return found
    if rule.operations & _CODE_OPERATIONS and not any(key in values for key in CODE_KEYS):
        found.append(
            ("operations", "a rule that lets functions run names them: add functions, types or extensions")
        )
    if rule.operations & _SETTING_CHANGES and "settings" not in values:
        found.append(("operations", "a rule that lets settings change names them: add settings"))
    if "snapshot" in values and not rule.operations & (WRITE_OPERATIONS | _CODE_OPERATIONS | DEFINITIONS):
        found.append(("snapshot", "nothing that this rule speaks of can have a snapshot"))
    return found


#: Changes of definitions, which may ask for a snapshot too.
DEFINITIONS = frozenset({Operation.DROP, Operation.ALTER, Operation.CREATE, Operation.DO})


def _place(node: Node, key: str) -> Node:
    """Where a key stands in its mapping; the mapping itself where it is missing."""
    if isinstance(node, MappingNode):
        for name, _ in node.value:
            if name.value == key:
                return name  # type: ignore[no-any-return]
    return node


def build_expectation(values: Mapping[str, Any], node: Node, report: Report) -> Expectation:
    """`expect:` of a case."""
    return Expectation(values["action"], values.get("rule"), values.get("snapshot"))


def build_case(values: Mapping[str, Any], node: Node, report: Report) -> Case:
    """One case."""
    fields: dict[str, Any] = dict(values)
    for key in ("relations", "extensions"):
        if key in fields:
            fields[key] = MappingProxyType(dict(fields[key]))
    fields["inert"] = frozenset(fields.get("inert", ()))
    return Case(**fields, line=node.start_mark.line + 1)


NAME = Text("a name")
GLOBS = ListOf(Compiled(compile_glob, "a glob with * and ?"))

LIMIT_KEYS: Mapping[str, Key] = {
    "rows": Key(Whole(), "Rows that one statement may return or write."),
    "bytes": Key(Measure(SIZE_UNITS, "a size such as 10MiB"), "Bytes of one result: B, KiB, MiB or GiB."),
    "time": Key(Measure(TIME_UNITS, "a time such as 30s"), "How long one statement may run: ms, s or min."),
    "transaction_rows": Key(Whole(), "Rows that one transaction may write."),
    "share": Key(
        Measure(SHARE_UNITS, "a percentage such as 10%"), "Share of a table's rows that may be changed."
    ),
    "scan": Key(
        Measure(SIZE_UNITS, "a size such as 1GiB"),
        "How large a table may be that is looked at whole, where counts cannot prove that a snapshot is complete.",
    ),
}

RULE_KEYS: Mapping[str, Key] = {
    "id": Key(
        Text("an id of lower-case letters, digits and dashes", r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"),
        "Names the rule in refusals, metrics and the audit; says what it stops.",
        required=True,
    ),
    "operations": Key(ListOf(Word(OPERATIONS, "an operation")), "What the effect does.", required=True),
    "action": Key(Word(ACTIONS, "an action"), "What happens to it. The strictest rule wins.", required=True),
    "tables": Key(ListOf(Compiled(compile_table, "schema.name with * and ?")), "Relations, as schema.name."),
    "kinds": Key(ListOf(Word(KINDS, "a kind of relation")), "What the relation is."),
    "functions": Key(
        ListOf(Compiled(compile_function, "schema.name with * and ?")), "Functions, as schema.name or name."
    ),
    "operators": Key(
        ListOf(Compiled(compile_operator, "schema.operator or operator")),
        "Operators that are not PostgreSQL's own.",
    ),
    "types": Key(
        ListOf(Compiled(compile_function, "schema.name with * and ?")), "Types whose input runs code."
    ),
    "extensions": Key(GLOBS, "Extensions whose functions, operators and types the rule speaks of."),
    "settings": Key(ListOf(Compiled(compile_setting, "a setting or glob")), "Settings, whatever their case."),
    "columns": Key(GLOBS, "Columns written; a rule that allows must name them all."),
    "subjects": Key(GLOBS, "What else it is about: an object kind, a lock mode, a channel."),
    "bounded": Key(Flag(), "false: no WHERE, or one that is always true."),
    "agents": Key(GLOBS, "Agents by name."),
    "when": Key(Compiled(compile_when, "a CEL expression"), "A condition over statement, agent and session."),
    "snapshot": Key(
        Word(SNAPSHOTS, "a snapshot policy"), "required, the default for writes, or none: a waiver."
    ),
    "notice": Key(Flag(), "true: after such a write the agent gets a NOTICE that names its snapshot."),
    "limits": Key(Fields(LIMIT_KEYS, "limits", build_limits), "Bounds on what is allowed."),
    "message": Key(
        Compiled(compile_template, "text with {operation}, {target} and {rule}"),
        "Why, in one line, for the agent.",
    ),
    "hint": Key(Text("a hint"), "What the agent should do instead."),
}

EXPECT_KEYS: Mapping[str, Key] = {
    "action": Key(Word(ACTIONS, "an action"), "The verdict.", required=True),
    "rule": Key(Text("a rule's id"), "The rule that decides."),
    "snapshot": Key(Word(SNAPSHOTS, "a snapshot policy"), "Whether a snapshot is needed."),
}

CASE_KEYS: Mapping[str, Key] = {
    "sql": Key(Sql(), "The text, as an agent would send it.", required=True),
    "expect": Key(Fields(EXPECT_KEYS, "expect", build_expectation), "What it must come to.", required=True),
    "agent": Key(NAME, "Who sends it."),
    "user": Key(NAME, "The database user."),
    "database": Key(NAME, "The database."),
    "application_name": Key(NAME, "The session's application_name."),
    "search_path": Key(ListOf(NAME), "The session's search_path."),
    "relations": Key(TableOf(Word(KINDS, "a kind of relation")), "Kinds of relations, by schema.name."),
    "extensions": Key(TableOf(NAME), "Which extension a function, operator or type comes from."),
    "inert": Key(ListOf(NAME), "Types that run no code, such as enums."),
}

RULESET_KEYS: Mapping[str, Key] = {
    "version": Key(Whole(1), "The version of this format: 1.", required=True),
    "name": Key(
        Text("a name of lower-case letters, digits and dashes", r"[a-z][a-z0-9-]*"), "", required=True
    ),
    "mode": Key(Word(MODES, "a mode"), "observe and warn protect nothing; enforce does.", required=True),
    "description": Key(Text("a description"), "For people."),
    "rules": Key(
        ListOf(Fields(RULE_KEYS, "a rule", build_rule)), "The rules; order does not matter.", required=True
    ),
    "cases": Key(ListOf(Fields(CASE_KEYS, "a case", build_case)), "Texts and the verdicts they must get."),
}
