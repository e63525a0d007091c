"""The vocabulary of a ruleset file: each shape reads one YAML node and describes itself as JSON Schema.

One table of keys serves the loader and the schema, so an editor never promises what the loader refuses.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sqlwall.errors import Problem

_TAG = "tag:yaml.org,2002:"


class Report:
    """Collects the problems of one file, so that all are told at once."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(self, node: Node, message: str) -> None:
        """Note a problem where the node starts; lines and columns count from 1."""
        mark = node.start_mark
        self.problems.append(Problem(message, self.file, mark.line + 1, mark.column + 1))

    def at(self, line: int, column: int, message: str) -> None:
        """Note a problem at a place."""
        self.problems.append(Problem(message, self.file, line, column))


class Bad(Exception):  # noqa: N818 - it never leaves the loader; a word, not an error class
    """A node was reported and has no value."""


class Shape(Protocol):
    """What a node must be."""

    def read(self, node: Node, report: Report) -> Any:
        """The node's value; reports and raises Bad if it has none."""
        ...

    def schema(self) -> dict[str, Any]:
        """The same as JSON Schema."""
        ...


def nearest(word: str, choices: Iterable[str]) -> str:
    """A suggestion to put behind a message; empty if nothing is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def type_name(node: Node) -> str:
    """What the writer of the file would call the node."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    return {
        "str": "text",
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
        "null": "nothing",
    }.get(str(node.tag).removeprefix(_TAG), f"{node.value!r}")


def _scalar(node: Node, report: Report, kinds: tuple[str, ...], wanted: str) -> str:
    if isinstance(node, ScalarNode) and str(node.tag).removeprefix(_TAG) in kinds:
        return str(node.value)
    report.add(node, f"expected {wanted}, found {type_name(node)}")
    raise Bad


@dataclass(frozen=True, slots=True)
class Text:
    """A string; `pattern` narrows it, and `wanted` says so in words."""

    wanted: str = "text"
    pattern: str = ""

    def read(self, node: Node, report: Report) -> str:
        text = _scalar(node, report, ("str",), self.wanted)
        if not text.strip():
            report.add(node, f"expected {self.wanted}, found empty text")
            raise Bad
        if self.pattern and not re.fullmatch(self.pattern, text):
            report.add(node, f"expected {self.wanted}, found {text!r}")
            raise Bad
        return text

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if self.pattern:
            schema["pattern"] = f"^(?:{self.pattern})$"
        return schema


