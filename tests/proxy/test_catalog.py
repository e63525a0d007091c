"""The catalog against a real server: what names mean, which of them could run code, and when it is read anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import sql

from sqlwall.errors import StoreError
from sqlwall.proxy.catalog import CatalogCache, parse_search_path
from sqlwall.proxy.picture import BoundCatalog, Path, effective_path
from sqlwall.rules.context import RelationKind, ResolvedRelation
from sqlwall.sql.parse import analyze_text
from sqlwall.sql.statement import FunctionName, Relation, Statement
from tests.postgres import Database, Server, fresh_database

SCHEMA = """
CREATE SCHEMA app; CREATE SCHEMA hidden; CREATE SCHEMA "Odd, Name";
CREATE TYPE public.mood AS ENUM ('month', 'ok');
CREATE TABLE public.orders (id int, note text);
CREATE TABLE app.orders (id int, feeling public.mood);
CREATE TABLE hidden.orders (id int);
CREATE TABLE "Odd, Name".t (id int);
CREATE SEQUENCE public.numbers;
CREATE VIEW public.plain AS SELECT id + 1 AS id, now() AS at, count(*) OVER () FROM public.orders;
CREATE MATERIALIZED VIEW public.kept AS SELECT count(*) FROM public.orders;
CREATE TABLE public.parted (day date) PARTITION BY RANGE (day);
CREATE TABLE public.parted_1 PARTITION OF public.parted DEFAULT;

CREATE FUNCTION public.touch(int) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN RETURN true; END $$;
CREATE FUNCTION public.liar(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN 1; END $$;
CREATE VIEW public.writing AS SELECT id FROM public.orders WHERE public.touch(id);
CREATE VIEW public.above AS SELECT * FROM public.writing;
CREATE VIEW public.settings AS SELECT set_config('work_mem', '1MB', false);
CREATE VIEW public.lying AS SELECT public.liar(id) FROM public.orders;

CREATE FUNCTION public.is_email(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN true; END $$;
CREATE DOMAIN public.email AS text CHECK (public.is_email(VALUE));
CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN public.lower AS text CHECK (public.is_email(VALUE));
CREATE TYPE public.contact AS (address public.email, n int);
CREATE TYPE public.pair AS (a int, b text);
CREATE TYPE public.days AS RANGE (subtype = date);
CREATE TYPE public.emails AS RANGE (subtype = public.email);

CREATE FUNCTION public.date_trunc(public.mood, date) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION public.to_json(public.orders) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION public.upper(public.mood) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION public.ascii(public.pair) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION public.date_part(p public.mood, q public.mood) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION public.md5(public.mood, public.mood) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION public.jsonb_typeof(public.positive) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION public.make_mood() RETURNS public.mood LANGUAGE sql AS $$ SELECT 'ok'::public.mood $$;
CREATE FUNCTION public.pair_eq(public.pair, public.pair) RETURNS boolean LANGUAGE plpgsql AS
  $$ BEGIN RETURN true; END $$;
CREATE OPERATOR public.= (LEFTARG = public.pair, RIGHTARG = public.pair, FUNCTION = public.pair_eq);
CREATE OPERATOR public.+ (LEFTARG = public.pair, RIGHTARG = public.pair, FUNCTION = public.pair_eq);
CREATE TABLE public.pairs (p public.pair);
CREATE TABLE public.parent (id int); CREATE TABLE public.child () INHERITS (public.parent);
CREATE FUNCTION public.row_to_json(public.parent) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION pg_catalog.md5(int) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
"""


@pytest.fixture(scope="module")
def shop(postgres: Server) -> Iterator[Database]:
    with fresh_database(postgres) as fresh:
        with fresh.connect() as connection:
            connection.execute("SET allow_system_table_mods = on")
            connection.execute(SCHEMA.encode())
        yield fresh


@asynccontextmanager
async def opened(database: Database, user: str | None = None) -> AsyncIterator[CatalogCache]:
    cache = CatalogCache(database.dsn(user, "secret" if user else None), database.name, interval=0.05)
    await cache.acquire()
    try:
        yield cache
    finally:
        await cache.release()
        await cache.close()


async def bound(database: Database, path: Path = ("public",)) -> BoundCatalog:
    async with opened(database) as cache:
        return cache.bind(path, "postgres")


def statement(text: str) -> Statement:
    found = analyze_text(text.encode())
    assert isinstance(found, tuple), text
    return found[0]


def might_hijack(view: BoundCatalog, text: str) -> bool:
    """Whether any built-in name in the text could mean somebody's code, as the judge asks it."""
    facts = statement(text)
    return any(
        view.overloaded(called.name, called.kind) and view.reachable(called, facts)
        for called in facts.functions
        if called.schema is None
    ) or any(view.column_is_function(name) for name in facts.columns)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ()),
        ('"$user", public', ("$user", "public")),
        ("$user,PUBLIC", ("$user", "public")),
        ('"A, ""b""" ,  c', ('A, "b"', "c")),
        ("Ünï", ("Ünï",)),
        ("ÜNÏ", ("ÜnÏ",)),
        ('""', ()),
        ("\t a\n,\fb\v", ("a", "b")),
        ('"a\u00a0b"', ("a\u00a0b",)),
        ("a" * 70, ("a" * 63,)),
        ('"' + "ü" * 40 + '"', ("ü" * 31,)),
    ],
)
def test_a_search_path_is_split_into_names(text: str, path: Path) -> None:
    assert parse_search_path(text) == path


