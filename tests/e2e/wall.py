"""A wall before a real PostgreSQL, on an event loop and in a thread of its own, as the tests start it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psycopg
import uvloop
from psycopg import sql

from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import load_config
from sqlwall.proxy.wall import Wall
from sqlwall.store import agents
from sqlwall.store.database import open_store
from tests.postgres import Database, Server

#: The plain role that walls log in as: it owns nothing.
APP = "sqlwall_test_app"
APP_PASSWORD = "app"

#: Tables that the waiving ruleset lets an agent write; everything else in the shop is out of bounds.
WAIVED = ("orders", "notes", "watched", "slots", "slow_later", "parents", "children")

#: What agent-safe has.
READ_LIMITS = "{rows: 50000, bytes: 256MiB, time: 30s}"

SHOP = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers, note text);
CREATE TABLE payroll (id int PRIMARY KEY, salary int NOT NULL);
INSERT INTO customers SELECT g, 'customer ' || g FROM generate_series(1, 10) g;
INSERT INTO orders SELECT g, g % 10 + 1, 'note ' || g FROM generate_series(1, 100) g;
INSERT INTO payroll SELECT g, 1000 FROM generate_series(1, 5) g;

-- a key from a sequence
CREATE TABLE notes (id serial PRIMARY KEY, body text);

-- writes elsewhere
CREATE TABLE watched (id int PRIMARY KEY, v int);
INSERT INTO watched VALUES (1, 1);
CREATE FUNCTION on_watched() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$ BEGIN UPDATE payroll SET salary = 0; RETURN NULL; END $$;
CREATE TRIGGER pays AFTER INSERT OR UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION on_watched();
CREATE VIEW staff AS SELECT id, salary FROM payroll;
CREATE FUNCTION raise_salaries() RETURNS int LANGUAGE sql SECURITY DEFINER AS
    'UPDATE payroll SET salary = salary + 1 RETURNING id';
CREATE FUNCTION calm_raise() RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    'BEGIN PERFORM raise_salaries(); RETURN 1; END';
CREATE FUNCTION run_text(text) RETURNS int LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; RETURN 1; END';
CREATE VIEW writing_view AS SELECT calm_raise() AS raised;
-- its values are checked as soon as a text with one of its arrays is analyzed
CREATE DOMAIN writing_word AS text CHECK (calm_raise() IS NOT NULL);
CREATE TABLE words (id int, found writing_word[]);
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
CREATE TABLE payslips (id int PRIMARY KEY, child int REFERENCES children ON DELETE CASCADE);
INSERT INTO parents VALUES (1), (2);
INSERT INTO children VALUES (1, 1), (2, 2);
INSERT INTO payslips VALUES (1, 1);

-- what happens at COMMIT
CREATE TABLE slots (id int PRIMARY KEY, slot int UNIQUE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO slots VALUES (1, 1), (2, 2);
CREATE TABLE slow_later (id int PRIMARY KEY);
CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow_later DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION be_slow();

-- the same names elsewhere
CREATE SCHEMA shadow;
CREATE TABLE shadow.orders (id int PRIMARY KEY, note text);
INSERT INTO shadow.orders VALUES (1, 'shadow');
CREATE FUNCTION shadow.upper(text) RETURNS text LANGUAGE plpgsql AS
    'BEGIN PERFORM public.raise_salaries(); RETURN $1; END';
CREATE FUNCTION nap(float8) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT ''rested'' FROM pg_sleep($1)';
"""

GRANTS = """
GRANT USAGE ON SCHEMA public, shadow TO {app};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, shadow TO {app};
GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO {app};
"""

T = TypeVar("T")


def make_shop(server: Server, dbname: str) -> None:
    """The schema, and the role that may use all of it and owns none of it."""
    app = sql.Identifier(APP)
    with server.connect(dbname) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (APP,)).fetchone():
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(app, sql.Literal(APP_PASSWORD))
            )
        connection.execute(SHOP)
        connection.execute(sql.SQL(GRANTS).format(app=app))


