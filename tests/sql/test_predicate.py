"""What the wall says of a WHERE clause, held against what a real server does with it.

The table has no NULLs, as the wall assumes, and rows that a predicate which only looks always true does not match.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlwall.sql.parse import analyze_text
from sqlwall.sql.statement import Bounded, Operation
from tests.postgres import Server, fresh_database

Connection = psycopg.Connection[tuple[Any, ...]]

ROWS = 9
SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, name text NOT NULL, flag bool NOT NULL, at timestamptz NOT NULL,
                tags text[] NOT NULL, doc jsonb NOT NULL);
CREATE TABLE other (id int PRIMARY KEY);
INSERT INTO other VALUES (1), (2);
INSERT INTO t VALUES
    (1, 1, 'a', true, '2026-01-01', '{a}', '{"a": 1}'), (2, 0, 'b', false, '2026-01-02 12:34', '{}', '{}'),
    (3, -1, 'A', true, '1970-01-01', '{a,b}', '{"a": 2}'), (4, 5, 'ab', false, '2026-01-01', '{c}', '{"b": 1}'),
    (5, 3, '', true, '2027-01-01', '{"a b"}', '{"a": {"b": 1}}'), (6, 7, '%', false, '2026-03-01', '{d}', '{"c": 1}'),
    (7, 2147483646, 'é', true, '2026-01-01', '{e}', '{"d": 1}'), (8, -2147483647, 'x y', false, '2026-01-01', '{f}', '{"e": 1}'),
    (0, 2, 'true', true, '2026-01-01', '{g}', '{"f": 1}');
"""


@pytest.fixture(scope="module")
def table(postgres: Server) -> Iterator[Connection]:
    """A session on a database that holds the table; whatever a test does to it is rolled back."""
    with fresh_database(postgres) as database:
        with database.connect() as connection:
            connection.execute(SCHEMA)
            connection.autocommit = False
            yield connection


def said(predicate: str, head: str = "DELETE FROM t") -> Bounded:
    """The wall's word."""
    facts = analyze_text(f"{head} WHERE {predicate}".encode())
    assert isinstance(facts, tuple), facts
    (effect,) = [e for e in facts[0].effects if e.operation in (Operation.DELETE, Operation.UPDATE)]
    return effect.bounded


def deleted(connection: Connection, predicate: str) -> int | None:
    """How many rows the server deletes; None if it will not."""
    try:
        return connection.execute(f"DELETE FROM t WHERE {predicate}".encode()).rowcount
    except psycopg.Error:
        return None
    finally:
        connection.rollback()


# -- the table of cases