@pytest.mark.parametrize("text", ["ÜNÏ", "Aé", '"A, ""b"""', "a" * 70, '"' + "ü" * 40 + '"', '"a\u00a0b"'])
def test_the_server_finds_the_schema_that_the_split_names(database: Database, text: str) -> None:
    (schema,) = parse_search_path(text)
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        connection.execute("SELECT pg_catalog.set_config('search_path', %s, false)", (text,))
        assert connection.execute("SELECT current_schemas(false)").fetchone() == ([schema],)


def test_pg_catalog_comes_first_unless_it_is_named() -> None:
    assert effective_path(("$user", "app"), "joe") == ("pg_catalog", "joe", "app")
    assert effective_path(("app", "pg_catalog"), "joe") == ("app", "pg_catalog")
    assert effective_path((), "joe") == ("pg_catalog",)


async def test_a_name_means_the_first_relation_of_the_path(shop: Database) -> None:
    async with opened(shop) as cache:
        public, app = cache.bind(("public", "app"), "x"), cache.bind(("app", "public"), "x")
    assert public.resolve(Relation(None, "orders")) == ResolvedRelation(
        "public", "orders", RelationKind.TABLE
    )
    assert app.resolve(Relation(None, "orders")) == ResolvedRelation("app", "orders", RelationKind.TABLE)
    assert app.resolve(Relation(None, "pg_class")) == ResolvedRelation(
        "pg_catalog", "pg_class", RelationKind.CATALOG
    )
    assert app.resolve(Relation(None, "nothing")) is None
    assert app.resolve(Relation("nowhere", "orders")) is None
    assert app.resolve(Relation("pg_temp", "x")) == ResolvedRelation("pg_temp", "x", RelationKind.TEMP)
    assert app.resolve(Relation("Odd, Name", "t")) is not None


async def test_every_kind_of_relation_is_told_apart(shop: Database) -> None:
    view = await bound(shop)
    found = {
        name: resolved.kind
        for name in ("orders", "parted", "plain", "kept", "numbers", "writing", "above", "settings", "lying")
        if (resolved := view.resolve(Relation(None, name))) is not None
    }
    assert found == {
        "orders": RelationKind.TABLE,
        "parted": RelationKind.TABLE,
        "plain": RelationKind.VIEW,
        "kept": RelationKind.MATVIEW,
        "numbers": RelationKind.SEQUENCE,
        "writing": RelationKind.FOREIGN,
        "above": RelationKind.FOREIGN,
        "settings": RelationKind.FOREIGN,
        "lying": RelationKind.VIEW,
    }


async def test_a_view_tells_which_functions_it_calls(shop: Database) -> None:
    view = await bound(shop)

    def calls(name: str) -> list[str]:
        resolved = view.resolve(Relation(None, name))
        assert resolved is not None
        return [str(called) for called in view.view_functions(resolved)]

    assert calls("plain") == []
    assert calls("writing") == calls("above") == ["public.touch"]
    assert calls("settings") == ["pg_catalog.set_config"]
    assert calls("lying") == ["public.liar"]


