"""What a verdict depends on besides the statement and the ruleset: who asks, through which path, in which database.

The catalog is a Protocol: the proxy answers from the server, `StaticCatalog` answers from nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from sqlwall.sql.statement import FunctionName, Relation, Statement


class RelationKind(Enum):
    """What a name stands for. The values are the words of a ruleset's `kinds:`.

    `TABLE` includes partitioned tables; `FOREIGN` includes views that read foreign tables, for reading them has remote
    effects; `CATALOG` is anything in PostgreSQL's own schemas, views included, but what tells credentials or other
    people's data: that is `SENSITIVE`, which the judge finds out by itself (`sqlwall.sql.functions`).
    """

    TABLE = "table"
    VIEW = "view"
    MATVIEW = "matview"
    SEQUENCE = "sequence"
    FOREIGN = "foreign"
    CATALOG = "catalog"
    SENSITIVE = "sensitive"
    TEMP = "temp"
    UNKNOWN = "unknown"


#: Schemas that belong to PostgreSQL: what they hold is a catalog, whatever its relkind.
CATALOG_SCHEMAS = frozenset({"pg_catalog", "information_schema", "pg_toast"})


@dataclass(frozen=True, slots=True)
class ResolvedRelation:
    """A relation under the server's own name."""

    schema: str
    name: str
    kind: RelationKind = RelationKind.UNKNOWN


@dataclass(frozen=True, slots=True)
class Home:
    """A schema that has something of the name that is called, and the extension it came with, if any.

    `is_inert` says that it runs no code but PostgreSQL's own: an enum, or a range or composite of built-in types.
    """

    schema: str
    extension: str | None = None
    is_inert: bool = False


class CatalogView(Protocol):
    """The database as one session sees it: bound to its current search_path."""

    def resolve(self, relation: Relation) -> ResolvedRelation | None:
        """The relation that the name means now; None if the server has no such relation."""
        ...

    def overloaded(self, name: str, kind: str) -> bool:
        """Whether a built-in name, written without schema, could reach code outside pg_catalog.

        `kind` is one of ``function``, ``operator``, ``type``. An overload counts whatever schema of the search path
        holds it, and wherever its argument types could match; when in doubt it does.
        """
        ...

    def reachable(self, function: FunctionName, statement: Statement) -> bool:
        """Whether an overload of a built-in name could be meant here, as far as its arguments' types go."""
        ...

    def homes(self, function: FunctionName) -> tuple[Home, ...]:
        """Every home that the call might reach, pg_catalog included; empty if there is nothing of that name."""
        ...

    def column_is_function(self, name: str) -> bool:
        """Whether ``x.name`` could be a call: a function of that name takes one argument, or a type is so named."""
        ...


@dataclass(frozen=True, slots=True)
class StaticCatalog:
    """A catalog that was told everything it knows: for tests, cases and `explain` without a server.

    Untold names resolve as on a fresh database: `pg_*` to pg_catalog, everything else to the first ordinary schema of
    the path, but for the best-known functions of PostgreSQL. `relations` maps ``schema.name`` to a kind; `extensions`
    maps a function's, operator's or type's name to the extension that brings it; `inert` holds type names that run no
    code.
    """

    search_path: tuple[str, ...] = ("public",)
    relations: Mapping[str, RelationKind] = field(default_factory=lambda: MappingProxyType({}))
    extensions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    inert: frozenset[str] = frozenset()
    overloads: frozenset[str] = frozenset()

    def resolve(self, relation: Relation) -> ResolvedRelation | None:
        for schema in (relation.schema,) if relation.schema else self.search_path:
            kind = self.relations.get(f"{schema}.{relation.name}")
            if kind is not None:
                return ResolvedRelation(schema, relation.name, kind)
        schema = relation.schema or (
            "pg_catalog" if relation.name.startswith("pg_") else ordinary_schema(self.search_path)
        )
        return ResolvedRelation(schema, relation.name, kind_of_schema(schema))

    def overloaded(self, name: str, kind: str) -> bool:
        return name in self.overloads or (name in self.extensions and kind != "type")

    def reachable(self, function: FunctionName, statement: Statement) -> bool:
        return True

    def homes(self, function: FunctionName) -> tuple[Home, ...]:
        if function.schema is not None:
            return (Home(function.schema, self.extensions.get(function.name), function.name in self.inert),)
        if function.kind == "function" and is_own_function(function.name):
            return (Home("pg_catalog"),)
        home = Home(
            ordinary_schema(self.search_path),
            self.extensions.get(function.name),
            function.kind == "type" and function.name in self.inert,
        )
        return (Home("pg_catalog"), home) if function.name in self.overloads else (home,)

    def column_is_function(self, name: str) -> bool:
        return name in self.overloads or name in self.extensions or is_own_function(name)


#: Functions of PostgreSQL that a ruleset may want to name, besides those that its prefix tells.
_OWN_FUNCTIONS = frozenset(
    {"set_config", "nextval", "currval", "lastval", "setval", "txid_current", "setseed"}
)


def is_own_function(name: str) -> bool:
    """Whether a fresh database has a function of this name, as far as the name tells."""
    return name.startswith(("pg_", "lo_")) or name in _OWN_FUNCTIONS


def ordinary_schema(search_path: tuple[str, ...]) -> str:
    """The first schema of the path that is not PostgreSQL's own; where an unqualified new name would land."""
    for schema in search_path:
        if schema != "$user" and not schema.startswith("pg_"):
            return schema
    return "public"


def kind_of_schema(schema: str) -> RelationKind:
    """What a relation must be, judged by its schema alone."""
    if schema in CATALOG_SCHEMAS:
        return RelationKind.CATALOG
    if schema == "pg_temp" or schema.startswith(("pg_temp_", "pg_toast_temp_")):
        return RelationKind.TEMP
    return RelationKind.UNKNOWN


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks, and where. `search_path` is the effective one, already split into schema names."""

    agent: str
    user: str
    database: str
    catalog: CatalogView
    search_path: tuple[str, ...] = ("public",)
    server_major: int = 18
    application_name: str = ""
