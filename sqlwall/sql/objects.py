"""How the parser names objects that are no relations, and what kinds of objects there are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from sqlwall.sql.shapes import Json
from sqlwall.sql.statement import Relation

#: Kinds of objects that are relations.
RELATIONS: Final = frozenset({"table", "view", "materialized view", "index", "sequence", "foreign table"})
#: Kinds that belong to a relation, which their name starts with.
PARTS: Final = frozenset({"column", "trigger", "rule", "policy", "constraint"})

#: Where an ObjectType's name is not PostgreSQL's word for it.
_KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "amop": "operator family",
        "amproc": "operator family",
        "attribute": "type",
        "default": "column",
        "defacl": "default privileges",
        "domconstraint": "domain",
        "fdw": "foreign data wrapper",
        "foreign server": "server",
        "largeobject": "large object",
        "matview": "materialized view",
        "opclass": "operator class",
        "parameter acl": "parameter",
        "opfamily": "operator family",
        "publication namespace": "publication",
        "publication rel": "publication",
        "statistic ext": "statistics",
        "tabconstraint": "constraint",
        "tsconfiguration": "text search configuration",
        "tsdictionary": "text search dictionary",
        "tsparser": "text search parser",
        "tstemplate": "text search template",
    }
)


def object_kind(enum: str) -> str:
    """OBJECT_FOREIGN_TABLE as a person writes it."""
    kind = enum.removeprefix("OBJECT_").replace("_", " ").lower()
    return _KINDS.get(kind, kind)


#: Fields that hold the name of what a statement is about, the most telling one first.
_NAME_FIELDS: Final = (
    "extname", "object", "trigname", "funcname", "func", "defnames", "domainname", "typeName", "conversion_name",
    "opclassname", "opfamilyname", "opername", "amname", "plname", "policy_name", "rulename", "servername", "fdwname",
    "server_name", "pubname", "subname", "tablespacename", "orig_tablespacename", "dbname", "schemaname", "dictname",
    "cfgname", "collname", "idxname", "role", "filename", "name",
)  # fmt: skip


def names_in(body: Json) -> tuple[str, ...]:
    """The parts of the name of what a statement is about; none where it has no name of its own."""
    for field in _NAME_FIELDS:
        found = body.get(field)
        if isinstance(found, str):
            return (found,)
        if isinstance(found, dict | list) and field != "extname":
            names = parts_of(found)
            if names:
                return names
    return ()


def parts_of(node: Any) -> tuple[str, ...]:
    """The parts of a name, in whatever node it stands: String, List, ObjectWithArgs, TypeName, RangeVar, RoleSpec."""
    if isinstance(node, list):
        return tuple([part for item in node for part in parts_of(item)])
    if not isinstance(node, dict):
        return ()
    for field in ("sval", "rolename", "priv_name"):
        if isinstance(node.get(field), str):
            return (node[field],)
    if isinstance(node.get("relname"), str):
        return (*([node["schemaname"]] if "schemaname" in node else []), node["relname"])
    for field in ("objname", "names", "items"):
        if field in node:
            return parts_of(node[field])
    for kind in ("String", "List", "ObjectWithArgs", "TypeName", "RangeVar", "RoleSpec", "AccessPriv"):
        if kind in node:
            return parts_of(node[kind])
    return ()


def relation_named(kind: str, names: tuple[str, ...]) -> Relation | None:
    """The relation that an object of that kind is, or is a part of; None if it has none."""
    if kind in PARTS:
        names = names[:-1]
    elif kind not in RELATIONS:
        return None
    if not names:
        return None
    return Relation(names[-2] if len(names) > 1 else None, names[-1])
