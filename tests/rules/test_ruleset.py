"""What a loaded ruleset knows about itself."""

from __future__ import annotations

import pytest

from sqlwall.rules.verdict import SnapshotPolicy
from sqlwall.sql.statement import Operation
from tests.rules.facts import rules


def test_rules_are_found_by_operation() -> None:
    ruleset = rules(
        """
        {id: a, operations: [select, delete], action: allow}
        {id: b, operations: [delete], action: deny}
        """
    )
    assert [rule.id for rule in ruleset.by_operation[Operation.DELETE]] == ["a", "b"]
    assert ruleset.by_operation[Operation.DROP] == ()
    assert set(ruleset.by_operation) == set(Operation)


@pytest.mark.parametrize(
    ("rule", "mode", "permits"),
    [
        ("{id: a, operations: [select, transaction], action: allow}", "enforce", False),
        ("{id: a, operations: [delete], action: deny}", "enforce", False),
        ("{id: a, operations: [delete], action: allow}", "enforce", True),
        ("{id: a, operations: [delete], action: hold}", "enforce", True),
        ("{id: a, operations: [create], action: allow}", "enforce", True),
        ("{id: a, operations: [select], action: allow}", "observe", True),
        ("{id: a, operations: [select], action: allow}", "warn", True),
    ],
)
def test_a_ruleset_permits_writes_if_a_rule_lets_something_change(
    rule: str, mode: str, permits: bool
) -> None:
    assert rules(rule, mode).permits_writes is permits


def test_silence_about_snapshots_means_required_for_writes_and_nothing_for_reads() -> None:
    [rule] = rules("{id: a, operations: [select, delete], action: allow}").rules
    assert rule.snapshot_for(Operation.DELETE) is SnapshotPolicy.REQUIRED
    assert rule.snapshot_for(Operation.SELECT) is SnapshotPolicy.NONE