ALWAYS_TRUE = [
    "true", "TRUE", "1 = 1", "1=1 AND 2=2", "'a' = 'a'", "NOT false", "NOT NOT true", "1 <> 2", "1 < 2", "2 >= 1",
    "1 != 2", "-1 < 0", "1 = 1 OR id = 5", "id = 5 OR true", "id = id", "t.id = t.id", "public.t.id = t.id",
    "id >= id", "name = name", "id IS NOT DISTINCT FROM id", "id IS DISTINCT FROM NULL", "ctid IS NOT NULL",
    "tableoid IS NOT NULL", "1 IS NOT NULL", "NULL IS NULL", "'x' IS NOT NULL", "id = 1 OR id <> 1", "id < 3 OR id >= 3",
    "id > 3 OR id <= 3", "name IS NULL OR name IS NOT NULL", "flag OR NOT flag", "id = 3 OR NOT id = 3",
    "(id = 3 AND n = 1) OR NOT (id = 3 AND n = 1)", "name LIKE '%'", "name ILIKE '%%'", "name ~ '.*'", "name ~ ''",
    "name ~ '^'", "name SIMILAR TO '%'", "n <= 2147483647", "n > -2147483648", "n < 9223372036854775807", "n <> 9223372036854775807",
    "id + 0 = id", "id = id + 0", "id * 1 = id", "name || '' = name", "id - 0 >= id", "id IN (id)", "id IN (1, id, 2)",
    "1 IN (1, 2)", "id BETWEEN id AND id", "2 BETWEEN 1 AND 3", "EXISTS (SELECT 1)", "EXISTS (SELECT)",
    "EXISTS (SELECT 1 WHERE true)", "EXISTS (SELECT 1 WHERE 1 = 1)", "(SELECT true)", "(SELECT 1 = 1)",
    "id IN (SELECT id FROM t)", "id = ANY (SELECT id FROM t)", "id IN (SELECT x.id FROM t AS x WHERE true)",
    "id IN (SELECT id FROM t LIMIT 1000000)", "id IN (SELECT id FROM t LIMIT ALL)",
    "id IN (SELECT id FROM t TABLESAMPLE system (100))", "coalesce(true, false)", "coalesce(id = id, false)",
    "CASE WHEN id = 1 THEN true ELSE true END", "CASE WHEN true THEN true ELSE false END",
    "CASE id WHEN 1 THEN true ELSE true END", "(id = id) IS TRUE", "(id = id) IS NOT FALSE", "false IS FALSE",
    "false IS NOT TRUE", "true IS NOT UNKNOWN", "'t'::bool", "'yes'::boolean", "bool 'on'", "1::bool", "CAST('1' AS bool)",
    "1 + 1 = 2", "2 * 3 > 5", "10 - 1 <> 8", "random() < 1", "random() >= -1", "random() <= 2", "id <> ALL ('{}')",
    "id <> ALL (ARRAY[]::int[])", "'{}' <@ '{}'::jsonb OR doc @? '$'", "doc @? '$'", "tags @> '{}'", "tags @> tags",
    "tags <@ tags", "((((id = id))))", "id = id AND n = n AND true", "id::text = id::text",
]  # fmt: skip

BOUNDED = [
    "false", "1 = 2", "id = 1", "1 = id", "id <> 1", "id = n", "id > n", "n = 0", "id < 3", "id >= 3", "id < 3 OR id > 3",
    "id = 1 OR id = 2", "id = 1 OR n <> 0", "true AND id = 1", "id = 1 AND 1 = 1", "NOT true", "NOT (id = id)",
    "name = 'a' OR name = 'b'", "name LIKE 'a%'", "name LIKE '_%'", "name NOT LIKE '%'", "name ~ 'a'", "name ~ '^a'",
    "name !~ '.*'", "name SIMILAR TO 'a%'", "name ~ '^$'", "id IS NULL", "id IS NOT DISTINCT FROM 3",
    "id IS DISTINCT FROM 3", "id IS NOT DISTINCT FROM NULL", "NULL", "id = NULL", "flag", "NOT flag",
    "flag IS TRUE", "flag IS NOT TRUE", "flag IS FALSE", "id IN (1, 2)", "id NOT IN (1, 2)", "id NOT IN (id)",
    "id BETWEEN 1 AND 3", "id NOT BETWEEN 1 AND 3", "EXISTS (SELECT 1 WHERE false)", "EXISTS (SELECT 1 FROM other o WHERE o.id = t.id)",
    "NOT EXISTS (SELECT 1)", "EXISTS (SELECT 1 LIMIT 0)", "(SELECT false)", "(SELECT id = 1)",
    "id IN (SELECT id FROM other)", "id IN (SELECT id FROM t WHERE n = 1)", "id IN (SELECT n FROM t)",
    "id IN (SELECT id FROM t LIMIT 2)", "id NOT IN (SELECT id FROM t)", "id IN (SELECT max(id) FROM t)",
    "id IN (SELECT max(id) FROM t GROUP BY flag)", "coalesce(flag, true)", "coalesce(false, true)",
    "CASE WHEN id = 1 THEN true ELSE false END", "CASE WHEN id = 1 THEN true END", "CASE id WHEN 1 THEN false ELSE true END",
    "(id = 1) IS TRUE", "(id = id) IS FALSE", "(id = id) IS UNKNOWN", "'f'::bool", "0::bool", "1 + 1 = 3", "id + 1 = id",
    "id * 2 = id", "id = -id", "name || 'x' = name", "n > 2147483645", "n <= -2147483647", "n >= 99999999999",
    "at > '2026-01-01'", "at = '2026-01-01'", "at < now() - interval '90 days' OR id = 1", "random() < -1",
    "tags @> '{a}'", "tags && '{a,b}'", "doc @> '{\"a\": 1}'", "doc ? 'a'", "doc @? '$.a'", "id = ANY ('{1,2}')",
    "id = ANY ('{}')", "id = ALL ('{1,2}')", "id <> ALL ('{1}')", "length(name) > 1", "lower(name) = 'a'", "id % 2 = 0",
    "n = 1 AND (id = 1 OR true)", "(n = 1 OR false) AND true", "id = 1 OR (n = 1 AND true)",
]  # fmt: skip


