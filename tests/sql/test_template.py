"""One parse for many texts: whatever has the same key as a template has the same facts as a fresh parse finds."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlwall.sql.parse import analyze_text
from sqlwall.sql.template import TEMPLATE_LIMIT, is_template, key_of

DATA = Path(__file__).parent / "data"

TEMPLATES = [
    "SELECT abalance FROM pgbench_accounts WHERE aid = 1;",
    "SELECT 1",
    "SELECT 'a', b FROM t",
    "SELECT * FROM s.t WHERE a = 1 AND (b <> 'it' OR NOT c > 000000001)",
    "SELECT * FROM t WHERE a IN (1, 22, 'c') AND b BETWEEN 5 AND 6",
    "SELECT f(a) FROM t JOIN u ON t.id = u.id AND u.x = 'y' WHERE t.a LIKE 'x%'",
    "SELECT a FROM t WHERE a = 5 FOR UPDATE",
    "SELECT a FROM t WHERE a = ''",
    "SELECT a /5 FROM t HAVING sum(a) > 7",
    "SELECT -1",
    "SELECT a - 1, a -1, a + - 1 FROM t",
    "VALUES (1)",
    "INSERT INTO t VALUES (1, -2), (3, 'x')",
    "INSERT INTO t (a, b) VALUES (1, CURRENT_TIMESTAMP) RETURNING a",
    "INSERT INTO t SELECT a, 1 FROM u WHERE b = 2 OR c < 3",
    "UPDATE t SET a = 1 WHERE b = 2",
    "UPDATE t SET a = a + -17, c = 'x' WHERE b = 2 AND c = 'y' RETURNING a",
    "UPDATE t SET a = 1",
    "UPDATE t SET a = 1 WHERE b = c",
    "DELETE FROM t WHERE b = 2 AND u = 3 AND c IS NULL",
]

NOT_TEMPLATES = [
    "SELECT a FROM t WHERE a = 'b''c'",
    "SELECT a FROM t WHERE a = 'b'\n'c'",
    "SELECT a FROM t WHERE a = E'b'",
    "SELECT a FROM t WHERE a = B'01'",
    "SELECT a FROM t WHERE a = X'01'",
    "SELECT a FROM t WHERE a = N'b'",
    "SELECT a FROM t WHERE a = U&'b'",
    "SELECT a FROM t WHERE a = $$b$$ AND c = 1",
    "SELECT a FROM t WHERE a = $1 AND c = 1",
    'SELECT "a" FROM t WHERE a = 1',
    "SELECT a FROM t -- 'x'\n WHERE a = 1",
    "SELECT a FROM t /* 'x' */ WHERE a = 1",
    "SELECT a FROM t WHERE a = 'b\\c'",
    "SELECT a FROM t WHERE é = 'b'",
    "SELECT a FROM t WHERE a = 'é'",
    "SELECT a FROM t LIMIT 1",
    "SELECT a FROM t OFFSET 1",
    "SELECT a FROM t ORDER BY 1",
    "SELECT set_config('search_path', 'x', false)",
    "SELECT nextval('s')",
    "SELECT pg_catalog.set_config('role', 'x', 1 = 1)",
    "SELECT date '2024-01-01'",
    "SELECT interval '1 day'",
    "SELECT a::varchar(4) FROM t",
    "SELECT 1::text",
    "SELECT CAST(1 AS text)",
    "SELECT ARRAY[1]",
    "SELECT (ARRAY[a])[1] FROM t",
    "SELECT CASE WHEN a = 1 THEN b END FROM t",
    "SELECT a FROM t WHERE a = (SELECT 1)",
    "WITH w AS (SELECT 1) SELECT * FROM w",
    "SELECT 1 UNION SELECT 2",
    "SELECT a FROM t WHERE (a, b) = (1, 2)",
    "SELECT a FROM t TABLESAMPLE system (1)",
    "SELECT * FROM generate_series(1, 2)",
    "SELECT 1; SELECT 2",
    "SELECT - -1",
    "SELECT a @-1 FROM t WHERE b = - - 2",
    "DELETE FROM t WHERE 1 = 1",
    "DELETE FROM t WHERE a = 1 OR a = 2",
    "DELETE FROM t WHERE NOT a = 1",
    "DELETE FROM t WHERE a > 1",
    "DELETE FROM t WHERE a IN (1)",
    "DELETE FROM t WHERE 1 = a",
    "DELETE FROM t WHERE a + 1 = 2",
    "DELETE FROM t WHERE a LIKE 'x'",
    "DELETE FROM t WHERE 't'",
    "DELETE FROM t USING u WHERE t.a = u.a AND u.b = (SELECT 1)",
    "UPDATE t SET a = 1 WHERE b = 2 AND true = (c = 1)",
    "UPDATE t SET a = (SELECT 1) WHERE b = 2",
    "UPDATE t SET a[1] = 2 WHERE b = 2",
    "UPDATE t SET a = f(1) WHERE b = 2",
    "UPDATE t SET a = 1::text WHERE b = 2",
    "INSERT INTO t VALUES (nextval('s'))",
    "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
    "INSERT INTO t SELECT a FROM u LIMIT 1",
    "MERGE INTO t USING u ON t.a = u.a WHEN MATCHED AND u.b = 1 THEN DELETE",
    "SET a = 1",
    "SELECT a FROM t WHERE a = ",
    "SELECT a1 FROM t2 WHERE a = b3",
    "SELECT 1234567890",
    "SELECT 1.5, 2e3, .5, 1_000, 0x1F",
    "SELECT 'a",
    "SELECT a FROM t WHERE a = '" + "b" * 256 + "'",
    "SELECT a FROM t WHERE a = 1" + " " * TEMPLATE_LIMIT,
]


def varied(text: bytes, source: random.Random) -> bytes:
    """The text with other digits and other letters wherever its key says that they do not matter."""
    key = key_of(text)
    assert key is not None
    new = bytearray(text)
    is_inside = False
    for place, byte in enumerate(key):
        if byte == ord("'"):
            is_inside = not is_inside
        elif is_inside:
            # Where the string was not blotted out this gives another key, which `sharing` tells.
            new[place] = source.choice(b"0aZ ;)(=-+*/%_.,:@set") if source.random() < 0.7 else text[place]
        elif byte == ord("0") and (text[place] != ord("0") or source.random() < 0.5):
            new[place] = source.choice(b"0123456789")
    return bytes(new)


def sharing(text: bytes, source: random.Random) -> bytes | None:
    """Another text of the same key; None if none was found."""
    for _ in range(5):
        other = varied(text, source)
        if other != text and key_of(other) == key_of(text):
            return other
    return None


def known_texts() -> list[bytes]:
    """Every statement that the tests of this room have, PostgreSQL's own ones among them."""
    found = {text.encode() for text in TEMPLATES + NOT_TEMPLATES}
    for path in DATA.iterdir():
        raw = path.read_bytes()
        found.update(part.strip() for part in re.split(rb";\s*\n", raw))
        if path.suffix == ".yaml":
            found.update(text.encode() for text in strings_in(yaml.safe_load(raw)))
    return sorted(found)


