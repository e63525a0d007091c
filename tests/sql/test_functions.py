"""The allow-list of what only computes, held against the catalog of a real server and against what must not be on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from sqlwall.sql.builtins import (
    OPERATORS,
    PURE_EVERYWHERE,
    PURE_SOMEWHERE,
    PURE_WITH,
    RELATIONS,
    TYPES_EVERYWHERE,
    TYPES_SOMEWHERE,
)
from sqlwall.sql.functions import (
    NEWEST,
    OLDEST,
    SENSITIVE_CATALOGS,
    is_builtin_operator,
    is_builtin_type,
    is_catalog_relation,
    is_pure,
    is_sensitive_catalog,
    keeps_settings,
)
from tests.postgres import Server
from tests.sql.generate_builtins import ALLOWED, DENIED

Connection = psycopg.Connection[tuple[Any, ...]]
VERSIONS = range(OLDEST, NEWEST + 1)


@pytest.fixture(scope="module")
def catalog(postgres: Server) -> Iterator[Connection]:
    """A session that looks at pg_catalog."""
    with postgres.connect() as connection:
        yield connection


# -- what must never be on it


#: Reads or writes files, other sessions, settings, large objects, slots, WAL; runs a text; locks; sleeps; signals.
HARMFUL = (
    "pg_read_file", "pg_read_binary_file", "pg_ls_dir", "pg_ls_logdir", "pg_ls_waldir", "pg_ls_tmpdir", "pg_stat_file",
    "pg_current_logfile", "pg_hba_file_rules", "pg_show_all_file_settings", "lo_import", "lo_export", "lo_create", "lo_creat",
    "lo_unlink", "lo_put", "lo_get", "lo_open", "lo_from_bytea", "lo_truncate", "lowrite", "loread", "set_config",
    "query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema", "cursor_to_xml", "cursor_to_xmlschema",
    "table_to_xml", "schema_to_xml", "database_to_xml", "ts_stat", "nextval", "setval", "pg_sleep", "pg_sleep_for",
    "pg_sleep_until", "pg_cancel_backend", "pg_terminate_backend", "pg_reload_conf", "pg_rotate_logfile", "pg_promote",
    "pg_switch_wal", "pg_create_restore_point", "pg_backup_start", "pg_backup_stop", "pg_wal_replay_pause",
    "pg_wal_replay_resume", "pg_create_physical_replication_slot", "pg_create_logical_replication_slot",
    "pg_drop_replication_slot", "pg_logical_slot_get_changes", "pg_logical_slot_peek_changes", "pg_logical_emit_message",
    "pg_replication_slot_advance", "pg_replication_origin_create", "pg_replication_origin_drop",
    "pg_replication_origin_session_setup", "pg_advisory_lock", "pg_advisory_lock_shared", "pg_advisory_xact_lock",
    "pg_try_advisory_lock", "pg_advisory_unlock", "pg_advisory_unlock_all", "pg_export_snapshot", "pg_notify",
    "pg_current_xact_id", "txid_current", "pg_stat_reset", "pg_stat_reset_shared", "pg_stat_reset_single_table_counters",
    "pg_stat_clear_snapshot", "pg_stat_force_next_flush", "pg_log_backend_memory_contexts", "brin_summarize_new_values",
    "brin_desummarize_range", "gin_clean_pending_list", "pg_import_system_collations", "pg_nextoid",
    "pg_extension_config_dump", "binary_upgrade_set_next_pg_type_oid", "binary_upgrade_create_empty_extension",
    "pg_event_trigger_dropped_objects", "pg_get_replication_slots", "fmgr_sql_validator", "plpgsql_inline_handler",
    "dblink", "dblink_exec", "dblink_connect", "pg_file_write", "crosstab", "xpath_table", "no_such_function",
)  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_what_does_more_than_compute_is_on_no_list(name: str) -> None:
    for version in VERSIONS:
        assert not any(is_pure(name, arguments, version) for arguments in range(-1, 12))


@pytest.mark.parametrize("name", sorted(DENIED))
def test_what_was_reviewed_and_denied_is_on_no_list(name: str) -> None:
    for version in VERSIONS:
        assert not any(is_pure(name, arguments, version) for arguments in range(-1, 12))


def test_a_name_counts_as_it_is_written() -> None:
    for name in ("LOWER", "lower ", "pg_catalog.lower", "", "low\0er"):
        assert not is_pure(name, 1, NEWEST)


# -- what is on it


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("lower", 1), ("count", 0), ("now", 0), ("coalesce_not", -1), ("sum", 1), ("jsonb_build_object", 8), ("random", 0),
     ("date_trunc", 2), ("generate_series", 3), ("row_number", 0), ("current_setting", 1), ("version", 0)],
)  # fmt: skip
def test_what_everybody_uses_is_on_it(name: str, arguments: int) -> None:
    for version in VERSIONS:
        assert is_pure(name, arguments, version) == (name != "coalesce_not")


def test_a_function_of_later_versions_is_pure_there_only() -> None:
    assert [is_pure("uuidv7", 0, version) for version in VERSIONS] == [False, False, False, True]
    assert [is_pure("any_value", 1, version) for version in VERSIONS] == [False, True, True, True]


def test_a_newer_server_is_taken_for_the_newest_known_and_an_older_one_for_none() -> None:
    assert is_pure("uuidv7", 0, NEWEST + 3)
    assert not is_pure("uuidv7", 0, OLDEST - 1)


def test_a_function_that_runs_a_text_with_some_arguments_is_pure_with_the_others() -> None:
    """ts_rewrite(tsquery, text) runs its text; with three arguments it only computes."""
    for version in VERSIONS:
        assert not is_pure("ts_rewrite", 2, version)
        assert not is_pure("ts_rewrite", -1, version)
        assert is_pure("ts_rewrite", 3, version)


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not PURE_EVERYWHERE & PURE_SOMEWHERE.keys()
    assert not PURE_EVERYWHERE & PURE_WITH.keys()
    assert not PURE_SOMEWHERE.keys() & PURE_WITH.keys()
    assert not TYPES_EVERYWHERE & TYPES_SOMEWHERE.keys()
    everywhere = (1 << len(VERSIONS)) - 1
    assert all(0 < bits < everywhere for bits in (*PURE_SOMEWHERE.values(), *TYPES_SOMEWHERE.values()))


# -- against the server


def overloads(catalog: Connection) -> dict[str, list[tuple[int, int, str, str, bool]]]:
    """Every function of pg_catalog: fewest and most arguments, volatility, kind, whether it is for internal use."""
    found: dict[str, list[tuple[int, int, str, str, bool]]] = defaultdict(list)
    for name, *rest in catalog.execute(
        """SELECT proname, pronargs - pronargdefaults, CASE WHEN provariadic <> 0 THEN 100 ELSE pronargs END,
                  provolatile::text, prokind::text,
                  proargtypes::oid[] || prorettype && ARRAY['internal', 'cstring', 'trigger', 'event_trigger']::regtype[]::oid[]
           FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384"""
    ):
        found[name].append((rest[0], rest[1], rest[2], rest[3], rest[4]))
    return found


def test_no_function_that_is_called_pure_is_volatile_internal_or_a_procedure(
    catalog: Connection, postgres: Server
) -> None:
    """But for those that somebody has read."""
    version = postgres.version()
    wrong = [
        (name, arguments)
        for name, known in overloads(catalog).items()
        for low, high, volatility, kind, is_internal in known
        for arguments in range(low, min(high, 12) + 1)
        if is_pure(name, arguments, version)
        and (kind == "p" or is_internal or (volatility == "v" and kind == "f" and name not in ALLOWED))
    ]
    assert wrong == []


def test_the_lists_name_what_the_server_has(catalog: Connection, postgres: Server) -> None:
    if not OLDEST <= postgres.version() <= NEWEST:
        pytest.skip(f"no list was made for PostgreSQL {postgres.version()}")
    known = overloads(catalog).keys()
    assert known >= PURE_EVERYWHERE
    bit = 1 << (postgres.version() - OLDEST)
    assert {name for name, bits in PURE_SOMEWHERE.items() if bits & bit} <= known


def test_a_function_that_the_server_has_and_we_do_not_know_is_not_pure(catalog: Connection) -> None:
    """Every volatile one that nobody has read."""
    for name, known in overloads(catalog).items():
        if (
            all(volatility == "v" and kind == "f" for _, _, volatility, kind, _ in known)
            and name not in ALLOWED
        ):
            assert not is_pure(name, -1, NEWEST), name


def test_operators_types_and_relations_are_the_servers(catalog: Connection, postgres: Server) -> None:
    def names(query: str) -> set[str]:
        return {row[0] for row in catalog.execute(query.encode())}

    version = postgres.version()
    operators = names(
        "SELECT oprname FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oid < 16384"
    )
    types = names(
        "SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND oid < 16384"
    )
    relations = names(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND oid < 16384 AND relkind IN ('r','v')"
    )
    assert operators <= OPERATORS
    assert all(map(is_builtin_operator, operators))
    assert all(is_builtin_type(name, version) for name in types)
    assert types >= TYPES_EVERYWHERE
    assert relations <= RELATIONS
    assert all(map(is_catalog_relation, relations))


def test_no_operator_of_the_server_is_volatile(catalog: Connection) -> None:
    rows = catalog.execute(
        """SELECT oprname, proname FROM pg_operator JOIN pg_proc p ON p.oid = oprcode
           WHERE oprnamespace = 'pg_catalog'::regnamespace AND pg_operator.oid < 16384 AND provolatile = 'v'"""
    ).fetchall()
    assert rows == []


@pytest.mark.parametrize("name", ["+++", "", "=/*", "pg_catalog.=", "<->x"])
def test_what_is_no_operator_of_postgresqls_is_none(name: str) -> None:
    assert not is_builtin_operator(name)


@pytest.mark.parametrize("name", ["my_type", "", "INT4", "pg_catalog.int4"])
def test_what_is_no_type_of_postgresqls_is_none(name: str) -> None:
    assert not any(is_builtin_type(name, version) for version in VERSIONS)


# -- catalogs


def test_catalogs_that_hold_credentials_or_rows_of_others_are_known(catalog: Connection) -> None:
    """Those that PUBLIC may not read, and those that show what others wrote."""
    private = {
        row[0]
        for row in catalog.execute(
            """SELECT relname FROM pg_class
               WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') AND oid < 16384
                 AND NOT EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee = 0 AND privilege_type = 'SELECT')
                 AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attacl IS NOT NULL)"""
        )
    }
    unnamed = private - SENSITIVE_CATALOGS
    assert unnamed <= {
        "pg_backend_memory_contexts", "pg_shmem_allocations", "pg_shmem_allocations_numa", "pg_config", "pg_aios",
        "pg_replication_origin_status", "pg_dsm_registry_allocations",
    }, unnamed  # fmt: skip
    for name in SENSITIVE_CATALOGS:
        assert is_sensitive_catalog(name)
        assert is_catalog_relation(name)


# -- settings


@pytest.mark.parametrize(
    "name", ["set_config", "query_to_xml", "dblink", "pg_reload_conf", "lo_import", "unknown", "ts_stat"]
)
def test_what_may_change_a_setting_is_not_said_to_keep_them(name: str) -> None:
    assert not keeps_settings(name)


@pytest.mark.parametrize(
    "name", ["nextval", "pg_sleep", "pg_advisory_lock", "pg_notify", "lower", "count", "txid_current"]
)
def test_what_does_something_else_keeps_settings(name: str) -> None:
    assert keeps_settings(name)


KEEPERS = {
    "nextval('s')": True, "pg_notify('a', 'b')": True, "pg_sleep(0)": True, "pg_advisory_xact_lock(1)": True,
    "pg_export_snapshot()": True, "set_config('work_mem', '5MB', false)": False,
}  # fmt: skip


def test_the_server_agrees_about_settings(postgres: Server) -> None:
    """Every setting before and after a call."""
    with postgres.connect() as connection:
        connection.execute("CREATE TEMP SEQUENCE s")
        query = "SELECT array_agg(name || '=' || setting ORDER BY name) FROM pg_settings WHERE name <> 'transaction_isolation'"
        for call, kept in KEEPERS.items():
            before = connection.execute(query).fetchone()
            connection.execute(f"BEGIN; SELECT {call}; COMMIT".encode())
            assert (connection.execute(query).fetchone() == before) == kept, call
            assert keeps_settings(call.partition("(")[0]) == kept
