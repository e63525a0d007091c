"""Cases that stand beside the rules, and those of every shipped ruleset."""

from __future__ import annotations

import pytest

from sqlwall.cli.rulesets import find_ruleset
from sqlwall.rules.cases import context_of, judge_facts, run_cases
from sqlwall.rules.context import RelationKind
from sqlwall.rules.loader import load
from sqlwall.rules.ruleset import Case, Expectation
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import Relation
from tests.rules.facts import HEAD, context, delete, rules, select

SHIPPED = ("agent-safe", "observe", "read-only")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_case_of_a_shipped_ruleset_passes(name: str) -> None:
    results = run_cases(load(*find_ruleset(name)))
    assert results
    failed = [
        f"line {result.case.line}: {result.case.sql}: {result.failures}"
        for result in results
        if result.failures
    ]
    assert failed == []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_rule_of_a_shipped_ruleset_is_shown_by_a_case(name: str) -> None:
    ruleset = load(*find_ruleset(name))
    assert {rule.id for rule in ruleset.rules} <= {case.expect.rule for case in ruleset.cases}


def test_a_case_that_fails_says_what_it_expected() -> None:
    text = HEAD + "  - {id: r, operations: [select], action: allow}\n"
    text += "cases:\n  - {sql: SELECT 1, expect: {action: deny, rule: default-deny, snapshot: required}}\n"
    [result] = run_cases(load(text, "t"))
    assert not result.passed
    assert result.failures == (
        "expected deny, got allow by r",
        "expected the rule default-deny, got r",
        "expected snapshot required, got none",
    )


def test_a_text_passes_or_is_refused_as_one() -> None:
    ruleset = rules("{id: r, operations: [select], action: allow}")
    assert judge_facts((select(), delete()), context(), ruleset).action is Action.DENY
    assert judge_facts((select(), select()), context(), ruleset).action is Action.ALLOW
    assert judge_facts((), context(), ruleset).action is Action.ALLOW


def test_a_case_describes_who_asks_and_the_database() -> None:
    case = Case(
        "SELECT 1",
        Expectation(Action.ALLOW),
        agent="bot",
        search_path=("shop",),
        relations={"shop.v": RelationKind.VIEW},
    )
    found = context_of(case)
    resolved = found.catalog.resolve(Relation(None, "v"))
    assert (found.agent, found.search_path) == ("bot", ("shop",))
    assert resolved is not None
    assert resolved.kind is RelationKind.VIEW
