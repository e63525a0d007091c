"""CEL conditions: compiled once, refused when they name what does not exist, never opening anything by failing."""

from __future__ import annotations

import pytest

from sqlwall.rules.context import RelationKind
from sqlwall.rules.match import Act
from sqlwall.rules.verdict import Action
from sqlwall.rules.when import (
    MAX_DEPTH,
    MAX_LENGTH,
    ConditionError,
    EvaluationError,
    WhenCheck,
    compile_condition,
)
from sqlwall.sql.statement import FunctionName, Operation
from tests.rules.facts import context, effect, select

STATEMENT = select(functions=(FunctionName(None, "lower"),), tag="UPDATE")
CONTEXT = context(application_name="report")
ACT = Act(
    Operation.UPDATE, effect(Operation.UPDATE, columns=("note",)), "public", "orders", RelationKind.TABLE
)


@pytest.mark.parametrize(
    "source",
    [
        "statement.operation == 'update'",
        "statement.target == 'public.orders' && statement.schema == 'public'",
        "statement.table == 'orders' && statement.kind == 'table'",
        "statement.bounded",
        "statement.columns.all(c, c in ['note', 'tag'])",
        "'lower' in statement.functions",
        "statement.tag == 'UPDATE' && statement.subject == '' && statement.value == ''",
        "agent.name == 'bot' && agent.name.startsWith('b')",
        "session.user == 'app' && session.database == 'shop' && session.application_name == 'report'",
        "statement.table.matches('^o[r]ders$')",
    ],
)
def test_a_condition_sees_statement_agent_and_session(source: str) -> None:
    assert compile_condition(source).evaluate(ACT, STATEMENT, CONTEXT) is True


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("statment.tag == 'x'", "statment"),
        ("statement.tabel == 'x'", "tabel"),
        ("agent.nam == 'x'", "nam"),
        ("upper(agent.name) == 'X'", "upper"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_word(source: str, word: str) -> None:
    with pytest.raises(ConditionError) as caught:
        compile_condition(source)
    assert caught.value.word == word
    assert caught.value.choices


@pytest.mark.parametrize(
    "source",
    [
        "statement.tag ==",
        "'",
        "agent.name.matches('[')",
        "x" * (MAX_LENGTH + 1),
        "(" * (MAX_DEPTH + 1) + "true" + ")" * (MAX_DEPTH + 1),
    ],
)
def test_what_is_no_expression_or_too_much_of_one_is_refused(source: str) -> None:
    with pytest.raises(ConditionError):
        compile_condition(source)


def test_words_in_quotes_are_not_names() -> None:
    condition = compile_condition("agent.name == 'statement.nothing'")
    assert condition.evaluate(ACT, STATEMENT, CONTEXT) is False


def test_a_value_that_is_not_a_truth_value_is_an_error() -> None:
    with pytest.raises(EvaluationError):
        compile_condition("agent.name").evaluate(ACT, STATEMENT, CONTEXT)


@pytest.mark.parametrize("source", ["agent.name", "1 / 0 == 1", "statement.columns[7] == 'x'"])
def test_a_condition_that_fails_never_opens_anything(source: str) -> None:
    condition = compile_condition(source)
    assert WhenCheck(condition, Action.DENY).holds(ACT, STATEMENT, CONTEXT)
    assert WhenCheck(condition, Action.HOLD).holds(ACT, STATEMENT, CONTEXT)
    assert not WhenCheck(condition, Action.ALLOW).holds(ACT, STATEMENT, CONTEXT)
