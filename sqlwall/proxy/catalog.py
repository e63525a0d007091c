"""What the database knows, as far as verdicts depend on it: relations, and code that a built-in name could reach.

Read over a side connection of the wall's own, never the agent's session, and read anew when it has changed. Between a
change and the next look (`INTERVAL`) verdicts rest on the old picture; what a statement then does is still behind the
two locks, the read-only session and the gate.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg

from sqlwall.errors import StoreError
from sqlwall.proxy.tasks import TaskSet
from sqlwall.rules.context import CATALOG_SCHEMAS, Home, RelationKind, ResolvedRelation, kind_of_schema
from sqlwall.sql.functions import is_pure
from sqlwall.sql.statement import FunctionName, Relation, Statement

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether anything has changed.
INTERVAL: Final = 2.0
#: Without a look for so many seconds nothing is judged any more: fail closed.
STALE_AFTER: Final = 60.0

#: Object ids below it are PostgreSQL's own (access/transam.h, FirstNormalObjectId).
FIRST_USER_OID: Final = 16384
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

_FINGERPRINT: Final[LiteralString] = """
SELECT (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || xmin::text)))
          FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || xmin::text)))
          FROM pg_catalog.pg_proc WHERE oid >= 16384),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || xmin::text)))
          FROM pg_catalog.pg_operator WHERE oid >= 16384),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || xmin::text)))
          FROM pg_catalog.pg_type WHERE oid >= 16384),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || xmin::text)))
          FROM pg_catalog.pg_rewrite WHERE oid >= 16384),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || xmin::text)))
          FROM pg_catalog.pg_namespace),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || xmin::text)))
          FROM pg_catalog.pg_cast WHERE oid >= 16384)
"""

#: Reading these has effects elsewhere, or runs code that nobody judged: foreign tables, views that call volatile
#: functions of users, and whatever reads one of them through views and partitions.
_RELATIONS: Final[LiteralString] = """
WITH RECURSIVE reads AS (
    SELECT DISTINCT r.ev_class AS reader, d.refobjid AS read
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
    WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class AND r.ev_type = '1'
    UNION SELECT inhparent, inhrelid FROM pg_catalog.pg_inherits
), outside AS (
    SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'f'
    UNION SELECT r.ev_class FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
    JOIN pg_catalog.pg_proc p ON d.refclassid = 'pg_catalog.pg_proc'::regclass AND p.oid = d.refobjid
    WHERE r.ev_type = '1' AND p.provolatile = 'v' AND p.oid >= 16384
    UNION SELECT reads.reader FROM reads JOIN outside ON outside.oid = reads.read
)
SELECT n.nspname, c.relname, c.relkind::text, EXISTS (SELECT FROM outside o WHERE o.oid = c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname <> 'pg_toast'
"""
_FUNCTIONS: Final[LiteralString] = """
SELECT n.nspname, p.proname, e.extname, p.provolatile <> 'v' AND l.lanname IN ('c', 'internal'),
       p.pronargs - p.pronargdefaults <= 1 AND p.pronargs >= 1, p.pronargs - p.pronargdefaults,
       CASE WHEN p.provariadic <> 0 THEN 100 ELSE p.pronargs END,
       p.proargtypes::oid[], p.oid < 16384
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid
     AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
"""
_OPERATORS: Final[LiteralString] = """
SELECT n.nspname, o.oprname, e.extname, p.provolatile <> 'v' AND l.lanname IN ('c', 'internal'), false, 0, 100,
       ARRAY[o.oprleft, o.oprright], o.oid < 16384
FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode JOIN pg_catalog.pg_language l ON l.oid = p.prolang
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_operator'::regclass AND d.objid = o.oid
     AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE o.oid >= 16384
"""
#: A type runs code if its input function, a cast to it or a check of its domain is a user's: then it is not inert.
_TYPES: Final[LiteralString] = """
WITH RECURSIVE code AS (
    SELECT t.oid FROM pg_catalog.pg_type t
    WHERE t.oid >= 16384 AND (
        (t.typtype = 'b' AND t.typelem = 0)
        OR (t.typtype = 'd' AND (t.typdefaultbin IS NOT NULL
            OR EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid)))
        OR EXISTS (SELECT FROM pg_catalog.pg_cast s WHERE s.casttarget = t.oid AND s.castfunc >= 16384))
    UNION SELECT t.oid FROM pg_catalog.pg_type t JOIN code ON t.typelem = code.oid OR t.typbasetype = code.oid
), parts AS (
    SELECT oid FROM code
    UNION SELECT c.reltype FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN parts ON parts.oid = a.atttypid WHERE a.attnum > 0 AND c.reltype <> 0
)
SELECT n.nspname, t.typname, e.extname, NOT EXISTS (SELECT FROM parts WHERE parts.oid = t.oid), false, 0, 100,
       ARRAY[t.oid], t.oid < 16384
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid
     AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE t.oid >= 16384
