"""A ruleset's text to a Ruleset. Gets text and a file name, opens nothing; reports every problem at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sqlwall.errors import ConfigError, Problem
from sqlwall.rules.builtin import BUILTIN_IDS
from sqlwall.rules.keys import RULESET_KEYS
from sqlwall.rules.ruleset import Ruleset
from sqlwall.rules.shapes import Bad, Fields, Report, nearest

#: The only format there is.
VERSION = 1

#: A ruleset is written by hand; what is larger is a mistake, or an attempt at our memory.
MAX_BYTES = 1 << 20

#: Lists and mappings inside each other. The deepest honest one is limits inside a rule; the scanner is quadratic.
MAX_DEPTH = 16


def load(text: str, file: str) -> Ruleset:
    """The ruleset that `text` says; ConfigError with every problem if it says none.

    `file` is only a name for messages.
    """
    report = Report(file)
    node = _document(text, file)
    try:
        ruleset: Ruleset | None = _SHAPE.read(node, report)
    except Bad:
        ruleset = None
    _cross_check(node, report)
    if report.problems or ruleset is None:
        raise ConfigError(*sorted(report.problems, key=lambda problem: (problem.line, problem.column)))
    return replace(ruleset, file=file, digest=hashlib.sha256(text.encode()).hexdigest())


def schema() -> dict[str, Any]:
    """JSON Schema of a ruleset file, for editors; made from the tables that `load` reads by."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sqlwall ruleset",
        **_SHAPE.schema(),
    }


def _document(text: str, file: str) -> Node:
    """The one document of the text, free of everything that YAML can do and a ruleset needs not."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(Problem(f"larger than {MAX_BYTES} bytes", file))
    try:
        problems = _forbidden(text, file)
        if problems:
            raise ConfigError(*problems)
        node = YAML(typ="rt").compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ConfigError(Problem(f"not YAML: {error.problem or error.context}", file, *place)) from error
    except (YAMLError, ValueError) as error:
        raise ConfigError(Problem(f"not YAML: {str(error).splitlines()[0]}", file)) from error
    if node is None:
        raise ConfigError(Problem("the file is empty", file))
    return node  # type: ignore[no-any-return]


def _forbidden(text: str, file: str) -> list[Problem]:
    """Depth, anchors, aliases, tags and directives: before anything is composed, so that no alias can expand."""
    problems: list[Problem] = []
    depth = 0
    for event in YAML(typ="rt").parse(text):
        message = ""
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            return [
                Problem("nested too deeply", file, event.start_mark.line + 1, event.start_mark.column + 1)
            ]
        if isinstance(event, AliasEvent):
            message = f"aliases are not allowed (*{event.anchor})"
        elif isinstance(event, NodeEvent) and event.anchor is not None:
            message = f"anchors are not allowed (&{event.anchor})"
        elif isinstance(event, NodeEvent) and (tag := getattr(event, "tag", None)) is not None:
            message = f"tags are not allowed ({tag})"
        elif isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            message = "directives are not allowed; the file is YAML 1.2"
        if message:
            mark = event.start_mark
            problems.append(Problem(message, file, mark.line + 1, mark.column + 1))
    return problems


def _build(values: Mapping[str, Any], node: Node, report: Report) -> Ruleset:
    return Ruleset(
        name=values["name"],
        version=values["version"],
        mode=values["mode"],
        rules=values["rules"],
        description=values.get("description", ""),
        cases=values.get("cases", ()),
    )


def _cross_check(root: Node, report: Report) -> None:
    """What one entry alone cannot tell. Works on nodes, so that it speaks up even where entries are bad."""
    version = _entry(root, "version")
    if isinstance(version, ScalarNode) and version.value.isdigit() and int(version.value) != VERSION:
        report.add(version, f"version {version.value} is not known; this sqlwall reads version {VERSION}")
    seen: dict[str, int] = {}
    for rule in _items(_entry(root, "rules")):
        name = _entry(rule, "id")
        if not isinstance(name, ScalarNode):
            continue
        if name.value in seen:
            report.add(name, f"the id {name.value!r} already stands in line {seen[name.value]}")
        if name.value.startswith(BUILTIN_PREFIXES):
            report.add(name, f"the id {name.value!r} is one of sqlwall's own")
        seen.setdefault(name.value, name.start_mark.line + 1)
    for case in _items(_entry(root, "cases")):
        wanted = _entry(_entry(case, "expect"), "rule")
        if isinstance(wanted, ScalarNode) and wanted.value not in seen and wanted.value not in BUILTIN_IDS:
            choices = (*seen, *BUILTIN_IDS)
            report.add(wanted, f"no rule has the id {wanted.value!r}{nearest(wanted.value, choices)}")


def _entry(node: Node | None, key: str) -> Node | None:
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if isinstance(name, ScalarNode) and name.value == key:
                return value  # type: ignore[no-any-return]
    return None


def _items(node: Node | None) -> list[Node]:
    return list(node.value) if isinstance(node, SequenceNode) else []


#: Ids that a ruleset cannot give to a rule of its own.
BUILTIN_PREFIXES = ("builtin-", "default-deny")

_SHAPE = Fields(RULESET_KEYS, "the ruleset", _build)
