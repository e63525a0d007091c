"""Patterns and checks: what a key of a rule speaks about, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from sqlwall.rules.context import RelationKind
from sqlwall.rules.match import (
    Act,
    AgentCheck,
    BoundedCheck,
    ColumnCheck,
    FunctionCheck,
    KindCheck,
    PatternError,
    SettingCheck,
    SubjectCheck,
    TableCheck,
    compile_function,
    compile_glob,
    compile_operator,
    compile_table,
)
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import Bounded, Operation
from tests.rules.facts import context, effect, select

STATEMENT, CONTEXT = select(), context()


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("orders", "orders", True),
        ("orders", "Orders", False),
        ("orders", "orders2", False),
        ("ord*", "orders", True),
        ("ord*", "order\nline", True),
        ("?rders", "orders", True),
        ("?rders", "rders", False),
        ("*", "", True),
        ("a.c", "abc", False),
        ("a*", "b", False),
    ],
)
def test_a_glob_knows_star_and_question_mark_only(pattern: str, name: str, matches: bool) -> None:
    assert compile_glob(pattern).test(name) is matches


@pytest.mark.parametrize(
    ("pattern", "schema", "name", "matches"),
    [
        ("public.*", "public", "orders", True),
        ("public.*", "Public", "orders", False),
        ("public.*", "public_evil", "orders", False),
        ("*.orders", "archive", "orders", True),
        ('public."Weird.Name"', "public", "Weird.Name", True),
        ('public."a*"', "public", "ab", False),
        ('public."a*"', "public", "a*", True),
        ('"a""b".c', 'a"b', "c", True),
    ],
)
def test_a_table_pattern_is_schema_and_name(pattern: str, schema: str, name: str, matches: bool) -> None:
    assert compile_table(pattern).matches(schema, name) is matches


@pytest.mark.parametrize("pattern", ["orders", "a.b.c", "", "a.", ".a", "a[bc].d", 'a"b".c', '"a.b'])
def test_a_table_pattern_that_cannot_mean_what_its_writer_thinks_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        compile_table(pattern)


def test_a_function_pattern_without_schema_means_every_schema() -> None:
    assert compile_function("f").matches("anywhere", "f")
    assert not compile_function("public.f").matches("anywhere", "f")
    with pytest.raises(PatternError):
        compile_function("a.b.c")


def test_an_operator_pattern_is_literal_but_for_the_star() -> None:
    assert compile_operator("public.%?").matches("public", "%?")
    assert not compile_operator("public.%?").matches("public", "%>")
    assert compile_operator("public.*").matches("public", "<->")
    assert compile_operator("<->").matches("anywhere", "<->")
    with pytest.raises(PatternError):
        compile_operator("public.")


def act(operation: Operation, name: str = "", kind: RelationKind | None = None, **keys: Any) -> Act:
    return Act(operation, effect(operation, **keys), "public" if name else "", name, kind)


def test_a_table_check_needs_a_relation_but_for_reads_of_nothing() -> None:
    patterns = (compile_table("public.orders"),)
    allow, deny = TableCheck(patterns, Action.ALLOW), TableCheck(patterns, Action.DENY)
    nothing = act(Operation.SELECT)
    assert allow.holds(nothing, STATEMENT, CONTEXT)
    assert not deny.holds(nothing, STATEMENT, CONTEXT)
    assert not allow.holds(act(Operation.DELETE), STATEMENT, CONTEXT)
    orders = act(Operation.DELETE, "orders", RelationKind.TABLE)
    assert allow.holds(orders, STATEMENT, CONTEXT)
    assert not allow.holds(act(Operation.DELETE, "other", RelationKind.TABLE), STATEMENT, CONTEXT)


def test_a_kind_check_treats_reads_of_nothing_alike() -> None:
    kinds = frozenset({RelationKind.VIEW})
    assert KindCheck(kinds, Action.ALLOW).holds(act(Operation.SELECT), STATEMENT, CONTEXT)
    assert not KindCheck(kinds, Action.DENY).holds(act(Operation.SELECT), STATEMENT, CONTEXT)
    assert KindCheck(kinds, Action.DENY).holds(
        act(Operation.SELECT, "v", RelationKind.VIEW), STATEMENT, CONTEXT
    )


def test_a_function_check_asks_the_pattern_of_the_functions_kind() -> None:
    check = FunctionCheck(functions=(compile_function("public.f"),), extensions=(compile_glob("pg_trgm"),))
    call = Act(Operation.FUNCTION, effect(Operation.FUNCTION), "public", "f", None, "function")
    assert check.holds(call, STATEMENT, CONTEXT)
    assert not check.holds(call._replace(function_kind="type"), STATEMENT, CONTEXT)
    assert not check.holds(call._replace(function_kind=""), STATEMENT, CONTEXT)
    assert check.holds(
        call._replace(name="%", function_kind="operator", extension="pg_trgm"), STATEMENT, CONTEXT
    )


def test_a_setting_check_folds_case_and_speaks_of_settings_only() -> None:
    check = SettingCheck((compile_glob("timezone"),))
    assert check.holds(act(Operation.SET, subject="TimeZone"), STATEMENT, CONTEXT)
    assert not check.holds(act(Operation.SET, subject="role"), STATEMENT, CONTEXT)
    assert not check.holds(act(Operation.SET), STATEMENT, CONTEXT)
    assert not check.holds(act(Operation.NOTIFY, subject="timezone"), STATEMENT, CONTEXT)


def test_a_column_check_wants_all_columns_to_allow_and_one_to_deny() -> None:
    patterns = (compile_glob("note"), compile_glob("tag*"))
    allow, deny = ColumnCheck(patterns, Action.ALLOW), ColumnCheck(patterns, Action.DENY)
    for columns, allows, denies in (
        (("note",), True, True),
        (("note", "price"), False, True),
        (("price",), False, False),
        ((), False, True),
    ):
        found = act(Operation.UPDATE, "t", RelationKind.TABLE, columns=columns)
        assert allow.holds(found, STATEMENT, CONTEXT) is allows
        assert deny.holds(found, STATEMENT, CONTEXT) is denies


@pytest.mark.parametrize("bounded", Bounded)
def test_bounded_false_speaks_of_both_ways_to_be_unbounded(bounded: Bounded) -> None:
    found = act(Operation.DELETE, "t", RelationKind.TABLE, bounded=bounded)
    assert BoundedCheck(False).holds(found, STATEMENT, CONTEXT) is (bounded is not Bounded.BOUNDED)
    assert BoundedCheck(True).holds(found, STATEMENT, CONTEXT) is (bounded is Bounded.BOUNDED)


def test_subjects_and_agents_are_globs() -> None:
    found = act(Operation.LOCK, subject="for update")
    assert SubjectCheck((compile_glob("for *"),)).holds(found, STATEMENT, CONTEXT)
    assert not SubjectCheck((compile_glob("for *"),)).holds(act(Operation.LOCK), STATEMENT, CONTEXT)
    assert AgentCheck((compile_glob("b*"),)).holds(found, STATEMENT, CONTEXT)
    assert not AgentCheck((compile_glob("c*"),)).holds(found, STATEMENT, CONTEXT)


def test_every_check_describes_itself_as_the_ruleset_has_it() -> None:
    assert TableCheck((compile_table("public.*"),), Action.ALLOW).describe() == "tables public.*"
    assert KindCheck(frozenset({RelationKind.VIEW}), Action.DENY).describe() == "kinds view"
    assert BoundedCheck(False).describe() == "bounded: false"
    assert FunctionCheck(functions=(compile_function("f"),)).describe() == "functions f"