@pytest.mark.parametrize("predicate", ALWAYS_TRUE)
def test_a_predicate_that_is_always_true_is_seen_and_the_server_agrees(
    table: Connection, predicate: str
) -> None:
    assert said(predicate) is Bounded.ALWAYS_TRUE
    assert deleted(table, predicate) == ROWS


@pytest.mark.parametrize("predicate", BOUNDED)
def test_a_predicate_that_excludes_rows_is_bounded_and_the_server_agrees(
    table: Connection, predicate: str
) -> None:
    assert said(predicate) is Bounded.BOUNDED
    found = deleted(table, predicate)
    assert found is not None
    assert found < ROWS


@pytest.mark.parametrize("head", ["DELETE FROM t", "DELETE FROM ONLY t", "UPDATE t SET n = 1"])
def test_no_where_is_said_so(head: str) -> None:
    facts = analyze_text(head.encode())
    assert isinstance(facts, tuple)
    assert facts[0].effects[0].bounded is Bounded.NO_WHERE


@pytest.mark.parametrize(
    "head",
    ["DELETE FROM t", "DELETE FROM ONLY public.t AS x", "UPDATE t SET n = 1", "UPDATE public.t AS x SET (n, id) = (1, 2)",
     "WITH w AS (SELECT 1) DELETE FROM t", "EXPLAIN ANALYZE DELETE FROM t", "PREPARE p AS UPDATE t SET n = 1"],
)  # fmt: skip
def test_every_statement_that_has_a_where_is_asked(head: str) -> None:
    assert said("true", head) is Bounded.ALWAYS_TRUE
    assert said("id = 1", head) is Bounded.BOUNDED
    assert said("id = $1", head) is Bounded.BOUNDED


def test_parameters_are_not_guessed() -> None:
    for predicate in ("$1", "$1 = $2", "id = $1 OR id = $2", "id = coalesce($1, id)", "id IN ($1, $2)"):
        assert said(predicate) is Bounded.BOUNDED, predicate


def test_a_parameter_is_equal_to_itself() -> None:
    assert said("$1 = $1") is Bounded.ALWAYS_TRUE


@pytest.mark.parametrize(
    "predicate",
    ["NOT " * 200 + "true", "(" * 300 + "true" + ")" * 300, " AND ".join(["id = id"] * 500),
     " OR ".join(f"id = {number}" for number in range(500)), "CASE WHEN true THEN " * 100 + "true" + " END" * 100,
     "(SELECT " * 30 + "true" + ")" * 30, "coalesce(" * 100 + "true" + ")" * 100],
    ids=lambda predicate: predicate[:20],
)  # fmt: skip
def test_a_deep_or_long_predicate_has_an_answer_in_time(predicate: str) -> None:
    before = time.perf_counter()
    assert said(predicate) in (Bounded.ALWAYS_TRUE, Bounded.BOUNDED)
    assert time.perf_counter() - before < 2.0


