"""``sqlwall doctor``: what the server role could do that no ruleset allows, and the SQL that takes it away.

The wall refuses these things; the server should refuse them as well. Whoever gets past one lock stands before another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, LiteralString

import psycopg
import typer

from sqlwall.cli.ailment import Ailment, some
from sqlwall.cli.doctor_roles import examine_roles
from sqlwall.cli.options import AsJson, ConfigFile, RulesetOption, Store, configuration
from sqlwall.cli.output import Exit, reported, say, show_json
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import Config
from sqlwall.errors import UpstreamError
from sqlwall.proxy.descriptors import possible, shortage
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.rules.context import Context, RelationKind, StaticCatalog
from sqlwall.rules.judge import judge
from sqlwall.rules.lint import lint
from sqlwall.rules.loader import load
from sqlwall.rules.ruleset import Ruleset
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import Effect, Operation, Relation, Statement
from sqlwall.store import agents
from sqlwall.store.database import open_store

SUPPORTED: Final = (15, 18)
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Patient:
    """The session that is examined. `shown` is the role, quoted for SQL."""

    connection: Connection
    role: str
    shown: str
    major: int

    def rows(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.connection.execute(query, values or None).fetchall()


@dataclass(frozen=True, slots=True)
class Bound:
    """A ruleset, and an agent that it binds."""

    agent: str
    ruleset: Ruleset


_ATTRIBUTES: Final = (
    ("SUPERUSER", "a superuser reads and writes files and runs programs on the server"),
    ("BYPASSRLS", "row security does not bind it"),
    ("CREATEDB", "it can create databases, where no rule applies"),
    ("CREATEROLE", "it can make roles and give them rights"),
    ("REPLICATION", "it can copy the whole cluster"),
)
#: Every role that the role is or can become; not the predefined ones, which are named below.
_ROLES: Final[LiteralString] = """
SELECT rolname, quote_ident(rolname), rolsuper, rolbypassrls, rolcreatedb, rolcreaterole, rolreplication
FROM pg_catalog.pg_roles WHERE pg_catalog.pg_has_role(session_user, oid, 'MEMBER') ORDER BY rolname <> session_user, 1
"""
_PREDEFINED: Final = (
    "pg_write_all_data", "pg_read_server_files", "pg_write_server_files", "pg_execute_server_program",
    "pg_signal_backend", "pg_maintain", "pg_checkpoint", "pg_create_subscription", "pg_use_reserved_connections",
    "pg_signal_autovacuum_worker",
)  # fmt: skip
_OWNED: Final[LiteralString] = """
SELECT kind, name FROM (
    SELECT 'DATABASE', quote_ident(datname), datdba FROM pg_catalog.pg_database WHERE datname = current_database()
    UNION ALL SELECT 'SCHEMA', quote_ident(nspname), nspowner FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
        WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, oid::regclass::text, relowner FROM pg_catalog.pg_class
        WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND oid >= 16384 AND relpersistence <> 't'
    UNION ALL SELECT 'ROUTINE', oid::regprocedure::text, proowner FROM pg_catalog.pg_proc WHERE oid >= 16384
) AS owned (kind, name, owner) WHERE pg_catalog.pg_has_role(session_user, owner, 'USAGE') ORDER BY 1, 2
"""
_SCHEMAS: Final[LiteralString] = """
SELECT quote_ident(nspname) FROM pg_catalog.pg_namespace
WHERE pg_catalog.has_schema_privilege(oid, 'CREATE') AND nspname !~ '^pg_'
  AND NOT pg_catalog.pg_has_role(session_user, nspowner, 'USAGE') ORDER BY 1
"""
#: Functions that reach beyond the transaction, by what they belong to.
_FUNCTIONS: Final[LiteralString] = """
SELECT coalesce(e.extname, CASE WHEN p.proname LIKE 'lo%' THEN 'large objects' ELSE 'the server' END),
       p.oid::regprocedure::text
FROM pg_catalog.pg_proc p
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
  AND (e.extname IN ('dblink', 'adminpack', 'pageinspect', 'pg_surgery')
       OR (p.pronamespace = 'pg_catalog'::regnamespace AND (
           p.proname IN ('lowrite', 'loread') OR p.proname LIKE 'lo\\_%' OR p.proname LIKE 'pg\\_read\\_%file%'
           OR p.proname LIKE 'pg\\_ls\\_%' OR p.proname LIKE 'pg\\_replication\\_origin\\_%'
           OR p.proname = ANY (ARRAY['pg_stat_file', 'pg_promote', 'pg_switch_wal', 'pg_reload_conf',
              'pg_rotate_logfile', 'pg_create_restore_point', 'pg_backup_start', 'pg_backup_stop',
              'pg_wal_replay_pause', 'pg_wal_replay_resume', 'pg_logical_emit_message', 'pg_stat_reset',
              'pg_create_physical_replication_slot', 'pg_create_logical_replication_slot',
              'pg_drop_replication_slot']))))
