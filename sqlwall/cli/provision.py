"""``sqlwall provision``: the SQL that makes the roles for agents, observer and undo, with the least rights that do.

Passwords stand in no text that is printed or sent: the server gets SCRAM verifiers.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote

import psycopg
import typer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from sqlwall.cli.options import AsJson, ConfigFile, configuration
from sqlwall.cli.output import fail, reported, say, show_json
from sqlwall.config import Config
from sqlwall.errors import UpstreamError, first_line
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.snapshot import provision
from sqlwall.snapshot.images import quote_identifier

ADMIN: Final = "SQLWALL_ADMIN"
AGENT, OBSERVER, UNDO = "sqlwall_agent", "sqlwall_observer", "sqlwall_undo"


@dataclass(frozen=True, slots=True)
class Roles:
    """The names that the three roles have."""

    agent: str
    observer: str
    undo: str


@reported
def provision_(
    agent: Annotated[str | None, typer.Option(help="role that agents' sessions log in as")] = None,
    observer: Annotated[str | None, typer.Option(help="role that reads what agents change")] = None,
    undo: Annotated[str | None, typer.Option(help="role that brings it back")] = None,
    schema: Annotated[
        list[str] | None, typer.Option(help="schema whose tables agents may use; public by default")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="agents get no right to write")] = False,
    drops: Annotated[
        bool,
        typer.Option("--drops", help="also a place for tables that agents drop, where a ruleset lets them"),
    ] = False,
    apply: Annotated[
        bool,
        typer.Option("--apply", help=f"run it, as the superuser whose DSN is in {ADMIN}, in that database"),
    ] = False,
    admin: Annotated[str | None, typer.Option(envvar=ADMIN, hidden=True)] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the SQL that gives sqlwall its roles, or run it. What is there already is kept.

    Names come from the configuration where it has them. Roles that have no password yet are given one, which is
    printed once as the setting that the wall wants.
    """
    found = configuration(config, {})
    roles = Roles(
        agent or found.upstream.user or AGENT,
        observer or found.observer.user or OBSERVER,
        undo or found.undo.user or UNDO,
    )
    if len({roles.agent, roles.observer, roles.undo}) != 3:
        raise fail("agents, observer and undo need a role each: one of them must not have another's rights")
    plan = _plan(roles, schema or ["public"], is_read_only=read_only, drops=drops)
    if not apply:
        _print(plan, as_json=as_json)
        return
    if not admin:
        raise fail(f"--apply needs the DSN of a superuser in {ADMIN}")
    settings = _apply(found, roles, plan, admin, widen=schema is not None)
    if as_json:
        show_json({"settings": settings})
        return
    say("the roles are there")
    for name, value in settings.items():
        say(f"{name}={value}")


@dataclass(frozen=True, slots=True)
class _Plan:
    """SQL: for agents, unless they have a role that stays as it is; for the cluster; for each database."""

    agent: Sequence[str]
    cluster: Sequence[str]
    database: Sequence[str]


def _plan(roles: Roles, schemas: Sequence[str], *, is_read_only: bool, drops: bool) -> _Plan:
    return _Plan(
        provision.agent(roles.agent, schemas, is_read_only=is_read_only),
        provision.roles(roles.observer, roles.undo),
        (
            *provision.reach(roles.observer, roles.undo),
            *provision.functions(roles.observer, roles.agent),
            *(provision.trash(roles.undo, roles.agent) if drops else ()),
        ),
    )


def _print(plan: _Plan, *, as_json: bool) -> None:
    if as_json:
        show_json(asdict(plan))
        return
    say(
        "-- a role for agents, if they have none yet; `sqlwall doctor` says what a role of theirs may too much"
    )
    say(_script(plan.agent))
    say("\n-- once for the cluster; set the passwords with \\password, which sends no clear text")
    say(_script(plan.cluster))
    say("\n-- in each database that agents use")
    say(_script(plan.database))


def _script(statements: Sequence[str]) -> str:
    return "\n".join(f"{statement};" for statement in statements)


def _apply(config: Config, roles: Roles, plan: _Plan, admin: str, *, widen: bool) -> dict[str, str]:
    """Run it all in one transaction; a role that agents have gets no right that nobody asked for.

    Returns the settings with the passwords that were made.
    """
    try:
        with (
            psycopg.connect(admin, application_name="sqlwall provision", autocommit=True) as connection,
            connection.transaction(),
        ):
            names = [roles.agent, roles.observer, roles.undo]
            found = connection.execute(
                "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY (%s)", [names]
            )
            present = {name for (name,) in found}
            asked = plan.agent if widen or roles.agent not in present else ()
            for statement in (*asked, *plan.cluster, *plan.database):
                connection.execute(_kept(statement, present).encode())
            return dict(_passwords(connection, config, roles, present))
    except psycopg.Error as error:
        raise UpstreamError(f"provision: {first_line(error)}; nothing was changed") from error


def _kept(statement: str, present: set[str]) -> str:
    """Instead of making a role that is there, give it what it needs; what else it has, doctor tells."""
    for name in present:
        made = f"CREATE ROLE {quote_identifier(name)} "
        if statement.startswith(made):
            return statement.replace("CREATE", "ALTER", 1)
    return statement


def _passwords(
    connection: psycopg.Connection[Any], config: Config, roles: Roles, present: set[str]
) -> Iterator[tuple[str, str]]:
    """Give each new role its password: that of the configuration, or a fresh one, which is told."""
    server = conninfo_to_dict(connection.info.dsn)
    for name, role, section in (
        ("SQLWALL_UPSTREAM", roles.agent, config.upstream),
        ("SQLWALL_OBSERVER", roles.observer, config.observer),
        ("SQLWALL_UNDO", roles.undo, config.undo),
    ):
        if role in present:
            continue
        password = ""
        if section.user == role:
            password = UpstreamSettings.of(section, config.timeouts.upstream_connect).password
        fresh = password or secrets.token_urlsafe(24)
        verifier = connection.pgconn.encrypt_password(fresh.encode(), role.encode(), b"scram-sha-256")
        connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier.decode()))
        )
        if not password:
            host, port = str(server.get("host") or "localhost"), str(server.get("port") or "5432")
            yield name, f"postgresql://{quote(role, safe='')}:{fresh}@{_host(host)}:{port}"


def _host(host: str) -> str:
    if host.startswith("/"):
        return quote(host, safe="")
    return f"[{host}]" if ":" in host else host
