"""Makes a picture of a database out of the rows that its catalogs gave. Pure; `catalog_queries` has the questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlwall.proxy.picture import NO_TYPES, DatabaseCatalog, Homes, Overload, Types
from sqlwall.rules.context import CATALOG_SCHEMAS, Home, RelationKind
from sqlwall.sql.functions import is_pure
from sqlwall.sql.statement import FunctionName

Row = Sequence[Any]

#: Object ids below it are PostgreSQL's own (access/transam.h, FirstNormalObjectId).
FIRST_USER_OID: Final = 16384
#: The type of a row constructor, which becomes any row type where nothing else fits (pg_type.dat).
RECORD_OID: Final = 2249
#: The string type that unknown literals prefer to all others.
TEXT_OID: Final = 25

#: Extensions whose C functions and operators only compute: read, and on nobody's list of ways to the outside.
REVIEWED_EXTENSIONS: Final = frozenset(
    {
        "btree_gin", "btree_gist", "citext", "cube", "dict_int", "dict_xsyn", "earthdistance", "fuzzystrmatch",
        "hstore", "intarray", "isn", "ltree", "pg_trgm", "pgcrypto", "seg", "unaccent", "uuid-ossp", "vector",
    }
)  # fmt: skip

_KINDS: Final[Mapping[str, RelationKind]] = {
    "r": RelationKind.TABLE,
    "p": RelationKind.TABLE,
    "v": RelationKind.VIEW,
    "m": RelationKind.MATVIEW,
    "S": RelationKind.SEQUENCE,
    "f": RelationKind.FOREIGN,
}


@dataclass(frozen=True, slots=True)
class Rows:
    """The answers to `catalog_queries`, all of one snapshot."""

    user: str
    barred: Sequence[str]
    relations: Sequence[Row]
    readers: Sequence[Row]
    children: Sequence[Row]
    view_calls: Sequence[Row]
    functions: Sequence[Row]
    operators: Sequence[Row]
    types: Sequence[Row]
    type_calls: Sequence[Row]
    column_types: Sequence[Row]


@dataclass(frozen=True, slots=True)
class _Code:
    """A function or operator. `results` are the types it may bring into being; `is_odd` if it has names or repeats."""

    schema: str
    name: str
    extension: str | None
    computes: bool
    is_own: bool
    low: int
    high: int
    arguments: Sequence[int]
    is_odd: bool
    results: Sequence[int]

    @property
    def is_inert(self) -> bool:
        return self.computes and self.extension in REVIEWED_EXTENSIONS


@dataclass(frozen=True, slots=True)
class _Type:
    """A user's type; see `catalog_queries.TYPES`."""

    oid: int
    schema: str
    name: str
    extension: str | None
    runs_code: bool
    is_closed: bool
    is_composite: bool
    is_string: bool
    element: int
    parts: Sequence[int]


def draw(rows: Rows, major: int) -> DatabaseCatalog:
    """The picture that the rows make."""
    functions = [_Code(*row) for row in rows.functions]
    operators = [_Code(*row) for row in rows.operators]
    types = {row[0]: _Type(*row) for row in rows.types}
    parts = _close(_direct_parts(types.values(), rows.column_types))
    codes = [("function", code) for code in functions] + [("operator", code) for code in operators]
    running = _running(types, parts, rows.type_calls, major)
    # A type's name is a function, too: ``upper('x')`` is a cast where a type is called upper; not that of a row type.
    casts = [types[oid] for oid in running if not types[oid].is_composite]
    view_calls = _view_calls(rows, major)
    intruders = {(kind, code.name) for kind, code in codes if code.schema == "pg_catalog" and not code.is_own}
    for found in types.values():
        if found.schema == "pg_catalog":
            intruders |= {("type", found.name), ("function", found.name)}
    return DatabaseCatalog(
        user=rows.user,
        barred=frozenset(rows.barred),
        relations=_relations(rows, view_calls),
        functions=_function_homes(functions, casts),
        operators=_code_homes(operators),
        types=_type_homes(types.values(), running),
        columns=_callable_columns(functions, major) | {cast.name for cast in casts},
        intruders=frozenset(intruders),
        overloads=_overloads(codes, types, parts, running),
        results=_results(codes, parts),
        row_types=_row_types(rows, parts),
        type_parts={(t.schema, t.name): parts[t.oid] for t in types.values()},
        view_calls=_named_calls(rows.relations, view_calls),
    )


def _direct_parts(types: Iterable[_Type], column_types: Iterable[Row]) -> dict[int, set[int]]:
    """Of each user's type the users' types it is made of: elements, base types, subtypes, attributes."""
    direct: dict[int, set[int]] = {}
    for found in types:
        direct.setdefault(found.oid, set()).update(oid for oid in found.parts if oid >= FIRST_USER_OID)
    for row_type, oids in column_types:
        direct.setdefault(row_type, set()).update(oids)
    return direct