ORDER BY 1, 2
"""
_DEFINERS: Final[LiteralString] = """
SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
WHERE p.prosecdef AND r.rolsuper AND p.oid >= 16384 AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
  AND (array_to_string(p.proconfig, ',') ~* '(track_counts|session_replication_role)'
       OR p.prosrc ~* '(track_counts|session_replication_role)'
       OR pg_catalog.pg_get_function_sqlbody(p.oid) ~* '(track_counts|session_replication_role)') ORDER BY 1
"""
_SERVERS: Final[LiteralString] = """
SELECT quote_ident(srvname) FROM pg_catalog.pg_foreign_server
WHERE pg_catalog.has_server_privilege(oid, 'USAGE') ORDER BY 1
"""
_WRAPPERS: Final[LiteralString] = """
SELECT quote_ident(fdwname) FROM pg_catalog.pg_foreign_data_wrapper
WHERE pg_catalog.has_foreign_data_wrapper_privilege(oid, 'USAGE') ORDER BY 1
"""
#: Tables that are another's, with the rights granted to the role, to one that it belongs to, or to all.
_GRANTS: Final[LiteralString] = """
SELECT c.oid::regclass::text, n.nspname, c.relname, c.relkind::text,
       array_agg(DISTINCT a.privilege_type ORDER BY a.privilege_type),
       array_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
LATERAL (SELECT (aclexplode(c.relacl)).* UNION ALL
         SELECT (aclexplode(t.attacl)).* FROM pg_catalog.pg_attribute t
         WHERE t.attrelid = c.oid AND t.attacl IS NOT NULL AND NOT t.attisdropped) AS a
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.oid >= 16384 AND n.nspname !~ '^pg_(temp|toast)'
  AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER', 'MAINTAIN')
  AND (a.grantee = 0 OR pg_catalog.pg_has_role(session_user, a.grantee, 'USAGE'))
  AND NOT pg_catalog.pg_has_role(session_user, c.relowner, 'USAGE')
