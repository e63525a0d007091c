"""A hit and a miss for every concern."""

from __future__ import annotations

import pytest

from sqlwall.rules.lint import Concern, covers, lint
from tests.rules.facts import rules

READ = '{id: r, operations: [select], tables: ["public.*"], kinds: [table], action: allow}'


def concerns(body: str, mode: str = "enforce") -> set[Concern]:
    return {finding.concern for finding in lint(rules(body, mode))} - {Concern.UNTESTED}


@pytest.mark.parametrize(
    ("body", "concern"),
    [
        (
            "{id: a, operations: [delete], action: allow, tables: [public.t], bounded: true}\n"
            '{id: b, operations: [delete, drop], action: deny, tables: ["public.*"]}',
            Concern.UNREACHABLE,
        ),
        (
            "{id: a, operations: [insert], action: allow, tables: [public.t], snapshot: none}\n"
            '{id: b, operations: [insert], action: allow, tables: ["public.*"]}',
            Concern.NO_EFFECT,
        ),
        ("{id: a, operations: [two_phase], action: allow}", Concern.NO_EFFECT),
        ("{id: a, operations: [set], settings: [role], action: allow}", Concern.NO_EFFECT),
        ("{id: a, operations: [copy_program], action: allow}", Concern.DANGEROUS),
        ("{id: a, operations: [do], action: hold}", Concern.DANGEROUS),
        ("{id: a, operations: [lock], action: allow}", Concern.DANGEROUS),
        ('{id: a, operations: [function], functions: ["public.*"], action: allow}', Concern.DANGEROUS),
        ('{id: a, operations: [set], settings: ["*"], action: allow}', Concern.DANGEROUS),
        ("{id: a, operations: [insert], action: allow, snapshot: none}", Concern.WAIVER),
        ("{id: a, operations: [update], action: allow}", Concern.UNBOUNDED),
        ("{id: a, operations: [select], action: allow}", Concern.SENSITIVE),
        ("{id: a, operations: [select], action: allow}", Concern.FOREIGN),
    ],
)
def test_a_door_left_open_is_told(body: str, concern: Concern) -> None:
    assert concern in concerns(body)


@pytest.mark.parametrize(
    "body",
    [
        READ,
        "{id: a, operations: [update, delete], bounded: true, action: allow}",
        "{id: a, operations: [update], action: allow}\n{id: b, operations: [update], bounded: false, action: deny}",
        "{id: a, operations: [insert], action: allow}",
        "{id: a, operations: [copy_program, do, drop], action: deny}",
        "{id: a, operations: [function], functions: [public.fmt], action: allow}",
        '{id: a, operations: [lock], subjects: ["for *"], action: allow}',
        "{id: a, operations: [set], settings: [timezone], action: allow}",
        "{id: a, operations: [select], action: allow}\n"
        "{id: b, operations: [select], kinds: [sensitive, foreign], action: deny}",
        "{id: a, operations: [delete], action: allow, tables: [public.t], bounded: true}\n"
        '{id: b, operations: [delete], action: deny, tables: ["archive.*"]}',
    ],
)
def test_a_careful_rule_is_not_remarked_on(body: str) -> None:
    assert concerns(body) == set()


@pytest.mark.parametrize("mode", ["observe", "warn"])
def test_a_mode_that_protects_nothing_is_told(mode: str) -> None:
    assert Concern.MODE in concerns(READ, mode)


def test_a_rule_that_no_case_shows_is_told() -> None:
    [finding] = lint(rules(READ))
    assert str(finding) == "test.yaml:5: rule 'r': no case expects this rule [untested]"


def test_a_rule_covers_another_only_if_it_makes_no_check_of_its_own() -> None:
    wide, narrow, other = rules(
        """
        {id: a, operations: [delete, update], tables: ["public.*"], action: deny}
        {id: b, operations: [delete], tables: [public.t], agents: [x], action: allow}
        {id: c, operations: [delete], tables: ["*.t"], action: allow}
        """
    ).rules
    assert covers(wide, narrow)
    assert not covers(narrow, wide)
    assert not covers(wide, other)