def _close(direct: Mapping[int, Iterable[int]]) -> dict[int, Types]:
    """Everything that is reached from each, itself included."""
    closed: dict[int, Types] = {}
    for start in direct:
        reached, waiting = {start}, [start]
        while waiting:
            for other in direct.get(waiting.pop(), ()):
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
        closed[start] = frozenset(reached)
    return closed


def _running(
    types: Mapping[int, _Type], parts: Mapping[int, Types], type_calls: Iterable[Row], major: int
) -> Types:
    """The types that run a user's code when a value is read, or are made of one that does.

    Those of reviewed extensions do not.
    """
    seeds = {oid for oid, found in types.items() if found.runs_code}
    seeds |= {oid for oid, name, count, is_own in type_calls if not (is_own and is_pure(name, count, major))}
    seeds = {oid for oid in seeds if oid in types and types[oid].extension not in REVIEWED_EXTENSIONS}
    return frozenset(oid for oid in types if parts[oid] & seeds)


def _code_homes(codes: Iterable[_Code]) -> dict[str, dict[str, Home]]:
    """By name and schema. Several of one name in one schema are inert only if all are."""
    found: dict[str, dict[str, Home]] = {}
    for code in codes:
        homes = found.setdefault(code.name, {})
        known = homes.get(code.schema)
        inert = code.is_inert and (known is None or known.is_inert)
        homes[code.schema] = Home(code.schema, code.extension, inert)
    return found


def _type_homes(types: Iterable[_Type], running: Types) -> Homes:
    homes: dict[str, dict[str, Home]] = {}
    for found in types:
        home = Home(found.schema, found.extension, found.oid not in running)
        homes.setdefault(found.name, {})[found.schema] = home
    return homes


def _function_homes(functions: Iterable[_Code], casts: Iterable[_Type]) -> Homes:
    homes = _code_homes(functions)
    for cast in casts:
        homes.setdefault(cast.name, {})[cast.schema] = Home(cast.schema, cast.extension)
    return homes


def _overloads(
    codes: Iterable[tuple[str, _Code]],
    types: Mapping[int, _Type],
    parts: Mapping[int, Types],
    running: Types,
) -> dict[tuple[str, str], tuple[Overload, ...]]:
    """By kind and name, each piece of code that is not inert."""
    own: dict[tuple[str, str], list[_Code]] = {}
    theirs: dict[tuple[str, str], list[_Code]] = {}
    for kind, code in codes:
        if code.is_own:
            own.setdefault((kind, code.name), []).append(code)
        elif not code.is_inert:
            theirs.setdefault((kind, code.name), []).append(code)
    found = {
        key: tuple(
            Overload(code.schema, _needed(key[0], code, own.get(key, ()), types), code.low, code.high)
            for code in several
        )
        for key, several in theirs.items()
    }
    for oid in running:
        cast = types[oid]
        for key in (("function", cast.name), ("type", cast.name)):
            found[key] = (*found.get(key, ()), Overload(cast.schema, NO_TYPES, 0, 100))
    return found


def _needed(kind: str, code: _Code, own: Sequence[_Code], types: Mapping[int, _Type]) -> Types:
    """The users' types by which alone the code is meant; none if the server may choose it without a value of them.

    It does not choose it if PostgreSQL has one of as many arguments that is equal wherever no user's type stands, so
    that this one fits nothing better, and if no value or literal turns into these types by itself: unknown literals go
    to text, or to nobody if the candidates' categories differ (func_select_candidate in parser/parse_func.c).
    """
    users = {oid: types[oid] for oid in code.arguments if oid in types}
    is_plain = not code.is_odd and code.low in (0, len(code.arguments))
    if not is_plain or not any(not other.is_odd and _is_rival(code, other, users) for other in own):
        return NO_TYPES
    # A row constructor turns into any row type; only operators have a rival that takes it as it is, and a
    # row beside something else, as in LIKE, is left to the read-only lock: hardly anybody writes it, all write LIKE.
    are_rows = kind == "operator" and all(found.is_composite for found in users.values())
    elements = {found.element or oid for oid, found in users.items()}
    if not are_rows and not all(oid in types and types[oid].is_closed for oid in (*users, *elements)):
        return NO_TYPES
    return frozenset(elements)


def _is_rival(code: _Code, other: _Code, users: Mapping[int, _Type]) -> bool:
    """Whether PostgreSQL's own takes as many arguments, and the same ones wherever no user's type stands."""
    if len(code.arguments) != len(other.arguments):
        return False
    is_all_rows = all(oid in users and users[oid].is_composite for oid in code.arguments)
    for mine, its in zip(code.arguments, other.arguments, strict=True):
        user = users.get(mine)
        if user is None:
            fits = its == mine
        elif user.is_string:
            fits = its == TEXT_OID
        else:
            fits = its == RECORD_OID if is_all_rows else its != 0
        if not fits:
            return False
    return True


