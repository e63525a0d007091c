"""From an UPDATE or DELETE to the SELECT that lists and locks the rows it is about to touch, in the client's own words.

The clauses are slices of the client's text, never a print of the tree: what they mean is then the server's business
alone. The result proves nothing (`snapshot.proof` does); where it cannot be made with certainty, there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pglast.parser import ParseError, Token, parse_sql_json, scan

from sqlwall.sql.parse import analyze_text
from sqlwall.sql.statement import WRITE_OPERATIONS, Operation, Relation, Statement

#: The scanner is quadratic in texts that are not ASCII (MECHANICS, section 10).
TEXT_LIMIT: Final = 8192

_OPENING: Final = frozenset({"ASCII_40", "ASCII_91"})
_CLOSING: Final = frozenset({"ASCII_41", "ASCII_93"})
_COMMENTS: Final = frozenset({"SQL_COMMENT", "C_COMMENT"})
_READING: Final = frozenset({Operation.SELECT, Operation.LOCK})


@dataclass(frozen=True, slots=True)
class CaptureText:
    """A SELECT of tableoid and ctid. `parameters` are the numbers of the client's parameters that it uses."""

    sql: bytes
    parameters: tuple[int, ...]
    relation: Relation
    operation: Operation

    def with_limit(self, most: int) -> bytes:
        """The text, listing at most so many rows."""
        return self.sql + b" LIMIT " + str(most).encode()


@dataclass(frozen=True, slots=True)
class NotCapturable:
    """Why there is none."""

    reason: str


class _Odd(Exception):  # noqa: N818 - leads to an answer
    """The text is not of the shape that is understood here."""


def capture_text(text: bytes, statement: Statement) -> CaptureText | NotCapturable:
    """The capture of one statement of a text whose facts are known."""
    writes = [effect for effect in statement.effects if effect.operation in WRITE_OPERATIONS]
    if len(writes) != 1:
        return NotCapturable("it writes more than one relation")
    write, relation = writes[0], writes[0].relation
    if relation is None or write.operation not in (Operation.UPDATE, Operation.DELETE):
        return NotCapturable("it is neither UPDATE nor DELETE")
    if statement.volatile:
        return NotCapturable("it runs code that may do something each time")
    if len(text) > TEXT_LIMIT:
        return NotCapturable("the text is too long")
    try:
        sql, parameters = _compose(text[statement.start : statement.end].decode())
    except _Odd as odd:
        return NotCapturable(str(odd))
    except (ParseError, UnicodeDecodeError, orjson.JSONDecodeError, RecursionError) as error:
        return NotCapturable(f"it cannot be read again: {type(error).__name__}")
    capture = CaptureText(sql.encode(), parameters, relation, write.operation)
    return (
        capture if _only_reads(capture.sql, statement) else NotCapturable("its capture would not only read")
    )


def _compose(text: str) -> tuple[str, tuple[int, ...]]:
    """The capture of a text that is this one statement, and the parameters in it."""
    stmts = orjson.loads(parse_sql_json(text)).get("stmts", ())
    if len(stmts) != 1:
        raise _Odd("it is not one statement")
    ((kind, body),) = stmts[0]["stmt"].items()
    if kind not in ("UpdateStmt", "DeleteStmt"):
        raise _Odd("it is wrapped in another statement")
    if "CurrentOfExpr" in body.get("whereClause", ()):
        raise _Odd("a cursor says which row")
    tokens = [token for token in scan(text) if token.name not in _COMMENTS]
    clauses = _Clauses(text, tokens, body)
    relation = body["relation"]
    alias = relation.get("alias", {}).get("aliasname") or relation["relname"]
    name = '"' + alias.replace('"', '""') + '"'
    parts = [clauses.before(), f"SELECT {name}.tableoid, {name}.ctid FROM {clauses.target()}\n"]  # noqa: S608
    others = clauses.others()
    if others:
        parts.append(f", {others}\n")
    condition = clauses.condition()
    if condition:
        parts.append(f"WHERE ({condition}\n)")
    parts.append(f" FOR {'NO KEY UPDATE' if kind == 'UpdateStmt' else 'UPDATE'} OF {name}")
    return "".join(parts), clauses.parameters()


