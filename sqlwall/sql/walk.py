"""The walk over one statement's parse tree: every slot is visited, and what would do something is noted.

A node of a type that is not known is an UNKNOWN effect, never an absence. Statements have handlers in
`sqlwall.sql.statements`; expressions and FROM items are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.sql.functions import NEWEST, OLDEST, is_builtin_operator, is_pure
from sqlwall.sql.shapes import DIRECT_FIELDS, KNOWN_NODES, Json, literal, qualified, strings
from sqlwall.sql.statement import Effect, FunctionName, Operation, Relation

#: Names of WITH queries that are visible: an unqualified relation of that name is no table.
Scope = frozenset[str]
Handler = Callable[["Walk", Json, Scope], None]

EMPTY_SCOPE: Final[Scope] = frozenset()
_NO_FIELDS: Final[Mapping[str, str]] = MappingProxyType({})
_SAMPLERS: Final = frozenset({"bernoulli", "system"})
_SUGAR: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "AEXPR_BETWEEN": (">=", "<="),
        "AEXPR_NOT_BETWEEN": ("<", ">"),
        "AEXPR_BETWEEN_SYM": (">=", "<="),
        "AEXPR_NOT_BETWEEN_SYM": ("<", ">"),
    }
)


class Walk:
    """What one statement's tree holds, gathered while walking."""

    __slots__ = ("columns", "effects", "executed", "functions", "handlers", "names", "volatile")

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self.effects: list[Effect] = []
        self.functions: dict[FunctionName, None] = {}
        self.columns: dict[str, None] = {}
        self.names: list[str] = []
        self.executed: str | None = None
        self.volatile = False

    # -- visiting

    def node(self, wrapped: Json | None, scope: Scope) -> None:
        """A node under its type's name; None is an empty slot."""
        if wrapped is None:
            return
        for kind, body in wrapped.items():
            handler = self.handlers.get(kind)
            if handler is not None:
                handler(self, body, scope)
            else:
                self.typed(kind, body, scope)

    def typed(self, kind: str, body: Json, scope: Scope) -> None:
        """A node whose type the place gives."""
        handler = self.handlers.get(kind)
        if handler is not None:
            handler(self, body, scope)
        elif type(body) is dict and kind in KNOWN_NODES and not kind.endswith("Stmt"):
            self.children(kind, body, scope)
        else:
            self.effects.append(Effect(Operation.UNKNOWN, subject=kind))

    def nodes(self, items: list[Json] | None, scope: Scope) -> None:
        """A list of nodes."""
        for item in items or ():
            if type(item) is dict:
                self.node(item, scope)
            else:
                self.effects.append(Effect(Operation.UNKNOWN, subject="list"))

    def children(self, kind: str, body: Json, scope: Scope, skip: tuple[str, ...] = ()) -> None:
        """Every field of a node, whatever it is called."""
        direct = DIRECT_FIELDS.get(kind, _NO_FIELDS)
        for key, value in body.items():
            shape = type(value)
            if shape is list:
                if key not in skip:
                    self.nodes(value, scope)
            elif shape is dict and key not in skip:
                known = direct.get(key)
                if known is not None:
                    self.typed(known, value, scope)
                else:
                    self.node(value, scope)

    def query(self, wrapped: Json | None, scope: Scope) -> None:
        """A statement inside another: a query is a SELECT effect even where it reads no table."""
        before = len(self.effects)
        self.node(wrapped, scope)
        if wrapped is not None and "SelectStmt" in wrapped and not self.has_read(before):
            self.effects.append(Effect(Operation.SELECT))

    # -- noting

    def has_read(self, since: int) -> bool:
        """Whether a SELECT effect was noted since there were so many effects."""
        return any(effect.operation is Operation.SELECT for effect in self.effects[since:])

    def effect(self, effect: Effect) -> None:
        """Note an effect."""
        self.effects.append(effect)

    def call(self, schema: str | None, name: str, arguments: int, kind: str = "function") -> None:
        """Note code that runs."""
        self.functions[FunctionName(schema, name, kind, arguments)] = None
        if self.volatile or kind == "type":
            return
        if schema not in (None, "pg_catalog"):
            self.volatile = True
        elif kind == "operator":
            self.volatile = not is_builtin_operator(name)
        else:
            self.volatile = not (is_pure(name, arguments, OLDEST) and is_pure(name, arguments, NEWEST))

    def operator(self, nodes: list[Json] | None) -> None:
        """Note an operator by its possibly qualified name."""
        schema, name = qualified(nodes)
        if name:
            self.call(schema, name, -1, "operator")

    def read(self, table: Json) -> None:
        """Note that a table is read."""
        self.effects.append(Effect(Operation.SELECT, relation_of(table)))


def relation_of(table: Json) -> Relation:
    """The name of a RangeVar."""
    return Relation(table.get("schemaname"), table.get("relname", ""))


def created(table: Json) -> Relation:
    """The name of a RangeVar that is about to be made: a temporary one lands in a schema of the session's own."""
    schema = table.get("schemaname")
    if schema is None and table.get("relpersistence") == "t":
        schema = "pg_temp"
    return Relation(schema, table.get("relname", ""))