"""

#: The types of users that a relation's rows are made of, and those that a type is made of.
_COLUMN_TYPES: Final[LiteralString] = """
SELECT n.nspname, c.relname, c.reltype, pg_catalog.array_agg(a.atttypid)
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE a.attnum > 0 AND a.atttypid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') GROUP BY 1, 2, 3
"""
_TYPE_PARTS: Final[LiteralString] = """
SELECT t.oid, n.nspname, t.typname, t.typelem, t.typbasetype, COALESCE(r.rngsubtype, 0)
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid OR r.rngmultitypid = t.oid
WHERE t.oid >= 16384
"""

Path = tuple[str, ...]
Types = frozenset[int]
Homes = Mapping[str, Mapping[str, Home]]


def parse_search_path(text: str) -> Path:
    """A value of search_path as schema names: quoted ones as they are, others in lower case (SplitIdentifierString)."""
    names: list[str] = []
    name, quoted, was_quoted, index = "", False, False, 0
    while index < len(text):
        character = text[index]
        if quoted:
            if character == '"' and text[index + 1 : index + 2] == '"':
                name += '"'
                index += 1
            elif character == '"':
                quoted = False
            else:
                name += character
        elif character == '"':
            quoted = was_quoted = True
        elif character == ",":
            names.append(name)
            name, was_quoted = "", False
        elif not character.isspace():
            name += character if was_quoted else character.lower()
        index += 1
    names.append(name)
    return tuple(found for found in names if found)


@dataclass(frozen=True, slots=True)
class Overload:
    """Code of somebody's: its schema, how many arguments it takes, and the users' types among them.

    Without a value of each of these types it cannot be meant.
    """

    schema: str
    needed: Types
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class DatabaseCatalog:
    """One picture of a database. Homes are by name, then by schema.

    `columns` are names that may be called as one, `intruders` those that somebody added to pg_catalog. `overloads` has
    the code of each kind and name. `row_types` and `type_parts` say what can hold one.
    """

    relations: Mapping[tuple[str, str], RelationKind]
    functions: Homes
    operators: Homes
    types: Homes
    columns: frozenset[str]
    intruders: frozenset[str]
    overloads: Mapping[tuple[str, str], tuple[Overload, ...]]
    row_types: Mapping[tuple[str, str], Types]
    type_parts: Mapping[tuple[str, str], Types]

    def homes_of(self, kind: str) -> Homes:
        """The homes of one kind of name."""
        return {"function": self.functions, "operator": self.operators}.get(kind, self.types)


@dataclass(frozen=True, slots=True)
class BoundCatalog:
    """A picture under one search_path: a `rules.context.CatalogView`."""

    picture: DatabaseCatalog
    path: Path

    def resolve(self, relation: Relation) -> ResolvedRelation | None:
        """See `CatalogView`."""
        relations = self.picture.relations
        if relation.schema is not None:
            if relation.schema == "pg_temp":
                return ResolvedRelation("pg_temp", relation.name, RelationKind.TEMP)
            kind = relations.get((relation.schema, relation.name))
            return None if kind is None else ResolvedRelation(relation.schema, relation.name, kind)
        for schema in self.path:
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
                if name in self.picture.intruders:
                    return True
                if kind == "type":
                    return False
            elif schema in found:
                return True
        return False

    def reachable(self, function: FunctionName, statement: Statement) -> bool:
        """See `CatalogView`."""
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
        return any(needed <= values for needed in candidates)

    def _values(self, statement: Statement) -> Types:
        """The users' types of which a value may occur: in a row that is read or written, or by name."""
        picture = self.picture
        values: set[int] = set()
        for effect in statement.effects:
            resolved = self.resolve(effect.relation) if effect.relation is not None else None
            if resolved is not None:
                values |= picture.row_types.get((resolved.schema, resolved.name), frozenset())
        for function in statement.functions:
            if function.kind == "type":
                schemas = (function.schema,) if function.schema is not None else self.path
                for schema in schemas:
                    values |= picture.type_parts.get((schema, function.name), frozenset())
        return frozenset(values)

    def homes(self, function: FunctionName) -> tuple[Home, ...]:
        """See `CatalogView`."""
        found = self.picture.homes_of(function.kind).get(function.name, {})
        if function.schema is not None:
            home = found.get(function.schema)
            return () if home is None else (home,)
        return tuple(found[schema] for schema in self.path if schema in found)

    def column_is_function(self, name: str) -> bool:
        """See `CatalogView`."""
        return name in self.picture.columns