class _Clauses:
    """The clauses of one UPDATE or DELETE as slices of its text. Only tokens outside of all brackets divide them."""

    def __init__(self, text: str, tokens: Sequence[Token], body: dict[str, Any]) -> None:
        self._text = text
        self._tokens = tokens
        self._outer = _outer(tokens)
        self._has_with = "withClause" in body
        self._used: list[tuple[int, int]] = []
        location = _characters(text, body["relation"]["location"])
        self._command = self._last(("UPDATE", "DELETE_P"), before=location)
        is_update = self._tokens[self._command].name == "UPDATE"
        start = self._command + 1 if is_update else self._last(("FROM",), before=location) + 1
        if is_update:
            first = _characters(text, body["targetList"][0]["ResTarget"]["location"])
            self._target = (start, self._last(("SET",), before=first))
        returning = self._first(("RETURNING",), start) if "returningClause" in body else len(tokens)
        where = self._first(("WHERE",), start) if "whereClause" in body else returning
        joined = where
        if is_update and "fromClause" in body:
            joined = self._first(("FROM",), self._target[1])
        elif not is_update and "usingClause" in body:
            joined = self._first(("USING",), start)
        if not is_update:
            self._target = (start, joined)
        self._others = (joined + 1, where)
        self._condition = (where + 1, returning)

    def before(self) -> str:
        """The WITH clause."""
        if not self._has_with:
            return ""
        self._used.append((0, self._command))
        return self._text[: self._tokens[self._command].start]

    def target(self) -> str:
        """The relation that is written, with ONLY and alias."""
        return self._slice(*self._target)

    def others(self) -> str:
        """What is joined with it, empty if nothing is."""
        return self._slice(*self._others)

    def condition(self) -> str:
        """What WHERE says, empty without one."""
        return self._slice(*self._condition)

    def parameters(self) -> tuple[int, ...]:
        """The parameters in what has been taken."""
        numbers = {
            int(self._text[token.start + 1 : token.end + 1])
            for first, last in self._used
            for token in self._tokens[first:last]
            if token.name == "PARAM"
        }
        return tuple(sorted(numbers))

    def _slice(self, first: int, last: int) -> str:
        if first >= last:
            return ""
        self._used.append((first, last))
        return self._text[self._tokens[first].start : self._tokens[last - 1].end + 1]

    def _first(self, names: tuple[str, ...], start: int) -> int:
        """The first of these words from a token on; FROM in IS DISTINCT FROM begins no clause."""
        for place in self._outer:
            if place >= start and self._tokens[place].name in names:
                if self._tokens[place].name == "FROM" and self._tokens[place - 1].name == "DISTINCT":
                    continue
                return place
        raise _Odd(f"{names[0]} was not found")

    def _last(self, names: tuple[str, ...], before: int) -> int:
        """The last of these words before a character of the text."""
        found = [
            place
            for place in self._outer
            if self._tokens[place].name in names and self._tokens[place].start < before
        ]
        if not found:
            raise _Odd(f"{names[0]} was not found")
        return found[-1]


def _outer(tokens: Sequence[Token]) -> tuple[int, ...]:
    """The places of tokens outside of all brackets."""
    depth = 0
    found: list[int] = []
    for place, token in enumerate(tokens):
        if token.name in _OPENING:
            depth += 1
        elif token.name in _CLOSING:
            depth -= 1
        elif depth == 0:
            found.append(place)
    return tuple(found)


def _characters(text: str, offset: int) -> int:
    """An offset in bytes, as the parser counts, as one in characters, as the scanner does."""
    return offset if text.isascii() else len(text.encode()[:offset].decode())


def _only_reads(sql: bytes, statement: Statement) -> bool:
    """Whether the capture is one SELECT that calls nothing which the statement does not call."""
    facts = analyze_text(sql)
    if not isinstance(facts, tuple) or len(facts) != 1:
        return False
    found = facts[0]
    return (
        found.tag == "SELECT"
        and not found.volatile
        and all(effect.operation in _READING for effect in found.effects)
        and set(found.functions) <= set(statement.functions)
    )
