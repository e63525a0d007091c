"""From a parse tree to facts: every effect of every statement, in the words of `sqlwall.sql.statement`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.sql.definitions import DEFINING_STATEMENTS
from sqlwall.sql.settings import SESSION_STATEMENTS, control_of
from sqlwall.sql.shapes import Json
from sqlwall.sql.statement import Effect, Operation, Statement
from sqlwall.sql.statements import ROW_STATEMENTS, is_held
from sqlwall.sql.tags import command_tag
from sqlwall.sql.walk import EMPTY_SCOPE, EXPRESSIONS, Handler, Walk

_HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(
    {**EXPRESSIONS, **ROW_STATEMENTS, **SESSION_STATEMENTS, **DEFINING_STATEMENTS}
)
_CURSORS: Final = frozenset({"DeclareCursorStmt", "FetchStmt", "ClosePortalStmt"})
_PREPARED: Final = frozenset({"PrepareStmt", "DeallocateStmt"})


def analyze(raw: Json, start: int, end: int) -> Statement:
    """Facts about one raw statement of a text, which stands between two byte offsets.

    A tree of another shape than PostgreSQL's grammar gives has an UNKNOWN effect. RecursionError passes.
    """
    kind = next(iter(raw), "")
    try:
        return _facts(kind, raw, start, end)
    except (LookupError, AttributeError, TypeError, ValueError):
        return Statement(kind, (Effect(Operation.UNKNOWN, subject=kind),), start, end, volatile=True)


def _facts(kind: str, raw: Json, start: int, end: int) -> Statement:
    walk = Walk(_HANDLERS)
    walk.query(raw, EMPTY_SCOPE)
    if not walk.effects or len(raw) != 1 or not kind.endswith("Stmt"):
        walk.effect(Effect(Operation.UNKNOWN, subject=kind))
    body = raw.get(kind, {})
    return Statement(
        tag=command_tag(kind, body),
        effects=tuple(walk.effects),
        start=start,
        end=end,
        functions=tuple(walk.functions),
        columns=tuple(walk.columns),
        control=control_of(kind, body),
        prepared=body.get("name") if kind in _PREPARED else walk.executed,
        cursor=body.get("portalname") if kind in _CURSORS else None,
        hold=kind == "DeclareCursorStmt" and is_held(body),
        names=tuple([name for name in walk.names if name]),
        volatile=walk.volatile,
    )