@dataclass(slots=True)
class _State:
    picture: DatabaseCatalog
    fingerprint: tuple[Any, ...]
    generation: int
    looked_at: float
    bound: dict[tuple[Path, str], BoundCatalog] = field(default_factory=dict)


class CatalogCache:
    """The catalog of one database, kept up to date by a side connection."""

    def __init__(self, conninfo: str, database: str) -> None:
        self._conninfo = conninfo
        self._database = database
        self._state: _State | None = None
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._lock = asyncio.Lock()
        self._tasks = TaskSet()
        self._is_watched = False
        self._users = 0

    @property
    def generation(self) -> int:
        """Grows with every change. Raises StoreError if nothing has been heard of the database for too long."""
        state = self._state
        if state is None or not self.is_fresh:
            raise StoreError(f"the catalog of {self._database} is not known")
        return state.generation

    @property
    def is_fresh(self) -> bool:
        """Whether the picture was compared with the database a short time ago."""
        state = self._state
        return state is not None and asyncio.get_running_loop().time() - state.looked_at < STALE_AFTER

    @property
    def is_stale(self) -> bool:
        """Whether somebody uses it and it is not fresh."""
        return self._users > 0 and not self.is_fresh

    def bind(self, search_path: Path, user: str) -> BoundCatalog:
        """The picture under one search_path. Raises StoreError."""
        state = self._state
        if state is None:
            raise StoreError(f"the catalog of {self._database} is not known")
        found = state.bound.get((search_path, user))
        if found is None:
            if len(state.bound) > 1000:
                state.bound.clear()
            found = BoundCatalog(state.picture, effective_path(search_path, user))
            state.bound[search_path, user] = found
        return found

    async def acquire(self) -> DatabaseCatalog:
        """The picture as of now, kept up to date until `release`. Raises StoreError."""
        state = self._state
        if state is None or asyncio.get_running_loop().time() - state.looked_at > INTERVAL:
            await self.refresh()
        self._users += 1
        if not self._is_watched:
            self._is_watched = True
            self._tasks.spawn(self._watch(), f"catalog of {self._database}")
        assert self._state is not None
        return self._state.picture

    async def release(self) -> None:
        """One user less; with the last the side connection is closed, so that nothing of ours holds the database."""
        self._users -= 1
        if self._users == 0:
            async with self._lock:
                if self._users == 0:
                    await self._drop_connection()

    async def refresh(self) -> None:
        """Look whether anything has changed, and load it anew if so. Raises StoreError."""
        async with self._lock:
            try:
                await self._refresh()
            except (psycopg.Error, OSError) as error:
                await self._drop_connection()
                raise StoreError(f"the catalog of {self._database} cannot be read: {error}") from error

    async def close(self) -> None:
        """Stop watching."""
        await self._tasks.close()
        await self._drop_connection()

    async def _refresh(self) -> None:
        connection = await self._connect()
        now = asyncio.get_running_loop().time()
        fingerprint = (await (await connection.execute(_FINGERPRINT)).fetchall())[0]
        state = self._state
        if state is not None and state.fingerprint == fingerprint:
            state.looked_at = now
            return
        picture = await _load(connection)
        generation = state.generation + 1 if state is not None else 1
        self._state = _State(picture, fingerprint, generation, now)

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo,
                autocommit=True,
                application_name="sqlwall catalog",
                options="-c default_transaction_read_only=on -c search_path=pg_catalog -c statement_timeout=30s",
            )
        return self._connection

    async def _drop_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            if not self._users:
                continue
            try:
                await self.refresh()
            except StoreError as error:
                logger.warning("%s", error)


def effective_path(search_path: Path, user: str) -> Path:
    """The path with `$user` filled in and pg_catalog in front unless it is named (namespace.c)."""
    named = tuple(user if schema == "$user" else schema for schema in search_path)
    return named if "pg_catalog" in named else ("pg_catalog", *named)