def shop_state(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table and the state of every sequence, and what there is: equal if nothing has changed."""
    state: dict[str, list[tuple[Any, ...]]] = {}
    with database.connect() as connection:
        names = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'S') AND n.nspname IN ('public', 'shadow') ORDER BY 1, 2"
        ).fetchall()
        for schema, name in names:
            query = sql.SQL("SELECT ROW(t.*)::text FROM {} t ORDER BY 1").format(sql.Identifier(schema, name))
            state[f"{schema}.{name}"] = connection.execute(query).fetchall()
        state["catalog"] = connection.execute(
            "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_roles),"
            " (SELECT count(*) FROM pg_prepared_xacts), (SELECT count(*) FROM pg_largeobject_metadata),"
            " (SELECT string_agg(relacl::text, ',' ORDER BY oid) FROM pg_class WHERE relnamespace = 2200)"
        ).fetchall()
    return state


def waiving(*tables: str, functions: tuple[str, ...] = (), limits: str = READ_LIMITS) -> str:
    """agent-safe, with snapshots waived for these tables of schema public and no write anywhere else.

    `functions` are allowed too; `limits` are those on reads.
    """
    text, _ = find_ruleset("agent-safe")
    text = text[: text.index("\ncases:")].replace(READ_LIMITS, limits)
    head, small_writes, tail = text.partition("- id: small-writes")
    names = ", ".join(f"public.{table}" for table in tables)
    tail = tail.replace('["public.*"]', f"[{names}]", 1).replace("snapshot: required", "snapshot: none", 1)
    if functions:
        tail += "\n  - id: known-functions\n    operations: [function]\n    functions: ["
        tail += ", ".join(functions) + "]\n    action: allow\n"
    return head + small_writes + tail


@dataclass(slots=True)
class RunningWall:
    """A wall that serves agent `bot`. `run` calls something on its loop."""

    wall: Wall
    database: Database
    password: str
    store: Path
    loop: asyncio.AbstractEventLoop
    address: tuple[str, int]
    rulesets: dict[str, str] = field(default_factory=dict)

    def dsn(self, user: str = "bot", password: str | None = None) -> str:
        """Where an agent connects."""
        host, port = self.address
        secret = quote(password or self.password, safe="")
        return f"postgresql://{user}:{secret}@{host}:{port}/{self.database.name}"

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A psycopg 3 connection through the wall, in autocommit mode unless told otherwise."""
        return psycopg.connect(self.dsn(), **{"autocommit": True, "connect_timeout": 10, **options})

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the wall's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def problems(self) -> list[str]:
        """Why the wall could not serve now."""

        async def ask() -> list[str]:
            return self.wall.problems()

        return self.run(ask())

    def add_agent(self, name: str, **options: Any) -> str:
        """Another agent; returns its password."""
        engine = open_store(f"sqlite:///{self.store}")
        try:
            return agents.add_agent(engine, name, **options)
        finally:
            engine.dispose()

    def revoke(self, name: str) -> None:
        """Revoke an agent, as another process would."""
        engine = open_store(f"sqlite:///{self.store}")
        try:
            agents.revoke(engine, name)
        finally:
            engine.dispose()

    def state(self) -> dict[str, list[tuple[Any, ...]]]:
        """See `shop_state`."""
        return shop_state(self.database)

    def audit(self) -> list[dict[str, Any]]:
        """What is on the record, in order."""
        import sqlite3

        connection = sqlite3.connect(self.store)
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM sqlwall_audit ORDER BY position")]
        finally:
            connection.close()


OpenWall = Callable[..., RunningWall]


@contextmanager
def running_wall(
    database: Database, folder: Path, ruleset: str = "agent-safe", **settings: str
) -> Iterator[RunningWall]:
    """A wall before `database`. `ruleset` is the name of a shipped one or a whole text; settings are `listen__port`."""
    store = folder / "store.db"
    url = f"sqlite:///{store}"
    engine = open_store(url)
    try:
        password = agents.add_agent(engine, "bot")
    finally:
        engine.dispose()
    texts = {"given": ruleset} if "\n" in ruleset else {}

    def find(name: str) -> tuple[str, str]:
        return (texts[name], f"{name}.yaml") if name in texts else find_ruleset(name)

    given = {
        "upstream": database.dsn(APP, APP_PASSWORD),
        "store.url": url,
        "ruleset": "given" if texts else ruleset,
        "snapshots.url": "",
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="wall", daemon=True)
    thread.start()

    def call(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def make() -> Wall:
        return Wall(load_config(None, {}, given), find)

    try:
        wall = call(make())
        call(wall.start(socket.create_server(("127.0.0.1", 0))))
        try:
            yield RunningWall(wall, database, password, store, loop, wall.address, texts)
        finally:
            call(wall.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
