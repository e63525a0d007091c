"""What no ruleset can allow: the floor under every policy, checked before any rule and independent of all of them.

An agent must not be able to open the read-only lock, become someone else, change how text is lexed, or touch names
that the wall uses itself. Each refusal has an id of its own, so that a person sees that no rule is to blame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from sqlwall.sql.statement import Effect, Operation, Statement, Transaction, TransactionControl

#: Names that start with it belong to the wall's own statements, savepoints, cursors and schemas.
RESERVED_PREFIX = "_sqlwall"

DEFAULT_DENY = "default-deny"
UNKNOWN = "builtin-unknown"
UNPARSABLE = "builtin-unparsable"
EMPTY = "builtin-empty"
TWO_PHASE = "builtin-two-phase"
RESERVED_NAME = "builtin-reserved-name"
SETTING = "builtin-setting"
READ_WRITE = "builtin-read-write"

#: Ids that are not a rule's; a case may expect them.
BUILTIN_IDS = (
    DEFAULT_DENY,
    UNKNOWN,
    UNPARSABLE,
    EMPTY,
    TWO_PHASE,
    RESERVED_NAME,
    SETTING,
    READ_WRITE,
)

#: Settings that no agent may change, by SET, set_config or RESET, whatever it sets them to.
_FORBIDDEN_SETTINGS = frozenset(
    {
        # the read-only lock and who we are (MECHANICS, section 6)
        "default_transaction_read_only",
        "transaction_read_only",
        "role",
        "session_authorization",
        "is_superuser",
        # triggers, rules and foreign keys off: writes that no witness follows
        "session_replication_role",
        # how text is lexed (promise 2)
        "backslash_quote",
        "escape_string_warning",
        "transform_null_equals",
        "quote_all_identifiers",
        "operator_precedence_warning",
        # what code is loaded, and from where
        "local_preload_libraries",
        "session_preload_libraries",
        "shared_preload_libraries",
        "dynamic_library_path",
        "extension_control_path",
        "jit_provider",
        # checks that protect the database from its users
        "allow_system_table_mods",
        "check_function_bodies",
        "ignore_checksum_failure",
        "ignore_invalid_pages",
        "ignore_system_indexes",
        "lo_compat_privileges",
        "zero_damaged_pages",
        "restrict_nonsystem_relation_kind",
        "max_stack_depth",
        "exit_on_error",
        "event_triggers",
        # the counters that the proof rests on
        "track_counts",
        "track_activities",
        "track_functions",
        "stats_fetch_consistency",
        # durability of what was promised
        "synchronous_commit",
        "commit_delay",
        "commit_siblings",
        "temp_tablespaces",
        "default_tablespace",
        "default_table_access_method",
    }
)

#: Families of them: logging and tracing are the operator's, `debug_` and `wal_` change what the server does.
_FORBIDDEN_PREFIXES = (
    "log_",
    "debug_",
    "trace_",
    "wal_",
    "ssl_",
    "auto_explain.",
    "plpgsql.",
    "sqlwall.",
    RESERVED_PREFIX,
)

#: Settings that may be set, but only to these values: the ones the wall pins at the start.
_PINNED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "standard_conforming_strings": frozenset({"on", "true", "yes", "1", "t", "y", "tr", "tru", "ye"}),
        "client_encoding": frozenset({"utf8", "utf-8", "unicode"}),
        "row_security": frozenset({"on", "true", "yes", "1", "t", "y", "tr", "tru", "ye"}),
    }
)

_SETTING_CHANGES = frozenset({Operation.SET, Operation.RESET})


def refuse_effect(effect: Effect) -> tuple[str, str] | None:
    """The id and reason of a built-in refusal of one effect; None if the rules may decide."""
    operation = effect.operation
    if operation is Operation.UNKNOWN:
        return UNKNOWN, "sqlwall does not know what this statement does"
    if operation is Operation.TWO_PHASE:
        return TWO_PHASE, "two-phase commands outlive the session that is being judged"
    if operation in _SETTING_CHANGES:
        return _refuse_setting(effect)
    return None


def refuse_statement(statement: Statement, *, permits_writes: bool) -> tuple[str, str] | None:
    """The same for what belongs to the statement as a whole: its names and its transaction control."""
    if not statement.effects:
        return EMPTY, "nothing is known about this statement"
    if any(is_reserved(name) for name in (*statement.names, statement.prepared, statement.cursor)):
        return RESERVED_NAME, f"names that start with {RESERVED_PREFIX} are sqlwall's own"
    if statement.control is not None:
        return _refuse_control(statement.control, permits_writes=permits_writes)
    return None


def is_reserved(name: str | None) -> bool:
    """Whether a name is one of the wall's own; case is folded, for an identifier may come quoted or not."""
    return name is not None and name[: len(RESERVED_PREFIX)].lower() == RESERVED_PREFIX