async def _load(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> DatabaseCatalog:
    """Everything in one read-only snapshot, so that its parts fit each other."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        relations = await (await connection.execute(_RELATIONS)).fetchall()
        functions = await (await connection.execute(_FUNCTIONS)).fetchall()
        operators = await (await connection.execute(_OPERATORS)).fetchall()
        types = await (await connection.execute(_TYPES)).fetchall()
        columns = await (await connection.execute(_COLUMN_TYPES)).fetchall()
        parts = await (await connection.execute(_TYPE_PARTS)).fetchall()
    made_of = _made_of(columns, parts)
    return DatabaseCatalog(
        {
            (schema, name): _kind(schema, relkind, is_outside)
            for schema, name, relkind, is_outside in relations
        },
        _homes(functions),
        _homes(operators),
        _homes(types, are_types=True),
        _callable_columns(functions, connection.info.server_version // 10_000),
        _intruders(functions, operators, types),
        _overloads(made_of, {"function": functions, "operator": operators, "type": types}),
        {
            (schema, name): frozenset().union(*(made_of.get(oid, {oid}) for oid in oids))
            for schema, name, _, oids in columns
        },
        {(schema, name): frozenset(made_of.get(oid, {oid})) for oid, schema, name, *_ in parts},
    )


def _kind(schema: str, relkind: str, is_outside: bool) -> RelationKind:
    if schema in CATALOG_SCHEMAS:
        return RelationKind.CATALOG
    if kind_of_schema(schema) is RelationKind.TEMP:
        return RelationKind.TEMP
    return RelationKind.FOREIGN if is_outside else _KINDS[relkind]


def _homes(rows: Iterable[tuple[Any, ...]], *, are_types: bool = False) -> Homes:
    """By name and schema. Several of one name in one schema are inert only if all are; a function only if reviewed."""
    found: dict[str, dict[str, Home]] = {}
    for schema, name, extension, computes, *_ in rows:
        is_reviewed = extension in REVIEWED_EXTENSIONS
        inert = (computes or is_reviewed) if are_types else (computes and is_reviewed)
        homes = found.setdefault(name, {})
        known = homes.get(schema)
        homes[schema] = Home(schema, extension, bool(inert) and (known is None or known.is_inert))
    return found


def _intruders(*kinds: Iterable[tuple[Any, ...]]) -> frozenset[str]:
    """Names that somebody added to pg_catalog."""
    return frozenset(
        name for rows in kinds for schema, name, *_, is_own in rows if schema == "pg_catalog" and not is_own
    )


def _made_of(columns: Iterable[tuple[Any, ...]], parts: Iterable[tuple[Any, ...]]) -> dict[int, set[int]]:
    """Of each user's type, itself and all users' types that it is made of: elements, base types, attributes."""
    direct: dict[int, set[int]] = {}
    for oid, _, _, *others in parts:
        direct.setdefault(oid, set()).update(other for other in others if other >= FIRST_USER_OID)
    for _, _, row_type, oids in columns:
        direct.setdefault(row_type, set()).update(oids)
    closed: dict[int, set[int]] = {}
    for oid in direct:
        reached, waiting = {oid}, [oid]
        while waiting:
            for other in direct.get(waiting.pop(), ()):
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
        closed[oid] = reached
    return closed


def _overloads(
    made_of: Mapping[int, set[int]], kinds: Mapping[str, list[tuple[Any, ...]]]
) -> dict[tuple[str, str], tuple[Overload, ...]]:
    """By kind and name, each piece of code that is not inert."""
    found: dict[tuple[str, str], tuple[Overload, ...]] = {}
    for kind, rows in kinds.items():
        for schema, name, extension, computes, _, low, high, arguments, is_own in rows:
            if is_own or (computes and (extension in REVIEWED_EXTENSIONS or kind == "type")):
                continue
            # An array of a type is reached by whoever has the type: what is needed is what it is made of.
            needed = frozenset(min(made_of.get(oid, {oid})) for oid in arguments if oid >= FIRST_USER_OID)
            found[kind, name] = (*found.get((kind, name), ()), Overload(schema, needed, low, high))
    return found


def _callable_columns(functions: Iterable[tuple[Any, ...]], major: int) -> frozenset[str]:
    """Names that may be called in the notation of a column, ``(x).f``, and do more than compute."""
    return frozenset(
        name
        for _, name, _, _, is_column, *_, is_own in functions
        if is_column and not (is_own and is_pure(name, 1, major))
    )
