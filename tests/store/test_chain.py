"""A record's canonical bytes: whatever is changed, the hash changes; whatever is given, it can be stored."""

from __future__ import annotations

import hashlib
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.store.chain import (
    FIELDS,
    NO_HASH,
    STATEMENT_LIMIT,
    AuditedText,
    AuditKind,
    AuditRecord,
    Head,
    StoredRecord,
    chained,
    digest,
)
from sqlwall.store.schema import AUDIT

VALUES = st.none() | st.text(max_size=20) | st.integers(-(2**63), 2**63)
LISTS = st.lists(VALUES, max_size=6)


def test_the_columns_are_those_of_the_table() -> None:
    assert [column.name for column in AUDIT.columns] == ["position", *FIELDS, "hash"]
    assert [field.name for field in fields(StoredRecord)] == [*FIELDS, "hash"]


@given(LISTS, LISTS)
def test_two_lists_of_values_share_a_hash_only_if_they_are_equal(
    one: list[object], other: list[object]
) -> None:
    assert (digest(one) == digest(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        (["1"], [1]),
        ([None], [""]),
        ([None], []),
        (["n"], [None]),
        (["t1:a"], ["a"]),
        ([1, 2], [12]),
        ([-1], [1]),
        (["a", ""], ["a"]),
        (["é"], ["e\u0301"]),
    ],
)
def test_values_that_look_alike_have_other_hashes(one: list[object], other: list[object]) -> None:
    assert digest(one) != digest(other)


@pytest.mark.parametrize("value", [1.0, True, b"x", (), "\ud800"])
def test_what_the_store_never_writes_has_no_hash(value: object) -> None:
    with pytest.raises((ValueError, UnicodeError)):
        digest([value])


def test_the_hash_is_that_of_the_canonical_bytes() -> None:
    expected = hashlib.sha256(b"sqlwall audit 1\nt2:\xc3\xa9ni-5;").hexdigest()
    assert digest(["é", None, -5]) == expected


def test_a_record_is_chained_to_the_one_before() -> None:
    record = AuditRecord(AuditKind.STATEMENT, agent="bot")
    first = chained(record, "W", 0, NO_HASH)
    second = chained(record, "W", 1, str(first[-1]))
    assert first[-1] == digest(first[:-1])
    assert second[FIELDS.index("prev_hash")] == first[-1]
    assert first[-1] != second[-1]


TEXTS = st.text(max_size=40) | st.text(st.characters(categories=["Cs", "Cc", "Co"]), max_size=10)


@given(TEXTS, st.none() | TEXTS, st.integers(), st.none() | st.integers())
def test_whatever_a_client_sends_can_be_stored(
    agent: str, reason: str | None, rows: int, parameters: int | None
) -> None:
    values = chained(
        AuditRecord(AuditKind.REFUSAL, agent=agent, reason=reason, rows=rows, parameters=parameters, event=agent),
        "W", 0, NO_HASH,
    )  # fmt: skip
    for value in values:
        if isinstance(value, str):
            assert "\0" not in value
            value.encode("utf-8")
        elif value is not None:
            assert -(2**63) < value < 2**63


def test_a_long_text_is_cut() -> None:
    values = chained(AuditRecord(AuditKind.REFUSAL, reason="é" * 5000), "W", 0, NO_HASH)
    assert values[FIELDS.index("reason")] == "é" * 2048 + "…"


@given(st.binary(max_size=60), st.integers(0, 60))
def test_a_statement_keeps_its_first_whole_characters_and_the_hash_of_all(raw: bytes, limit: int) -> None:
    text = AuditedText.of(raw, limit)
    assert text.length == len(raw)
    assert text.sha256 == hashlib.sha256(raw).hexdigest()
    assert "\0" not in text.text
    text.text.encode("utf-8")


@given(st.text(max_size=30), st.integers(0, 60))
def test_a_statement_is_never_cut_inside_a_character(text: str, limit: int) -> None:
    kept = AuditedText.of(text.encode("utf-8", "replace"), limit).text.replace("\\x00", "\0")
    assert text.encode("utf-8", "replace").decode().startswith(kept)
    assert len(kept.encode()) > limit - 4 or kept == text.encode("utf-8", "replace").decode()


def test_bytes_that_are_no_text_are_shown_escaped() -> None:
    assert AuditedText.of(b"SELECT '\xff\x00'").text == "SELECT '\\xff\\x00'"


def test_a_statement_of_the_limit_is_whole() -> None:
    assert len(AuditedText.of(b"x" * (STATEMENT_LIMIT + 1)).text) == STATEMENT_LIMIT
    assert len(AuditedText.of(b"x" * STATEMENT_LIMIT).text) == STATEMENT_LIMIT


@given(
    st.from_regex(r"[0-9A-Z]{1,26}", fullmatch=True),
    st.integers(0, 2**62),
    st.binary(min_size=32, max_size=32),
)
def test_a_head_comes_back(writer: str, sequence: int, raw: bytes) -> None:
    head = Head(writer, sequence, raw.hex())
    assert Head.parse(str(head)) == head
    assert Head.parse(f" {head}\n") == head


@pytest.mark.parametrize(
    "text", ["", "W", "W:1", f":1:{NO_HASH}", f"W:x:{NO_HASH}", f"W:-1:{NO_HASH}", f"W:²:{NO_HASH}", "W:1:abc",
             f"W:1:{'G' * 64}", f"W:1:{NO_HASH}:"],
)  # fmt: skip
def test_anything_else_is_no_head(text: str) -> None:
    with pytest.raises(ValueError):
        Head.parse(text)
