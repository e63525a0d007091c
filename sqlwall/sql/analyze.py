"""From a parse tree to facts: every effect of every statement, in the words of `sqlwall.sql.statement`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.sql.shapes import Json
from sqlwall.sql.statement import Effect, Operation, Statement
from sqlwall.sql.statements import ROW_STATEMENTS, is_held
from sqlwall.sql.utility import UTILITY_STATEMENTS, control_of, object_kind
from sqlwall.sql.walk import EMPTY_SCOPE, EXPRESSIONS, Handler, Walk

_HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(
    dict(EXPRESSIONS) | dict(ROW_STATEMENTS) | dict(UTILITY_STATEMENTS)
)

#: Tags that are not the node's name in words (tcop/utility.c, CreateCommandTag).
_TAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SelectStmt": "SELECT",
        "InsertStmt": "INSERT",
        "UpdateStmt": "UPDATE",
        "DeleteStmt": "DELETE",
        "MergeStmt": "MERGE",
        "CopyStmt": "COPY",
        "DeclareCursorStmt": "DECLARE CURSOR",
        "ClosePortalStmt": "CLOSE CURSOR",
        "VariableShowStmt": "SHOW",
        "ConstraintsSetStmt": "SET CONSTRAINTS",
        "CreateStmt": "CREATE TABLE",
        "CreateTableAsStmt": "CREATE TABLE AS",
        "ViewStmt": "CREATE VIEW",
        "IndexStmt": "CREATE INDEX",
        "RuleStmt": "CREATE RULE",
        "CreateSeqStmt": "CREATE SEQUENCE",
        "CreateTrigStmt": "CREATE TRIGGER",
        "CreatedbStmt": "CREATE DATABASE",
        "DropdbStmt": "DROP DATABASE",
        "GrantRoleStmt": "GRANT ROLE",
        "LockStmt": "LOCK TABLE",
        "TruncateStmt": "TRUNCATE TABLE",
        "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
        "CheckPointStmt": "CHECKPOINT",
        "AlterSeqStmt": "ALTER SEQUENCE",
    }
)
_TRANSACTION_TAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "TRANS_STMT_BEGIN": "BEGIN",
        "TRANS_STMT_START": "START TRANSACTION",
        "TRANS_STMT_COMMIT": "COMMIT",
        "TRANS_STMT_ROLLBACK": "ROLLBACK",
        "TRANS_STMT_SAVEPOINT": "SAVEPOINT",
        "TRANS_STMT_RELEASE": "RELEASE",
        "TRANS_STMT_ROLLBACK_TO": "ROLLBACK",
        "TRANS_STMT_PREPARE": "PREPARE TRANSACTION",
        "TRANS_STMT_COMMIT_PREPARED": "COMMIT PREPARED",
        "TRANS_STMT_ROLLBACK_PREPARED": "ROLLBACK PREPARED",
    }
)
_CURSORS: Final = frozenset({"DeclareCursorStmt", "FetchStmt", "ClosePortalStmt"})
_PREPARED: Final = frozenset({"PrepareStmt", "ExecuteStmt", "DeallocateStmt"})


def analyze(raw: Json, start: int, end: int) -> Statement:
    """Facts about one raw statement of a text, which stands between two byte offsets."""
    walk = Walk(_HANDLERS)
    walk.node(raw, EMPTY_SCOPE)
    kind, body = next(iter(raw.items())) if len(raw) == 1 else ("", {})
    if not walk.effects:
        # It only computes; an unknown shape has left an effect of its own.
        is_query = kind in ("SelectStmt", "ExplainStmt", "DeclareCursorStmt", "PrepareStmt")
        walk.effect(Effect(Operation.SELECT if is_query else Operation.UNKNOWN))
    elif kind == "SelectStmt" and all(effect.operation is Operation.SET for effect in walk.effects):
        walk.effect(Effect(Operation.SELECT))
    return Statement(
        tag=_tag(kind, body),
        effects=tuple(walk.effects),
        start=start,
        end=end,
        functions=tuple(walk.functions),
        columns=tuple(walk.columns),
        control=control_of(kind, body),
        prepared=body.get("name") if kind in _PREPARED else None,
        cursor=_cursor_of(kind, body),
        hold=kind == "DeclareCursorStmt" and is_held(body),
        names=tuple(name for name in walk.names if name),
        volatile=walk.volatile,
    )


def _cursor_of(kind: str, body: Json) -> str | None:
    name: str | None = body.get("portalname") if kind in _CURSORS else None
    return name


def _tag(kind: str, body: Json) -> str:
    """The command tag, or close to it: for messages and rules, never for a decision of ours."""
    if kind == "TransactionStmt":
        return _TRANSACTION_TAGS.get(body.get("kind", ""), "TRANSACTION")
    if kind == "VariableSetStmt":
        return "RESET" if "RESET" in body.get("kind", "") else "SET"
    if kind == "DropStmt":
        return f"DROP {object_kind(body.get('removeType', '')).upper()}"
    if kind == "AlterTableStmt":
        return f"ALTER {object_kind(body.get('objtype', '')).upper()}"
    if kind == "VacuumStmt":
        return "VACUUM" if body.get("is_vacuumcmd") else "ANALYZE"
    if kind == "FetchStmt":
        return "MOVE" if body.get("ismove") else "FETCH"
    if kind == "GrantStmt":
        return "GRANT" if body.get("is_grant") else "REVOKE"
    if kind == "SelectStmt" and "intoClause" in body:
        return "SELECT INTO"
    known = _TAGS.get(kind)
    if known is not None:
        return known
    words = "".join(f" {letter}" if letter.isupper() else letter for letter in kind.removesuffix("Stmt"))
    return words.strip().upper()