def is_forbidden_setting(name: str) -> bool:
    """Whether no agent may change the setting, in a startup packet either; pinned ones depend on the value."""
    folded = name.lower()
    return folded in _FORBIDDEN_SETTINGS or folded.startswith(_FORBIDDEN_PREFIXES)


def is_pinned_to(name: str, value: str | None) -> bool | None:
    """Whether a pinned setting may take the value; None if the setting is not pinned.

    A value that is not known is one that it may not take.
    """
    values = _PINNED.get(name.lower())
    if values is None:
        return None
    return value is not None and value.strip().lower() in values


def is_safe_search_path(value: str | None) -> bool:
    """Whether PostgreSQL's own functions and operators stay in front under this search_path.

    Unnamed, pg_catalog comes first; named, it stands where it is named. pg_temp is refused wherever it is named: what
    it hides then depends on the place. A schema called "PG_CATALOG" is another one, and made to deceive.
    """
    names = split_identifiers(value) if value is not None else None
    if names is None:
        return False
    for position, name in enumerate(names):
        folded = name.lower()
        if folded.startswith(("pg_temp", "pg_toast", RESERVED_PREFIX)):
            return False
        if folded == "pg_catalog" and (position > 0 or name != folded):
            return False
    return True


_IDENTIFIER = re.compile(
    r'[ \t\n\r\f\v]*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^",\s]+))[ \t\n\r\f\v]*(?P<end>,|\Z)'
)


def split_identifiers(value: str) -> tuple[str, ...] | None:
    """The names in a search_path, as SplitIdentifierString() in utils/adt/varlena.c reads them; None where it fails."""
    if not value.strip():
        return ()
    names: list[str] = []
    position = 0
    while True:
        found = _IDENTIFIER.match(value, position)
        if found is None:
            return None
        quoted = found["quoted"]
        names.append(found["plain"].lower() if quoted is None else quoted.replace('""', '"'))
        position = found.end()
        if found["end"] != ",":
            return tuple(names)


def _refuse_setting(effect: Effect) -> tuple[str, str] | None:
    name = effect.subject
    if name is None:
        return SETTING, "which setting would change is not known"
    folded = name.lower()
    if is_forbidden_setting(name):
        return SETTING, f"no agent may change {folded}"
    if effect.operation is not Operation.SET:
        return None
    if is_pinned_to(name, effect.value) is False:
        return SETTING, f"{folded} stays as it is"
    if folded == "search_path" and not is_safe_search_path(effect.value):
        return SETTING, "this search_path could let other code pass for PostgreSQL's own"
    return None


def _refuse_control(control: TransactionControl, *, permits_writes: bool) -> tuple[str, str] | None:
    if is_reserved(control.name):
        return RESERVED_NAME, f"names that start with {RESERVED_PREFIX} are sqlwall's own"
    match control.verb:
        case Transaction.SET_SESSION_CHARACTERISTICS if control.read_only is not None:
            return READ_WRITE, "whether later transactions may write is not the agent's to change"
        case Transaction.SET_TRANSACTION if control.read_only is False:
            return READ_WRITE, "a transaction cannot be made read-write after it has begun"
        case Transaction.BEGIN if control.read_only is False and not permits_writes:
            return READ_WRITE, "this ruleset permits no writes"
        case _:
            return None
