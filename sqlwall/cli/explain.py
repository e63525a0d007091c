"""``sqlwall explain``: why a statement gets the verdict it gets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sqlwall.cli.options import AsJson, ConfigFile, RulesetOption, Store, configuration
from sqlwall.cli.output import Exit, reported, say, show_json
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import Config
from sqlwall.errors import ConfigError
from sqlwall.proxy.catalog import CatalogCache, parse_search_path
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.rules.context import CatalogView, Context, StaticCatalog
from sqlwall.rules.explain import Explanation, explain
from sqlwall.rules.loader import load
from sqlwall.rules.verdict import Action
from sqlwall.sql.statement import Unparsable
from sqlwall.store import agents
from sqlwall.store.database import open_store


@reported
def explain_(
    sql: Annotated[str, typer.Argument(help="the statement")],
    agent: Annotated[str | None, typer.Option("--as", help="the agent who would send it")] = None,
    ruleset: RulesetOption = None,
    search_path: Annotated[str, typer.Option(help="the session's search_path")] = '"$user", public',
    database: Annotated[
        str, typer.Option(help="the database to resolve names in: its name, or a DSN to ask there")
    ] = "",
    offline: Annotated[bool, typer.Option("--offline", help="do not ask the server what names mean")] = False,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show what a statement would do, the verdict, and every rule that matched or why it did not.

    Status 1 if it would be refused. With an upstream configured names are resolved by the server's catalog.
    """
    flags: dict[str, object] = {"store": store, "ruleset": ruleset}
    if "://" in database or "=" in database:
        flags["upstream"], database = database, ""
    found = configuration(config, flags)
    name = ruleset or _ruleset_of(found, agent)
    path = parse_search_path(search_path)
    catalog: CatalogView = StaticCatalog(search_path=tuple(s for s in path if s != "$user"))
    who = agent or "agent"
    user = found.upstream.user or who
    target = database or found.upstream.dbname or "postgres"
    if found.upstream.host and not offline:
        settings = UpstreamSettings.of(replace(found.upstream, dbname=target))
        catalog = asyncio.run(_load_catalog(settings, target, path, user))
    context = Context(who, user, target, catalog, path)
    explanation = explain(sql, context, load(*find_ruleset(name)))
    if as_json:
        show_json(_as_values(explanation, name))
    else:
        _print(explanation, name)
    if explanation.verdict.action is not Action.ALLOW:
        raise typer.Exit(int(Exit.FINDING))


def _ruleset_of(config: Config, agent: str | None) -> str:
    """The agent's own ruleset, or the default one. Raises ConfigError for an agent that is not there.

    Without --as, or with --ruleset beside it, nobody has to exist: what is asked for is the ruleset's answer.
    """
    if agent is None:
        return config.ruleset.path
    file = config.store.url.removeprefix("sqlite:///")
    known = None
    if file == config.store.url or Path(file).expanduser().exists():
        engine = open_store(config.store.url, read_only=True)
        try:
            known = agents.find(engine, agent)
        finally:
            engine.dispose()
    if known is None or not known.is_active:
        state = "there is no agent" if known is None else "revoked is the agent"
        raise ConfigError(
            f"{state} {agent!r}; `sqlwall agent list` shows them, --ruleset explains without one"
        )
    return known.ruleset or config.ruleset.path


async def _load_catalog(
    settings: UpstreamSettings, database: str, path: tuple[str, ...], user: str
) -> CatalogView:
    cache = CatalogCache(settings.conninfo(database), database)
    try:
        await cache.acquire()
        return cache.bind(path, user)
    finally:
        await cache.close()


def _as_values(explanation: Explanation, ruleset: str) -> dict[str, object]:
    verdict = explanation.verdict
    return {
        "ruleset": ruleset,
        "verdict": {
            "action": verdict.action.name.lower(),
            "rule": verdict.rule,
            "reason": verdict.reason,
            "hint": verdict.hint,
            "snapshot": verdict.snapshot.name.lower(),
        },
        "unparsable": _unparsable(explanation.unparsable),
        "statements": [
            {
                "tag": item.statement.tag,
                "builtin": list(item.builtin) if item.builtin else None,
                "effects": [
                    {
                        "operation": effect.act.operation.value,
                        "target": effect.act.target,
                        "bounded": effect.act.effect.bounded.value,
                        "builtin": list(effect.builtin) if effect.builtin else None,
                        "rules": [
                            {
                                "rule": rule.rule,
                                "action": rule.action.name.lower(),
                                "matched": rule.matched,
                                "why": rule.why,
                            }
                            for rule in effect.rules
                        ],
                    }
                    for effect in item.effects
                ],
            }
            for item in explanation.statements
        ],
    }  # fmt: skip


def _unparsable(fault: Unparsable | None) -> dict[str, object] | None:
    if fault is None:
        return None
    return {"sqlstate": fault.sqlstate, "message": fault.message, "position": fault.position}


def _print(explanation: Explanation, ruleset: str) -> None:
    verdict = explanation.verdict
    say(f"{verdict.action.name} by {verdict.rule} (ruleset {ruleset})")
    if verdict.reason:
        say(f"  because {verdict.reason}")
    if verdict.hint:
        say(f"  hint: {verdict.hint}")
    if explanation.unparsable is not None:
        fault = explanation.unparsable
        place = f", at character {fault.position}" if fault.position else ""
        say(f"  not parsed ({fault.sqlstate}){place}")
    for item in explanation.statements:
        say(f"\n{item.statement.tag}")
        if item.builtin is not None:
            say(f"  refused before any rule: {item.builtin[1]} [{item.builtin[0]}]")
        for effect in item.effects:
            target = f" {effect.act.target}" if effect.act.target else ""
            say(f"  {effect.act.operation.value}{target} ({effect.act.effect.bounded.value})")
            if effect.builtin is not None:
                say(f"    refused before any rule: {effect.builtin[1]} [{effect.builtin[0]}]")
            for rule in effect.rules:
                mark = "matches" if rule.matched else "no"
                say(
                    f"    {rule.rule} ({rule.action.name.lower()}): {mark}{f', {rule.why}' if rule.why else ''}"
                )