@dataclass(frozen=True, slots=True)
class Sql:
    """A string that may be anything at all."""

    def read(self, node: Node, report: Report) -> str:
        return _scalar(node, report, ("str",), "SQL text")

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True, slots=True)
class Word:
    """One of a closed set of words, each with the value it stands for."""

    words: Mapping[str, Any]
    wanted: str

    def read(self, node: Node, report: Report) -> Any:
        text = _scalar(node, report, ("str",), self.wanted)
        if text not in self.words:
            choices = ", ".join(self.words) if len(self.words) <= 8 else f"{len(self.words)} words"
            report.add(node, f"{text!r} is not {self.wanted} ({choices}){nearest(text, self.words)}")
            raise Bad
        return self.words[text]

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def read(self, node: Node, report: Report) -> bool:
        return _scalar(node, report, ("bool",), "true or false").lower() == "true"

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number of at least `least`."""

    least: int = 0

    def read(self, node: Node, report: Report) -> int:
        text = _scalar(node, report, ("int",), "a whole number").replace("_", "")
        if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < self.least:
            report.add(node, f"expected a whole number of at least {self.least}, found {text}")
            raise Bad
        return int(text)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least}


@dataclass(frozen=True, slots=True)
class Measure:
    """A number with a unit, such as ``30s`` or ``10MiB``; without a unit only if `units` has the empty one."""

    units: Mapping[str, float]
    wanted: str

    def read(self, node: Node, report: Report) -> float:
        text = _scalar(node, report, ("str", "int"), self.wanted)
        number = re.fullmatch(r"([0-9]{1,15})\s*([A-Za-z]*|%)", text)
        if number is None or number[2] not in self.units or int(number[1]) == 0:
            unit = number[2] if number else ""
            hint = nearest(unit, self.units) if unit and unit not in self.units else ""
            report.add(node, f"expected {self.wanted}, found {text!r}{hint}")
            raise Bad
        return int(number[1]) * self.units[number[2]]

    def schema(self) -> dict[str, Any]:
        units = "|".join(self.units)
        text = {"type": "string", "pattern": rf"^[0-9]{{1,15}}\s*(?:{units})$"}
        return {"anyOf": [text, {"type": "integer", "minimum": 1}]} if "" in self.units else text


@dataclass(frozen=True, slots=True)
class Compiled:
    """A string that is compiled while it is read; the compiler's ValueError becomes the problem."""

    compile: Callable[[str], Any]
    wanted: str

    def read(self, node: Node, report: Report) -> Any:
        text = Text(self.wanted).read(node, report)
        try:
            return self.compile(text)
        except ValueError as error:
            report.add(node, f"{error}")
            raise Bad from error

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "description": self.wanted}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list with at least one entry: an empty one would match nothing, and look like no restriction."""

    item: Shape

    def read(self, node: Node, report: Report) -> tuple[Any, ...]:
        if not isinstance(node, SequenceNode):
            report.add(node, f"expected a list, found {type_name(node)}")
            raise Bad
        if not node.value:
            report.add(node, "the list is empty; leave the key out, or name something")
            raise Bad
        return read_all(self.item, node.value, report)

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.item.schema(), "minItems": 1}


@dataclass(frozen=True, slots=True)
class TableOf:
    """A mapping from free names to values of one shape."""

    value: Shape

    def read(self, node: Node, report: Report) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs(node, report):
            found[str(key.value)] = self.value.read(value, report)
        return found

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.value.schema()}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a mapping."""

    shape: Shape
    meaning: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping with a closed set of keys. `build` makes the value from what was read and the node."""

    keys: Mapping[str, Key]
    what: str
    build: Callable[[Mapping[str, Any], Node, Report], Any]

    def read(self, node: Node, report: Report) -> Any:
        values: dict[str, Any] = {}
        failed = False
        for key, value in pairs(node, report):
            name = str(key.value)
            entry = self.keys.get(name)
            if entry is None:
                report.add(key, f"unknown key {name!r} in {self.what}{nearest(name, self.keys)}")
                failed = True
                continue
            try:
                values[name] = entry.shape.read(value, report)
            except Bad:
                values[name] = None
                failed = True
        for name, entry in self.keys.items():
            if entry.required and name not in values:
                report.add(node, f"{self.what} needs the key {name!r}")
                failed = True
        if failed:
            raise Bad
        return self.build(values, node, report)

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "additionalProperties": False,
            "required": [name for name, key in self.keys.items() if key.required],
            "properties": {
                name: {**key.shape.schema(), "description": key.meaning} for name, key in self.keys.items()
            },
        }


def pairs(node: Node, report: Report) -> list[tuple[ScalarNode, Node]]:
    """The entries of a mapping; anything else, and a key that is no text or stands twice, is reported."""
    if not isinstance(node, MappingNode):
        report.add(node, f"expected a mapping, found {type_name(node)}")
        raise Bad
    seen: dict[str, int] = {}
    found: list[tuple[ScalarNode, Node]] = []
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            report.add(key, f"expected a key, found {type_name(key)}")
            continue
        name = str(key.value)
        if name in seen:
            report.add(key, f"the key {name!r} already stands in line {seen[name]}")
            continue
        seen[name] = key.start_mark.line + 1
        found.append((key, value))
    return found


def read_all(shape: Shape, nodes: Iterable[Node], report: Report) -> tuple[Any, ...]:
    """Read every node, so that each bad one is reported, then fail if any was."""
    values: list[Any] = []
    failed = False
    for node in nodes:
        try:
            values.append(shape.read(node, report))
        except Bad:
            failed = True
    if failed:
        raise Bad
    return tuple(values)