# -- properties


INTEGERS = st.integers(-3, 9).map(str)
COMPARISONS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
COLUMNS = st.sampled_from(["id", "n", "t.id", "public.t.n"])
TESTS = st.sampled_from(["TRUE", "FALSE", "NOT TRUE", "NOT FALSE", "NOT UNKNOWN"])


def parts(template: str, *strategies: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """SQL with its holes filled."""
    return st.tuples(*strategies).map(lambda values: template.format(*values))


WITHOUT_COLUMNS = st.one_of(
    st.sampled_from(["true", "false", "'t'::bool", "'no'::bool"]),
    parts("{} {} {}", INTEGERS, COMPARISONS, INTEGERS),
    parts("{} + {} {} {} * {}", INTEGERS, INTEGERS, COMPARISONS, INTEGERS, INTEGERS),
    parts("{} BETWEEN {} AND {}", INTEGERS, INTEGERS, INTEGERS),
    parts("{} IS NOT NULL", INTEGERS),
)
SCALARS = COLUMNS | INTEGERS | parts("{} + 0", COLUMNS) | parts("{} * 1", COLUMNS)
SIMPLE = st.one_of(
    WITHOUT_COLUMNS,
    parts("{} {} {}", SCALARS, COMPARISONS, SCALARS),
    parts("{} BETWEEN {} AND {}", SCALARS, SCALARS, SCALARS),
    parts("{} IS NULL", SCALARS),
    parts("{} IS NOT NULL", SCALARS),
    parts("{} IS DISTINCT FROM {}", SCALARS, SCALARS),
    parts("{} IS NOT DISTINCT FROM {}", SCALARS, SCALARS),
    parts("{} IN (SELECT {} FROM t)", COLUMNS, st.sampled_from(["id", "n"])),
    parts("{} <> ALL ('{{{}}}')", COLUMNS, INTEGERS),
    st.sampled_from(
        ["flag", "name = 'a'", "name LIKE '%'", "name LIKE 'a%'", "name ~ '.*'", "name <> ''", "ctid IS NOT NULL",
         "EXISTS (SELECT 1)", "EXISTS (SELECT 1 FROM other)", "tags @> '{}'", "id <> ALL ('{}')"]
    ),
)  # fmt: skip


ATOMS = st.one_of(
    SIMPLE,
    parts("{} IN ({}, {})", SCALARS, SCALARS, SCALARS),
    parts("{} NOT IN ({}, {})", SCALARS, SCALARS, SCALARS),
    parts("{} = ANY (ARRAY[{}, {}])", COLUMNS, INTEGERS, INTEGERS),
)


def combined(atoms: st.SearchStrategy[str], *more: str) -> st.SearchStrategy[str]:
    """Predicates made of predicates."""
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            parts("NOT ({})", inner),
            parts("({}) AND ({})", inner, inner),
            parts("({}) OR ({})", inner, inner),
            parts("(({}) IS {})", inner, TESTS),
            parts("coalesce({}, {})", inner, inner),
            *(parts(template, *[inner] * template.count("{}")) for template in more),
        ),
        max_leaves=6,
    )


PROPERTY = settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@PROPERTY
@given(
    predicate=combined(
        ATOMS,
        "CASE WHEN {} THEN {} ELSE {} END",
        "EXISTS (SELECT 1 WHERE {})",
        "id IN (SELECT id FROM t WHERE {})",
        "(SELECT {})",
    )
)
def test_what_is_called_always_true_excludes_no_row(table: Connection, predicate: str) -> None:
    if said(predicate) is Bounded.ALWAYS_TRUE:
        assert deleted(table, predicate) == ROWS


