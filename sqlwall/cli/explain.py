"""``sqlwall explain``: why a statement gets the verdict it gets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sqlwall.cli.options import AsJson, ConfigFile, RulesetOption, Store, configuration
from sqlwall.cli.output import Exit, reported, show_json
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.proxy.catalog import CatalogCache, parse_search_path
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.rules.context import CatalogView, Context, StaticCatalog
from sqlwall.rules.explain import Explanation, explain
from sqlwall.rules.loader import load
from sqlwall.rules.verdict import Action
from sqlwall.store import agents
from sqlwall.store.database import open_store


@reported
def explain_(
    sql: Annotated[str, typer.Argument(help="the statement")],
    agent: Annotated[str, typer.Option("--as", help="the agent who would send it")] = "agent",
    ruleset: RulesetOption = None,
    search_path: Annotated[str, typer.Option(help="the session's search_path")] = '"$user", public',
    database: Annotated[str, typer.Option(help="the database to resolve names in")] = "",
    offline: Annotated[bool, typer.Option("--offline", help="do not ask the server what names mean")] = False,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show what a statement would do, the verdict, and every rule that matched or why it did not.

    Status 1 if it would be refused. With an upstream configured names are resolved by the server's catalog.
    """
    found = configuration(config, {"store": store, "ruleset": ruleset})
    name = ruleset or _ruleset_of(found.store.url, agent) or found.ruleset.path
    path = parse_search_path(search_path)
    catalog: CatalogView = StaticCatalog(search_path=tuple(s for s in path if s != "$user"))
    user = found.upstream.user or agent
    if found.upstream.host and not offline:
        target = database or found.upstream.dbname or "postgres"
        catalog = asyncio.run(_load_catalog(UpstreamSettings.of(found.upstream), target, path, user))
    context = Context(agent, user, database or found.upstream.dbname or "postgres", catalog, path)
    explanation = explain(sql, context, load(*find_ruleset(name)))
    if as_json:
        show_json(_as_values(explanation, name))
    else:
        _print(explanation, name)
    if explanation.verdict.action is not Action.ALLOW:
        raise typer.Exit(int(Exit.FINDING))


def _ruleset_of(url: str, agent: str) -> str | None:
    """The agent's own ruleset, if the store is there and knows it."""
    file = url.removeprefix("sqlite:///")
    if file != url and not Path(file).exists():
        return None
    engine = open_store(url, read_only=True)
    try:
        known = agents.find(engine, agent)
    finally:
        engine.dispose()
    return known.ruleset if known is not None else None


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
        "unparsable": explanation.unparsable.message if explanation.unparsable else None,
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


def _print(explanation: Explanation, ruleset: str) -> None:
    verdict = explanation.verdict
    typer.echo(f"{verdict.action.name} by {verdict.rule} (ruleset {ruleset})")
    if verdict.reason:
        typer.echo(f"  because {verdict.reason}")
    if verdict.hint:
        typer.echo(f"  hint: {verdict.hint}")
    if explanation.unparsable is not None:
        typer.echo(f"  not parsed: {explanation.unparsable.message}")
    for item in explanation.statements:
        typer.echo(f"\n{item.statement.tag}")
        if item.builtin is not None:
            typer.echo(f"  refused before any rule: {item.builtin[1]} [{item.builtin[0]}]")
        for effect in item.effects:
            target = f" {effect.act.target}" if effect.act.target else ""
            typer.echo(f"  {effect.act.operation.value}{target} ({effect.act.effect.bounded.value})")
            if effect.builtin is not None:
                typer.echo(f"    refused before any rule: {effect.builtin[1]} [{effect.builtin[0]}]")
            for rule in effect.rules:
                mark = "matches" if rule.matched else "no"
                typer.echo(
                    f"    {rule.rule} ({rule.action.name.lower()}): {mark}{f', {rule.why}' if rule.why else ''}"
                )
