"""``sqlwall doctor``: what the server role could do that no ruleset allows, and the SQL that takes it away.

The wall refuses these things; the server should refuse them as well. Whoever gets past one lock stands before another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, LiteralString

import psycopg
import typer
from psycopg import sql

from sqlwall.cli.options import AsJson, ConfigFile, RulesetOption, Store, configuration
from sqlwall.cli.output import Exit, reported, show_json
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import Config
from sqlwall.errors import UpstreamError
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.rules.lint import lint
from sqlwall.rules.loader import load

SUPPORTED: Final = (15, 18)

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Ailment:
    """Something to put right: what it is, why it matters, and the SQL or setting that does it."""

    name: str
    why: str
    remedy: str


_ATTRIBUTES: Final = (
    ("rolsuper", "SUPERUSER", "a superuser reads and writes files and runs programs on the server"),
    ("rolbypassrls", "BYPASSRLS", "row security does not bind it"),
    ("rolcreatedb", "CREATEDB", "it can create databases, where no rule applies"),
    ("rolcreaterole", "CREATEROLE", "it can make roles and give them rights"),
    ("rolreplication", "REPLICATION", "it can copy the whole cluster"),
)
_ROLES: Final = (
    "pg_write_all_data", "pg_read_server_files", "pg_write_server_files", "pg_execute_server_program",
    "pg_signal_backend", "pg_maintain", "pg_checkpoint", "pg_create_subscription", "pg_database_owner",
    "pg_use_reserved_connections",
)  # fmt: skip
_FUNCTIONS: Final[LiteralString] = """
SELECT p.oid::regprocedure::text, COALESCE(e.extname, 'pg_catalog')
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
  AND (e.extname IN ('dblink', 'adminpack', 'file_fdw', 'plpython3u')
       OR (p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (ARRAY['lo_import', 'lo_export',
           'pg_read_file', 'pg_read_binary_file', 'pg_ls_dir', 'pg_stat_file', 'pg_promote', 'pg_switch_wal',
           'pg_reload_conf', 'pg_create_physical_replication_slot', 'pg_create_logical_replication_slot'])))
ORDER BY 2, 1
"""
_DEFINERS: Final[LiteralString] = """
SELECT p.oid::regprocedure::text, array_to_string(p.proconfig, ', ')
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
WHERE p.prosecdef AND r.rolsuper AND p.oid >= 16384 AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
  AND (array_to_string(p.proconfig, ',') ~ '(track_counts|session_replication_role)'
       OR p.prosrc ~* '(track_counts|session_replication_role)')
