"""Guards before the parser, positions of its errors, and that no bytes make it raise."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.sql.parse import (
    IN_PROCESS_LIMIT,
    OPERATOR_RUN_LIMIT,
    TEXT_LIMIT,
    TooLarge,
    analyze_guarded,
    analyze_text,
)
from sqlwall.sql.statement import Operation, Statement, Unparsable


def statements(text: str) -> tuple[Statement, ...]:
    facts = analyze_text(text.encode())
    assert isinstance(facts, tuple), facts
    return facts


def fault(text: str | bytes) -> Unparsable:
    facts = analyze_guarded(text.encode() if isinstance(text, str) else text)
    assert isinstance(facts, Unparsable), facts
    return facts


@pytest.mark.parametrize(
    "text", ["", " \n\t", "-- nothing", "/* nothing /* at all */ */", ";;;", " ; -- x\n;"]
)
def test_a_text_of_blanks_and_comments_has_no_statements(text: str) -> None:
    assert statements(text) == ()


def test_statements_keep_their_order_and_their_place_in_bytes() -> None:
    text = "  SELECT 'é' ;\n/* c */ DELETE FROM t;DROP TABLE u".encode()
    facts = analyze_text(text)
    assert isinstance(facts, tuple)
    assert [statement.tag for statement in facts] == ["SELECT", "DELETE", "DROP TABLE"]
    places = [text[statement.start : statement.end].decode().strip() for statement in facts]
    assert places == ["SELECT 'é'", "DELETE FROM t", "DROP TABLE u"]


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("SELEC 1", 1, 'syntax error at or near "SELEC"'),
        ("SELECT 'é' FROM FROM", 17 - 1, 'syntax error at or near "FROM"'),
        ("SELECT 1 FROM", 14, "syntax error at end of input"),
        ("SELECT 'é", 8, 'unterminated quoted string at or near "\'é"'),
        ("/* x", 1, 'unterminated /* comment at or near "/* x"'),
    ],
)
def test_a_syntax_error_has_postgresqls_message_and_counts_characters(
    text: str, position: int, message: str
) -> None:
    assert fault(text) == Unparsable("42601", message, position)


def test_one_bad_statement_spoils_the_whole_text() -> None:
    assert fault("SELECT 1; DROP").sqlstate == "42601"


@pytest.mark.parametrize("text", [b"SELECT 1\0; DROP TABLE t", b"\0", b"\0SELECT 1", b"SELECT 1\0"])
def test_nul_is_refused_because_the_parser_would_stop_there(text: bytes) -> None:
    assert fault(text).sqlstate == "22021"


@pytest.mark.parametrize(
    "text", [b"SELECT '\xff'", b"SELECT '\xc3", b"SELECT '\xed\xa0\x80'", b"SELECT '\xc0\xaf'", b"\xfe\xff"]
)
def test_bytes_that_are_not_utf8_are_refused(text: bytes) -> None:
    assert fault(text).sqlstate == "22021"


@pytest.mark.parametrize("unit", ["+", "/**/", "-*", "=", "@#", "|", "/*+*/"])
def test_a_long_run_of_operator_characters_is_refused_at_once(unit: str) -> None:
    text = "SELECT 1 " + unit * (200_000 // len(unit)) + " 1"
    before = time.perf_counter()
    assert fault(text).sqlstate == "54001"
    assert time.perf_counter() - before < 0.5


def test_a_run_just_below_the_limit_is_left_to_the_parser() -> None:
    assert fault("SELECT " + "+" * (OPERATOR_RUN_LIMIT - 1) + " ").sqlstate == "42601"
    assert fault("SELECT " + "+" * OPERATOR_RUN_LIMIT + " 1").sqlstate == "54001"


def test_a_text_above_the_in_process_limit_is_for_the_sandbox() -> None:
    text = b"SELECT '" + b"x" * IN_PROCESS_LIMIT + b"'"
    assert analyze_text(text) == TooLarge()
    facts = analyze_guarded(text)
    assert isinstance(facts, tuple)
    assert facts[0].tag == "SELECT"


def test_a_text_at_the_limit_is_read_here() -> None:
    text = b"SELECT '" + b"x" * (IN_PROCESS_LIMIT - 9) + b"'"
    assert len(text) == IN_PROCESS_LIMIT
    assert isinstance(analyze_text(text), tuple)


def test_no_text_is_larger_than_the_limit() -> None:
    assert fault(b" " * (TEXT_LIMIT + 1)).sqlstate == "54001"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "f(" * 2000 + "1" + ")" * 2000,
        "SELECT " + "(SELECT " * 1500 + "1" + ")" * 1500,
        "SELECT " + "+".join(["1"] * 5000),
        " UNION ".join(["SELECT 1"] * 1500),
        "SELECT 1" + "::int" * 3000,
        "SELECT " + "NOT " * 3000 + "true",
        "SELECT " + "ARRAY[" * 2000 + "]" * 2000,
        "SELECT * FROM t" + " JOIN t ON true" * 1000,
        "SELECT a" + "[1]" * 3000 + " FROM t",
        "SELECT " + "CASE WHEN true THEN " * 800 + "1" + " END" * 800,
        "SELECT 1 WHERE " + "EXISTS (SELECT 1 WHERE " * 700 + "true" + ")" * 700,
        "EXPLAIN " * 2000 + "SELECT 1",
        "UPDATE t SET a = 1 WHERE " + "(" * 8000 + "a = 1" + ")" * 8000,
        "UPDATE t SET a = 1 WHERE " + "NOT (" * 3000 + "a = 1" + ")" * 3000,
    ],
    ids=lambda text: text[:24],
)
def test_deep_nesting_is_facts_or_a_refusal(text: str) -> None:
    facts = analyze_guarded(text.encode())
    if isinstance(facts, Unparsable):
        assert facts.sqlstate in ("54001", "42601")
    else:
        assert facts


@pytest.mark.parametrize("operator", ["+", "||"])
def test_a_long_chain_of_operators_is_read(operator: str) -> None:
    (statement,) = statements(f"SELECT {f' {operator} '.join(['1'] * 400)}, pg_sleep(1)")
    assert {str(function) for function in statement.functions} == {operator, "pg_sleep"}


def test_a_long_chain_of_unions_is_read() -> None:
    (statement,) = statements(" UNION ALL ".join(f"SELECT a FROM t{number}" for number in range(400)))
    assert len(statement.effects) == 400


def nested_assignment(levels: int) -> str:
    query = "SELECT 1, 2"
    for _ in range(levels):
        query = f"WITH x AS (UPDATE t SET (a, b) = ({query})) SELECT 1, 2"
    return query


@pytest.mark.parametrize(
    "text",
    [
        nested_assignment(15),
        nested_assignment(100),
        nested_assignment(40).replace(") =", ")/* = */\n="),
        nested_assignment(40).replace("SET", "sEt"),
        f"UPDATE t SET ({', '.join(['a'] * 500)}) = ({', '.join(['1'] * 500)})",
        f"UPDATE t SET ({', '.join(['é'] * 500)}) --\n= ({', '.join(['1'] * 500)})",
    ],
    ids=lambda text: text[:40],
)
def test_a_tree_that_would_be_far_larger_than_the_text_is_refused_before_it_is_made(text: str) -> None:
    before = time.perf_counter()
    assert fault(text).sqlstate == "54001"
    assert time.perf_counter() - before < 0.5


def test_honest_assignments_to_several_columns_are_read() -> None:
    columns = ", ".join(f"c{number}" for number in range(60))
    values = ", ".join(f"${number + 1}" for number in range(60))
    (statement,) = statements(f"UPDATE t SET ({columns}) = ROW ({values}) WHERE (a, b) = (1, 2)")
    assert len(statement.effects[0].columns) == 60
    assert len(statements("UPDATE t SET (a, b) = (1, 2) WHERE c = 3;" * 300)) == 300


@given(st.binary(max_size=200))
def test_no_bytes_raise(text: bytes) -> None:
    facts = analyze_text(text)
    assert isinstance(facts, tuple | Unparsable)


WORDS = (
    "SELECT", "FROM", "t", "u", ",", "(", ")", "*", "WHERE", "=", "1", "'x'", "WITH", "AS", "UPDATE", "SET", "DELETE",
    "INSERT", "INTO", "VALUES", "RETURNING", "f(1)", "a.b", ";", "UNION", "JOIN", "ON", "LIMIT", "ORDER BY", "MERGE",
    "USING", "WHEN MATCHED THEN", "COPY", "TO", "STDOUT", "EXPLAIN", "PREPARE", "EXECUTE", "::", "int", "[", "]",
    "CASE", "END", "NOT", "NULL", "IN", "CREATE", "TABLE", "ALTER", "DROP", "COLUMN", "é", "$1", "FOR UPDATE", "--\n",
)  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_no_words_raise_and_every_statement_has_an_effect(words: list[str]) -> None:
    facts = analyze_text(" ".join(words).encode())
    if isinstance(facts, tuple):
        assert all(statement.effects for statement in facts)
        assert all(statement.start < statement.end for statement in facts)
        assert not any(
            effect.operation is Operation.UNKNOWN for statement in facts for effect in statement.effects
        )