GROUP BY c.oid, n.nspname, c.relname, c.relkind ORDER BY 1
"""
_KINDS: Final = {"r": RelationKind.TABLE, "p": RelationKind.TABLE, "v": RelationKind.VIEW,
                 "m": RelationKind.MATVIEW, "f": RelationKind.FOREIGN}  # fmt: skip
#: What each right is for; a right without an operation is one that no rule can want.
_USES: Final = {"INSERT": Operation.INSERT, "UPDATE": Operation.UPDATE, "DELETE": Operation.DELETE,
                "TRUNCATE": Operation.TRUNCATE, "MAINTAIN": Operation.MAINTENANCE, "TRIGGER": None}  # fmt: skip


@reported
def doctor(
    upstream: Annotated[str | None, typer.Option(help="the server; better SQLWALL_UPSTREAM")] = None,
    config: ConfigFile = None,
    store: Store = None,
    ruleset: RulesetOption = None,
    as_json: AsJson = False,
) -> None:
    """Log in upstream, and list what is wrong there with the SQL that closes it. Status 1 if anything is."""
    found = configuration(config, {"upstream": upstream, "store": store, "ruleset": ruleset})
    bounds = _bounds(found)
    ailments = [
        *_examine_config(found, bounds),
        *_examine_server(found, bounds),
        *examine_roles(found, [bound.ruleset for bound in bounds]),
    ]
    if as_json:
        show_json([asdict(ailment) for ailment in ailments])
    else:
        for ailment in ailments:
            say(f"{ailment.name}: {ailment.why}\n    {ailment.remedy}")
        for name, section, without in (
            ("observer", found.observer, "agents' writes to tables that they may not read whole are refused"),
            ("undo role", found.undo, "`sqlwall undo` can bring nothing back from here"),
        ):
            if not section.host:
                say(f"no {name} is configured: {without}")
        say(f"{len(ailments)} to put right" if ailments else "nothing to put right")
    if ailments:
        raise typer.Exit(int(Exit.FINDING))


def _bounds(config: Config) -> list[Bound]:
    """The default ruleset for whom it may bind, and that of each agent."""
    default = load(*find_ruleset(config.ruleset.path))
    found = [Bound(agent.name, default if agent.ruleset is None else load(*find_ruleset(agent.ruleset)))
             for agent in _active_agents(config)]  # fmt: skip
    return found or [Bound("agent", default)]


def _active_agents(config: Config) -> list[agents.Agent]:
    file = config.store.url.removeprefix("sqlite:///")
    if file != config.store.url and not Path(file).expanduser().exists():
        return []
    engine = open_store(config.store.url, read_only=True)
    try:
        return [agent for agent in agents.list_agents(engine) if agent.is_active]
    finally:
        engine.dispose()


def _examine_config(config: Config, bounds: Sequence[Bound]) -> Iterator[Ailment]:
    if config.tls.certificate is None and config.listen.host not in LOOPBACK:
        yield Ailment(
            "no TLS towards agents",
            f"passwords are safe (SCRAM), statements and rows on {config.listen.host} are not",
            "set tls.certificate and tls.key, then tls.require",
        )
    missing = shortage(config, config.workers.count or os.cpu_count() or 1, possible())
    if missing:
        yield Ailment(
            "too few file descriptors",
            missing,
            "raise the hard limit (ulimit -Hn, LimitNOFILE) or lower limits.max_connections",
        )
    default = load(*find_ruleset(config.ruleset.path))
    for ruleset in {bound.ruleset.digest: bound.ruleset for bound in bounds}.values() or (default,):
        for finding in lint(ruleset):
            yield Ailment("ruleset", str(finding), f"sqlwall rules check {ruleset.name}")


def _examine_server(config: Config, bounds: Sequence[Bound]) -> Iterator[Ailment]:
    settings = UpstreamSettings.of(config.upstream, config.timeouts.upstream_connect)
    try:
        with psycopg.connect(
            settings.conninfo(config.upstream.dbname or "postgres"),
            autocommit=True,
            application_name="sqlwall doctor",
            options="-c default_transaction_read_only=on -c search_path=pg_catalog -c statement_timeout=60s",
        ) as connection:
            patient = _admit(connection)
            yield from _examine_connection(patient, settings)
            yield from _examine_role(patient)
            if not _is_superuser(patient):  # who has every right, from whom none can be taken
                for examine in (_examine_ownership, _examine_creation, _examine_functions, _examine_remote,
                                _examine_parameters):  # fmt: skip
                    yield from examine(patient)
                yield from _examine_tables(patient, bounds)
    except psycopg.OperationalError as error:
        raise UpstreamError(f"cannot log in to {settings.address}: {error}") from error
    except psycopg.Error as error:
        raise UpstreamError(f"{settings.address} cannot be examined: {error}") from error


def _admit(connection: Connection) -> Patient:
    row = connection.execute("SELECT session_user, quote_ident(session_user)").fetchone()
    assert row is not None
    return Patient(connection, row[0], row[1], connection.info.server_version // 10_000)


def _is_superuser(patient: Patient) -> bool:
    return bool(patient.rows("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user")[0][0])


def _examine_connection(patient: Patient, settings: UpstreamSettings) -> Iterator[Ailment]:
    if not SUPPORTED[0] <= patient.major <= SUPPORTED[1]:
        yield Ailment(
            f"PostgreSQL {patient.major}",
            f"sqlwall was tested with {SUPPORTED[0]} to {SUPPORTED[1]}; functions of other versions are not known",
            "upgrade the server, or sqlwall",
        )
    if not settings.is_local and settings.host not in LOOPBACK:
        remedy = "set upstream.sslmode: verify-full and upstream.sslrootcert"
        if not patient.connection.pgconn.ssl_in_use:
            yield Ailment("no TLS towards the server", "everything is sent in clear", remedy)
        elif settings.sslmode not in ("verify-full", "verify-ca"):
            yield Ailment("the server is not verified", "whoever answers is trusted", remedy)
    for name, why in (
        ("track_counts", "the gate cannot count what was written"),
        ("standard_conforming_strings", "the parser and the server read strings differently"),
    ):
        [(value,)] = patient.rows("SELECT pg_catalog.current_setting(%s)", name)
        if value != "on":
            yield Ailment(f"{name} is {value}", why, f"ALTER ROLE {patient.shown} SET {name} = on;")


def _examine_role(patient: Patient) -> Iterator[Ailment]:
    """What the role is, and what it can become with SET ROLE."""
    for name, quoted, *attributes in patient.rows(_ROLES):
        is_own = name == patient.role
        if name in _PREDEFINED and not _is_superuser(patient):
            yield Ailment(f"{patient.role} is a member of {name}", "its rights go beyond any table",
                          f"REVOKE {name} FROM {patient.shown};")  # fmt: skip
        for (word, why), has in zip(_ATTRIBUTES, attributes, strict=True):
            if has and is_own:
                yield Ailment(f"{name} is {word}", why, f"ALTER ROLE {quoted} NO{word};")
            elif has and not _is_superuser(patient):
                yield Ailment(f"{patient.role} can become {name}, which is {word}", why,
                              f"REVOKE {quoted} FROM {patient.shown};")  # fmt: skip


def _examine_ownership(patient: Patient) -> Iterator[Ailment]:
    kinds: dict[str, list[str]] = {}
    for kind, name in patient.rows(_OWNED):
        kinds.setdefault(kind, []).append(name)
    for kind, names in kinds.items():
        remedy = "\n    ".join(f"ALTER {kind} {name} OWNER TO another_role;" for name in names)
        yield Ailment(f"{patient.role} owns {kind.lower()} {some(names)}",
                      "an owner can drop it, change it and grant it", remedy)  # fmt: skip


def _examine_creation(patient: Patient) -> Iterator[Ailment]:
    names = [name for (name,) in patient.rows(_SCHEMAS)]
    if names:
        yield Ailment(f"CREATE in schema {some(names)}", "functions and operators of its own could pass for others",
                      f"REVOKE CREATE ON SCHEMA {', '.join(names)} FROM {patient.shown}, PUBLIC;")  # fmt: skip
    [(database,)] = patient.rows("SELECT quote_ident(current_database())")
    for right, why in (
        ("CREATE", "it can create schemas"),
        ("TEMPORARY", "temporary tables shadow others by name"),
    ):
        [(has,)] = patient.rows("SELECT has_database_privilege(current_database(), %s)", right)
        if has:
            yield Ailment(f"{right} on database {database}", why,
                          f"REVOKE {right} ON DATABASE {database} FROM {patient.shown}, PUBLIC;")  # fmt: skip


def _examine_functions(patient: Patient) -> Iterator[Ailment]:
    origins: dict[str, list[str]] = {}
    for origin, name in patient.rows(_FUNCTIONS):
        origins.setdefault(origin, []).append(name)
    for origin, names in origins.items():
        yield Ailment(
            f"EXECUTE on {some(names)}",
            f"functions of {origin} reach beyond what a gate or an undo can see",
            f"REVOKE EXECUTE ON FUNCTION {', '.join(names)} FROM {patient.shown}, PUBLIC;",
        )
    for (name,) in patient.rows(_DEFINERS):
        yield Ailment(
            f"{name} runs as a superuser and may hide what it writes",
            "the gate counts by track_counts, triggers follow session_replication_role",
            f"ALTER FUNCTION {name} SECURITY INVOKER;",
        )


def _examine_remote(patient: Patient) -> Iterator[Ailment]:
    for word, query in (("SERVER", _SERVERS), ("DATA WRAPPER", _WRAPPERS)):
        names = [name for (name,) in patient.rows(query)]
        if names:
            yield Ailment(
                f"USAGE on foreign {word.lower()} {some(names)}",
                "what happens on another server cannot be rolled back or undone",
                f"REVOKE USAGE ON FOREIGN {word} {', '.join(names)} FROM {patient.shown}, PUBLIC;",
            )


def _examine_parameters(patient: Patient) -> Iterator[Ailment]:
    if patient.major < SUPPORTED[0]:
        return  # the right came with 15
    for name in ("session_replication_role", "track_counts", "track_functions", "log_statement"):
        [(has,)] = patient.rows("SELECT has_parameter_privilege(%s, 'SET')", name)
        if has:
            yield Ailment(f"SET on parameter {name}", "it switches off what the gate or the log rests on",
                          f"REVOKE SET ON PARAMETER {name} FROM {patient.shown}, PUBLIC;")  # fmt: skip


def _examine_tables(patient: Patient, bounds: Sequence[Bound]) -> Iterator[Ailment]:
    """Rights to write that no ruleset makes use of, tables with the same rights together."""
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for shown, schema, name, kind, rights, grantees in patient.rows(_GRANTS):
        unused = tuple(
            right for right in rights if not _is_wanted(right, Relation(schema, name), _KINDS[kind], bounds)
        )
        if unused:
            alike.setdefault((unused, tuple(grantees)), []).append(shown)
    for (unused, grantees), names in alike.items():
        yield Ailment(
            f"{', '.join(unused)} on {some(names)}",
            "no ruleset lets an agent use it",
            f"REVOKE {', '.join(unused)} ON {', '.join(names)} FROM {', '.join(grantees)};",
        )


def _is_wanted(right: str, relation: Relation, kind: RelationKind, bounds: Iterable[Bound]) -> bool:
    """Whether some ruleset lets its agent do what the right is for."""
    operation = _USES[right]
    if operation is None:
        return False
    statement = Statement(right, (Effect(operation, relation),), 0, 0)
    catalog = StaticCatalog(relations={str(relation): kind})
    return any(
        judge(statement, Context(bound.agent, bound.agent, "", catalog), bound.ruleset).action
        is not Action.DENY
        for bound in bounds
    )