async def test_foreign_tables_reach_through_views_and_partitions(shop: Database) -> None:
    with shop.connect() as connection:
        if not connection.execute(
            "SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'"
        ).fetchone():
            pytest.skip("the server has no postgres_fdw")
        connection.execute(
            "CREATE EXTENSION IF NOT EXISTS postgres_fdw;"
            " CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;"
            " CREATE TABLE mixed (n int) PARTITION BY LIST (n);"
            " CREATE FOREIGN TABLE mixed_1 PARTITION OF mixed FOR VALUES IN (1) SERVER far;"
            " CREATE VIEW over_mixed AS SELECT * FROM mixed; CREATE VIEW over_over AS SELECT * FROM over_mixed"
        )
    view = await bound(shop)
    for name in ("mixed", "mixed_1", "over_mixed", "over_over"):
        resolved = view.resolve(Relation(None, name))
        assert resolved is not None and resolved.kind is RelationKind.FOREIGN, name


async def test_a_schema_without_usage_is_passed_over_as_the_server_does(
    shop: Database, postgres: Server
) -> None:
    role = "sqlwall_test_" + shop.name[-6:]
    with shop.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(role)))
    try:
        async with opened(shop, role) as cache:
            view = cache.bind(("hidden", "public"), role)
            other = cache.bind(("hidden", "public"), "somebody else")
        assert view.resolve(Relation(None, "orders")) == ResolvedRelation(
            "public", "orders", RelationKind.TABLE
        )
        assert other.resolve(Relation(None, "orders")) == ResolvedRelation(
            "hidden", "orders", RelationKind.TABLE
        )
        with shop.connect(role, "secret") as agent:
            agent.execute("SET search_path = hidden, public")
            assert agent.execute("SELECT 'orders'::regclass::text").fetchone() == ("orders",)
            assert agent.execute("SELECT current_schemas(false)").fetchone() == (["public"],)
    finally:
        postgres.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize(
    ("name", "is_inert"),
    [
        ("mood", True),
        ("_mood", True),
        ("pair", True),
        ("days", True),
        ("positive", True),
        ("email", False),
        ("_email", False),
        ("contact", False),
        ("_contact", False),
        ("emails", False),
    ],
)
async def test_a_type_is_inert_if_reading_a_value_runs_nobodys_code(
    shop: Database, name: str, is_inert: bool
) -> None:
    (home,) = (await bound(shop)).homes(FunctionName(None, name, "type"))
    assert (home.schema, home.is_inert) == ("public", is_inert)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT date_trunc('month', DATE '2024-01-01')",
        "SELECT to_json(o) FROM orders o",
        "SELECT row_to_json(c) FROM child c",
        "SELECT upper(feeling) FROM app.orders",
        "SELECT upper(make_mood())",
        "SELECT upper('ok'::mood)",
        "SELECT upper(('{ok}'::mood[])[1])",
        "SELECT ascii(ROW(1, 'x'))",
        "SELECT date_part(p => 'ok', q => 'ok')",
        "SELECT md5('ok', 'ok')",
        "SELECT md5(1)",
        "SELECT jsonb_typeof('1')",
        "SELECT lower('x')",
        "SELECT ('x'::text).email",
        "SELECT p = p FROM pairs",
        "SELECT ROW(1, 'a') + '(1,b)'",
        "SELECT upper(x) FROM pg_temp.mine",
        "SELECT upper(x) FROM not_there_yet",
    ],
)
async def test_a_built_in_name_that_could_mean_somebodys_code_is_seen(shop: Database, text: str) -> None:
    assert might_hijack(await bound(shop), text)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT upper('ok'), upper(note) FROM orders",
        "SELECT upper($1)",
        "SELECT id = 1, note = 'x' FROM orders",
        "SELECT 1 = 1 AND ROW(1, 'a') = ROW(1, 'b')",
        "SELECT initcap(note), abs(id), o.note FROM orders o",
        "SELECT pg_catalog.lower('x')",
    ],
)
async def test_an_overload_that_the_server_would_not_choose_is_left_alone(shop: Database, text: str) -> None:
    assert not might_hijack(await bound(shop), text)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT upper('ok')",
        "SELECT upper(note) FROM orders",
        "SELECT upper(NULL)",
        "SELECT '(1,a)' = '(1,a)'",
        "SELECT ROW(1, 'a') = '(1,b)'",
        "SELECT (SELECT ROW(1, 'a'::text)) = ROW(1, 'b'::text)",
        "SELECT (SELECT ROW(1, 'a'::text)) = '(1,b)'",
    ],
)
async def test_the_server_agrees_that_it_chooses_its_own(shop: Database, text: str) -> None:
    """What is left alone runs nobody's code: the overloads are made to fail, and do not."""
    with shop.connect() as connection:
        connection.execute(
            "BEGIN; CREATE FUNCTION public.boom() RETURNS text LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$;"
            " CREATE OR REPLACE FUNCTION public.upper(public.mood) RETURNS text LANGUAGE sql AS 'SELECT boom()';"
            " CREATE OR REPLACE FUNCTION public.pair_eq(public.pair, public.pair) RETURNS boolean LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$"
        )
        try:
            connection.execute(text.encode())
        except psycopg.Error as error:
            assert "hijacked" not in str(error)
        connection.execute("ROLLBACK")


