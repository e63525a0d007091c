"""One picture of a database, and the same under one search_path: what `rules.context.CatalogView` asks.

Values only: how it is read stands in `catalog`, how it is made of rows in `pictures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlwall.rules.context import Home, RelationKind, ResolvedRelation
from sqlwall.sql.statement import FunctionName, Relation, Statement

Path = tuple[str, ...]
Types = frozenset[int]
Homes = Mapping[str, Mapping[str, Home]]

NO_TYPES: Types = frozenset()


@dataclass(frozen=True, slots=True)
class Overload:
    """Code of somebody's under a name: its schema, how many arguments it takes, and the users' types it is meant by.

    Where no value of any of these types can occur, the server chooses PostgreSQL's own of that name; empty if it could
    choose this one all the same.
    """

    schema: str
    needed: Types
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class DatabaseCatalog:
    """One picture of a database. Homes are by name, then by schema.

    `user` is whom the side connection is, `barred` the schemas that it may not use. `columns` are names that may be
    called as one, `intruders` those that somebody added to pg_catalog. `overloads` has the code of each kind and name,
    `results` the types that such code brings into being. `row_types` says what a relation's rows can hold, `type_parts`
    what a type is made of. `view_calls` has the functions that a view calls which are not known to only compute.
    """

    user: str
    barred: frozenset[str]
    relations: Mapping[tuple[str, str], RelationKind]
    functions: Homes
    operators: Homes
    types: Homes
    columns: frozenset[str]
    intruders: frozenset[tuple[str, str]]
    overloads: Mapping[tuple[str, str], tuple[Overload, ...]]
    results: Mapping[tuple[str, str], Types]
    row_types: Mapping[tuple[str, str], Types]
    type_parts: Mapping[tuple[str, str], Types]
    view_calls: Mapping[tuple[str, str], tuple[FunctionName, ...]]

    def homes_of(self, kind: str) -> Homes:
        """The homes of one kind of name."""
        return {"function": self.functions, "operator": self.operators}.get(kind, self.types)

    def bind(self, search_path: Path, user: str) -> BoundCatalog:
        """This picture under a search_path, as the setting has it, of a session of `user`.

        Relations are looked up as the server does, which passes over schemas without USAGE. Of another user than the
        side connection's own that is not known, and every schema counts.
        """
        path = effective_path(search_path, user)
        usable = tuple(s for s in path if s not in self.barred) if user == self.user else path
        return BoundCatalog(self, path, usable)


@dataclass(frozen=True, slots=True)
class BoundCatalog:
    """A picture under one search_path: a `rules.context.CatalogView`.

    A session's own temporary relations are not in it. An unqualified name may mean one of these: then a statement does
    less than it was judged for, since nothing in pg_temp is anybody else's.
    """

    picture: DatabaseCatalog
    path: Path
    usable: Path

    def resolve(self, relation: Relation) -> ResolvedRelation | None:
        """See `CatalogView`."""
        if relation.schema == "pg_temp":
            return ResolvedRelation("pg_temp", relation.name, RelationKind.TEMP)
        relations = self.picture.relations
        for schema in self.usable if relation.schema is None else (relation.schema,):
            kind = relations.get((schema, relation.name))
            if kind is not None:
                return ResolvedRelation(schema, relation.name, kind)
        return None

    def overloaded(self, name: str, kind: str) -> bool:
        """See `CatalogView`. A type is found where the path has it first, so pg_catalog's own cannot be hidden."""
        found = self.picture.homes_of(kind).get(name)
        if found is None:
            return False
        for schema in self.path:
            if schema == "pg_catalog":
                if (kind, name) in self.picture.intruders:
                    return True
                if kind == "type":
                    return False
            elif schema in found:
                return True
        return False

    def reachable(self, function: FunctionName, statement: Statement) -> bool:
        """See `CatalogView`. How the server chooses: PostgreSQL manual, chapter 10, and parser/parse_func.c."""
        found = self.picture.overloads.get((function.kind, function.name), ())
        count = function.arguments
        candidates = [
            overload.needed
            for overload in found
            if overload.schema in self.path and (count < 0 or overload.low <= count <= overload.high)
        ]
        if not all(candidates):
            return True
        values = self._values(statement)
        return values is None or any(needed & values for needed in candidates)

    def _values(self, statement: Statement) -> Types | None:
        """The users' types of which a value may occur: in a row, by name, or made by code. None: it may be any."""
        picture = self.picture
        values: set[int] = set()
        for effect in statement.effects:
            if effect.relation is None:
                continue
            resolved = self.resolve(effect.relation)
            if resolved is None or resolved.kind is RelationKind.TEMP:
                return None
            values |= picture.row_types.get((resolved.schema, resolved.name), NO_TYPES)
        for name in statement.columns:
            values |= picture.results.get(("function", name), NO_TYPES)
        for function in statement.functions:
            values |= picture.results.get((function.kind, function.name), NO_TYPES)
            if function.kind == "type":
                for schema in self._schemas(function):
                    values |= picture.type_parts.get((schema, function.name), NO_TYPES)
        return frozenset(values)

    def _schemas(self, function: FunctionName) -> Iterator[str]:
        """Where it is looked for. Pictures have PostgreSQL's own types in no schema."""
        if function.schema is not None:
            yield function.schema
        else:
            yield from self.path

    def homes(self, function: FunctionName) -> tuple[Home, ...]:
        """See `CatalogView`."""
        found = self.picture.homes_of(function.kind).get(function.name, {})
        schemas = (function.schema,) if function.schema is not None else self.path
        return tuple(found[schema] for schema in schemas if schema in found)

    def column_is_function(self, name: str) -> bool:
        """See `CatalogView`."""
        return name in self.picture.columns

    def view_functions(self, relation: ResolvedRelation) -> tuple[FunctionName, ...]:
        """The functions that reading a view calls, through other views and partitions too; empty if all only compute.

        Under the server's own names, schema included.
        """
        return self.picture.view_calls.get((relation.schema, relation.name), ())


def effective_path(search_path: Path, user: str) -> Path:
    """The path with `$user` filled in and pg_catalog in front unless it is named (catalog/namespace.c)."""
    named = tuple(user if schema == "$user" else schema for schema in search_path)
    return named if "pg_catalog" in named else ("pg_catalog", *named)
