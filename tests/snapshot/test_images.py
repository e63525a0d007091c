"""Addresses, names, and lines of COPY text."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from sqlwall.snapshot.images import (
    batches,
    copy_line,
    qualify,
    quote_identifier,
    quote_literal,
    read_tid,
    tid_array,
    tid_text,
)
from tests.postgres import Server

TIDS = st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**16 - 1)).map(
    lambda pair: pair[0] << 16 | pair[1]
)


@given(TIDS)
def test_an_address_is_read_as_it_was_written(tid: int) -> None:
    assert read_tid(tid_text(tid)) == tid
    assert read_tid(tid_text(tid).encode()) == tid


@pytest.mark.parametrize("text", ["", "()", "(1)", "(a,b)", "1"])
def test_what_is_no_address_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"tid|invalid literal|substring"):
        read_tid(text)


def test_an_array_of_addresses_is_what_the_server_reads(postgres: Server) -> None:
    tids = [1, 2 << 16 | 3, (2**32 - 2) << 16 | 65535]
    with postgres.connect() as connection:
        found = connection.execute(f"SELECT unnest({tid_array(tids)})::text").fetchall()
    assert [read_tid(row[0]) for row in found] == tids


def test_batches_are_whole_and_in_order() -> None:
    assert [list(batch) for batch in batches(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(NAMES)
def test_names_and_constants_are_what_the_server_reads(postgres: Server, name: str) -> None:
    with postgres.connect() as connection:
        for conforming in ("on", "off"):
            connection.execute(f"SET standard_conforming_strings = {conforming}")
            connection.execute("SET escape_string_warning = off")
            query = f"SELECT {quote_literal(name)}::text AS {quote_identifier(name)}"
            cursor = connection.execute(query)
            assert cursor.fetchone() == (name,)
            assert cursor.description is not None
            cut = name.encode()[:63].decode(errors="ignore")
            assert cursor.description[0].name == cut
    assert qualify("a", name) == f'"a".{quote_identifier(name)}'


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))),
        min_size=2,
        max_size=4,
    )
)
def test_a_line_is_what_copy_itself_writes_and_reads(postgres: Server, values: list[str | None]) -> None:
    line = copy_line([None if value is None else value.encode() for value in values])
    with postgres.connect() as connection:
        columns = ", ".join(f"c{place} text" for place in range(len(values)))
        connection.execute(f"CREATE TEMP TABLE lines ({columns})")
        with connection.cursor() as cursor, cursor.copy("COPY lines FROM STDIN") as copy:
            copy.write(line)
        assert connection.execute("SELECT * FROM lines").fetchone() == tuple(values)
        with connection.cursor() as cursor, cursor.copy("COPY lines TO STDOUT") as copy:
            assert b"".join(bytes(data) for data in copy) == line


def test_an_unquotable_name_reaches_no_other_table(postgres: Server) -> None:
    odd = 'a"; DROP TABLE b; --'
    with postgres.connect() as connection:
        connection.execute(sql.SQL("CREATE TEMP TABLE {} (v int)").format(sql.Identifier(odd)))
        assert connection.execute(f"SELECT * FROM pg_temp.{quote_identifier(odd)}").fetchall() == []
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute(f"SELECT * FROM {qualify('public', odd)}")
