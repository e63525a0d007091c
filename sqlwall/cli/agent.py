"""``sqlwall agent``: who may connect."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from sqlalchemy import Engine

from sqlwall.cli.options import AsJson, ConfigFile, RulesetOption, Store, configuration
from sqlwall.cli.output import reported, say, show, show_json
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import Config
from sqlwall.rules.loader import load
from sqlwall.store import agents
from sqlwall.store.database import open_store

app = typer.Typer(no_args_is_help=True, help="Who may connect.")

Name = Annotated[str, typer.Argument(help="the agent's name, which is its user name in the DSN")]


@contextmanager
def _store(config: Path | None, store: str | None) -> Iterator[tuple[Config, Engine]]:
    found = configuration(config, {"store": store})
    engine = open_store(found.store.url)
    try:
        yield found, engine
    finally:
        engine.dispose()


def dsn(config: Config, name: str, password: str) -> str:
    """What an agent is given, once. A wall that requires TLS says so in it."""
    database = config.upstream.dbname or "postgres"
    mode = "?sslmode=require" if config.tls.require else ""
    return (
        f"postgresql://{quote(name, safe='')}:{quote(password, safe='')}@{_reachable(config.listen.host)}"
        f":{config.listen.port}/{quote(database, safe='')}{mode}"
    )


def _reachable(host: str) -> str:
    """The address as a client can use it: every address of this machine is none of them."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return quote(host, safe="")
    if address.is_unspecified:
        return quote(socket.gethostname(), safe="")
    return f"[{host}]" if address.version == 6 else host


@app.command()
@reported
def add(
    name: Name,
    ruleset: RulesetOption = None,
    connections: Annotated[int | None, typer.Option(help="sessions it may have at once")] = None,
    note: Annotated[str, typer.Option(help="what it is for")] = "",
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Add an agent and print its DSN. The password is shown once and kept nowhere."""
    if ruleset is not None:
        load(*find_ruleset(ruleset))
    with _store(config, store) as (found, engine):
        password = agents.add_agent(engine, name, ruleset=ruleset, connection_limit=connections, note=note)
        _show_dsn(found, name, password, as_json=as_json)


@app.command()
@reported
def rotate(name: Name, config: ConfigFile = None, store: Store = None, as_json: AsJson = False) -> None:
    """Give an agent a new password and print its DSN. Open sessions go on."""
    with _store(config, store) as (found, engine):
        _show_dsn(found, name, agents.rotate(engine, name), as_json=as_json)


@app.command()
@reported
def revoke(name: Name, config: ConfigFile = None, store: Store = None, as_json: AsJson = False) -> None:
    """End an agent's right to connect. Its open sessions are ended within seconds."""
    with _store(config, store) as (_, engine):
        agents.revoke(engine, name)
    if as_json:
        show_json({"name": name, "state": "revoked"})
    else:
        say(f"agent {name} is revoked")


@app.command("list")
@reported
def list_(config: ConfigFile = None, store: Store = None, as_json: AsJson = False) -> None:
    """Show all agents, the revoked ones included."""
    with _store(config, store) as (found, engine):
        rows = [
            {
                "name": agent.name,
                "state": "active" if agent.is_active else "revoked",
                "ruleset": agent.ruleset or found.ruleset.path,
                "connections": agent.connection_limit,
                "created": agent.created_at,
                "rotated": agent.rotated_at,
                "note": agent.note,
            }
            for agent in agents.list_agents(engine)
        ]
    show(
        list(rows), ("name", "state", "ruleset", "connections", "created", "rotated", "note"), as_json=as_json
    )


def _show_dsn(config: Config, name: str, password: str, *, as_json: bool) -> None:
    found = dsn(config, name, password)
    if as_json:
        show_json({"name": name, "dsn": found})
    else:
        say(found)
