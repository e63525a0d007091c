"""`when:` conditions in CEL, the Common Expression Language: compiled once, evaluated per effect.

A condition that fails to evaluate never opens anything: see `WhenCheck`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlwall.rules.context import Context
from sqlwall.rules.match import Act
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import Statement

if TYPE_CHECKING:
    import cel

#: The variables of a condition and the fields of each.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "statement": (
        "operation",
        "target",
        "schema",
        "table",
        "kind",
        "subject",
        "value",
        "columns",
        "bounded",
        "functions",
        "tag",
    ),
    "agent": ("name",),
    "session": ("user", "database", "application_name"),
}

#: A longer expression is a program, and the parser recurses.
MAX_LENGTH = 4096
MAX_DEPTH = 64

_LITERAL = r"""[rR]?(?:'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
_STRING = re.compile(_LITERAL, re.DOTALL)
_PATTERN = re.compile(rf"\.\s*matches\s*\(\s*({_LITERAL})\s*\)", re.DOTALL)
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*([A-Za-z_]\w*)\s*,")
_FIELD = re.compile(r"\b(statement|agent|session)\s*\.\s*([A-Za-z_]\w*)")


class ConditionError(ValueError):
    """An expression that does not compile, or that names what does not exist; `word` is the unknown one."""

    def __init__(self, message: str, word: str = "", choices: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.word = word
        self.choices = choices


class EvaluationError(Exception):
    """The expression has no truth value for this effect."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled expression."""

    source: str
    program: cel.Program

    def evaluate(self, act: Act, statement: Statement, context: Context) -> bool:
        """The expression's truth; EvaluationError where it has none."""
        try:
            result = self.program.execute(_variables(act, statement, context))
        except Exception as error:
            raise EvaluationError(str(error)) from error
        if not isinstance(result, bool):
            raise EvaluationError(f"the value is {type(result).__name__}, not true or false")
        return result


@dataclass(frozen=True, slots=True)
class WhenCheck:
    """`when:`. A condition that cannot be evaluated holds for a rule that restricts and fails for one that allows."""

    condition: Condition
    action: Action

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        try:
            return self.condition.evaluate(act, statement, context)
        except EvaluationError:
            return self.action is not Action.ALLOW

    def describe(self) -> str:
        return f"when {self.condition.source}"


def _cel() -> Any:
    """The library, which brings a command line of its own and takes longer to load than most rulesets to be read."""
    return import_module("cel")


def compile_condition(source: str) -> Condition:
    """Compile, and refuse names that no evaluation could find."""
    if len(source) > MAX_LENGTH:
        raise ConditionError(f"the expression is longer than {MAX_LENGTH} characters")
    bare = _STRING.sub("''", source)
    if _depth(bare) > MAX_DEPTH:
        raise ConditionError(f"the expression is nested more than {MAX_DEPTH} deep")
    try:
        program: cel.Program = _cel().compile(source)
    except Exception as error:
        raise ConditionError(_first_line(str(error))) from error
    bound = set(_MACRO.findall(bare))
    for variable in program.variables():
        if variable not in FIELDS and variable not in bound:
            raise ConditionError(f"unknown variable {variable!r}", variable, tuple(FIELDS))
    for variable, name in _FIELD.findall(bare):
        if variable not in bound and name not in FIELDS[variable]:
            raise ConditionError(f"{variable} has no field {name!r}", name, FIELDS[variable])
    _refuse_unknown_functions(program)
    _refuse_bad_patterns(source)
    return Condition(source, program)


def _refuse_bad_patterns(source: str) -> None:
    """A pattern that is no regular expression would fail at every evaluation."""
    for literal in _PATTERN.findall(source):
        try:
            _cel().evaluate(f"''.matches({literal})")
        except Exception as error:
            raise ConditionError(f"{literal} is not a regular expression") from error


def _refuse_unknown_functions(program: cel.Program) -> None:
    for name in program.functions():
        if name.isidentifier() and name not in FUNCTIONS and not name.startswith("_"):
            raise ConditionError(f"unknown function {name!r}", name, FUNCTIONS)


#: CEL's own functions, as the library has them without extensions.
FUNCTIONS = (
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "bool",
    "timestamp",
    "duration",
)


def _variables(act: Act, statement: Statement, context: Context) -> dict[str, dict[str, Any]]:
    effect = act.effect
    return {
        "statement": {
            "operation": act.operation.value,
            "target": act.target,
            "schema": act.schema,
            "table": act.name if act.kind is not None else "",
            "kind": act.kind.value if act.kind is not None else "",
            "subject": effect.subject or "",
            "value": effect.value or "",
            "columns": list(effect.columns),
            "bounded": effect.bounded.value == "bounded",
            "functions": [str(function) for function in statement.functions],
            "tag": statement.tag,
        },
        "agent": {"name": context.agent},
        "session": {
            "user": context.user,
            "database": context.database,
            "application_name": context.application_name,
        },
    }


def _depth(text: str) -> int:
    return max(_depths(text), default=0)


def _depths(text: str) -> Iterator[int]:
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        yield depth


def _first_line(text: str) -> str:
    line = text.splitlines()[0] if text else "cannot be compiled"
    return line.partition(" expecting ")[0]