@PROPERTY
@given(predicate=combined(WITHOUT_COLUMNS))
def test_a_predicate_of_plain_constants_is_worked_out(table: Connection, predicate: str) -> None:
    """Here bounded means bounded: the server finds that it is not true."""
    expected = Bounded.ALWAYS_TRUE if deleted(table, predicate) == ROWS else Bounded.BOUNDED
    assert said(predicate) is expected


COMPARED = parts("{} {} {}", SCALARS, COMPARISONS, SCALARS) | st.sampled_from(
    ["flag", "name LIKE 'a%'", "EXISTS (SELECT 1 FROM other)", "id BETWEEN 1 AND 3"]
)


@PROPERTY
@given(inner=COMPARED | parts("({}) AND ({})", COMPARED, COMPARED))
def test_a_predicate_or_its_negation_leaves_nothing_out(inner: str) -> None:
    assert said(f"({inner}) OR NOT ({inner})") is Bounded.ALWAYS_TRUE
    assert said(f"NOT ({inner}) OR ({inner}) OR id = 1") is Bounded.ALWAYS_TRUE


@PROPERTY
@given(inner=combined(ATOMS), other=combined(ATOMS))
def test_the_words_around_a_predicate_mean_what_they_say(inner: str, other: str) -> None:
    """What is added by OR bounds nothing that was not bounded; what is added by AND can only bound."""
    one, both = said(inner), {said(inner), said(other)}
    assert said(f"({inner}) OR true") is Bounded.ALWAYS_TRUE
    assert said(f"({inner}) AND true") is one
    assert said(f"NOT (NOT ({inner}))") is one
    if Bounded.ALWAYS_TRUE in both:
        assert said(f"({inner}) OR ({other})") is Bounded.ALWAYS_TRUE
    if Bounded.BOUNDED in both:
        assert said(f"({inner}) AND ({other})") is Bounded.BOUNDED


@PROPERTY
@given(st.text(max_size=30) | st.lists(st.sampled_from(["NOT", "id", "=", "1", "(", ")", "AND", "OR", "IS", "NULL", "IN",
       "(SELECT", "FROM t)", "true", "CASE", "WHEN", "THEN", "END", "'x'", "~", "LIKE", "::bool", ","]), max_size=12).map(" ".join))  # fmt: skip
def test_no_predicate_raises(predicate: str) -> None:
    analyze_text(f"DELETE FROM t WHERE {predicate}".encode("utf-8", "replace"))


HONEST = [
    "ms < 1700000000000",
    "id IN (SELECT id FROM archive.t)",
    "name LIKE '$'",
    "name LIKE ''",
    "name ~ '%'",
    "price::int = price",
    "at::date = at",
    "n IN (SELECT id FROM t LIMIT 1000)",
    "id > ANY (SELECT id FROM t)",
    "id IN (SELECT id FROM t OFFSET 5)",
    "(SELECT true WHERE id = 5)",
    "name || '0' = name",
    "NULL = NULL",
]
DISGUISED = [
    "t.id = id",
    "id IN (1,2) OR NOT (id IN (1,2))",
    "id IS NULL OR NOT (id IS NULL)",
    "name ~ 'a' OR NOT (name ~ 'a')",
    "NOT flag OR NOT NOT flag",
    "(flag OR id = 1) OR NOT (flag OR id = 1)",
    "7/2 = 3",
    "5 BETWEEN SYMMETRIC 10 AND 1",
    "true = 't'",
    "NOT (true IS UNKNOWN)",
    "NOT (1 IN (2,3))",
    "2147483647 >= n",
]


@pytest.mark.parametrize("predicate", HONEST)
def test_what_looks_like_everything_and_is_not_is_bounded(predicate: str) -> None:
    assert said(predicate) is Bounded.BOUNDED


@pytest.mark.parametrize("predicate", DISGUISED)
def test_what_is_everything_in_disguise_is_seen(predicate: str) -> None:
    assert said(predicate) is Bounded.ALWAYS_TRUE
