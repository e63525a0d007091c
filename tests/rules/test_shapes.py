"""Single shapes: what they read, and that their schema is of the same kind."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML

from sqlwall.rules.shapes import (
    Bad,
    Flag,
    ListOf,
    Measure,
    Report,
    Shape,
    TableOf,
    Text,
    Whole,
    Word,
    nearest,
)

BYTES = Measure({"": 1, "KiB": 1024}, "a size")


def read(shape: Shape, text: str) -> Any:
    report = Report("f")
    return shape.read(YAML(typ="rt").compose(text), report)


@pytest.mark.parametrize(
    ("shape", "text", "value"),
    [
        (Text(), "word", "word"),
        (Text(), "'7'", "7"),
        (Whole(1), "7", 7),
        (Whole(), "1_000", 1000),
        (Flag(), "true", True),
        (Flag(), "False", False),
        (BYTES, "512", 512),
        (BYTES, "2KiB", 2048),
        (BYTES, "2 KiB", 2048),
        (Word({"a": 1}, "a letter"), "a", 1),
        (ListOf(Whole()), "[1, 2]", (1, 2)),
        (TableOf(Whole()), "{a: 1}", {"a": 1}),
    ],
)
def test_a_shape_reads_its_value(shape: Shape, text: str, value: Any) -> None:
    assert read(shape, text) == value


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (Text(), "7"),
        (Text(), "true"),
        (Text(), "''"),
        (Text(), "' '"),
        (Text("x", "[a-z]+"), "a\n\n b"),
        (Whole(1), "0"),
        (Whole(), "'7'"),
        (Whole(), "0x10"),
        (Whole(), "1" * 19),
        (Flag(), "yes"),
        (BYTES, "0"),
        (BYTES, "1.5KiB"),
        (BYTES, "2kib"),
        (Word({"a": 1}, "a letter"), "b"),
        (ListOf(Whole()), "[]"),
        (ListOf(Whole()), "7"),
        (TableOf(Whole()), "{a: 1, a: 2}"),
    ],
)
def test_a_shape_refuses_the_rest(shape: Shape, text: str) -> None:
    if text == "{a: 1, a: 2}":
        report = Report("f")
        shape.read(YAML(typ="rt").compose(text), report)
        assert [problem.column for problem in report.problems] == [8]
        return
    with pytest.raises(Bad):
        read(shape, text)


def test_every_bad_entry_of_a_list_is_reported() -> None:
    report = Report("f")
    with pytest.raises(Bad):
        ListOf(Whole()).read(YAML(typ="rt").compose("[a, 1, b]"), report)
    assert [(problem.line, problem.column) for problem in report.problems] == [(1, 2), (1, 8)]


def test_only_a_near_word_is_suggested() -> None:
    assert nearest("alow", ("allow", "deny")) == "; did you mean 'allow'?"
    assert nearest("xyz", ("allow", "deny")) == ""
