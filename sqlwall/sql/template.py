"""Texts that differ in the values of plain literals only, and have the same facts: one parse will do for all of them.

`key_of` blots the literals out of a text. Why texts of one key have the same facts, once `is_template` has said so:

- A key is as long as its text, and every byte outside the literals stands in it as it was.
- Nothing in it is lexed in a way that needs more than one look (double quotes, backslashes, dollars, comments, prefixed
  strings, bytes outside ASCII): so PostgreSQL's lexer cuts all these texts alike, at the same places, into the same
  tokens. What was blotted out is a string without quotes and backslashes, or a number of at most nine digits, which is
  an integer whatever the digits are.
- Its grammar never looks at the value of either where they become an A_Const, and every blotted literal was found again
  in the tree, once and by its place (or that of the minus in front of it), as an A_Const that is selected, compared,
  inserted or assigned: not an argument, not under a cast, a subquery or LIMIT. So the trees differ in these nodes only.
- The walk does not look into an A_Const, and reads values of those only that are arguments (`walk._func_call`). Whether
  a WHERE bounds a write may depend on values (`predicate`), but not where each of them only is what a column equals.

The guards in front of the parser say the same of all of them: a literal is shorter than the run of operators that they
refuse, and what looks like an assignment to several columns is no template.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import orjson
from pglast.parser import ParseError, parse_sql_json

from sqlwall.sql.shapes import strings

#: Longer texts have no key: among them hardly two differ in their literals only.
TEMPLATE_LIMIT: Final = 2048
#: Below OPERATOR_RUN_LIMIT of `sql.parse`.
_LITERAL_LIMIT: Final = 255

_BLOT: Final = b"0" * _LITERAL_LIMIT
_NUMBER: Final = re.compile(rb"(?<![\w.$])[0-9]{1,9}(?![\w.])")
#: Printable ASCII but the backslash; a quote cannot be in it.
_PLAIN_STRING: Final = re.compile(rb"[ -\[\]-~]*")
#: What a key must not hold anywhere, and what must not stand before an opening quote.
_REFUSED: Final = re.compile(rb"[\"$\\]|--|/\*|[^\t\n\r -~]|\)[\t\n\r ]*=")
_PREFIX: Final = re.compile(rb"[\w&]")

#: What stands where a node does: literals whose value nothing depends on, the WHERE of a write, anything else.
_PLAIN: Final = 2
_WHERE: Final = 1
_OTHER: Final = 0

_STATEMENTS: Final = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt"})
#: Where literals are selected, compared, inserted or assigned: node → what its fields hold; those not named, anything.
_PLAIN_FIELDS: Final[Mapping[str, Mapping[str, int]]] = {
    "SelectStmt": dict.fromkeys(
        ("targetList", "fromClause", "whereClause", "havingClause", "valuesLists"), _PLAIN
    ),
    "InsertStmt": {"selectStmt": _PLAIN},
    "UpdateStmt": {"targetList": _PLAIN, "whereClause": _WHERE},
    "DeleteStmt": {"whereClause": _WHERE},
    "JoinExpr": dict.fromkeys(("larg", "rarg", "quals"), _PLAIN),
    "ResTarget": {"val": _PLAIN},
    "BoolExpr": {"args": _PLAIN},
    "A_Expr": {"lexpr": _PLAIN, "rexpr": _PLAIN},
    "List": {"items": _PLAIN},
}
_NO_FIELDS: Final[Mapping[str, int]] = {}
_COMPARISONS: Final = (
    "AEXPR_OP",
    "AEXPR_IN",
    "AEXPR_LIKE",
    "AEXPR_ILIKE",
    "AEXPR_BETWEEN",
    "AEXPR_NOT_BETWEEN",
    "AEXPR_DISTINCT",
    "AEXPR_NOT_DISTINCT",
)


def key_of(text: bytes) -> bytes | None:
    """The text without the values of its plain literals; None if it has none, or cannot be a template."""
    if len(text) > TEMPLATE_LIMIT:
        return None
    literals = _literals(text)
    if not literals:
        return None
    parts: list[bytes] = []
    position = 0
    for start, end in literals:
        parts.append(text[position:start])
        parts.append(_BLOT[: end - start])
        position = end
    parts.append(text[position:])
    return b"".join(parts)


def is_template(text: bytes) -> bool:
    """Whether every text of the same key has the same facts. Costs a parse."""
    key = key_of(text)
    if key is None or _REFUSED.search(key) is not None:
        return False
    places: list[tuple[int, int]] = []
    for start, _ in _literals(text):
        is_string = text[start - 1 : start] == b"'" and text[:start].count(b"'") % 2 == 1
        if is_string and start > 1 and _PREFIX.match(text, start - 2):
            return False
        place = start - 1 if is_string else start
        places.append((place, place if is_string else _minus_before(text, start)))
    try:
        statements = orjson.loads(parse_sql_json(text.decode("ascii"))).get("stmts", ())
    except (ParseError, orjson.JSONDecodeError, RecursionError):
        return False
    if len(statements) != 1 or not _STATEMENTS.issuperset(statements[0]["stmt"]):
        return False
    plain: list[int] = []
    others: list[int] = []
    _gather(statements[0]["stmt"], plain, others)
    counts = Counter(plain)
    for place, minus in places:
        found = counts[place] + (counts[minus] if minus != place else 0)
        if found != 1 or place in others or minus in others:
            return False
    return True


def _minus_before(text: bytes, start: int) -> int:
    """The place of a minus in front of a number, which may be that of its A_Const; that of the number without one."""
    before = text[:start].rstrip(b"\t\n\r ")
    return len(before) - 1 if before.endswith(b"-") else start


def _literals(text: bytes) -> list[tuple[int, int]]:
    """From where to where the values stand that may be blotted out, in order; of a string what is between its quotes.

    That the text is lexed as simply as this takes it to be only `is_template` says.
    """
    found: list[tuple[int, int]] = []
    position = 0
    opening = text.find(b"'")
    while opening >= 0:
        closing = text.find(b"'", opening + 1)
        if closing < 0:
            return []
        for number in _NUMBER.finditer(text, position, opening):
            found.append(number.span())
        is_short = closing - opening <= _LITERAL_LIMIT
        if is_short and _PLAIN_STRING.fullmatch(text, opening + 1, closing) is not None:
            found.append((opening + 1, closing))
        position = closing + 1
        opening = text.find(b"'", position)
    for number in _NUMBER.finditer(text, position):
        found.append(number.span())
    return found


def _gather(tree: dict[str, Any], plain: list[int], others: list[int]) -> None:
    """The places of all constants of a tree: those whose value nothing depends on, and the others."""
    pending: list[tuple[dict[str, Any], int]] = [(tree, _PLAIN)]
    while pending:
        node, role = pending.pop()
        for kind, body in node.items():
            if kind == "A_Const":
                (plain if role == _PLAIN else others).append(body.get("location", 0))
            elif isinstance(body, dict):
                fields = _fields(kind, body, role)
                for name, value in body.items():
                    of_value = fields.get(name, _OTHER)
                    pending.extend([(child, of_value) for child in _nodes(name, value)])


def _fields(kind: str, body: dict[str, Any], role: int) -> Mapping[str, int]:
    """What the fields of a node hold that stands in a role."""
    if role == _PLAIN:
        if kind == "A_Expr" and body.get("kind") not in _COMPARISONS:
            return _NO_FIELDS
        return _PLAIN_FIELDS.get(kind, _NO_FIELDS)
    if role == _WHERE:
        if kind == "BoolExpr" and body.get("boolop") == "AND_EXPR":
            return {"args": _WHERE}
        if kind == "A_Expr" and _is_column_equal(body):
            return {"rexpr": _PLAIN}
    return _NO_FIELDS


def _is_column_equal(body: dict[str, Any]) -> bool:
    """Whether it says that a column equals a literal."""
    return (
        body.get("kind") == "AEXPR_OP"
        and strings(body.get("name")) == ("=",)
        and "ColumnRef" in (body.get("lexpr") or {})
        and "A_Const" in (body.get("rexpr") or {})
    )


def _nodes(name: str, value: object) -> list[dict[str, Any]]:
    """The nodes in a field. One whose type the place gives comes without its name: it gets that of the field."""
    if isinstance(value, dict):
        return [value if _is_named(value) else {name: value}]
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    return []


def _is_named(value: dict[str, Any]) -> bool:
    """Whether it is a node under its type's name, which begins in upper case, as no field does."""
    return len(value) == 1 and next(iter(value))[:1].isupper()
