"""Settings, transactions and sessions: SET and its many spellings, BEGIN to ROLLBACK TO, DISCARD, LOCK, LISTEN."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.sql.shapes import Json, constant
from sqlwall.sql.statement import Effect, Operation, Transaction, TransactionControl
from sqlwall.sql.walk import Handler, Scope, Walk, relation_of

_VERBS: Final[Mapping[str, Transaction]] = MappingProxyType(
    {
        "TRANS_STMT_BEGIN": Transaction.BEGIN,
        "TRANS_STMT_START": Transaction.BEGIN,
        "TRANS_STMT_COMMIT": Transaction.COMMIT,
        "TRANS_STMT_ROLLBACK": Transaction.ROLLBACK,
        "TRANS_STMT_SAVEPOINT": Transaction.SAVEPOINT,
        "TRANS_STMT_RELEASE": Transaction.RELEASE,
        "TRANS_STMT_ROLLBACK_TO": Transaction.ROLLBACK_TO,
    }
)
_TWO_PHASE: Final = frozenset(
    {"TRANS_STMT_PREPARE", "TRANS_STMT_COMMIT_PREPARED", "TRANS_STMT_ROLLBACK_PREPARED"}
)
_MULTI: Final[Mapping[str, Transaction]] = MappingProxyType(
    {
        "TRANSACTION": Transaction.SET_TRANSACTION,
        "SESSION CHARACTERISTICS": Transaction.SET_SESSION_CHARACTERISTICS,
    }
)
_IDENTITY: Final = frozenset({"role", "session_authorization"})
#: Settings whose elements PostgreSQL quotes when it makes one text of a list (GUC_LIST_QUOTE in utils/misc).
_QUOTED_LISTS: Final = frozenset(
    {
        "search_path",
        "temp_tablespaces",
        "local_preload_libraries",
        "session_preload_libraries",
        "shared_preload_libraries",
        "unix_socket_directories",
    }
)


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
    kind, name = body.get("kind", ""), body.get("name", "").lower()
    if kind == "VAR_SET_MULTI":
        _set_several(walk, name)
    elif name in _IDENTITY:
        _become(walk, kind, name, body.get("args"))
    elif kind == "VAR_RESET_ALL":
        walk.effect(Effect(Operation.RESET, subject="all"))
    elif kind in ("VAR_RESET", "VAR_SET_DEFAULT"):
        walk.effect(Effect(Operation.RESET, subject=name))
    elif kind == "VAR_SET_CURRENT":
        walk.effect(Effect(Operation.SET, subject=name))
    elif kind == "VAR_SET_VALUE":
        walk.effect(Effect(Operation.SET, subject=name, value=_value(name, body.get("args"))))
        walk.nodes(body.get("args"), scope)
    else:
        walk.effect(Effect(Operation.UNKNOWN, subject=kind))


def _set_several(walk: Walk, name: str) -> None:
    verb = _MULTI.get(name.upper())
    if verb is not None:
        walk.effect(Effect(Operation.TRANSACTION, subject=verb.value))
    elif name == "transaction snapshot":
        walk.effect(Effect(Operation.SET, subject="transaction_snapshot"))
    else:
        walk.effect(Effect(Operation.UNKNOWN, subject=name))


def _become(walk: Walk, kind: str, name: str, arguments: list[Json] | None) -> None:
    """SET ROLE and SET SESSION AUTHORIZATION; without a value, back to who logged in."""
    value = _value(name, arguments) if kind == "VAR_SET_VALUE" else None
    walk.effect(Effect(Operation.ROLE, subject=name, value=value))
    if value is not None:
        walk.names.append(value)


def _value(name: str, arguments: list[Json] | None) -> str | None:
    """The value as text, as flatten_set_variable_args() in utils/misc/guc.c makes it; None where it is no constant.

    Elements of some lists are quoted there: a comma inside one of them separates nothing.
    """
    values: list[str] = []
    for argument in arguments or ():
        value = constant(argument)
        if value is None or "TypeCast" in argument:
            return None
        if name in _QUOTED_LISTS:
            value = '"' + value.replace('"', '""') + '"'
        values.append(value)
    return ", ".join(values)


def _show(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.SHOW, subject=body.get("name", "").lower()))


def _discard(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.DISCARD, subject=body.get("target", "").removeprefix("DISCARD_").lower()))


_LOCK_MODES: Final = (
    "none", "access share", "row share", "row exclusive", "share update exclusive", "share",
    "share row exclusive", "exclusive", "access exclusive",
)  # fmt: skip


def _lock(walk: Walk, body: Json, scope: Scope) -> None:
    mode = int(body.get("mode", 8))
    subject = _LOCK_MODES[mode] if 0 < mode < len(_LOCK_MODES) else "access exclusive"
    for item in body.get("relations") or ():
        walk.effect(Effect(Operation.LOCK, relation_of(item["RangeVar"]), subject=subject))


def _listen(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.LISTEN, subject=body.get("conditionname") or "*"))


def _notify(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.NOTIFY, subject=body.get("conditionname", "")))


def _constraints(walk: Walk, body: Json, scope: Scope) -> None:
    walk.effect(Effect(Operation.CONSTRAINTS, subject="deferred" if body.get("deferred") else "immediate"))


#: Statements about the session itself.
SESSION_STATEMENTS: Final[Mapping[str, Handler]] = MappingProxyType(
    {
        "TransactionStmt": _transaction,
        "VariableSetStmt": _variable_set,
        "VariableShowStmt": _show,
        "DiscardStmt": _discard,
        "LockStmt": _lock,
        "ListenStmt": _listen,
        "UnlistenStmt": _listen,
        "NotifyStmt": _notify,
        "ConstraintsSetStmt": _constraints,
    }
)