"""


@reported
def doctor(
    config: ConfigFile = None,
    store: Store = None,
    ruleset: RulesetOption = None,
    as_json: AsJson = False,
) -> None:
    """Log in upstream, and list what is wrong there with the SQL that closes it. Status 1 if anything is."""
    found = configuration(config, {"store": store, "ruleset": ruleset})
    ailments = [*_examine_config(found), *_examine_server(found)]
    if as_json:
        show_json([asdict(ailment) for ailment in ailments])
    else:
        for ailment in ailments:
            typer.echo(f"{ailment.name}: {ailment.why}\n    {ailment.remedy}")
        typer.echo(f"{len(ailments)} to put right" if ailments else "nothing to put right")
    if ailments:
        raise typer.Exit(int(Exit.FINDING))


def _examine_config(config: Config) -> Iterator[Ailment]:
    if config.tls.certificate is None and config.listen.host not in ("127.0.0.1", "::1", "localhost"):
        yield Ailment(
            "no TLS towards agents",
            f"passwords are safe (SCRAM), statements and rows on {config.listen.host} are not",
            "tls.certificate and tls.key",
        )
    for finding in lint(load(*find_ruleset(config.ruleset.path))):
        yield Ailment("ruleset", str(finding), config.ruleset.path)


def _examine_server(config: Config) -> Iterator[Ailment]:
    settings = UpstreamSettings.of(config.upstream, config.timeouts.upstream_connect)
    try:
        with psycopg.connect(
            settings.conninfo(config.upstream.dbname or "postgres"), autocommit=True
        ) as connection:
            yield from _examine_connection(connection, settings)
            yield from _examine_role(connection)
            yield from _examine_rights(connection)
    except psycopg.OperationalError as error:
        raise UpstreamError(
            f"cannot log in to {settings.address}: {str(error).strip().splitlines()[-1]}"
        ) from error


def _examine_connection(connection: Connection, settings: UpstreamSettings) -> Iterator[Ailment]:
    major = connection.info.server_version // 10_000
    if not SUPPORTED[0] <= major <= SUPPORTED[1]:
        yield Ailment(
            f"PostgreSQL {major}",
            f"sqlwall was tested with {SUPPORTED[0]} to {SUPPORTED[1]}; functions of other versions are not known",
            "upgrade the server, or sqlwall",
        )
    if not settings.is_local and settings.host not in ("127.0.0.1", "::1", "localhost"):
        if not connection.pgconn.ssl_in_use:
            yield Ailment(
                "no TLS towards the server", "everything is sent in clear", "upstream.sslmode: verify-full"
            )
        elif settings.sslmode not in ("verify-full", "verify-ca"):
            yield Ailment(
                "the server is not verified", "whoever answers is trusted", "upstream.sslmode: verify-full"
            )
    for name, wanted in (("track_counts", "on"), ("standard_conforming_strings", "on")):
        value = _one(connection, sql.SQL("SELECT pg_catalog.current_setting({})").format(name))
        if value != wanted:
            yield Ailment(
                f"{name} is {value}",
                "the gate cannot tell what was written",
                f"ALTER SYSTEM SET {name} = {wanted}",
            )


def _examine_role(connection: Connection) -> Iterator[Ailment]:
    role = str(_one(connection, sql.SQL("SELECT session_user")))
    shown = sql.Identifier(role).as_string(connection)
    attributes = connection.execute(
        "SELECT rolsuper, rolbypassrls, rolcreatedb, rolcreaterole, rolreplication"
        " FROM pg_catalog.pg_roles WHERE rolname = session_user"
    ).fetchone()
    assert attributes is not None
    for (_, word, why), has in zip(_ATTRIBUTES, attributes, strict=True):
        if has:
            yield Ailment(f"{role} is {word}", why, f"ALTER ROLE {shown} NO{word};")
    memberships = connection.execute(
        "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY (%s)"
        " AND pg_catalog.pg_has_role(session_user, oid, 'MEMBER')",
        [list(_ROLES)],
    )
    for (name,) in memberships:
        if name != "pg_database_owner":
            yield Ailment(
                f"{role} is a member of {name}",
                "its rights go beyond any table",
                f"REVOKE {name} FROM {shown};",
            )


def _examine_rights(connection: Connection) -> Iterator[Ailment]:
    role = str(_one(connection, sql.SQL("SELECT session_user")))
    shown = sql.Identifier(role).as_string(connection)
    owned = connection.execute(
        "SELECT c.oid::regclass::text FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')"
        " AND c.relowner = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user) AND c.oid >= 16384"
        " AND c.relpersistence <> 't' ORDER BY 1 LIMIT 20"
    )
    for (name,) in owned:
        yield Ailment(f"{role} owns {name}", "an owner can drop it and disable its row security",
                      f"ALTER TABLE {name} OWNER TO another_role;")  # fmt: skip
    schemas = connection.execute(
        "SELECT pg_catalog.quote_ident(nspname) FROM pg_catalog.pg_namespace"
        " WHERE pg_catalog.has_schema_privilege(oid, 'CREATE') AND nspname !~ '^pg_' ORDER BY 1"
    )
    for (name,) in schemas:
        yield Ailment(f"CREATE in schema {name}", "functions and operators of its own could pass for others",
                      f"REVOKE CREATE ON SCHEMA {name} FROM {shown}, PUBLIC;")  # fmt: skip
    database = sql.Identifier(connection.info.dbname).as_string(connection)
    for right, why in (
        ("CREATE", "it can create schemas"),
        ("TEMPORARY", "temporary tables shadow others by name"),
    ):
        if _one(
            connection,
            sql.SQL("SELECT pg_catalog.has_database_privilege(current_database(), {})").format(right),
        ):
            yield Ailment(
                f"{right} on database {database}",
                why,
                f"REVOKE {right} ON DATABASE {database} FROM {shown}, PUBLIC;",
            )
    for name, origin in connection.execute(_FUNCTIONS):
        yield Ailment(f"EXECUTE on {name}", f"it reaches beyond the transaction ({origin})",
                      f"REVOKE EXECUTE ON FUNCTION {name} FROM {shown}, PUBLIC;")  # fmt: skip
    for name, _ in connection.execute(_DEFINERS):
        yield Ailment(f"{name} runs as a superuser and may hide what it writes",
                      "the gate counts by track_counts, triggers follow session_replication_role",
                      f"ALTER FUNCTION {name} SECURITY INVOKER;")  # fmt: skip


def _one(connection: Connection, query: sql.SQL | sql.Composed) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]
