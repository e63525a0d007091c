"""Statements that read and write rows, and those that carry another statement inside, with their WITH scopes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.sql.predicate import boundedness
from sqlwall.sql.shapes import Json, strings
from sqlwall.sql.statement import Bounded, Effect, Operation
from sqlwall.sql.walk import Handler, Scope, Walk, created, relation_of, with_scope

_STRENGTHS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "LCS_FORKEYSHARE": "for key share",
        "LCS_FORSHARE": "for share",
        "LCS_FORNOKEYUPDATE": "for no key update",
        "LCS_FORUPDATE": "for update",
    }
)
_CURSOR_OPT_HOLD: Final = 0x0020


def _select(walk: Walk, body: Json, scope: Scope) -> None:
    """A chain of UNIONs leans to the left and may be long: it is followed without recursion."""
    while True:
        scope = with_scope(walk, body.get("withClause"), scope)
        into = body.get("intoClause")
        if into is not None:
            walk.effect(Effect(Operation.CREATE, created(into["rel"]), subject="table"))
            walk.children("IntoClause", into, scope, skip=("rel",))
        sources = body.get("fromClause")
        if sources is not None:
            before = len(walk.effects)
            walk.nodes(sources, scope)
            for item in body.get("lockingClause") or ():
                _lock_rows(walk, item["LockingClause"], sources, walk.effects[before:])
        walk.children("SelectStmt", body, scope, skip=_SELECT_HANDLED)
        left = body.get("larg")
        if left is None:
            return
        body = left


_SELECT_HANDLED: Final = ("withClause", "intoClause", "fromClause", "lockingClause", "larg")


def _lock_rows(walk: Walk, clause: Json, sources: list[Json], read: list[Effect]) -> None:
    """FOR UPDATE and its like: the tables named by OF, all that FROM reads otherwise, or where a name is no table's."""
    strength = _STRENGTHS.get(clause.get("strength", ""), "for update")
    tables = [effect.relation for effect in read if effect.operation is Operation.SELECT]
    named = {item["RangeVar"].get("relname") for item in clause.get("lockedRels") or ()}
    if named:
        known = {_alias(table): relation_of(table) for table in _tables(sources)}
        if named <= known.keys():
            tables = [known[name] for name in named if known[name] in tables]
    for table in dict.fromkeys(tables):
        walk.effect(Effect(Operation.LOCK, table, subject=strength))


def _tables(sources: list[Json]) -> Iterator[Json]:
    """The tables of a FROM clause that have a name of their own there."""
    pending = list(sources)
    while pending:
        item = pending.pop()
        if "RangeVar" in item:
            yield item["RangeVar"]
        elif "JoinExpr" in item and item["JoinExpr"].get("alias") is None:
            pending += [item["JoinExpr"].get("larg") or {}, item["JoinExpr"].get("rarg") or {}]


def _alias(table: Json) -> str:
    return str(table["alias"].get("aliasname", "") if "alias" in table else table.get("relname", ""))


def _columns(targets: list[Json] | None) -> tuple[str, ...]:
    return tuple([target["ResTarget"].get("name", "") for target in targets or () if "ResTarget" in target])


def _insert(walk: Walk, body: Json, scope: Scope) -> None:
    target = relation_of(body["relation"])
    walk.effect(Effect(Operation.INSERT, target, columns=_columns(body.get("cols"))))
    scope = with_scope(walk, body.get("withClause"), scope)
    conflict = body.get("onConflictClause")
    if conflict is not None and conflict.get("action") == "ONCONFLICT_UPDATE":
        walk.effect(Effect(Operation.UPDATE, target, columns=_columns(conflict.get("targetList"))))
        walk.read(body["relation"])
    elif body.get("returningClause") is not None:
        walk.read(body["relation"])
    walk.children("InsertStmt", body, scope, skip=("relation", "withClause"))


def _update(walk: Walk, body: Json, scope: Scope) -> None:
    table = body["relation"]
    where = body.get("whereClause")
    walk.effect(
        Effect(
            Operation.UPDATE,
            relation_of(table),
            columns=_columns(body.get("targetList")),
            bounded=boundedness(where, relation_of(table)),
        )
    )
    scope = with_scope(walk, body.get("withClause"), scope)
    walk.read(table)
    walk.children("UpdateStmt", body, scope, skip=("relation", "withClause"))


def _delete(walk: Walk, body: Json, scope: Scope) -> None:
    table = body["relation"]
    bounded = boundedness(body.get("whereClause"), relation_of(table))
    walk.effect(Effect(Operation.DELETE, relation_of(table), bounded=bounded))
    scope = with_scope(walk, body.get("withClause"), scope)
    if body.get("whereClause") is not None or body.get("returningClause") is not None:
        walk.read(table)
    walk.children("DeleteStmt", body, scope, skip=("relation", "withClause"))


_MERGE_COMMANDS: Final[Mapping[str, Operation]] = {
    "CMD_INSERT": Operation.INSERT,
    "CMD_UPDATE": Operation.UPDATE,
    "CMD_DELETE": Operation.DELETE,
}


