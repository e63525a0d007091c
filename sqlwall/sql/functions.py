"""Which of PostgreSQL's own functions, operators and types only compute: an allow-list. What is not on it is code.

The tables are generated from the catalogs of every supported version; how they are chosen stands in their generator.
Whether a database overloads such a name outside pg_catalog is not known here.
"""

from __future__ import annotations

from typing import Final

from sqlwall.sql.builtins import (
    OPERATORS,
    PURE_EVERYWHERE,
    PURE_SOMEWHERE,
    PURE_WITH,
    RELATIONS,
    TYPES_EVERYWHERE,
    TYPES_SOMEWHERE,
)

OLDEST: Final = 15
NEWEST: Final = 18

#: Catalogs that hold credentials, or rows and values of others past their privileges.
SENSITIVE_CATALOGS: Final = frozenset(
    {
        "pg_authid",
        "pg_shadow",
        "pg_user_mapping",
        "pg_user_mappings",
        "pg_largeobject",
        "pg_statistic",
        "pg_statistic_ext_data",
        "pg_subscription",
        "pg_hba_file_rules",
        "pg_ident_file_mappings",
        "pg_file_settings",
        "pg_foreign_server",
        "pg_db_role_setting",
    }
)


#: PostgreSQL's own functions that do something, but neither change a setting nor run a text.
_KEEPING_SETTINGS: Final = frozenset(
    {
        "nextval", "setval", "pg_notify", "pg_sleep", "pg_sleep_for", "pg_sleep_until", "pg_cancel_backend",
        "pg_terminate_backend", "pg_advisory_lock", "pg_advisory_lock_shared", "pg_advisory_unlock",
        "pg_advisory_unlock_all", "pg_advisory_unlock_shared", "pg_advisory_xact_lock",
        "pg_advisory_xact_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
        "pg_try_advisory_xact_lock", "pg_try_advisory_xact_lock_shared", "pg_current_xact_id", "txid_current",
        "pg_export_snapshot", "pg_read_file", "pg_ls_dir",
    }
)  # fmt: skip


def keeps_settings(name: str) -> bool:
    """Whether pg_catalog's function of that name leaves every setting as it is, pure or not."""
    return name in _KEEPING_SETTINGS or is_pure(name, -1, NEWEST)


def _bit(major: int) -> int:
    """The bit of a version; a newer one is taken for the newest known, an older one has none."""
    return 1 << (min(major, NEWEST) - OLDEST) if major >= OLDEST else 0


def is_pure(name: str, arguments: int, server_major: int) -> bool:
    """Whether calling pg_catalog's function of that name, with so many arguments (-1: any number), only computes."""
    if name in PURE_EVERYWHERE:
        return True
    versions = PURE_SOMEWHERE.get(name)
    if versions is not None:
        return bool(versions & _bit(server_major))
    counts = PURE_WITH.get(name)
    return counts is not None and arguments in counts


def is_builtin_operator(name: str) -> bool:
    """Whether pg_catalog has an operator of that name; all of them only compute."""
    return name in OPERATORS


def is_builtin_type(name: str, major: int) -> bool:
    """Whether pg_catalog has a type of that name, arrays and row types included."""
    return name in TYPES_EVERYWHERE or bool(TYPES_SOMEWHERE.get(name, 0) & _bit(major))


def is_catalog_relation(name: str) -> bool:
    """Whether pg_catalog has a table or view of that name in any version."""
    return name in RELATIONS


def is_sensitive_catalog(name: str) -> bool:
    """Whether reading it tells credentials or other people's data."""
    return name in SENSITIVE_CATALOGS
