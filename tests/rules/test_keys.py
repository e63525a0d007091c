"""The tables of keys: every one documented, and every operation of the facts a word of the language."""

from __future__ import annotations

import pytest

from sqlwall.rules.keys import CASE_KEYS, LIMIT_KEYS, OPERATIONS, RULE_KEYS, compile_template
from sqlwall.sql.statement import Operation
from tests.rules.facts import rules


@pytest.mark.parametrize("table", [RULE_KEYS, CASE_KEYS, LIMIT_KEYS])
def test_every_key_says_what_it_means(table: dict[str, object]) -> None:
    assert all(getattr(key, "meaning", "") for key in table.values())


def test_every_operation_but_unknown_is_a_word() -> None:
    assert set(OPERATIONS.values()) == set(Operation) - {Operation.UNKNOWN}


def test_a_template_takes_known_words_only() -> None:
    assert compile_template("{operation} {{x}} {target}")
    for bad in ("{x}", "{}", "{0}", "{target:>9}", "{target[0]}"):
        with pytest.raises(ValueError, match=r"placeholder|without"):
            compile_template(bad)


def test_a_condition_is_asked_last() -> None:
    ruleset = rules(
        '{id: a, when: "true", operations: [delete], action: deny, bounded: false, tables: ["a.b"]}'
    )
    assert [type(check).__name__ for check in ruleset.rules[0].checks] == [
        "BoundedCheck",
        "TableCheck",
        "WhenCheck",
    ]
