"""What `sqlwall doctor` asks of the roles behind the wall: the observer must see all and write nothing, the undo role
must be able to bring everything back, and neither may be what agents log in as.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg

from sqlwall.cli.ailment import Ailment, some
from sqlwall.config import Config
from sqlwall.config.settings import Upstream
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.rules.ruleset import Ruleset
from sqlwall.rules.verdict import Action, SnapshotPolicy
from sqlwall.snapshot import queries, undo
from sqlwall.sql.statement import Operation

Connection = psycopg.Connection[tuple[Any, ...]]

_PROVISION: Final = "sqlwall provision"
_ROLE: Final[LiteralString] = """
SELECT quote_ident(rolname), rolsuper, rolbypassrls OR rolsuper,
  has_database_privilege(current_database(), 'TEMPORARY'), quote_ident(current_database())
FROM pg_catalog.pg_roles WHERE rolname = session_user
"""
#: Tables in which a role lacks one of these rights, the name of one that it lacks, and tables in which it has any.
_RIGHTS: Final[LiteralString] = """
SELECT c.oid::regclass::text,
  has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
  has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
    AND has_table_privilege(c.oid, 'DELETE'),
  has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND n.nspname !~ '^pg_(temp|toast)' ORDER BY 1
"""


#: Whether dropped tables have a place to go to, and the undo role the rights to bring them back from there.
_TRASH: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = '_sqlwall_trash'
    AND has_schema_privilege(%(agent)s, n.oid, 'USAGE') AND has_schema_privilege(%(agent)s, n.oid, 'CREATE')),
  pg_has_role(%(agent)s, 'USAGE')
FROM pg_catalog.pg_roles WHERE rolname = %(agent)s
"""


def examine_roles(config: Config, rulesets: Sequence[Ruleset] = ()) -> Iterator[Ailment]:
    """Of the observer and the undo role, where they are configured; `rulesets` say what agents may do."""
    if config.observer.host:
        with _session("observer", config, config.observer) as (connection, problem):
            yield from _examine_observer(config, connection) if connection is not None else [problem]
    if config.undo.host:
        with _session("undo", config, config.undo) as (connection, problem):
            yield from _examine_undo(config, connection) if connection is not None else [problem]
            if connection is not None and any(map(_permits_drops, rulesets)):
                yield from _examine_trash(config, connection)


@contextmanager
def _session(name: str, config: Config, section: Upstream) -> Iterator[tuple[Connection | None, Ailment]]:
    settings = UpstreamSettings.of(section, config.timeouts.upstream_connect)
    database = config.upstream.dbname or "postgres"
    try:
        connection = psycopg.connect(
            settings.conninfo(database),
            autocommit=True,
            application_name="sqlwall doctor",
            options="-c default_transaction_read_only=on -c search_path=pg_catalog -c statement_timeout=60s",
        )
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        yield None, Ailment(f"{name}: no login", reason, f"check {name}.* in sqlwall.yaml; {_PROVISION}")
        return
    with connection:
        yield connection, Ailment("", "", "")


def _examine_observer(config: Config, connection: Connection) -> Iterator[Ailment]:
    ((role, is_super, sees_all, _, _),) = connection.execute(_ROLE).fetchall()
    yield from _own_role("observer", config.observer, config)
    if is_super:
        yield Ailment(
            "observer is a superuser", "it needs to read, no more", f"{_PROVISION}: a role of its own"
        )
        return
    if not sees_all:
        yield Ailment("observer is bound by row security", "writes to tables that have it are refused",
                      f"ALTER ROLE {role} BYPASSRLS;")  # fmt: skip
    rights = connection.execute(_RIGHTS).fetchall()
    if unread := [name for name, may_read, _, _ in rights if not may_read]:
        yield Ailment(f"observer cannot read {some(unread)}", "writes to what it cannot read are refused",
                      f"GRANT pg_read_all_data TO {role};")  # fmt: skip
    if written := [name for name, _, _, may_any in rights if may_any]:
        yield Ailment(f"observer may write {some(written)}", "it never writes: the right is one too many",
                      f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {', '.join(written)} FROM {role};")  # fmt: skip
    ((helpers,),) = connection.execute(queries.HELPERS).fetchall()
    if helpers != queries.HELPER_COUNT:
        yield Ailment(
            "the functions of schema _sqlwall are missing",
            "writes to tables with row security, or that agents may not read, are refused",
            f"{_PROVISION} --apply",
        )


def _examine_undo(config: Config, connection: Connection) -> Iterator[Ailment]:
    ((role, is_super, sees_all, may_temp, database),) = connection.execute(_ROLE).fetchall()
    yield from _own_role("undo", config.undo, config)
    if is_super:
        return  # undo is for people; `sqlwall provision` makes a lesser role, but a superuser's works
    if not sees_all:
        yield Ailment("undo is bound by row security", "it cannot compare rows that it does not see",
                      f"ALTER ROLE {role} BYPASSRLS;")  # fmt: skip
    if not may_temp:
        yield Ailment("undo cannot make temporary tables", "it compares rows in them",
                      f"GRANT TEMPORARY ON DATABASE {database} TO {role};")  # fmt: skip
    ((may_replicate,),) = connection.execute(undo.MAY_REPLICATE).fetchall()
    if not may_replicate:
        yield Ailment(
            "undo cannot switch triggers off",
            "only tables without triggers and without references to them can be brought back exactly",
            f"GRANT SET ON PARAMETER session_replication_role TO {role};",
        )
    rights = connection.execute(_RIGHTS).fetchall()
    if short := [name for name, may_read, may_write, _ in rights if not (may_read and may_write)]:
        yield Ailment(f"undo cannot write {some(short)}", "what agents change there cannot be brought back",
                      f"GRANT pg_read_all_data, pg_write_all_data TO {role};")  # fmt: skip


def _permits_drops(ruleset: Ruleset) -> bool:
    """Whether a rule lets tables be dropped so that they can be brought back."""
    return any(
        rule.action is not Action.DENY and rule.snapshot is SnapshotPolicy.REQUIRED
        for rule in ruleset.by_operation[Operation.DROP]
    )


def _examine_trash(config: Config, connection: Connection) -> Iterator[Ailment]:
    remedy = f"{_PROVISION} --drops --apply"
    for has_trash, may_act in connection.execute(_TRASH, {"agent": config.upstream.user}).fetchall():
        if not has_trash:
            yield Ailment("dropped tables have no place to go to", "every DROP TABLE is refused", remedy)
        if not may_act:
            yield Ailment("undo may not act for the owner of agents' tables",
                          "what agents drop cannot be brought back", remedy)  # fmt: skip


def _own_role(name: str, section: Upstream, config: Config) -> Iterator[Ailment]:
    others = {
        "agents": config.upstream.user,
        "the observer": config.observer.user if name != "observer" else "",
        "undo": config.undo.user if name != "undo" else "",
    }
    for other, user in others.items():
        if user and user == section.user:
            yield Ailment(f"{name} is the role of {other}", "whoever has one login has the other's rights",
                          f"{_PROVISION}: a role each")  # fmt: skip
