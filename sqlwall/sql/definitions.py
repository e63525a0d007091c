"""Statements that define, change, remove or maintain objects.

What they hold is walked as well: a DEFAULT, a CHECK or an index expression calls functions as much as a query does.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.sql.objects import names_in, object_kind, parts_of, relation_named
from sqlwall.sql.shapes import Json, qualified
from sqlwall.sql.statement import Effect, Operation
from sqlwall.sql.walk import Handler, Scope, Walk, created, relation_of


def _truncate(walk: Walk, body: Json, scope: Scope) -> None:
    for item in body.get("relations") or ():
        walk.effect(Effect(Operation.TRUNCATE, relation_of(item["RangeVar"])))


def _vacuum(walk: Walk, body: Json, scope: Scope) -> None:
    subject = "vacuum" if body.get("is_vacuumcmd") else "analyze"
    tables = [item["VacuumRelation"].get("relation") for item in body.get("rels") or ()]
    for table in tables or [None]:
        walk.effect(Effect(Operation.MAINTENANCE, relation_of(table) if table else None, subject=subject))
    walk.nodes(body.get("options"), scope)


def _about(walk: Walk, operation: Operation, kind: str, names: tuple[str, ...]) -> None:
    """An effect on an object: on the relation, if it is one or a part of one, and by its name otherwise."""
    relation = relation_named(kind, names)
    walk.names.extend(names)
    if relation is not None:
        walk.effect(Effect(operation, relation, subject=kind))
    else:
        walk.effect(Effect(operation, subject=f"{kind} {'.'.join(names)}".strip() or None))


def _drop(walk: Walk, body: Json, scope: Scope) -> None:
    kind = object_kind(body.get("removeType", ""))
    for item in body.get("objects") or [{}]:
        _about(walk, Operation.DROP, kind, parts_of(item))
    walk.nodes(body.get("objects"), scope)


def _alter_table(walk: Walk, body: Json, scope: Scope) -> None:
    table = body.get("relation")
    relation = relation_of(table) if table is not None else None
    walk.effect(Effect(Operation.ALTER, relation, subject=object_kind(body.get("objtype", ""))))
    for item in body.get("cmds") or ():
        dropped = _DROPPING.get(item.get("AlterTableCmd", {}).get("subtype", ""))
        if dropped is not None:
            walk.effect(Effect(Operation.DROP, relation, subject=dropped))
    walk.children("AlterTableStmt", body, scope, skip=("relation",))


#: Subcommands of ALTER TABLE that remove something.
_DROPPING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "AT_DropColumn": "column",
        "AT_DropConstraint": "constraint",
        "AT_DropIdentity": "identity",
        "AT_DropExpression": "expression",
        "AT_DropInherit": "inheritance",
        "AT_DetachPartition": "partition",
    }
)


def _alter_table_command(walk: Walk, body: Json, scope: Scope) -> None:
    """INHERIT and NO INHERIT name the parent, whose rows change with it."""
    parent = (body.get("def") or {}).get("RangeVar")
    if parent is not None:
        walk.effect(Effect(Operation.ALTER, relation_of(parent), subject="table"))
    walk.children("AlterTableCmd", body, scope, skip=("def",) if parent is not None else ())


def _partition(walk: Walk, body: Json, scope: Scope) -> None:
    if "name" in body:
        walk.effect(Effect(Operation.ALTER, relation_of(body["name"]), subject="table"))
    walk.children("PartitionCmd", body, scope, skip=("name",))


def _create_table(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.CREATE, created(body["relation"]), subject="table"))
    _table_body(walk, body, scope)


def _create_foreign_table(walk: Walk, body: Json, scope: Scope) -> None:
    base = body["base"]
    walk.effect(Effect(Operation.CREATE, created(base["relation"]), subject="foreign table"))
    _table_body(walk, base, scope)
    walk.children("CreateForeignTableStmt", body, scope, skip=("base",))


def _table_body(walk: Walk, body: Json, scope: Scope) -> None:
    """A child or partition adds its rows to its parents."""
    for item in body.get("inhRelations") or ():
        walk.effect(Effect(Operation.ALTER, relation_of(item["RangeVar"]), subject="table"))
    walk.children("CreateStmt", body, scope, skip=("relation", "inhRelations"))


def _create_sequence(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.CREATE, created(body["sequence"]), subject="sequence"))
    walk.children("CreateSeqStmt", body, scope, skip=("sequence",))


def _composite_type(walk: Walk, body: Json, scope: Scope) -> None:
    _about(walk, Operation.CREATE, "type", parts_of(body.get("typevar")))
    walk.children("CompositeTypeStmt", body, scope, skip=("typevar",))


def _grant(walk: Walk, body: Json, scope: Scope) -> None:
    kind = object_kind(body.get("objtype", ""))
    everything = body.get("targtype") != "ACL_TARGET_OBJECT"
    for item in body.get("objects") or [{}]:
        names = parts_of(item)
        _about(walk, Operation.GRANT, f"all {kind}s in schema" if everything else kind, names)
    walk.children("GrantStmt", body, scope, skip=("objects",))


def _returned(walk: Walk, body: Json, scope: Scope) -> None:
    """The body of a function that is one expression."""
    walk.children("ReturnStmt", body, scope)


#: Fields that name code which will run, though no call of it is written.
_CODE_FIELDS: Final = ("funcname", "func_name", "handler_name", "plhandler", "plinline", "plvalidator")
_DEFINES_CODE: Final = frozenset({"CreateFunctionStmt"})


def _defining(node: str, operation: Operation, subject: str, field: str) -> Handler:
    """A handler of a statement that defines something: its effect, then whatever it holds."""

    def handle(walk: Walk, body: Json, scope: Scope) -> None:
        table = body.get(field) if field else None
        kind = "procedure" if body.get("is_procedure") else subject
        for key in ("renameType", "objectType", "objtype", "kind") if not kind else ():
            if isinstance(body.get(key), str):
                kind = object_kind(body[key])
                break
        names = names_in(body) if kind != "cast" else ()
        if isinstance(table, dict):
            walk.names.extend(names)
            walk.effect(Effect(operation, relation_of(table.get("RangeVar", table)), subject=kind or None))
        else:
            roles = body.get("roles") or body.get("granted_roles")
            for named in [parts_of(role) for role in roles] if roles and not names else [names]:
                _about(walk, operation, kind, named)
        for key in _CODE_FIELDS if node not in _DEFINES_CODE else ():
            schema, name = qualified(body.get(key))
            if name:
                walk.call(schema, name, -1)
        walk.children(node, body, scope, skip=(field,) if isinstance(table, dict) else ())

    return handle


_C, _A, _D, _G, _M = (
    Operation.CREATE, Operation.ALTER, Operation.DROP, Operation.GRANT, Operation.MAINTENANCE,
)  # fmt: skip

#: Node type, operation, what it is about (empty: the node says), the field that names a relation.
_DEFINITIONS: Final[tuple[tuple[str, Operation, str, str], ...]] = (
    ("IndexStmt", _C, "index", "relation"),
    ("CreateTrigStmt", _C, "trigger", "relation"),
    ("RuleStmt", _C, "rule", "relation"),
    ("CreatePolicyStmt", _C, "policy", "table"),
    ("CreateStatsStmt", _C, "statistics", ""),
    ("CreateSchemaStmt", _C, "schema", ""),
    ("CreateFunctionStmt", _C, "function", ""),
    ("CreateExtensionStmt", _C, "extension", ""),
    ("CreateDomainStmt", _C, "domain", ""),
    ("CreateEnumStmt", _C, "type", ""),
    ("CreateRangeStmt", _C, "type", ""),
    ("DefineStmt", _C, "", ""),
    ("CreateCastStmt", _C, "cast", ""),
    ("CreateConversionStmt", _C, "conversion", ""),
    ("CreateTransformStmt", _C, "transform", ""),
    ("CreateAmStmt", _C, "access method", ""),
    ("CreateOpClassStmt", _C, "operator class", ""),
    ("CreateOpFamilyStmt", _C, "operator family", ""),
    ("CreatePLangStmt", _C, "language", ""),
    ("CreateEventTrigStmt", _C, "event trigger", ""),
    ("CreateFdwStmt", _C, "foreign data wrapper", ""),
    ("CreateForeignServerStmt", _C, "server", ""),
    ("CreateUserMappingStmt", _C, "user mapping", ""),
    ("CreatePublicationStmt", _C, "publication", ""),
    ("CreateSubscriptionStmt", _C, "subscription", ""),
    ("CreateTableSpaceStmt", _C, "tablespace", ""),
    ("CreatedbStmt", _C, "database", ""),
    ("CreateRoleStmt", _C, "role", ""),
    ("ImportForeignSchemaStmt", _C, "foreign schema", ""),
    ("AlterSeqStmt", _A, "sequence", "sequence"),
    ("AlterPolicyStmt", _A, "policy", "table"),
    ("AlterStatsStmt", _A, "statistics", ""),
    ("AlterFunctionStmt", _A, "function", ""),
    ("AlterDomainStmt", _A, "domain", ""),
    ("AlterEnumStmt", _A, "type", ""),
    ("AlterTypeStmt", _A, "type", ""),
    ("AlterCollationStmt", _A, "collation", ""),
    ("AlterDatabaseStmt", _A, "database", ""),
    ("AlterDatabaseSetStmt", _A, "database", ""),
    ("AlterDatabaseRefreshCollStmt", _A, "database", ""),
    ("AlterEventTrigStmt", _A, "event trigger", ""),
    ("AlterExtensionStmt", _A, "extension", ""),
    ("AlterExtensionContentsStmt", _A, "extension", ""),
    ("AlterFdwStmt", _A, "foreign data wrapper", ""),
    ("AlterForeignServerStmt", _A, "server", ""),
    ("AlterUserMappingStmt", _A, "user mapping", ""),
    ("AlterObjectDependsStmt", _A, "", "relation"),
    ("AlterObjectSchemaStmt", _A, "", "relation"),
    ("AlterOpFamilyStmt", _A, "operator family", ""),
    ("AlterOperatorStmt", _A, "operator", ""),
    ("AlterOwnerStmt", _A, "", "relation"),
    ("AlterPublicationStmt", _A, "publication", ""),
    ("AlterSubscriptionStmt", _A, "subscription", ""),
    ("AlterSystemStmt", _A, "system", ""),
    ("AlterTSConfigurationStmt", _A, "text search configuration", ""),
    ("AlterTSDictionaryStmt", _A, "text search dictionary", ""),
    ("AlterTableMoveAllStmt", _A, "tablespace", ""),
    ("AlterTableSpaceOptionsStmt", _A, "tablespace", ""),
    ("AlterRoleStmt", _A, "role", ""),
    ("AlterRoleSetStmt", _A, "role", ""),
    ("RenameStmt", _A, "", "relation"),
    ("ReplicaIdentityStmt", _A, "replica identity", ""),
    ("CommentStmt", _A, "", ""),
    ("SecLabelStmt", _A, "", ""),
    ("DropdbStmt", _D, "database", ""),
    ("DropRoleStmt", _D, "role", ""),
    ("DropOwnedStmt", _D, "owned", ""),
    ("DropSubscriptionStmt", _D, "subscription", ""),
    ("DropTableSpaceStmt", _D, "tablespace", ""),
    ("DropUserMappingStmt", _D, "user mapping", ""),
    ("GrantRoleStmt", _G, "role", ""),
    ("AlterDefaultPrivilegesStmt", _G, "default privileges", ""),
    ("ReassignOwnedStmt", _G, "owned", ""),
    ("CheckPointStmt", _M, "checkpoint", ""),
    ("ClusterStmt", _M, "cluster", "relation"),
    ("ReindexStmt", _M, "reindex", "relation"),
    ("RefreshMatViewStmt", _M, "refresh", "relation"),
    ("LoadStmt", _M, "load", ""),
)

#: Statements about objects, and the nodes in them that name relations without reading them.
DEFINING_STATEMENTS: Final[Mapping[str, Handler]] = MappingProxyType(
    {
        "TruncateStmt": _truncate,
        "VacuumStmt": _vacuum,
        "DropStmt": _drop,
        "AlterTableStmt": _alter_table,
        "AlterTableCmd": _alter_table_command,
        "PartitionCmd": _partition,
        "CreateStmt": _create_table,
        "CreateForeignTableStmt": _create_foreign_table,
        "CreateSeqStmt": _create_sequence,
        "CompositeTypeStmt": _composite_type,
        "GrantStmt": _grant,
        "ReturnStmt": _returned,
    }
    | {node: _defining(node, operation, subject, field) for node, operation, subject, field in _DEFINITIONS}
)
