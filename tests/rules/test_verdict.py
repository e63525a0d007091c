"""The order of answers is the order of restrictiveness: `max` is how they are combined."""

from __future__ import annotations

from sqlwall.rules.verdict import Action, Limits, SnapshotPolicy, Verdict


def test_the_strictest_action_is_the_greatest() -> None:
    assert max(Action) is Action.DENY
    assert Action.ALLOW < Action.HOLD < Action.DENY


def test_a_required_snapshot_is_stricter_than_a_waiver() -> None:
    assert max(SnapshotPolicy) is SnapshotPolicy.REQUIRED


def test_a_verdict_without_limits_limits_nothing() -> None:
    assert Verdict(Action.ALLOW, "r", "").limits == Limits(None, None, None, None)