async def test_the_generation_grows_with_each_change_and_only_then(database: Database) -> None:
    async with opened(database) as cache:
        seen = [cache.generation]
        for change in (
            "CREATE TABLE t (id int)",
            "ALTER TABLE t RENAME TO u",
            "CREATE SCHEMA s",
            "CREATE TYPE mood AS ENUM ('a')",
            "ALTER TABLE u ADD COLUMN m mood",
            "CREATE FUNCTION upper(mood) RETURNS text LANGUAGE sql AS 'SELECT 1::text'",
            "CREATE OR REPLACE FUNCTION upper(mood) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT 1::text'",
            "CREATE DOMAIN d AS text",
            "ALTER DOMAIN d ADD CONSTRAINT c CHECK (VALUE <> '')",
            "CREATE TABLE v () INHERITS (u)",
            "ALTER TABLE v NO INHERIT u",
            "CREATE VIEW w AS SELECT 1 AS one",
            "CREATE OR REPLACE VIEW w AS SELECT 2 AS one",
            "DROP VIEW w",
        ):
            database.execute(sql.SQL(change).format())
            await cache.refresh()
            seen.append(cache.generation)
        assert seen == list(range(1, len(seen) + 1))
        database.execute("INSERT INTO v (id) SELECT generate_series(1, 100)")
        database.execute("VACUUM (FREEZE, ANALYZE) v")
        with database.connect() as connection:
            connection.execute("CREATE TEMP TABLE mine (m mood)")
            await cache.refresh()
        assert cache.generation == seen[-1]


async def test_it_is_read_anew_in_the_background(database: Database) -> None:
    async with opened(database) as cache:
        database.execute("CREATE TABLE late (id int)")
        async with asyncio.timeout(10):
            while cache.generation == 1:  # noqa: ASYNC110 - the cache has no event to wait for
                await asyncio.sleep(0.02)
        assert cache.bind(("public",), "x").resolve(Relation(None, "late")) is not None


async def test_what_has_not_been_looked_at_for_long_is_not_judged_by(database: Database) -> None:
    cache = CatalogCache(database.dsn(), database.name, interval=60, stale_after=3)
    with pytest.raises(StoreError, match="not known"):
        _ = cache.generation
    with pytest.raises(StoreError, match="not known"):
        cache.bind((), "x")
    await cache.acquire()
    assert cache.generation == 1
    assert not cache.is_stale
    while cache.is_fresh:  # noqa: ASYNC110 - time itself is what is waited for
        await asyncio.sleep(0.05)
    assert cache.is_stale
    with pytest.raises(StoreError, match="not known"):
        _ = cache.generation
    await cache.refresh()
    assert cache.generation == 1
    await cache.release()
    await cache.close()


async def test_a_lost_side_connection_is_opened_again(database: Database) -> None:
    async with opened(database) as cache:
        with database.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sqlwall catalog'"
                " AND datname = current_database()"
            )
        with pytest.raises(StoreError, match="cannot be read"):
            await cache.refresh()
        await cache.refresh()
        assert cache.generation == 1


async def test_a_server_that_is_not_there_is_a_store_error() -> None:
    cache = CatalogCache("host=127.0.0.1 port=1 dbname=x user=x connect_timeout=2", "x")
    with pytest.raises(StoreError, match="the catalog of x cannot be read"):
        await cache.acquire()
    assert not cache.is_stale


