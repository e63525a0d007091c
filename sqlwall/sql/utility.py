"""Utility statements: settings, transactions, sessions, and everything that defines or maintains.

What they define is walked as well: a DEFAULT or a CHECK calls functions as much as a query does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlwall.sql.shapes import Json, constant, strings
from sqlwall.sql.statement import Effect, Operation, Relation, Transaction, TransactionControl
from sqlwall.sql.walk import Handler, Scope, Walk, relation_of

_VERBS: Final[Mapping[str, Transaction]] = {
    "TRANS_STMT_BEGIN": Transaction.BEGIN,
    "TRANS_STMT_START": Transaction.BEGIN,
    "TRANS_STMT_COMMIT": Transaction.COMMIT,
    "TRANS_STMT_ROLLBACK": Transaction.ROLLBACK,
    "TRANS_STMT_SAVEPOINT": Transaction.SAVEPOINT,
    "TRANS_STMT_RELEASE": Transaction.RELEASE,
    "TRANS_STMT_ROLLBACK_TO": Transaction.ROLLBACK_TO,
}
_TWO_PHASE: Final = frozenset(
    {"TRANS_STMT_PREPARE", "TRANS_STMT_COMMIT_PREPARED", "TRANS_STMT_ROLLBACK_PREPARED"}
)
_MULTI: Final[Mapping[str, Transaction]] = {
    "TRANSACTION": Transaction.SET_TRANSACTION,
    "SESSION CHARACTERISTICS": Transaction.SET_SESSION_CHARACTERISTICS,
}
_IDENTITY: Final = frozenset({"role", "session_authorization"})


def control_of(kind: str, body: Json) -> TransactionControl | None:
    """Transaction control in a top-level statement, for the session to follow."""
    if kind == "TransactionStmt":
        verb = _VERBS.get(body.get("kind", ""))
        if verb is None:
            return None
        return _control(verb, body.get("options"), body.get("savepoint_name"), chain=bool(body.get("chain")))
    if kind == "VariableSetStmt" and body.get("kind") == "VAR_SET_MULTI":
        verb = _MULTI.get(body.get("name", ""))
        return _control(verb, body.get("args"), None, chain=False) if verb is not None else None
    return None


def _control(
    verb: Transaction, options: list[Json] | None, name: str | None, *, chain: bool
) -> TransactionControl:
    """Where an option is given twice, READ WRITE once is READ WRITE: which of them holds last does not matter here."""
    read_only: bool | None = None
    isolation: str | None = None
    for option in options or ():
        element = option["DefElem"]
        value = constant(element.get("arg"))
        if element.get("defname") == "transaction_read_only":
            read_only = value not in ("0", "false") and read_only is not False
        elif element.get("defname") == "transaction_isolation":
            isolation = value
    return TransactionControl(verb, name, read_only, chain, isolation)


def _transaction(walk: Walk, body: Json, scope: Scope) -> None:
    kind = body.get("kind", "")
    if kind in _TWO_PHASE:
        walk.effect(Effect(Operation.TWO_PHASE, subject=body.get("gid")))
    elif kind in _VERBS:
        name = body.get("savepoint_name")
        walk.effect(Effect(Operation.TRANSACTION, subject=_VERBS[kind].value))
        if name is not None:
            walk.names.append(name)
    else:
        walk.effect(Effect(Operation.UNKNOWN, subject=kind))


def _variable_set(walk: Walk, body: Json, scope: Scope) -> None:
    kind, name = body.get("kind", ""), body.get("name", "")
    if kind == "VAR_SET_MULTI":
        if name in _MULTI:
            walk.effect(Effect(Operation.TRANSACTION, subject=_MULTI[name].value))
        else:
            walk.effect(Effect(Operation.SET, subject="transaction_snapshot"))
    elif name.lower() in _IDENTITY:
        walk.effect(
            Effect(Operation.ROLE, subject=name.lower(), value=_setting_value(name, body.get("args")))
        )
    elif kind == "VAR_RESET_ALL":
        walk.effect(Effect(Operation.RESET, subject="all"))
    elif kind in ("VAR_RESET", "VAR_SET_DEFAULT"):
        walk.effect(Effect(Operation.RESET, subject=name.lower()))
    elif kind == "VAR_SET_CURRENT":
        walk.effect(Effect(Operation.SET, subject=name.lower()))
    elif kind == "VAR_SET_VALUE":
        value = _setting_value(name, body.get("args"))
        walk.effect(Effect(Operation.SET, subject=name.lower(), value=value))
    else:
        walk.effect(Effect(Operation.UNKNOWN, subject=kind))
    walk.nodes(body.get("args") if kind == "VAR_SET_VALUE" else None, scope)


def _setting_value(name: str, arguments: list[Json] | None) -> str | None:
    """The value as text; None where it is no constant.

    Elements of search_path are quoted, as flatten_set_variable_args() in utils/misc/guc.c quotes them: a comma inside
    one of them separates nothing.
    """
    values: list[str] = []
    for argument in arguments or ():
        value = constant(argument)
        if value is None:
            return None
        if name.lower() == "search_path":
            value = '"' + value.replace('"', '""') + '"'
        values.append(value)
    return ", ".join(values)


def _show(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.SHOW, subject=body.get("name", "").lower()))


def _discard(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.DISCARD, subject=body.get("target", "").removeprefix("DISCARD_").lower()))


def _truncate(walk: Walk, body: Json, scope: Scope) -> None:
    for item in body.get("relations") or ():
        walk.effect(Effect(Operation.TRUNCATE, relation_of(item["RangeVar"])))


_LOCK_MODES: Final = (
    "none", "access share", "row share", "row exclusive", "share update exclusive", "share",
    "share row exclusive", "exclusive", "access exclusive",
)  # fmt: skip


def _lock(walk: Walk, body: Json, scope: Scope) -> None:
    mode = int(body.get("mode", 8))
    subject = _LOCK_MODES[mode] if mode < len(_LOCK_MODES) else "access exclusive"
    for item in body.get("relations") or ():
        walk.effect(Effect(Operation.LOCK, relation_of(item["RangeVar"]), subject=subject))


def _listen(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.LISTEN, subject=body.get("conditionname") or "*"))


def _notify(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.NOTIFY, subject=body.get("conditionname", "")))


def _constraints(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.CONSTRAINTS, subject="deferred" if body.get("deferred") else "immediate"))


def _vacuum(walk: Walk, body: Json, scope: Scope) -> None:
    subject = "vacuum" if body.get("is_vacuumcmd") else "analyze"
    tables = [item["VacuumRelation"].get("relation") for item in body.get("rels") or ()]
    for table in tables or [None]:
        walk.effect(Effect(Operation.MAINTENANCE, relation_of(table) if table else None, subject=subject))


def _drop(walk: Walk, body: Json, scope: Scope) -> None:
    kind = object_kind(body.get("removeType", ""))
    for item in body.get("objects") or ():
        names = strings(item["List"].get("items")) if "List" in item else strings([item])
        if kind in _RELATIONS and names:
            relation = Relation(names[-2] if len(names) > 1 else None, names[-1])
            walk.effect(Effect(Operation.DROP, relation, subject=kind))
        else:
            walk.effect(Effect(Operation.DROP, subject=f"{kind} {'.'.join(names)}".strip()))
    if not body.get("objects"):
        walk.effect(Effect(Operation.DROP, subject=kind))


#: Kinds of objects that are relations.
_RELATIONS: Final = frozenset({"table", "view", "materialized view", "index", "sequence", "foreign table"})


def object_kind(enum: str) -> str:
    """OBJECT_FOREIGN_TABLE as a person writes it."""
    kind = enum.removeprefix("OBJECT_").replace("_", " ").lower()
    return {"matview": "materialized view"}.get(kind, kind)


def _alter_table(walk: Walk, body: Json, scope: Scope) -> None:
    table = body.get("relation")
    relation = relation_of(table) if table is not None else None
    walk.effect(Effect(Operation.ALTER, relation, subject=object_kind(body.get("objtype", ""))))
    for item in body.get("cmds") or ():
        subtype = item.get("AlterTableCmd", {}).get("subtype", "")
        if subtype.startswith("AT_Drop") and subtype not in ("AT_DropNotNull", "AT_DropExpression"):
            walk.effect(Effect(Operation.DROP, relation, subject=subtype.removeprefix("AT_").lower()))
    walk.children("AlterTableStmt", body, scope, skip=("relation",))


def _defining(node: str, operation: Operation, subject: str, field: str) -> Handler:
    """A handler of a statement that defines something: its effect, then whatever it holds."""

    def handle(walk: Walk, body: Json, scope: Scope) -> None:
        found = body.get(field) if field else None
        relation = relation_of(found.get("RangeVar", found)) if isinstance(found, dict) else None
        kind = subject
        for key in ("renameType", "objectType", "objtype", "kind") if not kind else ():
            if isinstance(body.get(key), str):
                kind = object_kind(body[key])
                break
        walk.effect(Effect(operation, relation, subject=kind or None))
        walk.children(node, body, scope, skip=(field,) if relation is not None else ())

    return handle


_C, _A, _D, _G, _M = (
    Operation.CREATE, Operation.ALTER, Operation.DROP, Operation.GRANT, Operation.MAINTENANCE,
)  # fmt: skip

#: Node type, operation, what it is about (empty: the node says), the field that names a relation.
_DEFINITIONS: Final[tuple[tuple[str, Operation, str, str], ...]] = (
    ("CreateStmt", _C, "table", "relation"),
    ("CreateForeignTableStmt", _C, "foreign table", ""),
    ("CreateSeqStmt", _C, "sequence", "sequence"),
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
    ("CompositeTypeStmt", _C, "type", ""),
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
    ("CommentStmt", _A, "comment", ""),
    ("SecLabelStmt", _A, "security label", ""),
    ("DropdbStmt", _D, "database", ""),
    ("DropRoleStmt", _D, "role", ""),
    ("DropOwnedStmt", _D, "owned", ""),
    ("DropSubscriptionStmt", _D, "subscription", ""),
    ("DropTableSpaceStmt", _D, "tablespace", ""),
    ("DropUserMappingStmt", _D, "user mapping", ""),
    ("GrantStmt", _G, "privileges", ""),
    ("GrantRoleStmt", _G, "role", ""),
    ("AlterDefaultPrivilegesStmt", _G, "default privileges", ""),
    ("ReassignOwnedStmt", _G, "owned", ""),
    ("CheckPointStmt", _M, "checkpoint", ""),
    ("ClusterStmt", _M, "cluster", "relation"),
    ("ReindexStmt", _M, "reindex", "relation"),
    ("RefreshMatViewStmt", _M, "refresh", "relation"),
    ("LoadStmt", _M, "load", ""),
)

#: Statements that are not about rows.
UTILITY_STATEMENTS: Final[Mapping[str, Handler]] = {
    "TransactionStmt": _transaction,
    "VariableSetStmt": _variable_set,
    "VariableShowStmt": _show,
    "DiscardStmt": _discard,
    "TruncateStmt": _truncate,
    "LockStmt": _lock,
    "ListenStmt": _listen,
    "UnlistenStmt": _listen,
    "NotifyStmt": _notify,
    "ConstraintsSetStmt": _constraints,
    "VacuumStmt": _vacuum,
    "DropStmt": _drop,
    "AlterTableStmt": _alter_table,
} | {node: _defining(node, operation, subject, field) for node, operation, subject, field in _DEFINITIONS}