def with_scope(walk: Walk, clause: Json | None, scope: Scope) -> Scope:
    """Walk a WITH clause; the scope of the statement behind it.

    Without RECURSIVE a query sees only those before it, with it all of them (parser/parse_cte.c).
    """
    if clause is None:
        return scope
    queries = [item["CommonTableExpr"] for item in clause.get("ctes", ())]
    names = [query["ctename"] for query in queries]
    inner = scope.union(names) if clause.get("recursive") else scope
    for name, query in zip(names, queries, strict=True):
        walk.children("CommonTableExpr", query, inner)
        inner = inner | {name}
    return inner


def _range_var(walk: Walk, body: Json, scope: Scope) -> None:
    if body.get("schemaname") is None and body.get("relname") in scope:
        return
    walk.read(body)


def _func_call(walk: Walk, body: Json, scope: Scope) -> None:
    schema, name = qualified(body.get("funcname"))
    arguments = body.get("args") or []
    is_counted = not (body.get("func_variadic") or body.get("agg_within_group"))
    walk.call(schema, name, len(arguments) if is_counted else -1)
    if name == "set_config":
        setting = literal(arguments[0]) if is_counted and len(arguments) == 3 else None
        value = literal(arguments[1]) if is_counted and len(arguments) == 3 else None
        subject = setting.lower() if setting is not None else None
        walk.effect(Effect(Operation.SET, subject=subject, value=value))
    walk.children("FuncCall", body, scope, skip=("funcname",))


def _a_expr(walk: Walk, body: Json, scope: Scope) -> None:
    """A chain like ``a || b || c`` leans to the left and may be long: it is followed without recursion."""
    while True:
        sugar = _SUGAR.get(body.get("kind", ""))
        if sugar is None:
            walk.operator(body.get("name"))
        else:
            for name in sugar:
                walk.call(None, name, -1, "operator")
        left = body.get("lexpr")
        if left is None or "A_Expr" not in left:
            walk.children("A_Expr", body, scope, skip=("name",))
            return
        walk.children("A_Expr", body, scope, skip=("name", "lexpr"))
        body = left["A_Expr"]


def _case(walk: Walk, body: Json, scope: Scope) -> None:
    if body.get("arg") is not None:
        walk.call(None, "=", -1, "operator")
    walk.children("CaseExpr", body, scope)


def _join(walk: Walk, body: Json, scope: Scope) -> None:
    """USING and NATURAL compare by whatever ``=`` the search path finds."""
    if body.get("usingClause") or body.get("isNatural"):
        walk.call(None, "=", -1, "operator")
    walk.children("JoinExpr", body, scope)


def _sub_link(walk: Walk, body: Json, scope: Scope) -> None:
    if body.get("operName"):
        walk.operator(body["operName"])
    elif body.get("subLinkType") == "ANY_SUBLINK":
        walk.call(None, "=", -1, "operator")
    walk.children("SubLink", body, scope, skip=("operName",))


def _sort_by(walk: Walk, body: Json, scope: Scope) -> None:
    walk.operator(body.get("useOp"))
    walk.children("SortBy", body, scope, skip=("useOp",))


def _type_name(walk: Walk, body: Json, scope: Scope) -> None:
    schema, name = qualified(body.get("names"))
    if body.get("pct_type"):
        # A column's type, which the text does not tell: no allow-list has a name with this sign.
        walk.call(None, ".".join(strings(body.get("names"))) + "%TYPE", -1, "type")
    elif name:
        walk.call(schema, name, -1, "type")
    walk.children("TypeName", body, scope, skip=("names",))


def _column_ref(walk: Walk, body: Json, scope: Scope) -> None:
    fields = body.get("fields") or []
    if len(fields) > 1 and "String" in fields[-1]:
        walk.columns[fields[-1]["String"].get("sval", "")] = None


def _indirection(walk: Walk, body: Json, scope: Scope) -> None:
    for name in strings(body.get("indirection")):
        walk.columns[name] = None
    walk.children("A_Indirection", body, scope)


def _current_of(walk: Walk, body: Json, scope: Scope) -> None:
    walk.names.append(body.get("cursor_name", ""))


def _table_sample(walk: Walk, body: Json, scope: Scope) -> None:
    schema, name = qualified(body.get("method"))
    if name not in _SAMPLERS or schema not in (None, "pg_catalog"):
        walk.call(schema, name, -1)
    walk.children("RangeTableSample", body, scope, skip=("method",))


def _leaf(walk: Walk, body: Json, scope: Scope) -> None:
    """Nothing below it can do anything."""


#: Expressions and FROM items with a meaning of their own; all others are walked field by field.
EXPRESSIONS: Final[Mapping[str, Handler]] = {
    "RangeVar": _range_var,
    "FuncCall": _func_call,
    "A_Expr": _a_expr,
    "CaseExpr": _case,
    "CurrentOfExpr": _current_of,
    "JoinExpr": _join,
    "SubLink": _sub_link,
    "SortBy": _sort_by,
    "TypeName": _type_name,
    "ColumnRef": _column_ref,
    "A_Indirection": _indirection,
    "RangeTableSample": _table_sample,
    "A_Const": _leaf,
    "String": _leaf,
    "Integer": _leaf,
    "Float": _leaf,
    "Boolean": _leaf,
    "BitString": _leaf,
    "A_Star": _leaf,
    "ParamRef": _leaf,
    "Alias": _leaf,
    "RoleSpec": _leaf,
}