async def test_the_side_connection_cannot_write_and_is_closed_with_its_last_user(database: Database) -> None:
    one = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'sqlwall catalog' AND datname = current_database()"
    )
    async with opened(database) as cache:
        await cache.acquire()
        await cache.release()
        with database.connect() as connection:
            assert connection.execute(one).fetchone() == (1,)
        assert cache._connection is not None
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await cache._connection.execute("CREATE TABLE public.no (id int)")
    with database.connect() as connection:
        assert connection.execute(one).fetchone() == (0,)


async def test_thousands_of_tables_and_functions_are_read_in_a_second(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..2000 LOOP EXECUTE format('CREATE TABLE t%s (id int, note text)', i);"
            " END LOOP; END $$"
        )
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..4000 LOOP"
            " EXECUTE format('CREATE FUNCTION f%s(int) RETURNS int LANGUAGE sql AS ''SELECT 1''', i);"
            " END LOOP; END $$"
        )
    cache = CatalogCache(database.dsn(), database.name)
    started = asyncio.get_running_loop().time()
    picture = await cache.acquire()
    taken = asyncio.get_running_loop().time() - started
    await cache.release()
    await cache.close()
    assert len(picture.relations) > 2000
    assert len(picture.functions) > 4000
    assert taken < 2.0


async def test_an_operator_on_built_in_types_counts_where_the_path_reaches_it(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            "CREATE TABLE t (id int); INSERT INTO t VALUES (5); CREATE SCHEMA shadow;"
            " CREATE FUNCTION shadow.never(int, int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN false; END $$;"
            " CREATE OPERATOR shadow.= (LEFTARG = int, RIGHTARG = int, FUNCTION = shadow.never)"
        )
        text = "SELECT id = 5 FROM t"
        assert connection.execute(text).fetchone() == (True,)
        connection.execute("SET search_path = shadow, pg_catalog, public")
        assert connection.execute(text).fetchone() == (False,)
    async with opened(database) as cache:
        assert might_hijack(cache.bind(("shadow", "pg_catalog", "public"), "postgres"), text)
        assert not might_hijack(cache.bind(("public",), "postgres"), text)
        database.execute(
            "CREATE FUNCTION public.never(int2, int8) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN false; END $$;"
            " CREATE OPERATOR public.== (LEFTARG = int2, RIGHTARG = int8, FUNCTION = public.never)"
        )
        await cache.refresh()
        homes = cache.bind(("public",), "postgres").homes(FunctionName(None, "==", "operator"))
        assert [home.schema for home in homes] == ["public"]


@pytest.mark.parametrize(
    "text", ["SELECT (4711).lo_unlink", "SELECT (t.id).lo_unlink FROM t", "SELECT t.lo_unlink FROM t"]
)
async def test_a_column_that_is_a_function_is_seen(database: Database, text: str) -> None:
    database.execute("CREATE TABLE t (id oid)")
    view = await bound(database)
    assert might_hijack(view, text)
    assert not might_hijack(view, text.replace("lo_unlink", "note"))


@pytest.mark.parametrize(
    ("extension", "text"),
    [
        ("citext", "SELECT note FROM t WHERE note = 'x' AND name LIKE 'a%'"),
        ("hstore", "SELECT id FROM t WHERE id = 1 AND name = 'x'"),
        ("intarray", "SELECT id FROM t WHERE id = 1"),
        ("pg_trgm", "SELECT name FROM t WHERE name LIKE '%x%' ORDER BY lower(name)"),
        ("cube", "SELECT id FROM t WHERE id < 5"),
    ],
)
async def test_an_extension_leaves_everyday_statements_alone(
    database: Database, extension: str, text: str
) -> None:
    with database.connect() as connection:
        query = "SELECT 1 FROM pg_available_extensions WHERE name = %s"
        if connection.execute(query, (extension,)).fetchone() is None:
            pytest.skip(f"the server has no {extension}")
        connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension)))
        connection.execute("CREATE TABLE t (id int, name text, note text)")
        if extension == "citext":
            connection.execute("ALTER TABLE t ALTER note TYPE citext")
    view = await bound(database)
    facts = statement(text)
    for called in facts.functions:
        if view.overloaded(called.name, called.kind) and view.reachable(called, facts):
            homes = view.homes(called)
            assert all(home.schema == "pg_catalog" or home.extension == extension for home in homes), called
