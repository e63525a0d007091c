"""Hand-built facts for the tests of the rules room: no parser, no server."""

from __future__ import annotations

from typing import Any

from sqlwall.rules.context import Context, StaticCatalog
from sqlwall.rules.loader import load
from sqlwall.rules.ruleset import Ruleset
from sqlwall.sql.statement import Bounded, Effect, FunctionName, Operation, Relation, Statement

HEAD = "version: 1\nname: test\nmode: enforce\nrules:\n"


def rules(body: str, mode: str = "enforce") -> Ruleset:
    """A ruleset of the rules in `body`, each a flow mapping on a line of its own."""
    lines = "".join(f"  - {line.strip()}\n" for line in body.strip().splitlines())
    return load(HEAD.replace("enforce", mode) + lines, "test.yaml")


def context(catalog: StaticCatalog | None = None, **keys: Any) -> Context:
    """A context with an empty database."""
    values: dict[str, Any] = {"agent": "bot", "user": "app", "database": "shop"} | keys
    return Context(catalog=catalog or StaticCatalog(), **values)


def effect(operation: Operation, table: str = "", **keys: Any) -> Effect:
    """An effect on ``schema.name``, ``name``, or nothing."""
    schema, _, name = table.rpartition(".")
    return Effect(operation, Relation(schema or None, name) if name else None, **keys)


def statement(*effects: Effect, functions: tuple[FunctionName, ...] = (), **keys: Any) -> Statement:
    """A statement of these effects."""
    tag = keys.pop("tag", effects[0].operation.name if effects else "")
    return Statement(tag, effects, 0, 1, functions, **keys)


def select(table: str = "orders", **keys: Any) -> Statement:
    """A read of one table."""
    return statement(effect(Operation.SELECT, table), **keys)


def delete(table: str = "orders", bounded: Bounded = Bounded.BOUNDED) -> Statement:
    """A delete on one table."""
    return statement(effect(Operation.DELETE, table, bounded=bounded))
