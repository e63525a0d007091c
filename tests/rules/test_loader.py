"""Ruleset files: what loads, what is refused and where, and that the schema for editors says the same."""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from sqlwall.errors import ConfigError
from sqlwall.rules.keys import CASE_KEYS, EXPECT_KEYS, LIMIT_KEYS, RULE_KEYS, RULESET_KEYS
from sqlwall.rules.loader import MAX_BYTES, load, schema
from sqlwall.rules.ruleset import Mode
from sqlwall.rules.verdict import Action, Limits, SnapshotPolicy
from sqlwall.sql.statement import Operation

GOOD = """\
version: 1
name: shop
mode: enforce
description: What the shop's agent may do.
rules:
  - id: reads
    operations: [select, copy_out]
    action: allow
    limits: {rows: 50000, bytes: 10MiB, time: 30s}
  - id: writes
    operations: [update, delete]
    tables: ["public.*", 'archive."Old.Orders"']
    kinds: [table]
    bounded: true
    agents: ["bot-*"]
    columns: [note]
    action: hold
    snapshot: required
    limits: {transaction_rows: 10}
    message: "{operation} on {target} needs a person [{rule}]"
    hint: Ask.
  - id: code
    operations: [function]
    functions: [public.fmt, "similarity"]
    operators: ["public.%", "<->"]
    types: [public.mood]
    extensions: [pg_trgm]
    action: allow
  - id: settings
    operations: [set, reset]
    settings: [TimeZone, "geqo*"]
    when: statement.value != ""
    action: allow
  - id: locks
    operations: [lock]
    subjects: ["for *"]
    action: deny
cases:
  - sql: SELECT 1
    expect: {action: allow, rule: reads, snapshot: none}
    agent: bot-1
    user: app
    database: shop
    application_name: test
    search_path: [public]
    relations: {public.orders: table}
    extensions: {similarity: pg_trgm}
    inert: [mood]
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, "r.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_a_file_with_every_key_loads() -> None:
    ruleset = load(GOOD, "r.yaml")
    assert (ruleset.name, ruleset.version, ruleset.mode) == ("shop", 1, Mode.ENFORCE)
    reads, writes, *_ = ruleset.rules
    assert reads.limits == Limits(rows=50000, bytes=10 * 2**20, time=30)
    assert reads.operations == {Operation.SELECT, Operation.COPY_OUT}
    assert (writes.action, writes.snapshot, writes.line) == (Action.HOLD, SnapshotPolicy.REQUIRED, 10)
    assert len(writes.checks) == 5
    assert ruleset.cases[0].expect.rule == "reads"
    assert ruleset.cases[0].inert == {"mood"}


def test_the_digest_is_that_of_the_text() -> None:
    assert load(GOOD, "r.yaml").digest == hashlib.sha256(GOOD.encode()).hexdigest()
    assert load(GOOD, "r.yaml").digest != load(GOOD + "\n", "r.yaml").digest


def test_all_problems_are_told_at_once_with_line_column_and_the_nearest_word() -> None:
    text = GOOD.replace("mode: enforce", "mode: enforced").replace("    tables:", "    tabels:")
    text = text.replace("[select, copy_out]", "[selct]").replace("rule: reads", "rule: raeds")
    assert problems(text) == [
        "r.yaml:3:7: 'enforced' is not a mode (observe, warn, enforce); did you mean 'enforce'?",
        "r.yaml:7:18: 'selct' is not an operation (34 words); did you mean 'select'?",
        "r.yaml:12:5: unknown key 'tabels' in a rule; did you mean 'tables'?",
        "r.yaml:40:35: no rule has the id 'raeds'; did you mean 'reads'?",
    ]


BASE = "version: 1\nname: t\nmode: enforce\nrules:\n  - {id: a, operations: [select], action: allow}\n"


def with_rule(rule: str) -> str:
    return BASE + f"  - {rule}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# nothing", "the file is empty"),
        ("just text", "expected a mapping, found text"),
        ("[1, 2]", "expected a mapping, found a list"),
        ("a: [", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: &x 1", "anchors are not allowed (&x)"),
        ("a: &x 1\nb: *x", "aliases are not allowed (*x)"),
        ("a: !!python/object:os.system x", "tags are not allowed"),
        ("%YAML 1.1\n---\na: 1", "directives are not allowed"),
        ("[" * 20000, "nested too deeply"),
        ("x" * (MAX_BYTES + 1), "larger than"),
        (BASE.replace("version: 1", "version: 2"), "version 2 is not known"),
        (BASE.replace("version: 1", "version: one"), "expected a whole number"),
        (BASE.replace("version: 1\n", ""), "needs the key 'version'"),
        (BASE + "mode: observe\n", "the key 'mode' already stands in line 3"),
        (BASE.replace("name: t", "name: T t"), "expected a name of lower-case letters"),
        (BASE.replace("name: t", "name: 7"), "found a number"),
        (BASE + "cases: []\n", "the list is empty"),
        (BASE + "<<: {mode: observe}\n", "unknown key '<<'"),
        (with_rule("{id: a, operations: [select], action: deny}"), "the id 'a' already stands in line 5"),
        (with_rule("{id: builtin-x, operations: [select], action: deny}"), "one of sqlwall's own"),
        (with_rule("{id: default-deny, operations: [select], action: allow}"), "one of sqlwall's own"),
        (with_rule("{id: No_Caps, operations: [select], action: deny}"), "expected an id"),
        (with_rule("{id: b, operations: [], action: deny}"), "the list is empty"),
        (with_rule("{id: b, operations: select, action: deny}"), "expected a list"),
        (with_rule("{id: b, operations: [unknown], action: allow}"), "'unknown' is not an operation"),
        (with_rule("{id: b, operations: [select]}"), "needs the key 'action'"),
        (with_rule("{id: b, operations: [select], action: allw}"), "did you mean 'allow'?"),
        (with_rule("{id: b, operations: [select], action: allow, tables: [orders]}"), "write public.orders"),
        (with_rule("{id: b, operations: [select], action: allow, tables: []}"), "the list is empty"),
        (with_rule("{id: b, operations: [select], action: allow, bounded: no}"), "expected true or false"),
        (with_rule("{id: b, operations: [select], action: allow, limits: {row: 1}}"), "did you mean 'rows'?"),
        (with_rule("{id: b, operations: [select], action: allow, limits: {rows: -1}}"), "whole number"),
        (with_rule("{id: b, operations: [select], action: allow, limits: {time: 30}}"), "a time such as 30s"),
        (with_rule("{id: b, operations: [select], action: allow, limits: {time: 0s}}"), "a time such as 30s"),
        (with_rule("{id: b, operations: [select], action: allow, limits: {bytes: 1MB}}"), "did you mean"),
        (with_rule("{id: b, operations: [select], action: deny, limits: {rows: 1}}"), "means nothing"),
        (with_rule("{id: b, operations: [delete], action: deny, snapshot: none}"), "means nothing"),
        (with_rule("{id: b, operations: [select], action: allow, snapshot: none}"), "can have a snapshot"),
        (with_rule("{id: b, operations: [function], action: allow}"), "names them: add functions"),
        (with_rule("{id: b, operations: [call], action: hold}"), "names them: add functions"),
        (with_rule("{id: b, operations: [set], action: allow}"), "names them: add settings"),
        (
            with_rule("{id: b, operations: [select], action: deny, when: 'agent.nam == 1'}"),
            "did you mean 'name'?",
        ),
        (with_rule("{id: b, operations: [select], action: deny, message: '{tabel}'}"), "unknown placeholder"),
        (
            with_rule("{id: b, operations: [select], action: deny, message: '{target.x}'}"),
            "unknown placeholder",
        ),
        (
            with_rule("{id: b, operations: [select], action: deny, message: '{target!r}'}"),
            "without conversion",
        ),
        (with_rule("{id: b, operations: [select], action: deny, message: '{target'}"), "expected '}'"),
    ],
)
def test_what_is_not_a_ruleset_is_refused_in_words(text: str, message: str) -> None:
    assert any(message in problem for problem in problems(text)), problems(text)


def test_the_words_of_a_yaml_1_1_file_are_text_here() -> None:
    ruleset = load(BASE.replace("name: t", "name: on"), "r.yaml")
    assert ruleset.name == "on"


def test_a_bad_rule_does_not_hide_the_problems_of_the_next() -> None:
    text = BASE + "  - {id: b}\n  - {id: c}\n"
    assert len(problems(text)) == 4


def validate(value: Any, shape: dict[str, Any]) -> bool:
    """The part of JSON Schema that `schema()` uses."""
    if "anyOf" in shape:
        return any(validate(value, one) for one in shape["anyOf"])
    if "enum" in shape:
        return value in shape["enum"]
    match shape.get("type"):
        case "object":
            if not isinstance(value, dict) or any(key not in value for key in shape.get("required", ())):
                return False
            known, rest = shape.get("properties", {}), shape["additionalProperties"]
            return all(
                validate(item, known[key]) if key in known else bool(rest) and validate(item, rest)
                for key, item in value.items()
            )
        case "array":
            return (
                isinstance(value, list)
                and len(value) >= shape.get("minItems", 0)
                and all(validate(item, shape["items"]) for item in value)
            )
        case "string":
            return (
                isinstance(value, str)
                and len(value) >= shape.get("minLength", 0)
                and re.search(shape.get("pattern", ""), value) is not None
            )
        case "integer":
            return (
                isinstance(value, int)
                and not isinstance(value, bool)
                and value >= shape.get("minimum", value)
            )
        case "boolean":
            return isinstance(value, bool)
    raise AssertionError(shape)


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(io.StringIO(text))


def test_the_schema_names_exactly_the_keys_of_the_loader() -> None:
    root = schema()
    rule = root["properties"]["rules"]["items"]
    case = root["properties"]["cases"]["items"]
    assert set(root["properties"]) == set(RULESET_KEYS)
    assert set(rule["properties"]) == set(RULE_KEYS)
    assert set(rule["properties"]["limits"]["properties"]) == set(LIMIT_KEYS)
    assert set(case["properties"]) == set(CASE_KEYS)
    assert set(case["properties"]["expect"]["properties"]) == set(EXPECT_KEYS)
    assert root["required"] == ["version", "name", "mode", "rules"]
    assert not root["additionalProperties"]
    assert "unknown" not in rule["properties"]["operations"]["items"]["enum"]


def test_the_schema_accepts_what_the_loader_accepts() -> None:
    assert validate(parsed(GOOD), schema())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode: enforce", "mode: enforced"),
        ("    tables:", "    tabels:"),
        ("[select, copy_out]", "[selct]"),
        ("[select, copy_out]", "[]"),
        ("version: 1", "version: 0"),
        ("name: shop", "name: Shop"),
        ("id: reads", "id: Reads"),
        ("rows: 50000", "rows: many"),
        ("bytes: 10MiB", "bytes: 10MB"),
        ("time: 30s", "time: 30"),
        ("bounded: true", "bounded: maybe"),
        ("snapshot: required", "snapshot: maybe"),
        ("expect: {action: allow,", "expect: {"),
        ("{public.orders: table}", "{public.orders: tabel}"),
        ("mode: enforce\n", ""),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(old: str, new: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    assert problems(text)
    assert not validate(parsed(text), schema())
