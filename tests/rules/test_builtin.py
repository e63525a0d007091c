"""The floor under every ruleset: asked directly, and under a ruleset that allows everything it can."""

from __future__ import annotations

import pytest

from sqlwall.rules.builtin import (
    EMPTY,
    READ_WRITE,
    RESERVED_NAME,
    SETTING,
    TWO_PHASE,
    UNKNOWN,
    is_forbidden_setting,
    is_pinned_to,
    is_reserved,
    is_safe_search_path,
    refuse_effect,
    refuse_statement,
)
from sqlwall.rules.judge import judge
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import Operation, Transaction, TransactionControl
from tests.rules.facts import context, effect, rules, select, statement

EVERYTHING = rules(
    """
    {id: all, operations: [select, insert, update, delete, merge, copy_in, transaction, two_phase], action: allow}
    {id: settings, operations: [set, reset], settings: ["*"], action: allow}
    {id: cursors, operations: [cursor, prepare, execute, deallocate], action: allow}
    """
)
READS = rules("{id: all, operations: [select, transaction], action: allow}")


@pytest.mark.parametrize(
    ("operation", "rule"), [(Operation.UNKNOWN, UNKNOWN), (Operation.TWO_PHASE, TWO_PHASE)], ids=str
)
def test_what_is_not_known_and_two_phase_are_refused_under_every_ruleset(
    operation: Operation, rule: str
) -> None:
    verdict = judge(statement(effect(operation)), context(), EVERYTHING)
    assert (verdict.action, verdict.rule) == (Action.DENY, rule)


@pytest.mark.parametrize(
    "name",
    [
        "default_transaction_read_only",
        "Transaction_Read_Only",
        "role",
        "SESSION_AUTHORIZATION",
        "session_replication_role",
        "backslash_quote",
        "quote_all_identifiers",
        "local_preload_libraries",
        "track_counts",
        "synchronous_commit",
        "log_statement",
        "debug_parallel_query",
        "auto_explain.log_analyze",
        "_sqlwall.x",
    ],
)
@pytest.mark.parametrize("operation", [Operation.SET, Operation.RESET])
def test_settings_that_open_a_lock_are_refused_under_every_ruleset(name: str, operation: Operation) -> None:
    assert is_forbidden_setting(name)
    verdict = judge(statement(effect(operation, subject=name, value="x")), context(), EVERYTHING)
    assert verdict.action is Action.DENY
    assert verdict.rule in (SETTING, RESERVED_NAME)


def test_a_setting_whose_name_is_not_known_is_refused() -> None:
    assert refuse_effect(effect(Operation.SET, value="x")) is not None
    assert refuse_effect(effect(Operation.RESET)) is not None


@pytest.mark.parametrize("value", ["on", "ON", "true", "yes", "1", "t"])
def test_standard_conforming_strings_may_be_set_to_what_it_is(value: str) -> None:
    assert is_pinned_to("Standard_Conforming_Strings", value)


@pytest.mark.parametrize("value", ["off", "0", "f", "", "on off", "o", None])
def test_standard_conforming_strings_may_be_set_to_nothing_else(value: str | None) -> None:
    assert is_pinned_to("standard_conforming_strings", value) is False
    verdict = refuse_effect(effect(Operation.SET, subject="standard_conforming_strings", value=value))
    assert verdict is not None
    assert verdict[0] == SETTING


@pytest.mark.parametrize("value", ["UTF8", "utf-8", "unicode"])
def test_the_clients_encoding_may_be_set_to_spellings_of_utf8(value: str) -> None:
    assert refuse_effect(effect(Operation.SET, subject="client_encoding", value=value)) is None


@pytest.mark.parametrize("value", ["SJIS", "GBK", "UHC", "SQL_ASCII", "latin1", "utf8x", None])
def test_the_clients_encoding_may_be_set_to_nothing_else(value: str | None) -> None:
    assert refuse_effect(effect(Operation.SET, subject="client_encoding", value=value)) is not None


def test_an_ordinary_setting_is_not_pinned() -> None:
    assert is_pinned_to("timezone", "UTC") is None