def strings_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in strings_in(item)]


@pytest.mark.parametrize("text", TEMPLATES)
def test_literals_that_are_selected_or_compared_make_a_template(text: str) -> None:
    assert is_template(text.encode())
    other = sharing(text.encode(), random.Random(1))
    if other is not None:
        assert is_template(other)
        assert analyze_text(other) == analyze_text(text.encode())


@pytest.mark.parametrize("text", NOT_TEMPLATES)
def test_whatever_is_less_simple_makes_none(text: str) -> None:
    assert not is_template(text.encode())


def test_a_key_is_as_long_as_its_text_and_holds_all_but_the_literals() -> None:
    assert (
        key_of(b"SELECT a1 FROM t WHERE b = 'x y' AND c = 17")
        == b"SELECT a1 FROM t WHERE b = '000' AND c = 00"
    )
    assert key_of(b"SELECT a FROM t") is None


def test_strings_and_numbers_of_the_same_length_have_different_keys() -> None:
    assert key_of(b"SELECT '1'") != key_of(b"SELECT 123")
    assert key_of(b"SELECT 12") != key_of(b"SELECT 1 ")
    assert key_of(b"SELECT 1.5") != key_of(b"SELECT 123")


def test_known_statements_of_one_key_have_the_same_facts() -> None:
    source = random.Random(4711)
    templates = 0
    for text in known_texts():
        if not is_template(text):
            continue
        templates += 1
        facts = analyze_text(text)
        for _ in range(20):
            other = sharing(text, source)
            assert other is None or (is_template(other) and analyze_text(other) == facts), (text, other)
    assert templates >= 10


LITERALS = st.one_of(
    st.integers(0, 10**12).map(str),
    st.from_regex(r"'[ -&(-~]{0,12}'", fullmatch=True),
    st.from_regex(r"[EBXNebxn]?'([ -&(-~]|''){0,6}'", fullmatch=True),
    st.sampled_from(
        ["0", "1", "''", "'a''b'", "1.5", ".5", "1e3", "0x1f", "1_0", "$1", "$$x$$", "-1", "NULL", "true"]
    ),
)
OPERANDS = st.one_of(LITERALS, st.sampled_from(["a", "t.b", '"c"', "set", "a1", "é"]))
EXPRESSIONS = st.recursive(
    OPERANDS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["=", " = ", "<>", "+", "-", "||", " LIKE ", " AND ", " OR ", " IN "]), inner)
        .map("".join),
        inner.map("({})".format),
        inner.map("NOT {}".format),
        inner.map("f({})".format),
        inner.map("set_config({}, 'x', false)".format),
        inner.map("set_config('role', {}, false)".format),
        inner.map("{}::text".format),
        inner.map("(SELECT {})".format),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}, {two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"a BETWEEN {two[0]} AND {two[1]}"),
    ),
    max_leaves=6,
)  # fmt: skip
SHAPES = st.sampled_from(
    [
        "SELECT {}", "SELECT {} FROM t WHERE {}", "SELECT a FROM t WHERE a = {} AND {} ORDER BY {}",
        "SELECT a FROM t JOIN u ON {} WHERE {} LIMIT {}", "SELECT a FROM t WHERE a IN ({}, {})", "SELECT {} -- {}",
        "SELECT {} /* {} */", "UPDATE t SET a = {} WHERE {}", "DELETE FROM t WHERE {}",
        "UPDATE t SET a = {} WHERE a = {} AND {}", "DELETE FROM t WHERE b = {} AND c = {} AND {}", "INSERT INTO t VALUES ({}, {})",
        "SELECT a FROM t GROUP BY a HAVING {}", "SELECT {} AS x INTO u FROM t", "SET search_path = {}", "SELECT {}; {}",
    ]
)  # fmt: skip


@st.composite
def statements(draw: st.DrawFn) -> bytes:
    shape = draw(SHAPES)
    return re.sub(r"\{\}", lambda _: draw(EXPRESSIONS), shape).encode()


@settings(max_examples=1500, deadline=None)
@given(statements(), st.integers(0, 2**32))
def test_made_up_statements_of_one_key_have_the_same_facts(text: bytes, seed: int) -> None:
    if not is_template(text):
        return
    facts = analyze_text(text)
    assert isinstance(facts, tuple)
    source = random.Random(seed)
    for _ in range(10):
        other = sharing(text, source)
        assert other is None or analyze_text(other) == facts
