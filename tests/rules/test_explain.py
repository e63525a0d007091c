"""An explanation says what the judge says, and why each rule matched or did not."""

from __future__ import annotations

from sqlwall.rules.builtin import READ_WRITE, TWO_PHASE
from sqlwall.rules.explain import explain, explain_facts
from sqlwall.rules.judge import judge
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import Bounded, Operation, Transaction, TransactionControl, Unparsable
from tests.rules.facts import context, delete, effect, rules, select, statement

RULES = rules(
    """
    {id: reads, operations: [select], action: allow}
    {id: bounded-only, operations: [delete], bounded: false, action: deny}
    {id: writes, operations: [delete], tables: ["public.*"], action: allow}
    """
)


def test_every_rule_of_the_operation_says_why() -> None:
    found = explain_facts((delete(),), context(), RULES)
    [explained] = found.statements[0].effects
    assert [(rule.rule, rule.matched, rule.why) for rule in explained.rules] == [
        ("bounded-only", False, "does not match: bounded: false"),
        ("writes", True, "matches: tables public.*"),
    ]
    assert explained.act.target == "public.orders"
    assert found.verdict.rule == "writes"


def test_a_rule_without_conditions_says_so() -> None:
    found = explain_facts((select(),), context(), RULES)
    assert found.statements[0].effects[0].rules[0].why == "matches: it has no conditions"


def test_the_verdict_is_the_judges() -> None:
    for bounded in Bounded:
        found = explain_facts((delete(bounded=bounded),), context(), RULES)
        assert found.verdict == judge(delete(bounded=bounded), context(), RULES)


def test_what_sqlwall_refuses_by_itself_is_shown() -> None:
    two_phase = explain_facts((statement(effect(Operation.TWO_PHASE)),), context(), RULES)
    refusal = two_phase.statements[0].effects[0].builtin
    assert refusal is not None
    assert refusal[0] == TWO_PHASE
    control = TransactionControl(Transaction.BEGIN, read_only=False)
    reads = rules("{id: reads, operations: [transaction], action: allow}")
    begin = explain_facts((statement(effect(Operation.TRANSACTION), control=control),), context(), reads)
    whole = begin.statements[0].builtin
    assert whole is not None
    assert whole[0] == READ_WRITE


def test_a_text_without_facts_has_a_verdict_only() -> None:
    found = explain_facts(Unparsable("42601", "syntax error"), context(), RULES)
    assert found.statements == ()
    assert found.unparsable is not None
    assert found.verdict.action is Action.DENY


def test_a_text_is_parsed_and_explained() -> None:
    found = explain("SELECT * FROM orders; DELETE FROM orders", context(), RULES)
    assert [explained.statement.tag for explained in found.statements] == ["SELECT", "DELETE"]
    assert found.verdict.rule == "bounded-only"
