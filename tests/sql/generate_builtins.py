"""Makes `sqlwall/sql/builtins.py` from the catalogs of running servers, one of each major version that is supported.

    python -m tests.sql.generate_builtins DSN15 DSN16 DSN17 DSN18 > sqlwall/sql/builtins.py

A function is listed if nothing but its result can come of calling it: every immutable and stable function of pg_catalog
that takes and returns ordinary values, less those reviewed and denied below; of the volatile ones only those reviewed
and allowed below. Who adds to either list has read the function's source.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import psycopg

#: Stable or immutable by declaration, and yet: they run SQL or call code named by their arguments, assign a transaction
#: id, or check code.
DENIED = {
    "database_to_xml", "database_to_xml_and_xmlschema", "database_to_xmlschema", "schema_to_xml",
    "schema_to_xml_and_xmlschema", "schema_to_xmlschema", "table_to_xml", "table_to_xml_and_xmlschema",
    "table_to_xmlschema", "pg_current_xact_id", "txid_current", "fmgr_c_validator", "fmgr_internal_validator",
    "fmgr_sql_validator", "pg_event_trigger_dropped_objects", "pg_event_trigger_table_rewrite_oid",
    "pg_event_trigger_table_rewrite_reason", "pg_get_replication_slots", "pg_config", "pg_extension_update_paths",
}  # fmt: skip
#: Volatile because the answer changes, not because anything else does.
ALLOWED = {
    "array_sample", "array_shuffle", "clock_timestamp", "current_query", "currval", "lastval", "gen_random_uuid",
    "uuidv4", "uuidv7", "random", "random_normal", "timeofday", "setseed", "pg_blocking_pids",
    "pg_collation_actual_version", "pg_database_collation_actual_version", "pg_database_size", "pg_table_size",
    "pg_total_relation_size", "pg_relation_size", "pg_indexes_size", "pg_tablespace_size", "pg_is_in_recovery",
    "pg_jit_available", "pg_current_wal_lsn", "pg_current_wal_insert_lsn", "pg_current_wal_flush_lsn",
    "pg_last_wal_receive_lsn", "pg_last_wal_replay_lsn", "pg_last_xact_replay_timestamp", "pg_lock_status",
    "pg_prepared_xact", "pg_notification_queue_usage", "pg_partition_ancestors", "pg_partition_tree",
    "pg_sequence_last_value", "pg_stat_get_xact_blocks_fetched", "pg_stat_get_xact_blocks_hit",
    "pg_stat_get_xact_function_calls", "pg_stat_get_xact_function_self_time",
    "pg_stat_get_xact_function_total_time", "pg_stat_get_xact_numscans", "pg_stat_get_xact_tuples_deleted",
    "pg_stat_get_xact_tuples_fetched", "pg_stat_get_xact_tuples_hot_updated", "pg_stat_get_xact_tuples_inserted",
    "pg_stat_get_xact_tuples_newpage_updated", "pg_stat_get_xact_tuples_returned",
    "pg_stat_get_xact_tuples_updated", "pg_stat_get_io", "pg_stat_get_backend_io", "pg_stat_have_stats",
    "pg_xact_status", "txid_status", "pg_xact_commit_timestamp", "pg_last_committed_xact", "pg_control_checkpoint",
    "pg_control_init", "pg_control_recovery", "pg_control_system", "pg_get_wait_events", "pg_get_sequence_data",
    "pg_is_wal_replay_paused", "pg_get_wal_replay_pause_state",
}  # fmt: skip
#: Written by the grammar for syntax of its own, and not callable in another way.
MAJORS = (15, 16, 17, 18)

_FUNCTIONS = """
SELECT p.proname, p.pronargs - p.pronargdefaults, CASE WHEN p.provariadic <> 0 THEN 100 ELSE p.pronargs END,
       p.provolatile::text, p.prokind::text,
       EXISTS (SELECT FROM pg_catalog.unnest(p.proargtypes::oid[] || p.prorettype) AS a(o)
               JOIN pg_catalog.pg_type t ON t.oid = a.o
               WHERE t.typname IN ('internal', 'cstring', 'trigger', 'event_trigger', 'language_handler',
                                   'fdw_handler', 'index_am_handler', 'table_am_handler', 'tsm_handler',
                                   'pg_ddl_command'))
FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.oid < 16384
"""
_OPERATORS = "SELECT DISTINCT oprname FROM pg_catalog.pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oid < 16384"
_TYPES = (
    "SELECT typname FROM pg_catalog.pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND oid < 16384"
)
_RELATIONS = "SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND oid < 16384 AND relkind IN ('r', 'v')"


def is_listed(name: str, volatility: str, kind: str, is_internal: bool) -> bool:
    """Whether nothing but its result can come of calling the function."""
    if kind == "p" or is_internal:
        return False
    return name in ALLOWED if volatility == "v" and kind == "f" else name not in DENIED


def main(dsns: list[str]) -> None:
    """Print the module."""
    pure: dict[str, int] = defaultdict(int)
    mixed: dict[str, set[int]] = {}
    operators: set[str] = set()
    types: dict[str, int] = defaultdict(int)
    relations: set[str] = set()
    for bit, dsn in enumerate(dsns):
        with psycopg.connect(dsn) as connection:
            overloads: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
            for name, low, high, volatility, kind, is_internal in connection.execute(_FUNCTIONS):
                overloads[name].append((low, high, is_listed(name, volatility, kind, is_internal)))
            for name, known in overloads.items():
                if all(listed for _, _, listed in known):
                    pure[name] |= 1 << bit
                elif any(listed for _, _, listed in known):
                    found = {
                        n for n in range(101)
                        if any(low <= n <= high and ok for low, high, ok in known)
                        and not any(low <= n <= high and not ok for low, high, ok in known)
                    }  # fmt: skip
                    mixed[name] = found & mixed[name] if name in mixed else found
            operators |= {row[0] for row in connection.execute(_OPERATORS)}
            for row in connection.execute(_TYPES):
                types[row[0]] |= 1 << bit
            relations |= {row[0] for row in connection.execute(_RELATIONS)}
    everywhere = (1 << len(dsns)) - 1
    print(
        '"""What PostgreSQL itself brings, by name. Generated by tests/sql/generate_builtins.py; not edited by hand.'
    )
    print()
    print(f"Versions: {', '.join(map(str, MAJORS))}. A number is a bit per version, the oldest first.")
    print('"""')
    print("\nfrom __future__ import annotations\n\nfrom typing import Final\n")
    _table("PURE_EVERYWHERE", {n for n, bits in pure.items() if bits == everywhere and n not in mixed},
           "Functions that only compute, in every version and whatever their arguments.")  # fmt: skip
    _mapping("PURE_SOMEWHERE", {n: bits for n, bits in pure.items() if bits != everywhere and n not in mixed},
             "Functions that only compute, in some versions.")  # fmt: skip
    print("#: Functions that only compute with these numbers of arguments.")
    print("PURE_WITH: Final[dict[str, frozenset[int]]] = {")
    for name in sorted(mixed):
        if mixed[name]:
            print(f"    {name!r}: frozenset({{{', '.join(map(str, sorted(mixed[name])))}}}),")
    print("}\n")
    _table("OPERATORS", operators, "Operators; none of them does anything but compute.")
    _table(
        "TYPES_EVERYWHERE",
        {n for n, bits in types.items() if bits == everywhere},
        "Types, row types included.",
    )
    _mapping(
        "TYPES_SOMEWHERE",
        {n: bits for n, bits in types.items() if bits != everywhere},
        "Types of some versions.",
    )
    _table("RELATIONS", relations, "Tables and views of pg_catalog, in any version.")


def _table(name: str, values: set[str], meaning: str) -> None:
    print(f"#: {meaning}")
    print(f"{name}: Final = frozenset(\n    (")
    for value in sorted(values):
        print(f"        {value!r},")
    print("    )\n)\n")


def _mapping(name: str, values: dict[str, int], meaning: str) -> None:
    print(f"#: {meaning}")
    print(f"{name}: Final[dict[str, int]] = {{")
    for key in sorted(values):
        print(f"    {key!r}: {values[key]},")
    print("}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
