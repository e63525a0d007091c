"""Does a rule speak about an effect? Every key of a rule becomes one Check; a rule matches if all its checks hold.

`explain` shows the same checks that `judge` runs, so the two cannot disagree.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sqlwall.rules.context import Context, RelationKind
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import WRITE_OPERATIONS, Bounded, Effect, Operation, Statement


class Act(NamedTuple):
    """One effect with its names resolved: what a rule is asked about.

    `schema` and `name` are the relation's, or the function's where `function_kind` is not empty.
    """

    operation: Operation
    effect: Effect
    schema: str = ""
    name: str = ""
    kind: RelationKind | None = None
    function_kind: str = ""
    extension: str | None = None

    @property
    def target(self) -> str:
        """The name for messages: the relation or function, else the subject."""
        if self.name:
            return f"{self.schema}.{self.name}" if self.schema else self.name
        return self.effect.subject or ""


class Check(Protocol):
    """One key of a rule."""

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        """Whether the effect is one that the key speaks about."""
        ...

    def describe(self) -> str:
        """The key as the ruleset has it."""
        ...


class PatternError(ValueError):
    """A glob that cannot mean what its writer thinks."""


#: A part in double quotes is literal, as in psql's patterns; otherwise `*` and `?` are wildcards.
_PART = re.compile(r'"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^".]+)')


@dataclass(frozen=True, slots=True)
class Glob:
    """A compiled pattern of one name."""

    source: str
    test: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class QualifiedGlob:
    """A compiled pattern of ``schema.name``; `schema` None matches every schema."""

    source: str
    schema: Glob | None
    name: Glob

    def matches(self, schema: str, name: str) -> bool:
        return self.name.test(name) and (self.schema is None or self.schema.test(schema))


def _always(_text: str) -> bool:
    return True


def compile_glob(source: str) -> Glob:
    """A pattern of one plain name: `*` any run, `?` any one character, case-sensitive."""
    if not source:
        raise PatternError("an empty pattern matches nothing")
    if "[" in source or "]" in source:
        raise PatternError("character classes are not supported; only * and ? are wildcards")
    if source.strip("*") == "":
        return Glob(source, _always)
    if "*" not in source and "?" not in source:
        return Glob(source, source.__eq__)
    found = re.compile(fnmatch.translate(source)).match
    return Glob(source, lambda text: found(text) is not None)


def split_pattern(source: str) -> list[Glob]:
    """The dotted parts of a pattern."""
    parts: list[Glob] = []
    position = 0
    while True:
        part = _PART.match(source, position)
        if part is None:
            raise PatternError("a pattern is schema.name; put a part with a dot or quote in double quotes")
        quoted = part["quoted"]
        if quoted is None:
            parts.append(compile_glob(part["plain"]))
        else:
            parts.append(Glob(part[0], quoted.replace('""', '"').__eq__))
        position = part.end()
        if position == len(source):
            return parts
        if source[position] != ".":
            raise PatternError("a dot must follow a quoted part")
        position += 1


def compile_table(source: str) -> QualifiedGlob:
    """``schema.name``; a table without schema would silently mean one schema or all of them, so it is refused."""
    parts = split_pattern(source)
    if len(parts) != 2:
        raise PatternError(f"a table pattern is schema.name: write public.{source} or *.{source}")
    return QualifiedGlob(source, parts[0], parts[1])


def compile_function(source: str) -> QualifiedGlob:
    """``schema.name``, or a bare name, which means every schema."""
    parts = split_pattern(source)
    if len(parts) > 2:
        raise PatternError("a function pattern is schema.name or name")
    return QualifiedGlob(source, parts[0] if len(parts) == 2 else None, parts[-1])


def compile_operator(source: str) -> QualifiedGlob:
    """``schema.+`` or ``+``. Operators are made of `*` and `?` too: the operator itself is literal, or `*` for all.

    PostgreSQL's own multiplication is never asked about, so that `*` alone can mean every operator.
    """
    schema, dot, name = source.rpartition(".")
    if not name:
        raise PatternError("an operator pattern is schema.operator or operator")
    test = _always if name == "*" else name.__eq__
    return QualifiedGlob(source, split_pattern(schema)[0] if dot else None, Glob(name, test))


@dataclass(frozen=True, slots=True)
class TableCheck:
    """`tables:`. A SELECT that reads no relation passes an allow rule: there is no table to protect."""

    patterns: tuple[QualifiedGlob, ...]
    action: Action

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        if act.kind is None:
            return (
                self.action is Action.ALLOW and act.operation is Operation.SELECT and not act.effect.subject
            )
        schema, name = act.schema, act.name
        return any(pattern.matches(schema, name) for pattern in self.patterns)

    def describe(self) -> str:
        return _listing("tables", self.patterns)


@dataclass(frozen=True, slots=True)
class KindCheck:
    """`kinds:` of the relation. A SELECT that reads no relation passes an allow rule, as for `tables:`."""

    kinds: frozenset[RelationKind]
    action: Action

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        if act.kind is None:
            return self.action is Action.ALLOW and _reads_nothing(act)
        return act.kind in self.kinds

    def describe(self) -> str:
        return f"kinds {', '.join(sorted(kind.value for kind in self.kinds))}"


@dataclass(frozen=True, slots=True)
class FunctionCheck:
    """`functions:`, `operators:`, `types:` and `extensions:` together: each widens what code the rule speaks about."""

    functions: tuple[QualifiedGlob, ...] = ()
    operators: tuple[QualifiedGlob, ...] = ()
    types: tuple[QualifiedGlob, ...] = ()
    extensions: tuple[Glob, ...] = ()

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        match act.function_kind:
            case "function":
                patterns = self.functions
            case "operator":
                patterns = self.operators
            case "type":
                patterns = self.types
            case _:
                return False
        if any(pattern.matches(act.schema, act.name) for pattern in patterns):
            return True
        extension = act.extension
        return extension is not None and any(pattern.test(extension) for pattern in self.extensions)

    def describe(self) -> str:
        lists = (
            ("functions", self.functions),
            ("operators", self.operators),
            ("types", self.types),
            ("extensions", self.extensions),
        )
        return " or ".join(_listing(key, patterns) for key, patterns in lists if patterns)


@dataclass(frozen=True, slots=True)
class SettingCheck:
    """`settings:`; names of settings are case-insensitive in PostgreSQL, so both sides are folded."""

    patterns: tuple[Glob, ...]

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        if act.operation not in SETTING_OPERATIONS or act.effect.subject is None:
            return False
        name = act.effect.subject.lower()
        return any(pattern.test(name) for pattern in self.patterns)

    def describe(self) -> str:
        return _listing("settings", self.patterns)


@dataclass(frozen=True, slots=True)
class SubjectCheck:
    """`subjects:`, whatever else an effect is about: an object kind, a lock mode, a channel."""

    patterns: tuple[Glob, ...]

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        subject = act.effect.subject
        return subject is not None and any(pattern.test(subject) for pattern in self.patterns)

    def describe(self) -> str:
        return _listing("subjects", self.patterns)


@dataclass(frozen=True, slots=True)
class ColumnCheck:
    """`columns:` written. An allow rule must name them all; any other rule matches if it names one of them.

    An effect without columns writes all of them, or does not say: no allow rule, every other.
    """

    patterns: tuple[Glob, ...]
    action: Action

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        columns = act.effect.columns
        if self.action is Action.ALLOW:
            return bool(columns) and all(self._names(column) for column in columns)
        return not columns or any(self._names(column) for column in columns)

    def _names(self, column: str) -> bool:
        return any(pattern.test(column) for pattern in self.patterns)

    def describe(self) -> str:
        return _listing("columns", self.patterns)


@dataclass(frozen=True, slots=True)
class BoundedCheck:
    """`bounded:`; false speaks of writes without WHERE, or with one that is always true."""

    bounded: bool

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        return (act.effect.bounded is Bounded.BOUNDED) is self.bounded

    def describe(self) -> str:
        return f"bounded: {str(self.bounded).lower()}"


@dataclass(frozen=True, slots=True)
class AgentCheck:
    """`agents:` by name."""

    patterns: tuple[Glob, ...]

    def holds(self, act: Act, statement: Statement, context: Context) -> bool:
        return any(pattern.test(context.agent) for pattern in self.patterns)

    def describe(self) -> str:
        return _listing("agents", self.patterns)


#: Operations whose subject is the name of a setting.
SETTING_OPERATIONS = frozenset({Operation.SET, Operation.RESET, Operation.SHOW})

#: Operations that change something, so that a transaction must be read-write for them.
CHANGING_OPERATIONS = WRITE_OPERATIONS | {
    Operation.CREATE,
    Operation.ALTER,
    Operation.DROP,
    Operation.GRANT,
    Operation.CALL,
    Operation.DO,
    Operation.MAINTENANCE,
}


def _reads_nothing(act: Act) -> bool:
    return act.operation is Operation.SELECT and act.effect.relation is None and not act.effect.subject


def _listing(key: str, patterns: tuple[Glob, ...] | tuple[QualifiedGlob, ...]) -> str:
    return f"{key} {', '.join(pattern.source for pattern in patterns)}"