def _results(codes: Iterable[tuple[str, _Code]], parts: Mapping[int, Types]) -> dict[tuple[str, str], Types]:
    """The users' types that a call of each name may bring into being."""
    found: dict[tuple[str, str], Types] = {}
    for kind, code in codes:
        made = {part for oid in code.results if oid >= FIRST_USER_OID for part in parts.get(oid, {oid})}
        if made:
            found[kind, code.name] = found.get((kind, code.name), NO_TYPES) | made
    return found


def _callable_columns(functions: Iterable[_Code], major: int) -> frozenset[str]:
    """Names that may be called in the notation of a column, ``(x).f``, and do more than compute."""
    return frozenset(
        code.name
        for code in functions
        if code.low <= 1 <= code.high and not (code.is_own and is_pure(code.name, 1, major))
    )


def _row_types(rows: Rows, parts: Mapping[int, Types]) -> dict[tuple[str, str], Types]:
    """What a relation's row can hold, itself and the row types it passes for: its ancestors', the type it is OF."""
    row_type_of = {row[0]: row[4] for row in rows.relations}
    parents: dict[int, set[int]] = {}
    for parent, child in rows.children:
        parents.setdefault(child, set()).add(parent)
    found: dict[tuple[str, str], Types] = {}
    for oid, schema, name, _, row_type, of_type in rows.relations:
        if not row_type:
            continue
        held = {row_type, *parts.get(row_type, ()), *(parts.get(of_type, {of_type}) if of_type else ())}
        for ancestor in _ancestors(oid, parents):
            held.add(row_type_of.get(ancestor, 0))
        found[schema, name] = frozenset(held)
    return found


def _ancestors(oid: int, parents: Mapping[int, set[int]]) -> Iterator[int]:
    waiting, seen = [oid], {oid}
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
                yield parent


def _view_calls(rows: Rows, major: int) -> dict[int, dict[FunctionName, bool]]:
    """Of each relation the calls that reading it makes and that are not known to compute; True if volatile."""
    found: dict[int, dict[FunctionName, bool]] = {}
    for view, schema, name, count, is_volatile, is_own in rows.view_calls:
        if is_own and is_pure(name, count, major):
            continue
        # One of PostgreSQL's own that is not pure does something, whatever its label says.
        found.setdefault(view, {})[FunctionName(schema, name, "function", count)] = is_volatile or is_own
    return _spread(found, rows)


def _spread(found: dict[int, dict[FunctionName, bool]], rows: Rows) -> dict[int, dict[FunctionName, bool]]:
    """What a relation calls, whoever reads it calls too."""
    readers = _readers(rows)
    waiting = list(found)
    while waiting:
        read = waiting.pop()
        for reader in readers.get(read, ()):
            calls = found.setdefault(reader, {})
            before = len(calls)
            calls.update({call: v for call, v in found[read].items() if call not in calls})
            if len(calls) != before:
                waiting.append(reader)
    return found


def _readers(rows: Rows) -> dict[int, list[int]]:
    readers: dict[int, list[int]] = {}
    for reader, read in (*rows.readers, *rows.children):
        readers.setdefault(read, []).append(reader)
    return readers


def _relations(
    rows: Rows, view_calls: Mapping[int, Mapping[FunctionName, bool]]
) -> dict[tuple[str, str], RelationKind]:
    """FOREIGN is whatever has effects elsewhere when read: foreign tables, views that call volatile functions, and
    all that read one of them.
    """
    readers = _readers(rows)
    outside = {row[0] for row in rows.relations if row[3] == "f"}
    outside |= {oid for oid, calls in view_calls.items() if any(calls.values())}
    waiting = list(outside)
    while waiting:
        for reader in readers.get(waiting.pop(), ()):
            if reader not in outside:
                outside.add(reader)
                waiting.append(reader)
    return {
        (schema, name): RelationKind.CATALOG
        if schema in CATALOG_SCHEMAS
        else RelationKind.FOREIGN
        if oid in outside
        else _KINDS[relkind]
        for oid, schema, name, relkind, *_ in rows.relations
    }


def _named_calls(
    relations: Iterable[Row], view_calls: Mapping[int, Mapping[FunctionName, bool]]
) -> dict[tuple[str, str], tuple[FunctionName, ...]]:
    return {
        (row[1], row[2]): tuple(sorted(view_calls[row[0]], key=str))
        for row in relations
        if row[0] in view_calls
    }