def _merge(walk: Walk, body: Json, scope: Scope) -> None:
    table = body["relation"]
    target = relation_of(table)
    walk.effect(Effect(Operation.MERGE, target))
    joined = boundedness(body.get("joinCondition"), target)
    for item in body.get("mergeWhenClauses") or ():
        clause = item["MergeWhenClause"]
        operation = _MERGE_COMMANDS.get(clause.get("commandType", ""))
        if operation is None:
            continue
        bounded = Bounded.BOUNDED
        if operation is not Operation.INSERT:
            own = boundedness(clause.get("condition"), target)
            is_joined = clause.get("matchKind") == "MERGE_WHEN_MATCHED"
            bounded = joined if is_joined and own is Bounded.NO_WHERE else own
            bounded = Bounded.BOUNDED if is_joined and joined is Bounded.BOUNDED else bounded
        walk.effect(Effect(operation, target, columns=_columns(clause.get("targetList")), bounded=bounded))
    scope = with_scope(walk, body.get("withClause"), scope)
    walk.read(table)
    walk.children("MergeStmt", body, scope, skip=("relation", "withClause"))


def _copy(walk: Walk, body: Json, scope: Scope) -> None:
    table = body.get("relation")
    target = relation_of(table) if table is not None else None
    is_from = bool(body.get("is_from"))
    if body.get("is_program"):
        walk.effect(Effect(Operation.COPY_PROGRAM, target))
    elif body.get("filename"):
        walk.effect(Effect(Operation.COPY_FILE, target))
    if is_from:
        walk.effect(Effect(Operation.COPY_IN, target, columns=strings(body.get("attlist"))))
    else:
        walk.effect(Effect(Operation.COPY_OUT, target))
        if table is not None:
            walk.read(table)
    walk.query(body.get("query"), scope)
    walk.children("CopyStmt", body, scope, skip=("relation", "query"))


def _explain(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.EXPLAIN))
    walk.query(body.get("query"), scope)
    walk.children("ExplainStmt", body, scope, skip=("query",))


def _prepare(walk: Walk, body: Json, scope: Scope) -> None:
    name = body.get("name", "")
    walk.names.append(name)
    walk.effect(Effect(Operation.PREPARE, subject=name))
    walk.query(body.get("query"), scope)
    walk.children("PrepareStmt", body, scope, skip=("query",))


def _execute(walk: Walk, body: Json, scope: Scope) -> None:
    name = body.get("name", "")
    walk.names.append(name)
    walk.executed = name
    walk.effect(Effect(Operation.EXECUTE, subject=name))
    walk.children("ExecuteStmt", body, scope)


def _deallocate(walk: Walk, body: Json, scope: Scope) -> None:
    walk.names.append(body.get("name", ""))
    walk.effect(Effect(Operation.DEALLOCATE, subject=body.get("name") or "all"))


def _declare(walk: Walk, body: Json, scope: Scope) -> None:
    name = body.get("portalname", "")
    walk.names.append(name)
    walk.effect(Effect(Operation.CURSOR, subject=name))
    walk.query(body.get("query"), scope)
    walk.children("DeclareCursorStmt", body, scope, skip=("query",))


def _cursor(walk: Walk, body: Json, scope: Scope) -> None:
    name = body.get("portalname", "")
    walk.names.append(name)
    walk.effect(Effect(Operation.CURSOR, subject=name or "all"))


def _create_as(walk: Walk, body: Json, scope: Scope) -> None:
    into = body["into"]
    kind = "materialized view" if body.get("objtype") == "OBJECT_MATVIEW" else "table"
    walk.effect(Effect(Operation.CREATE, created(into["rel"]), subject=kind))
    walk.children("IntoClause", into, scope, skip=("rel",))
    walk.query(body.get("query"), scope)


def _view(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.CREATE, created(body["view"]), subject="view"))
    walk.query(body.get("query"), scope)
    walk.children("ViewStmt", body, scope, skip=("view", "query"))


def _call(walk: Walk, body: Json, scope: Scope) -> None:
    walk.volatile = True
    name = ".".join(strings(body["funccall"].get("funcname")))
    walk.effect(Effect(Operation.CALL, subject=name))
    walk.typed("FuncCall", body["funccall"], scope)


def _do(walk: Walk, body: Json, scope: Scope) -> None:
    walk.volatile = True
    walk.effect(Effect(Operation.DO))


def is_held(body: Json) -> bool:
    """Whether a DeclareCursorStmt says WITH HOLD."""
    return bool(int(body.get("options", 0)) & _CURSOR_OPT_HOLD)


#: Statements whose rows or inner statement the walk goes through.
ROW_STATEMENTS: Final[Mapping[str, Handler]] = {
    "SelectStmt": _select,
    "InsertStmt": _insert,
    "UpdateStmt": _update,
    "DeleteStmt": _delete,
    "MergeStmt": _merge,
    "CopyStmt": _copy,
    "ExplainStmt": _explain,
    "PrepareStmt": _prepare,
    "ExecuteStmt": _execute,
    "DeallocateStmt": _deallocate,
    "DeclareCursorStmt": _declare,
    "FetchStmt": _cursor,
    "ClosePortalStmt": _cursor,
    "CreateTableAsStmt": _create_as,
    "ViewStmt": _view,
    "CallStmt": _call,
    "DoStmt": _do,
}