@pytest.mark.parametrize(
    "value",
    [
        "public",
        '"$user", public',
        "",
        " ",
        "pg_catalog",
        "PG_CATALOG , public",
        '"pg_catalog", "public"',
        "public, archive",
        '"Weird Schema", "a"" , pg_catalog"',
        '""',
    ],
)
def test_a_search_path_that_leaves_pg_catalog_in_front_passes(value: str) -> None:
    assert is_safe_search_path(value)


@pytest.mark.parametrize(
    "value",
    [
        "shadow, pg_catalog",
        "shadow,public,pg_catalog",
        '"PG_CATALOG", pg_catalog',
        '"PG_CATALOG", public',
        '"public", "pg_catalog"',
        "public,PG_CATALOG",
        'public, "unclosed',
        "public,",
        ",public",
        "public archive",
        'pu"blic',
        "pg_catalog, shadow, pg_catalog",
        "pg_temp, public",
        "public, PG_TEMP",
        "pg_temp_3",
        "_sqlwall",
        None,
    ],
)
def test_a_search_path_that_could_hide_pg_catalog_is_refused(value: str | None) -> None:
    assert not is_safe_search_path(value)
    refusal = refuse_effect(effect(Operation.SET, subject="Search_Path", value=value))
    assert refusal is not None
    assert refusal[0] == SETTING


def test_a_search_path_may_be_reset() -> None:
    assert refuse_effect(effect(Operation.RESET, subject="search_path")) is None


@pytest.mark.parametrize("name", ["_sqlwall", "_SQLWALL_1", "_sqlwall_abc"])
def test_the_walls_own_names_are_reserved_whatever_their_case(name: str) -> None:
    assert is_reserved(name)
    for found in (
        select(name),
        select(f"{name}.t"),
        select(names=("a", name)),
        select(prepared=name),
        select(cursor=name),
        statement(effect(Operation.TRANSACTION), control=TransactionControl(Transaction.SAVEPOINT, name)),
    ):
        assert judge(found, context(), EVERYTHING).rule == RESERVED_NAME


def test_names_that_only_contain_the_prefix_are_free() -> None:
    assert not is_reserved("my_sqlwall")
    assert not is_reserved("sqlwall")
    assert not is_reserved(None)


def test_a_statement_without_facts_is_refused() -> None:
    verdict = judge(statement(tag="?"), context(), EVERYTHING)
    assert (verdict.action, verdict.rule) == (Action.DENY, EMPTY)


def control(verb: Transaction, read_only: bool | None = None) -> TransactionControl:
    return TransactionControl(verb, read_only=read_only)


@pytest.mark.parametrize(
    ("asked", "permits_writes", "refused"),
    [
        (control(Transaction.BEGIN), False, False),
        (control(Transaction.BEGIN, read_only=True), False, False),
        (control(Transaction.BEGIN, read_only=False), True, False),
        (control(Transaction.BEGIN, read_only=False), False, True),
        (control(Transaction.SET_TRANSACTION, read_only=False), True, True),
        (control(Transaction.SET_TRANSACTION, read_only=False), False, True),
        (control(Transaction.SET_TRANSACTION, read_only=True), True, False),
        (control(Transaction.SET_TRANSACTION), True, False),
        (control(Transaction.SET_SESSION_CHARACTERISTICS), True, False),
        (control(Transaction.SET_SESSION_CHARACTERISTICS, read_only=False), True, True),
        (control(Transaction.SET_SESSION_CHARACTERISTICS, read_only=True), True, True),
        (TransactionControl(Transaction.COMMIT, chain=True), True, False),
        (control(Transaction.ROLLBACK), False, False),
    ],
    ids=str,
)
def test_transaction_control_cannot_open_the_read_only_lock(
    asked: TransactionControl, permits_writes: bool, refused: bool
) -> None:
    found = statement(effect(Operation.TRANSACTION), control=asked)
    refusal = refuse_statement(found, permits_writes=permits_writes)
    assert (refusal is not None) is refused
    assert refusal is None or refusal[0] == READ_WRITE


def test_begin_read_write_depends_on_whether_the_ruleset_permits_any_write() -> None:
    begin = statement(effect(Operation.TRANSACTION), control=control(Transaction.BEGIN, read_only=False))
    assert judge(begin, context(), EVERYTHING).action is Action.ALLOW
    assert judge(begin, context(), READS).rule == READ_WRITE
