"""What the parser's JSON looks like: which fields hold a node of a fixed type, unwrapped, and which node types exist.

Derived once, at import, from pglast's own description of PostgreSQL's parse nodes (nodes/parsenodes.h, primnodes.h).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pglast import ast

Json = dict[str, Any]

#: Nodes that only planner and executor make: in a parse tree they are not known.
_LATER_STAGES: Final = frozenset(
    {
        "Aggref", "AlternativeSubPlan", "ArrayCoerceExpr", "ArrayExpr", "CaseTestExpr", "CoerceToDomain",
        "CoerceToDomainValue", "CoerceViaIO", "CollateExpr", "ConvertRowtypeExpr", "FieldSelect", "FieldStore",
        "FromExpr", "FuncExpr", "InferenceElem", "InlineCodeBlock", "JsonConstructorExpr", "JsonExpr",
        "NextValueExpr", "OnConflictExpr", "OpExpr", "Param", "Query", "RangeTblEntry", "RangeTblFunction",
        "RangeTblRef", "RelabelType", "RowCompareExpr", "RowMarkClause", "RTEPermissionInfo", "ScalarArrayOpExpr",
        "SetOperationStmt", "SortGroupClause", "SubPlan", "SubscriptingRef", "TableFunc", "TableSampleClause",
        "TargetEntry", "Var", "WindowClause", "WindowFunc", "WindowFuncRunCondition", "WithCheckOption",
        "PLAssignStmt", "RawStmt", "CallContext", "Node", "Expr", "ValUnion",
    }
)  # fmt: skip


def _slots(found: type) -> Mapping[str, Any]:
    """The fields of a node class with their C types, as pglast tells them."""
    slots: Any = getattr(found, "__slots__", None)
    return slots if isinstance(slots, dict) else {}


def _node_classes() -> dict[str, type]:
    return {
        name: found
        for name, found in vars(ast).items()
        if isinstance(found, type)
        and issubclass(found, ast.Node)
        and (_slots(found) or found is not ast.Node)
    }


def _direct_fields(found: type, names: frozenset[str]) -> Mapping[str, str]:
    """Fields whose C type is a pointer to one node type: the JSON has the node's fields without its name."""
    fields = {key: slot.c_type.removesuffix("*") for key, slot in _slots(found).items()}
    return MappingProxyType({key: name for key, name in fields.items() if name in names})


_CLASSES: Final = _node_classes()

#: Node types that a parse tree may hold, List among them.
KNOWN_NODES: Final = (frozenset(_CLASSES) - _LATER_STAGES) | {"List"}

#: Node type → field → type of the unwrapped node in it.
DIRECT_FIELDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {name: _direct_fields(found, frozenset(_CLASSES) - {"Node", "Expr"}) for name, found in _CLASSES.items()}
)


def strings(nodes: list[Json] | None) -> tuple[str, ...]:
    """The texts of a list of String nodes, as names are given; other nodes in it are left out."""
    return tuple([node["String"].get("sval", "") for node in nodes or () if "String" in node])


def qualified(nodes: list[Json] | None) -> tuple[str | None, str]:
    """Schema and name of a possibly qualified name; a database in front of it is the current one, or an error."""
    parts = strings(nodes)
    if not parts:
        return None, ""
    return (parts[-2] if len(parts) > 1 else None), parts[-1]


def literal(node: Json | None) -> str | None:
    """A plain text literal, perhaps cast to text, which leaves it as it is; None if it is anything else.

    Any other cast may make another text of it: ``'rolex'::varchar(4)`` is role.
    """
    if node is not None and "TypeCast" in node:
        cast = node["TypeCast"]
        target = cast.get("typeName", {})
        schema, name = qualified(target.get("names"))
        is_text = name == "text" and schema in (None, "pg_catalog")
        if not is_text or "arrayBounds" in target or "typmods" in target:
            return None
        node = cast.get("arg")
    value = node.get("A_Const", {}).get("sval") if node is not None else None
    return None if value is None else str(value.get("sval", ""))


def constant(node: Json | None) -> str | None:
    """A constant as text: a string, a number, true or false, perhaps cast to a type. None if it is none."""
    while node is not None and "TypeCast" in node:
        node = node["TypeCast"].get("arg")
    if node is None or "A_Const" not in node:
        return None
    value = node["A_Const"]
    if "sval" in value:
        return str(value["sval"].get("sval", ""))
    if "ival" in value:
        return str(value["ival"].get("ival", 0))
    if "fval" in value:
        return str(value["fval"].get("fval", ""))
    if "boolval" in value:
        return "true" if value["boolval"].get("boolval") else "false"
    return None
