"""Whether a WHERE clause limits anything: constants, tautologies, and sub-queries of the whole table.

A courtesy, not the wall: what can be always true in disguise is endless, and the row limit on what is really captured
is what holds (DESIGN, decision 5). So it errs towards BOUNDED, and says ALWAYS_TRUE only where it can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import sqlglot
from sqlglot import expressions as glot
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.simplify import simplify

from sqlwall.sql.shapes import Json, constant, strings
from sqlwall.sql.statement import Bounded, Relation
from sqlwall.sql.walk import relation_of

#: Above this depth a predicate is taken for what it seems.
_DEPTH: Final = 60
_TRUE: Final = frozenset({"true", "t", "yes", "y", "on", "1", "tr", "tru", "ye"})
_FALSE: Final = frozenset({"false", "f", "no", "n", "off", "0", "fa", "fal", "fals", "of"})
#: The bounds of int4, and all that lies beyond those of int8: a comparison with these holds for every integer. What is
#: in between may be honest, such as a time in milliseconds.
_BOUNDS: Final = frozenset({2**31 - 1, 2**31})
_FAR: Final = 2**63 - 1
_REFLEXIVE: Final = frozenset({"=", ">=", "<=", "~~", "~~*", "@>", "<@", "&&"})
_NEVER_NULL: Final = frozenset({"ctid", "tableoid", "xmin", "xmax", "cmin", "cmax"})
#: Patterns that fit every text: of LIKE and SIMILAR TO, and regular expressions.
_ANYTHING: Final = frozenset({"%", "%%", "%%%"})
_ANY_TEXT: Final = frozenset({".*", "^", "^.*$", "^.*", ".*$", "$", "", "(?s).*"})
_MIRRORED: Final[Mapping[str, str]] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
#: Functions that name a column's value or type without changing which rows are meant.
_NEGATED: Final[Mapping[str, str]] = {
    "<>": "=",
    "!=": "=",
    "=": "<>",
    "<": ">=",
    ">=": "<",
    ">": "<=",
    "<=": ">",
}

#: True, False, or unknown; NULL counts as unknown.
Truth = bool | None


def boundedness(where: Json | None, relation: Relation | None = None) -> Bounded:
    """What a WHERE clause says; None is no clause. `relation` is the table that is written, as the text names it."""
    if where is None:
        return Bounded.NO_WHERE
    return Bounded.ALWAYS_TRUE if _truth(where, relation, 0) is True else Bounded.BOUNDED


def _truth(node: Json, relation: Relation | None, depth: int) -> Truth:
    """Whether the node is true, or false, for every row; columns that may be NULL are taken for not NULL."""
    if depth > _DEPTH or not node:
        return None
    kind, body = next(iter(node.items()))
    handler = _HANDLERS.get(kind)
    return handler(body, relation, depth + 1) if handler is not None else None


def _constant(body: Json, _relation: Relation | None, _depth: int) -> Truth:
    value = constant({"A_Const": body})
    return _word(value)


def _word(value: str | None) -> Truth:
    if value is None:
        return None
    word = value.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _cast(body: Json, relation: Relation | None, depth: int) -> Truth:
    value = constant({"TypeCast": body})
    if value is not None:
        return _word(value)
    return _truth(body.get("arg", {}), relation, depth)


def _boolean(body: Json, relation: Relation | None, depth: int) -> Truth:
    arguments = body.get("args", [])
    if body.get("boolop") == "NOT_EXPR":
        inner = _truth(arguments[0], relation, depth)
        return None if inner is None else not inner
    truths = [_truth(argument, relation, depth) for argument in arguments]
    if body.get("boolop") == "AND_EXPR":
        if False in truths:
            return False
        return True if all(truths) else None
    if True in truths or _covers_everything(arguments) or _denies_itself(arguments):
        return True
    return False if all(truth is False for truth in truths) else None


def _covers_everything(arguments: list[Json]) -> bool:
    """x = 1 OR x <> 1, x IS NULL OR x IS NOT NULL, p OR NOT p: two alternatives that leave nothing out."""
    known = [_comparison(argument) for argument in arguments]
    for index, one in enumerate(known):
        for other in known[index + 1 :]:
            if one[1:] == other[1:] and (_negated(one[0]) == other[0] or {one[0], other[0]} == {">=", "<="}):
                return True
    return False


def _denies_itself(arguments: list[Json]) -> bool:
    """(p OR q) OR NOT (p OR q), which the parser makes a list of three."""
    shapes = {_shape(argument) for argument in arguments}
    for argument in arguments:
        body = argument.get("BoolExpr", {})
        denied = body["args"][0].get("BoolExpr", {}) if body.get("boolop") == "NOT_EXPR" else {}
        if denied.get("boolop") == "OR_EXPR" and all(_shape(part) in shapes for part in denied["args"]):
            return True
    return False


def _negated(operator: str) -> str:
    """The operator of the opposite; ``not`` before one that has none of its own."""
    return _NEGATED.get(operator) or (
        operator.removeprefix("not ") if operator.startswith("not ") else f"not {operator}"
    )


def _comparison(node: Json) -> tuple[str, str, str]:
    """A comparison as operator and both sides, a null test, or any predicate and its negation."""
    kind, body = next(iter(node.items())) if node else ("", {})
    if kind == "A_Expr" and body.get("kind") == "AEXPR_OP" and strings(body.get("name"))[-1:]:
        return strings(body["name"])[-1], _shape(body.get("lexpr")), _shape(body.get("rexpr"))
    if kind == "NullTest":
        return ("null" if body.get("nulltesttype") == "IS_NULL" else "not null"), _shape(body.get("arg")), ""
    if kind == "BoolExpr" and body.get("boolop") == "NOT_EXPR":
        inner = _comparison(body["args"][0])
        return _negated(inner[0]), inner[1], inner[2]
    return "p", _shape(node), ""


_POSITIONS: Final = frozenset({"location", "list_start", "list_end", "rexpr_list_start", "rexpr_list_end"})


def _shape(node: Any) -> str:
    """A node without its positions, and a column without its schema: equal shapes are equal expressions."""
    if isinstance(node, dict):
        if "ColumnRef" in node:
            names = strings(node["ColumnRef"].get("fields"))
            return f"column {'.'.join(names[-2:])}" if names else "column *"
        return (
            "{" + ",".join(f"{k}:{_shape(v)}" for k, v in sorted(node.items()) if k not in _POSITIONS) + "}"
        )
    if isinstance(node, list):
        return "[" + ",".join(_shape(item) for item in node) + "]"
    return repr(node)


def _same(one: Json | None, other: Json | None) -> bool:
    """Whether two expressions are equal; two kinds of node, which need no rendering, never are."""
    if not one or not other or _is_null(one):
        return False  # nothing equals NULL, not even itself
    names = [strings(node.get("ColumnRef", {}).get("fields")) for node in (one, other)]
    if names[0] and names[1]:
        # A name without its table is that of the only table that has it.
        left, right = names
        return left[-1] == right[-1] and (len(left) == 1 or len(right) == 1 or left[-2:] == right[-2:])
    return one.keys() == other.keys() and _shape(one) == _shape(other)


def _has_column(node: Any) -> bool:
    if isinstance(node, dict):
        return "ColumnRef" in node or any(_has_column(value) for value in node.values())
    return isinstance(node, list) and any(_has_column(item) for item in node)


def _operator(body: Json, relation: Relation | None, depth: int) -> Truth:
    kind = body.get("kind", "")
    left, right = body.get("lexpr"), body.get("rexpr")
    name = (strings(body.get("name")) or ("",))[-1]
    if kind in ("AEXPR_OP", "AEXPR_LIKE", "AEXPR_ILIKE", "AEXPR_SIMILAR"):
        return _compare(name, left, right, kind)
    if kind == "AEXPR_NOT_DISTINCT":
        return True if _same(left, right) or (_is_null(left) and _is_null(right)) else None
    if kind == "AEXPR_DISTINCT":
        return True if _is_null(left) or _is_null(right) else None
    if kind == "AEXPR_IN":
        return _in_list(
            name, left, right if isinstance(right, list) else (right or {}).get("List", {}).get("items")
        )
    if kind in ("AEXPR_BETWEEN", "AEXPR_BETWEEN_SYM") and right is not None:
        bounds = (right.get("List") or {}).get("items", [])
        if len(bounds) == 2:
            between = _between(left, bounds[0], bounds[1])
            if kind == "AEXPR_BETWEEN" or between:
                return between
            turned = _between(left, bounds[1], bounds[0])
            return turned if turned or (between is False and turned is False) else None
    if kind == "AEXPR_OP_ALL" and _is_empty_array(right):
        return True
    return None


def _between(value: Json | None, low: Json, high: Json) -> Truth:
    return _both(_compare(">=", value, low, "AEXPR_OP"), _compare("<=", value, high, "AEXPR_OP"))


def _both(one: Truth, other: Truth) -> Truth:
    return True if one and other else False if one is False or other is False else None


def _is_null(node: Json | None) -> bool:
    return node is not None and bool(node.get("A_Const", {}).get("isnull"))


def _is_empty_array(node: Json | None) -> bool:
    while node is not None and "TypeCast" in node:
        node = node["TypeCast"].get("arg")
    if node is None:
        return False
    if "A_ArrayExpr" in node:
        return not node["A_ArrayExpr"].get("elements")
    return constant(node) == "{}"


def _in_list(name: str, left: Json | None, items: list[Json] | None) -> Truth:
    if name != "=" or not items or left is None:
        return None
    if any(_same(left, item) for item in items):
        return True
    value = constant(left)
    if value is None:
        return None
    others = [constant(item) for item in items]
    return True if value in others else None if None in others else False


def _compare(name: str, left: Json | None, right: Json | None, kind: str) -> Truth:
    if left is None or right is None:
        return None
    if name in _REFLEXIVE and _same(left, right):
        return True
    if _is_null(left) or _is_null(right):
        return None
    one, other = _number(left), _number(right)
    if one is not None and other is not None:
        return _arithmetic(name, one, other)
    if one is not None and name in _MIRRORED:
        return _compare(_MIRRORED[name], right, left, kind)
    pattern = constant(right)
    if pattern is None and kind == "AEXPR_SIMILAR":
        arguments = right.get("FuncCall", {}).get("args") or [{}]
        pattern = constant(arguments[0])
    if name in ("~~", "~~*") or kind == "AEXPR_SIMILAR":
        return True if pattern in _ANYTHING else None
    if name in ("~", "~*") and pattern in _ANY_TEXT:
        return True
    if name in ("@>", "@?") and pattern in ("{}", "$", "[]"):
        return True
    if other is not None and (abs(other) >= _FAR or abs(other) in _BOUNDS):
        return _arithmetic(name, 0, other) if name in ("<", "<=", ">", ">=", "<>") else None
    if "boolval" in left.get("A_Const", {}) or "boolval" in right.get("A_Const", {}):
        words = _word(constant(left)), _word(constant(right))
        if name in ("=", "<>") and words[0] is not None and words[1] is not None:
            return (words[0] == words[1]) == (name == "=")
    texts = constant(left), constant(right)
    if name in ("=", "<>") and texts[0] is not None and texts[1] is not None:
        return (texts[0] == texts[1]) == (name == "=")
    if _is_chance(left) and other is not None:
        return (name in ("<", "<=", "<>") and other >= 1) or (name in (">", ">=", "<>") and other < 0) or None
    if not _has_column(left) and not _has_column(right):
        return _fold(name, left, right)
    return _neutral(name, left, right)


def _arithmetic(name: str, one: float, other: float) -> Truth:
    answers: Mapping[str, bool] = {
        "=": one == other, "<>": one != other, "!=": one != other,
        "<": one < other, "<=": one <= other, ">": one > other, ">=": one >= other,
    }  # fmt: skip
    return answers.get(name)


def _number(node: Json) -> float | None:
    if "A_Expr" in node and node["A_Expr"].get("lexpr") is None:
        inner = _number(node["A_Expr"].get("rexpr") or {})
        return -inner if inner is not None and strings(node["A_Expr"].get("name")) == ("-",) else None
    value = constant(node)
    if value is None or "A_Const" not in node or "sval" in node["A_Const"]:
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _is_chance(node: Json) -> bool:
    return strings(node.get("FuncCall", {}).get("funcname"))[-1:] == ("random",)


def _neutral(name: str, left: Json, right: Json) -> Truth:
    """x + 0 = x, x = coalesce(y, x): the other side is the column itself, wrapped in nothing."""
    if name not in ("=", ">=", "<="):
        return None
    return True if _same(_unwrapped(left), _unwrapped(right)) else None


#: What changes nothing: the operator with its right side.
_IDLE: Final = frozenset({("+", "0"), ("-", "0"), ("||", ""), ("*", "1")})
#: Casts that lose nothing of any value.
_LOSSLESS: Final = frozenset({"text", "numeric", "varchar"})


def _unwrapped(node: Json) -> Json:
    for _ in range(_DEPTH):
        body = node.get("A_Expr")
        if body is not None and body.get("kind") == "AEXPR_OP" and body.get("lexpr") and body.get("rexpr"):
            name = (strings(body.get("name")) or ("",))[-1]
            value = constant(body["rexpr"])
            if (name, value) in _IDLE:
                node = body["lexpr"]
                continue
        cast = node.get("TypeCast", {})
        of = cast.get("typeName", {})
        if (
            cast.get("arg") is not None
            and not of.get("typmods")
            and strings(of.get("names"))[-1:]
            and (strings(of["names"])[-1] in _LOSSLESS)
        ):
            node = cast["arg"]
            continue
        break
    return node


def _fold(name: str, left: Json, right: Json) -> Truth:
    """Both sides are constant expressions: sqlglot folds what it can of them."""
    wholes = _whole(left), _whole(right)
    if wholes[0] is not None and wholes[1] is not None:
        return _arithmetic(name, wholes[0], wholes[1])
    texts = _render(left), _render(right)
    if texts[0] is None or texts[1] is None or name not in ("=", "<>", "<", "<=", ">", ">="):
        return None
    try:
        folded = simplify(sqlglot.parse_one(f"{texts[0]} {name} {texts[1]}", dialect="postgres"))
    except (SqlglotError, RecursionError, ValueError, ArithmeticError, TypeError, KeyError):
        return None
    return bool(folded.this) if isinstance(folded, glot.Boolean) else None


def _whole(node: Json, depth: int = 0) -> int | None:
    """A constant expression of whole numbers, divided as PostgreSQL does; None if it is anything else."""
    if depth > _DEPTH:
        return None
    body = node.get("A_Expr")
    if body is None:
        number = _number(node) if "ival" in node.get("A_Const", {}) else None
        return None if number is None else int(number)
    left = _whole(body["lexpr"], depth + 1) if body.get("lexpr") else 0
    right = _whole(body.get("rexpr") or {}, depth + 1)
    name = (strings(body.get("name")) or ("",))[-1]
    if left is None or right is None or body.get("kind") != "AEXPR_OP" or (name in "/%" and right == 0):
        return None
    if name in ("/", "%"):
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        return quotient if name == "/" else left - quotient * right
    return {"+": left + right, "-": left - right, "*": left * right}.get(name)


def _render(node: Json, depth: int = 0) -> str | None:
    """A constant expression of numbers, texts and arithmetic as SQL; None if it is anything else."""
    if depth > 20:
        return None
    value = constant(node)
    if value is not None and "A_Const" in node:
        return "'" + value.replace("'", "''") + "'" if "sval" in node["A_Const"] else value
    body = node.get("A_Expr")
    if body is None or body.get("kind") != "AEXPR_OP":
        return None
    name = strings(body.get("name"))
    left = _render(body["lexpr"], depth + 1) if body.get("lexpr") else ""
    right = _render(body.get("rexpr") or {}, depth + 1)
    if left is None or right is None or name[-1:] not in (("+",), ("-",), ("*",), ("/",), ("%",)):
        return None
    return f"({left} {name[-1]} {right})"


def _null_test(body: Json, _relation: Relation | None, _depth: int) -> Truth:
    argument = body.get("arg") or {}
    is_null = body.get("nulltesttype") == "IS_NULL"
    if _is_null(argument):
        return is_null
    if constant(argument) is not None:
        return not is_null
    names = strings(argument.get("ColumnRef", {}).get("fields"))
    return True if not is_null and names[-1:] and names[-1] in _NEVER_NULL else None


def _boolean_test(body: Json, relation: Relation | None, depth: int) -> Truth:
    inner = _truth(body.get("arg") or {}, relation, depth)
    kind = body.get("booltesttype", "")
    if kind in ("IS_NOT_UNKNOWN", "IS_UNKNOWN"):
        return (kind == "IS_NOT_UNKNOWN") if inner is not None else None
    if inner is None:
        return None
    return {"IS_TRUE": inner, "IS_NOT_FALSE": inner, "IS_FALSE": not inner, "IS_NOT_TRUE": not inner}.get(
        kind
    )


def _sub_link(body: Json, relation: Relation | None, depth: int) -> Truth:
    query = (body.get("subselect") or {}).get("SelectStmt", {})
    kind = body.get("subLinkType", "")
    if kind == "EXISTS_SUBLINK":
        return True if _always_has_rows(query, relation, depth) else None
    if kind == "EXPR_SUBLINK" and _always_has_rows(query, relation, depth):
        targets = query.get("targetList") or []
        return (
            _truth(targets[0]["ResTarget"].get("val") or {}, relation, depth) if len(targets) == 1 else None
        )
    if kind == "ANY_SUBLINK" and body.get("testexpr") and strings(body.get("operName")) in ((), ("=",)):
        return True if _is_own_column(query, body["testexpr"], relation, depth) else None
    return None


def _always_has_rows(query: Json, relation: Relation | None, depth: int) -> bool:
    """A query without FROM has one row, unless something says no; so has an aggregate without GROUP BY."""
    if (
        query.get("fromClause")
        or query.get("limitCount")
        or query.get("limitOffset")
        or query.get("havingClause")
    ):
        return False
    where = query.get("whereClause")
    return (where is None or _truth(where, relation, depth) is True) and query.get(
        "op", "SETOP_NONE"
    ) == "SETOP_NONE"


#: A LIMIT that hardly limits anything. Less is how large tables are worked through piece by piece.
_MANY: Final = 100_000


def _is_own_column(query: Json, tested: Json, relation: Relation | None, depth: int) -> bool:
    """x IN (SELECT x FROM the same table), unfiltered."""
    sources = query.get("fromClause") or []
    targets = query.get("targetList") or []
    if relation is None or len(sources) != 1 or len(targets) != 1 or query.get("groupClause"):
        return False
    source = sources[0].get("RangeTableSample", {}).get("relation", sources[0])
    if "RangeVar" not in source or relation_of(source["RangeVar"]) != relation:
        return False
    if query.get("havingClause") or query.get("limitOffset"):
        return False
    where = query.get("whereClause")
    if where is not None and _truth(where, relation, depth) is not True:
        return False
    limit = query.get("limitCount")
    if limit is not None and not _is_null(limit) and (_number(limit) or 0) < _MANY:
        return False
    return _column(targets[0]["ResTarget"].get("val")) == _column(tested) != ""


def _column(node: Json | None) -> str:
    names = strings((node or {}).get("ColumnRef", {}).get("fields"))
    return names[-1] if names else ""


def _coalesce(body: Json, relation: Relation | None, depth: int) -> Truth:
    arguments = body.get("args") or [{}]
    return _truth(arguments[0], relation, depth)


def _case(body: Json, relation: Relation | None, depth: int) -> Truth:
    """Every branch that can be taken is true."""
    branches = [item["CaseWhen"].get("result") or {} for item in body.get("args") or ()]
    branches.append(body.get("defresult") or {})
    truths = [_truth(branch, relation, depth) for branch in branches]
    if truths and all(truth is True for truth in truths):
        return True
    first = body.get("args", [{}])[0].get("CaseWhen", {})
    if body.get("arg") is None and _truth(first.get("expr") or {}, relation, depth) is True:
        return truths[0]
    return None


_Handler = Callable[[Json, "Relation | None", int], Truth]
_HANDLERS: Final[Mapping[str, _Handler]] = {
    "A_Const": _constant,
    "TypeCast": _cast,
    "BoolExpr": _boolean,
    "A_Expr": _operator,
    "NullTest": _null_test,
    "BooleanTest": _boolean_test,
    "SubLink": _sub_link,
    "CoalesceExpr": _coalesce,
    "CaseExpr": _case,
}
