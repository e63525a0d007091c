"""Promises 3 and 4 where a rule lets an agent TRUNCATE and DROP: what is removed comes back whole, or is not removed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sqlwall.snapshot import provision
from sqlwall.snapshot.undo import ConflictKind
from sqlwall.store.index import SnapshotState
from tests.e2e.wall import APP, APP_PASSWORD, OpenWall, make_shop
from tests.postgres import Database, Server, fresh_database
from tests.promises.guarded import OBSERVER, UNDO, Guarded, observer

__all__ = ["observer"]

RULES = """
version: 1
name: sandbox
mode: enforce
rules:
  - id: reads
    operations: [select, copy_out, show, explain, lock]
    action: allow
  - id: writes
    operations: [insert, update, delete, merge, copy_in]
    tables: ["public.*"]
    kinds: [table, view, matview, foreign, unknown]
    action: allow
    snapshot: required
    limits: {rows: 1000, transaction_rows: 1500}
  - id: removals
    operations: [truncate, drop]
    tables: ["public.*"]
    action: allow
    snapshot: required
    limits: {rows: 1000}
  - id: definitions
    operations: [create, alter, grant]
    action: allow
    snapshot: required
  - id: kept
    operations: [truncate, drop]
    tables: ["public.kept*"]
    action: deny
  - id: numbers
    operations: [update]
    tables: ["public.*"]
    kinds: [sequence]
    action: allow
    snapshot: none
  - id: sessions
    operations: [transaction, prepare, execute, deallocate, cursor, discard, constraints]
    action: allow
  - id: code
    operations: [function]
    functions: ["public.*"]
    action: allow
"""

SCHEMA = """
CREATE TABLE plain (id serial PRIMARY KEY, v text, n int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5));
INSERT INTO plain (v) SELECT 'v' || g FROM generate_series(1, 30) g;
CREATE INDEX plain_v ON plain (v);
CREATE TABLE heap (v text, n int);
INSERT INTO heap SELECT 'same', g % 3 FROM generate_series(1, 30) g;
CREATE TABLE parent (id int PRIMARY KEY, name text);
CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, note text);
CREATE TABLE grandchild (id int PRIMARY KEY, child int REFERENCES child, boss int REFERENCES grandchild);
INSERT INTO parent SELECT g, 'p' || g FROM generate_series(1, 5) g;
INSERT INTO child (parent, note) SELECT g % 5 + 1, 'c' FROM generate_series(1, 12) g;
INSERT INTO grandchild SELECT g, g, 1 FROM generate_series(1, 8) g;
CREATE TABLE parted (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2) PARTITION BY RANGE (id);
CREATE TABLE parted_2a PARTITION OF parted_2 FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_2b PARTITION OF parted_2 DEFAULT;
INSERT INTO parted SELECT g, g % 2 + 1, 'v' FROM generate_series(1, 20) g;
CREATE TABLE refers (id int PRIMARY KEY, r int, part int, FOREIGN KEY (r, part) REFERENCES parted);
INSERT INTO refers VALUES (1, 1, 2), (2, 2, 1);
CREATE TABLE grown (id int PRIMARY KEY, base int);
CREATE TABLE sprout (leaf text) INHERITS (grown);
INSERT INTO grown VALUES (1, 1);
INSERT INTO sprout VALUES (2, 2, 'green');
CREATE TABLE log (what text);
CREATE TABLE watched (id int PRIMARY KEY, v text);
INSERT INTO watched VALUES (1, 'a'), (2, 'b');
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO log VALUES (TG_OP); RETURN NULL; END $$;
CREATE TRIGGER notes BEFORE TRUNCATE OR INSERT OR UPDATE OR DELETE ON watched FOR EACH STATEMENT EXECUTE FUNCTION note_it();
CREATE TABLE secured (id int PRIMARY KEY, tenant text);
INSERT INTO secured VALUES (1, 'a'), (2, 'b');
CREATE TABLE toasted (id int PRIMARY KEY, big text, c int GENERATED ALWAYS AS (id * 2) STORED, "odd ""name" text DEFAULT 'x');
ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT g, repeat(md5(g::text), 300) FROM generate_series(1, 10) g;
CREATE TYPE pair AS (a int, b text);
CREATE TABLE typed OF pair (a PRIMARY KEY);
INSERT INTO typed VALUES (1, 'x');
CREATE TABLE oddities (id int, a int NOT NULL CHECK (a > 0) NO INHERIT, b text COLLATE "C",
    UNIQUE (a) DEFERRABLE INITIALLY DEFERRED, EXCLUDE (id WITH =) WHERE (id > 0));
INSERT INTO oddities SELECT g, g, 'b' || g FROM generate_series(1, 5) g;
CREATE UNIQUE INDEX "odd index" ON oddities (lower(b)) INCLUDE (a) WHERE a > 1;
CREATE INDEX ordered ON oddities (b DESC);
COMMENT ON INDEX "odd index" IS 'odd'; COMMENT ON COLUMN oddities.b IS 'bee';
ALTER TABLE oddities CLUSTER ON ordered; ALTER TABLE oddities ALTER a SET STATISTICS 500;
CREATE TRIGGER sleeps BEFORE UPDATE ON oddities FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
ALTER TABLE oddities DISABLE TRIGGER sleeps;
CREATE TABLE "a very long näme, wïth sömething in it that nobody w" (id serial PRIMARY KEY, "ünïque" int UNIQUE);
INSERT INTO "a very long näme, wïth sömething in it that nobody w" ("ünïque") VALUES (1), (2);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
INSERT INTO unlogged VALUES (1), (2);
CREATE TABLE nothing ();
INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
CREATE TABLE kept (id int PRIMARY KEY);
CREATE TABLE kept_by (id int PRIMARY KEY, k int);
INSERT INTO kept_by VALUES (1, 1);
CREATE TABLE refers_kept (id int PRIMARY KEY, k int);
INSERT INTO refers_kept VALUES (1, 1);
ALTER TABLE kept_by ADD FOREIGN KEY (k) REFERENCES refers_kept;
"""

OWNED = """
DO $_$ DECLARE r record; BEGIN
  FOR r IN SELECT c.oid::regclass AS name FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
  LOOP EXECUTE format('ALTER TABLE %s OWNER TO {app}', r.name); END LOOP;
END $_$;
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
ALTER TABLE secured FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON secured USING (tenant = 'a');
GRANT CREATE ON SCHEMA public TO {app};
COMMENT ON CONSTRAINT child_parent_fkey ON child IS 'whose it is';
GRANT SELECT, UPDATE (v) ON plain TO PUBLIC;
ALTER TABLE plain SET (fillfactor = 70); ALTER TABLE plain REPLICA IDENTITY FULL; COMMENT ON TABLE plain IS 'plain';
CREATE RULE nothing AS ON DELETE TO toasted DO INSTEAD NOTHING;
"""

#: All that describes the tables of a database, but for what differs by nature: files, statistics, object ids.
CATALOG: dict[str, str] = {
    "relations": "SELECT c.relname, c.relkind, c.relowner::regrole, c.relacl, c.relpersistence, c.reloptions,"
    " c.relrowsecurity, c.relforcerowsecurity, c.relreplident, c.relnamespace::regnamespace, obj_description(c.oid)"
    " FROM pg_class c WHERE {mine}",
    "columns": "SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,"
    " a.attgenerated, a.attacl, a.attstorage, pg_get_expr(d.adbin, d.adrelid) FROM pg_class c"
    " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN pg_attrdef d ON d.adrelid = c.oid"
    " AND d.adnum = a.attnum WHERE {mine}",
    "constraints": "SELECT c.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated, k.connamespace::regnamespace,"
    " obj_description(k.oid) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE {mine}",
    "indexes": "SELECT pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready, i.indisclustered, i.indisreplident"
    " FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE {mine}",
    "triggers": "SELECT pg_get_triggerdef(t.oid), t.tgenabled FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
    " WHERE {mine} AND NOT t.tgisinternal",
    "foreign keys": "SELECT c.relname, t.tgfoid::regproc, t.tgenabled FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
    " WHERE {mine} AND t.tgisinternal",
    "policies": "SELECT c.relname, p.polname, pg_get_expr(p.polqual, p.polrelid) FROM pg_policy p"
    " JOIN pg_class c ON c.oid = p.polrelid WHERE {mine}",
    "rules": "SELECT pg_get_ruledef(r.oid) FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class WHERE {mine}",
    "owned": "SELECT c.relname, d.refobjid::regclass, d.refobjsubid, d.deptype FROM pg_depend d JOIN pg_class c"
    " ON c.oid = d.objid WHERE {mine} AND c.relkind = 'S' AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0",
    "inheritance": "SELECT c.relname, i.inhparent::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE {mine}",
    "types": "SELECT t.typname, t.typnamespace::regnamespace FROM pg_type t JOIN pg_class c ON c.reltype = t.oid WHERE {mine}",
}


State = tuple[dict[str, Counter[bytes]], dict[str, list[str]]]


class Sandbox(Guarded):
    """A wall under a ruleset that lets agents remove, and all that its tables are."""

    def description(self) -> dict[str, list[str]]:
        """What the catalogs say, where sequences stand."""
        mine = "c.relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^(pg_|_sqlwall|information_schema)')"
        found: dict[str, list[str]] = {}
        with self.wall.database.connect() as connection:
            for name, query in CATALOG.items():
                rows = connection.execute(query.replace("{mine}", mine).encode()).fetchall()
                found[name] = sorted(map(str, rows))
            found["sequences"] = [
                f"{name}: {connection.execute(f'SELECT last_value, is_called FROM {name}'.encode()).fetchone()}"
                for (name,) in connection.execute(
                    "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind = 'S' AND "
                    + mine.replace("'", "'")  # type: ignore[arg-type]
                    + " ORDER BY 1"
                )
            ]
        return found

    def state(self) -> State:
        """All rows, and all that describes them."""
        return {name: +bag for name, bag in self.bags().items()}, self.description()

    def person(self, *texts: str) -> None:
        """Past the wall."""
        with self.wall.database.connect() as connection:
            for text in texts:
                connection.execute(text.encode())

    def agent(self, *script: str, **options: Any) -> None:
        """As an agent; when it returns, outcomes are noted."""
        with self.wall.connect(prepare_threshold=None, **options) as agent:
            for text in script:
                agent.execute(text.encode())
        self.settled()


@pytest.fixture(scope="module")
def database_template(postgres: Server, observer: tuple[str, str]) -> Iterator[str]:
    """The tables of these tests, which agents own."""
    with fresh_database(postgres) as first, fresh_database(postgres) as found:
        make_shop(postgres, first.name)  # makes the role
        with postgres.connect(found.name) as connection:
            connection.execute(SCHEMA.encode())
            connection.execute(OWNED.replace("{app}", APP).encode())
            for text in (*provision.functions(OBSERVER, APP), *provision.trash(UNDO, APP)):
                connection.execute(text.encode())
        yield found.name


@pytest.fixture
def sandbox(open_wall: OpenWall, database: Database, observer: tuple[str, str], tmp_path: Path) -> Sandbox:
    folder = tmp_path / "snapshots"
    wall = open_wall(RULES, observer__dsn=database.dsn(*observer), snapshots__url=str(folder))
    return Sandbox(wall, folder)


TRUNCATES: dict[str, list[str]] = {
    "one table": ["TRUNCATE plain"],
    "TABLE and a schema": ["TRUNCATE TABLE ONLY public.heap CONTINUE IDENTITY RESTRICT"],
    "numbers start anew": ["TRUNCATE plain RESTART IDENTITY"],
    "several": ["TRUNCATE heap, plain RESTART IDENTITY"],
    "the same one twice": ["TRUNCATE heap, ONLY heap, public.heap"],
    "cascade over two levels": ["TRUNCATE parent RESTART IDENTITY CASCADE"],
    "all of a family by name": ["TRUNCATE parent, child, grandchild"],
    "partitions": ["TRUNCATE parted CASCADE"],
    "one partition, and who refers to all": ["TRUNCATE parted_2 CASCADE"],
    "a leaf": ["TRUNCATE parted_2a CASCADE"],
    "children of inheritance": ["TRUNCATE grown"],
    "the parent of inheritance only": ["TRUNCATE ONLY grown"],
    "a trigger that writes": ["TRUNCATE watched"],
    "out of line values": ["TRUNCATE toasted"],
    "no columns": ["TRUNCATE nothing"],
    "late keys and exclusions": ["TRUNCATE oddities, typed, unlogged"],
    "rows that a policy hides": ["BEGIN", "TRUNCATE secured", "INSERT INTO secured VALUES (9, 'a')", "COMMIT"],
    "rows afterwards": [
        "BEGIN", "TRUNCATE plain RESTART IDENTITY", "INSERT INTO plain (v) VALUES ('new'), ('newer')",
        "UPDATE plain SET v = 'x' WHERE v = 'new'", "COMMIT",
    ],
    "rows before": [
        "BEGIN", "UPDATE plain SET v = 'y' WHERE id = 3", "DELETE FROM plain WHERE id = 4",
        "INSERT INTO plain (v) VALUES ('z')", "TRUNCATE plain", "COMMIT",
    ],
    "twice": ["BEGIN", "TRUNCATE plain", "INSERT INTO plain (v) VALUES ('a')", "TRUNCATE plain", "COMMIT"],
    "twice, and deeper": [
        "BEGIN", "TRUNCATE plain RESTART IDENTITY", "INSERT INTO plain (v) VALUES ('a')", "SAVEPOINT s",
        "TRUNCATE plain RESTART IDENTITY", "INSERT INTO plain (v) VALUES ('b'), ('c')", "RELEASE s", "COMMIT",
    ],
    "undone": ["BEGIN", "SAVEPOINT s", "TRUNCATE plain RESTART IDENTITY", "ROLLBACK TO s", "COMMIT"],
    "undone, then rows": [
        "BEGIN", "SAVEPOINT s", "TRUNCATE plain", "INSERT INTO plain (v) VALUES ('a')", "ROLLBACK TO s",
        "DELETE FROM plain WHERE id = 1", "INSERT INTO plain (v) VALUES ('b')", "COMMIT",
    ],
    "undone, then again": [
        "BEGIN", "SAVEPOINT s", "TRUNCATE plain RESTART IDENTITY", "ROLLBACK TO s", "TRUNCATE plain RESTART IDENTITY",
        "INSERT INTO plain (v) VALUES ('a')", "COMMIT",
    ],
    "the deeper one undone": [
        "BEGIN", "TRUNCATE plain", "INSERT INTO plain (v) VALUES ('a')", "SAVEPOINT s", "TRUNCATE plain",
        "INSERT INTO plain (v) VALUES ('b')", "ROLLBACK TO s", "COMMIT",
    ],
    "released": ["BEGIN", "SAVEPOINT a", "SAVEPOINT b", "TRUNCATE heap", "RELEASE a", "COMMIT"],
    "beside writes elsewhere": [
        "BEGIN", "UPDATE heap SET n = 9 WHERE n = 1", "TRUNCATE plain", "DELETE FROM heap WHERE n = 2", "COMMIT",
    ],
    "repeatable read": ["BEGIN ISOLATION LEVEL REPEATABLE READ", "TRUNCATE plain", "COMMIT"],
    "serializable": ["BEGIN ISOLATION LEVEL SERIALIZABLE", "SELECT * FROM heap", "TRUNCATE plain", "COMMIT"],
    "an error before": [
        "BEGIN", "SAVEPOINT s", "! TRUNCATE parent", "ROLLBACK TO s", "TRUNCATE heap", "COMMIT",
    ],
}  # fmt: skip


def run(sandbox: Sandbox, script: list[str], protocol: str) -> None:
    """A script; what begins with an exclamation mark must fail."""
    with sandbox.wall.connect(prepare_threshold=None) as agent:
        execute: Callable[[str], Any] = (
            (lambda text: agent.execute(text.encode()))
            if protocol == "simple"
            else (lambda text: agent.execute(text.encode(), binary=True))
        )
        if protocol == "pipeline" and not any(text.startswith("!") for text in script):
            with agent.pipeline():
                for text in script:
                    execute(text)
                    if not text.startswith(("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK")):
                        continue
                    agent.pgconn.pipeline_sync()
            return
        for text in script:
            if text.startswith("! "):
                with pytest.raises(psycopg.Error):
                    execute(text[2:])
            else:
                execute(text)


@pytest.mark.parametrize("script", TRUNCATES.values(), ids=TRUNCATES.keys())
@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_what_a_truncate_removes_comes_back_whole(sandbox: Sandbox, script: list[str], protocol: str) -> None:
    before = sandbox.state()
    run(sandbox, script, protocol)
    sandbox.settled()
    after = sandbox.state()
    assert sandbox.apply(before[0], set()) == after[0]
    if before == after:
        assert not sandbox.snapshots.list(state=SnapshotState.COMMITTED)
        return
    if not sandbox.snapshots.list(state=SnapshotState.COMMITTED):
        pytest.fail("nothing was kept")
    rehearsed = sandbox.undo(dry_run=True)
    assert rehearsed.conflicts == ()
    assert sandbox.state() == after
    outcome = sandbox.undo()
    assert outcome.conflicts == ()
    is_restarted = any("RESTART" in text for text in script)
    assert undrawn(sandbox.state(), is_restarted) == undrawn(before, is_restarted)
    again = sandbox.undo(*outcome.snapshots)
    assert again.conflicts == ()
    assert sandbox.state() == after


def undrawn(state: State, is_restarted: bool) -> State:
    """Numbers that were drawn from a sequence are given back only where it was restarted."""
    return state if is_restarted else (state[0], {**state[1], "sequences": []})


DROPS: dict[str, list[str]] = {
    "one table": ["DROP TABLE plain"],
    "a schema": ["DROP TABLE public.heap RESTRICT"],
    "several": ["DROP TABLE heap, plain"],
    "the same one twice": ["DROP TABLE heap, public.heap"],
    "one that is there, one that is not": ["DROP TABLE IF EXISTS heap, missing"],
    "cascade to nobody": ["DROP TABLE plain CASCADE"],
    "one that refers to another": ["DROP TABLE grandchild"],
    "a family": ["DROP TABLE child, grandchild, parent"],
    "triggers": ["DROP TABLE watched"],
    "row security": ["DROP TABLE secured"],
    "out of line values and a rule": ["DROP TABLE toasted"],
    "no columns": ["DROP TABLE nothing"],
    "keys, exclusions and comments": ["DROP TABLE oddities"],
    "of a type": ["DROP TABLE typed"],
    "unlogged": ["DROP TABLE unlogged"],
    "a long name": ['DROP TABLE "a very long näme, wïth sömething in it that nobody w"'],
    "a block": ["BEGIN", "SELECT count(*) FROM heap", "DROP TABLE plain", "COMMIT"],
    "two in a block": ["BEGIN", "DROP TABLE grandchild", "DROP TABLE child", "COMMIT"],
    "undone": ["BEGIN", "SAVEPOINT s", "DROP TABLE plain", "ROLLBACK TO s", "COMMIT"],
    "undone, then again": ["BEGIN", "SAVEPOINT s", "DROP TABLE plain", "ROLLBACK TO s", "DROP TABLE plain", "COMMIT"],
    "undone, then rows": [
        "BEGIN", "SAVEPOINT s", "DROP TABLE plain", "ROLLBACK TO s", "UPDATE plain SET v = 'x' WHERE id = 2", "COMMIT",
    ],
    "released": ["BEGIN", "SAVEPOINT a", "SAVEPOINT b", "DROP TABLE heap", "RELEASE a", "COMMIT"],
    "rows elsewhere": [
        "BEGIN", "UPDATE heap SET n = 9 WHERE n = 1", "DROP TABLE plain", "DELETE FROM heap WHERE n = 2", "COMMIT",
    ],
    "beside a truncate": ["BEGIN", "TRUNCATE heap", "DROP TABLE plain", "TRUNCATE watched", "COMMIT"],
    "an error before": [
        "BEGIN", "SAVEPOINT s", "! DROP TABLE parent", "ROLLBACK TO s", "! DROP TABLE missing", "ROLLBACK TO s",
        "DROP TABLE heap", "COMMIT",
    ],
}  # fmt: skip


@pytest.mark.parametrize("script", DROPS.values(), ids=DROPS.keys())
@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_what_is_dropped_comes_back_whole(sandbox: Sandbox, script: list[str], protocol: str) -> None:
    before = sandbox.state()
    run(sandbox, script, protocol)
    sandbox.settled()
    after = sandbox.state()
    if before == after:
        assert not sandbox.snapshots.list(state=SnapshotState.COMMITTED)
        return
    rehearsed = sandbox.undo(dry_run=True)
    assert rehearsed.conflicts == ()
    assert sandbox.state() == after
    outcome = sandbox.undo()
    assert outcome.conflicts == ()
    assert outcome.redefined == rehearsed.redefined
    assert sandbox.state() == before
    again = sandbox.undo(*outcome.snapshots)
    assert again.conflicts == ()
    assert sandbox.state() == after
    assert sandbox.undo(*again.snapshots).conflicts == ()
    assert sandbox.state() == before


#: What a person does first, what the agent says, and words of the refusal.
IRREVERSIBLE: dict[str, tuple[list[str], list[str], str]] = {
    "a partitioned table": ([], ["DROP TABLE parted CASCADE"], "irreversible: it is partitioned"),
    "a partition": ([], ["DROP TABLE parted_1 CASCADE"], "irreversible: it is a partition"),
    "a child": ([], ["DROP TABLE sprout"], "irreversible: it is a partition of a table, or inherits"),
    "a parent, and its child": ([], ["DROP TABLE grown CASCADE"], "irreversible.*sprout"),
    "what a view reads": (["CREATE VIEW seen AS SELECT v FROM plain"], ["DROP TABLE plain CASCADE"], "irreversible.*view public.seen"),
    "what another refers to": ([], ["DROP TABLE parent CASCADE"], "irreversible.*child_parent_fkey"),
    "a sequence that another draws from": (
        ["CREATE TABLE other (id int DEFAULT nextval('plain_id_seq'))"], ["DROP TABLE plain CASCADE"], "irreversible.*other",
    ),
    "what a function takes": (
        ["CREATE FUNCTION takes(plain) RETURNS int LANGUAGE sql AS 'SELECT 1'"], ["DROP TABLE plain CASCADE"],
        "irreversible.*takes",
    ),
    "extended statistics": (["CREATE STATISTICS related ON v, n FROM heap"], ["DROP TABLE heap"], "irreversible.*statistics"),
    "a published table": (["CREATE PUBLICATION p FOR TABLE heap"], ["DROP TABLE heap"], "irreversible.*publication"),
    "an event trigger": (
        ["CREATE FUNCTION ev() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
         "CREATE EVENT TRIGGER ev ON sql_drop EXECUTE FUNCTION ev()"], ["DROP TABLE heap"], "irreversible: event triggers",
    ),
    "a key that is switched off": (
        ["ALTER TABLE child DISABLE TRIGGER ALL", "DROP TABLE grandchild"], ["DROP TABLE child"], "irreversible.*switched off",
    ),
    "without a trash": (["DROP SCHEMA _sqlwall_trash"], ["DROP TABLE heap"], "irreversible without the schema"),
    "where the agent may not create": (
        [f"REVOKE CREATE ON SCHEMA public FROM {APP}"], ["DROP TABLE heap"], "irreversible.*may not create",
    ),
    "in repeatable read": (
        [], ["BEGIN ISOLATION LEVEL REPEATABLE READ", "DROP TABLE heap"], "irreversible in a transaction of isolation",
    ),
    "what it has written": ([], ["BEGIN", "DELETE FROM heap", "DROP TABLE heap"], "irreversible.*written it before"),
    "what it has emptied": ([], ["BEGIN", "TRUNCATE heap", "DROP TABLE heap"], "irreversible.*written it before"),
    "among others": ([], ["TRUNCATE heap; TRUNCATE plain"], "irreversible among other statements"),
    "behind a write": ([], ["DELETE FROM heap WHERE n = 1; DROP TABLE plain"], "irreversible among other statements"),
    "a view": (["CREATE VIEW seen AS SELECT 1"], ["DROP VIEW seen"], "irreversible: no snapshot"),
    "a schema": (["CREATE SCHEMA empty_one"], ["DROP SCHEMA empty_one"], "no rule allows it|irreversible"),
    "a column": ([], ["ALTER TABLE plain DROP COLUMN v"], "irreversible: no snapshot"),
    "a new table": ([], ["CREATE TABLE made (id int)"], "irreversible: no snapshot"),
    "a foreign table below": (
        ["CREATE EXTENSION postgres_fdw", "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
         "CREATE FOREIGN TABLE far () INHERITS (grown) SERVER s"], ["TRUNCATE grown"], "public.far.*irreversible",
    ),
    "a kept table by cascade": ([], ["TRUNCATE refers_kept CASCADE"], "public.kept_by.*it would be emptied.*kept"),
    "an index that is not valid": (
        ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'plain_v'::regclass"], ["TRUNCATE plain"],
        "irreversible",
    ),
    "a kept table": ([], ["TRUNCATE kept"], "kept"),
    "many rows": (["INSERT INTO heap SELECT 'bulk', g FROM generate_series(1, 1000) g"], ["TRUNCATE heap"], "more than 1000 rows"),
    "many rows dropped": (
        ["INSERT INTO heap SELECT 'bulk', g FROM generate_series(1, 1000) g"], ["DROP TABLE heap"], "more than 1000 rows",
    ),
    "many rows in all": (
        ["INSERT INTO heap SELECT 'bulk', g FROM generate_series(1, 700) g",
         "INSERT INTO watched SELECT g, 'x' FROM generate_series(10, 800) g"],
        ["BEGIN", "TRUNCATE heap", "TRUNCATE watched", "INSERT INTO plain (v) SELECT 'x' FROM generate_series(1, 900)", "COMMIT"],
        "more than 1500",
    ),
    "our names": ([], ["DROP TABLE _sqlwall_trash.plain"], "builtin-reserved-name|sqlwall's own"),
    "our names, read": ([], ["SELECT * FROM _sqlwall_trash.plain"], "builtin-reserved-name|sqlwall's own"),
    "our names, in a path": ([], ["SET search_path = _sqlwall_trash"], "sqlwall"),
}  # fmt: skip


@pytest.mark.parametrize("name", IRREVERSIBLE)
def test_what_cannot_be_brought_back_is_not_removed(sandbox: Sandbox, name: str) -> None:
    person, script, words = IRREVERSIBLE[name]
    sandbox.person(*person)
    before = sandbox.state()
    with sandbox.wall.connect(prepare_threshold=None) as agent:
        for text in script[:-1]:
            agent.execute(text.encode())
        with pytest.raises(psycopg.Error, match=words):
            agent.execute(script[-1].encode())
    assert undrawn(sandbox.state(), is_restarted=False) == undrawn(before, is_restarted=False)


#: Code that a person left in the database, what the agent says, and whether it is all refused.
ATTACKS: dict[str, tuple[str, list[str]]] = {
    "ALTER in a trigger": ("ALTER TABLE heap ADD COLUMN sneaked int", ["TRUNCATE watched"]),
    "ALTER in a function": (
        "ALTER TABLE heap ADD COLUMN sneaked int", ["BEGIN", "TRUNCATE plain", "SELECT sneak()", "COMMIT"],
    ),
    "ALTER before": ("ALTER TABLE heap ADD COLUMN sneaked int", ["BEGIN", "SELECT sneak()", "TRUNCATE plain", "COMMIT"]),
    "GRANT in a trigger": ("GRANT ALL ON heap TO PUBLIC", ["TRUNCATE watched"]),
    "TRUNCATE in a trigger": ("TRUNCATE heap", ["TRUNCATE watched"]),
    "TRUNCATE in a function": ("TRUNCATE heap", ["BEGIN", "TRUNCATE plain", "SELECT sneak()", "COMMIT"]),
    "TRUNCATE in a function, alone": ("TRUNCATE heap", ["BEGIN", "SELECT sneak()", "COMMIT"]),
    "TRUNCATE of a kept one": ("TRUNCATE kept_by", ["BEGIN", "TRUNCATE heap", "SELECT sneak()", "COMMIT"]),
    "REINDEX in a trigger": ("REINDEX TABLE watched", ["TRUNCATE watched"]),
    "a new file for another": ("REINDEX TABLE plain", ["TRUNCATE watched"]),
    "persistence of a sequence": ("ALTER SEQUENCE child_id_seq SET UNLOGGED", ["TRUNCATE watched"]),
    "CREATE beside a DROP": ("CREATE TABLE made ()", ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"]),
    "a table made and dropped beside a DROP": (
        "CREATE TABLE made (); DROP TABLE made", ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"],
    ),
    "the place taken": ("CREATE TABLE plain ()", ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"]),
    "another dropped": ("DROP TABLE heap", ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"]),
    "dropped for good": (
        "EXECUTE (SELECT format('DROP TABLE _sqlwall_trash.%I', relname) FROM pg_class WHERE relname ~ '^plain_\\d+$')",
        ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"],
    ),
    "written in the trash": (
        "EXECUTE (SELECT format('DELETE FROM _sqlwall_trash.%I', relname) FROM pg_class WHERE relname ~ '^plain_\\d+$')",
        ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"],
    ),
    "emptied in the trash": (
        "EXECUTE (SELECT format('TRUNCATE _sqlwall_trash.%I', relname) FROM pg_class WHERE relname ~ '^plain_\\d+$')",
        ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"],
    ),
    "altered in the trash": (
        "EXECUTE (SELECT format('ALTER TABLE _sqlwall_trash.%I ADD x int', relname) FROM pg_class"
        " WHERE relname ~ '^plain_\\d+$')",
        ["BEGIN", "DROP TABLE plain", "SELECT sneak()", "COMMIT"],
    ),
    "a catalog written with counts that cancel out": (
        "CREATE TABLE made (); DROP TABLE made", ["BEGIN", "SAVEPOINT s", "DROP TABLE plain", "ROLLBACK TO s",
                                                  "SELECT sneak()", "COMMIT"],
    ),
    "a truncate undone to hide another": (
        "TRUNCATE heap", ["BEGIN", "SAVEPOINT s", "TRUNCATE heap", "ROLLBACK TO s", "SELECT sneak()", "COMMIT"],
    ),
    "rows of a kept table by a trigger": ("DELETE FROM types_kept", ["TRUNCATE watched"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_hides_behind_a_removal(sandbox: Sandbox, name: str) -> None:
    body, script = ATTACKS[name]
    sandbox.person(
        "CREATE SCHEMA hidden; CREATE TABLE hidden.types_kept (id int); INSERT INTO hidden.types_kept VALUES (1)",
        f"CREATE FUNCTION sneak() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, hidden AS"
        f" $_$ BEGIN {body}; END $_$",
        "CREATE FUNCTION sneaking() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $_$ BEGIN PERFORM sneak(); RETURN NULL; END $_$",
        "CREATE TRIGGER sneaks AFTER TRUNCATE ON watched FOR EACH STATEMENT EXECUTE FUNCTION sneaking()",
    )
    before = sandbox.state()
    with sandbox.wall.connect(prepare_threshold=None) as agent:
        for text in script[:-1]:
            agent.execute(text.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="rolled back"):
            agent.execute(script[-1].encode())
    sandbox.settled()
    assert sandbox.state() == before
    assert not sandbox.snapshots.list(state=SnapshotState.COMMITTED)


#: What an agent does, what a person does then, and why undo leaves it all alone.
STANDING: dict[str, tuple[list[str], list[str], ConflictKind]] = {
    "numbers drawn": (
        ["BEGIN", "TRUNCATE plain RESTART IDENTITY", "INSERT INTO plain (v) SELECT 'x' FROM generate_series(1, 40)", "COMMIT"],
        ["SELECT nextval('plain_id_seq')"], ConflictKind.DRAWN,
    ),
    "the name taken": (["DROP TABLE plain"], ["CREATE TABLE plain ()"], ConflictKind.NAME_TAKEN),
    "an index's name taken": (["DROP TABLE plain"], ["CREATE TABLE plain_v ()"], ConflictKind.NAME_TAKEN),
    "altered in the trash": (
        ["DROP TABLE plain"],
        ["DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE %s ADD x int', oid::regclass) FROM pg_class"
         " WHERE relname ~ '^plain_[0-9]+$' AND relkind = 'r'); END $$"],
        ConflictKind.ALTERED,
    ),
    "gone for good": (
        ["DROP TABLE plain"],
        ["DO $$ BEGIN EXECUTE (SELECT format('DROP TABLE %s', oid::regclass) FROM pg_class"
         " WHERE relname ~ '^plain_[0-9]+$' AND relkind = 'r'); END $$"],
        ConflictKind.MISSING,
    ),
    "a parent gone": (
        ["BEGIN", "DROP TABLE grandchild", "DROP TABLE child", "COMMIT"], ["DELETE FROM parent WHERE id = 2"],
        ConflictKind.PARENT_GONE,
    ),
    "a row of the same key": (["TRUNCATE plain"], ["INSERT INTO plain (id, v) VALUES (3, 'theirs')"], ConflictKind.KEY_REUSED),
}  # fmt: skip


@pytest.mark.parametrize("name", STANDING)
def test_what_stands_against_it_is_named_and_nothing_is_changed(sandbox: Sandbox, name: str) -> None:
    script, person, kind = STANDING[name]
    sandbox.agent(*script)
    sandbox.person(*person)
    before = sandbox.state()
    outcome = sandbox.undo()
    assert {conflict.kind for conflict in outcome.conflicts} == {kind}
    assert sandbox.state() == before


@pytest.mark.parametrize(
    ("person", "kind"),
    [
        ("UPDATE plain SET v = 'theirs' WHERE id = 1", ConflictKind.CHANGED),
        ("CREATE VIEW seen AS SELECT v FROM plain", ConflictKind.DEPENDED_ON),
        ("ALTER TABLE plain ADD COLUMN theirs int", ConflictKind.ALTERED),
        ("ALTER TABLE plain RENAME TO theirs", ConflictKind.MISSING),
    ],
)
def test_a_table_that_is_used_again_is_not_dropped_again(
    sandbox: Sandbox, person: str, kind: ConflictKind
) -> None:
    sandbox.agent("DROP TABLE plain")
    outcome = sandbox.undo()
    sandbox.person(person)
    before = sandbox.state()
    again = sandbox.undo(*outcome.snapshots)
    assert [conflict.kind for conflict in again.conflicts] == [kind]
    assert sandbox.state() == before


def test_numbers_that_were_not_drawn_again_are_behind_us(sandbox: Sandbox) -> None:
    """A person drew after the TRUNCATE, but fewer numbers than had been drawn before it."""
    sandbox.agent("TRUNCATE plain RESTART IDENTITY")
    sandbox.person("SELECT nextval('plain_id_seq')")
    outcome = sandbox.undo()
    assert outcome.conflicts == ()
    assert outcome.redefined == ("public.plain_id_seq: at 30 again", "public.plain_n_seq: at 245 again")
    sandbox.person("INSERT INTO plain (v) VALUES ('next')")
    with sandbox.wall.database.connect() as connection:
        assert connection.execute("SELECT max(id), max(n) FROM plain").fetchone() == (31, 250)


def test_a_writer_that_waits_is_neither_lost_nor_undone(sandbox: Sandbox) -> None:
    before = sandbox.state()
    with sandbox.wall.connect() as agent, sandbox.wall.database.connect() as person:
        person.execute("BEGIN")
        person.execute("INSERT INTO heap VALUES ('early', 1)")
        removing = threading.Thread(target=agent.execute, args=(b"TRUNCATE heap",))
        removing.start()
        wait_for_lock(sandbox)
        person.execute("COMMIT")
        removing.join(10)
        assert not removing.is_alive()
        agent.execute("BEGIN")
        agent.execute("TRUNCATE plain")
        waiting = threading.Thread(
            target=person.execute, args=(b"INSERT INTO plain (id, v) VALUES (77, 'late')",)
        )
        waiting.start()
        wait_for_lock(sandbox)
        agent.execute("COMMIT")
        waiting.join(10)
        assert not waiting.is_alive()
    sandbox.settled()
    assert sandbox.undo().conflicts == ()
    now = sandbox.bags()
    assert +(now["heap"] - before[0]["heap"]) == Counter({b"early\t1\n": 1})
    assert [line.split(b"\t")[1] for line in now["plain"] - before[0]["plain"]] == [b"late"]


def wait_for_lock(sandbox: Sandbox) -> None:
    """Until somebody waits for a lock in this database."""
    deadline = time.monotonic() + 10
    with sandbox.wall.database.connect() as watcher:
        while not watcher.execute(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ).rowcount:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("text", ["TRUNCATE heap", "DROP TABLE heap"])
def test_a_cancel_while_it_waits_for_a_lock_is_the_answer(sandbox: Sandbox, text: str) -> None:
    before = sandbox.state()
    with sandbox.wall.connect() as agent, sandbox.wall.database.connect() as person:
        person.execute("BEGIN")
        person.execute(
            "LOCK TABLE heap IN ACCESS SHARE MODE" if "DROP" in text else "LOCK TABLE heap IN SHARE MODE"
        )
        assert cancelled(sandbox, agent, text) == "57014"
        person.execute("ROLLBACK")
        assert agent.execute("SELECT count(*) FROM heap").fetchone() == (30,)
    assert sandbox.state() == before


def cancelled(sandbox: Sandbox, agent: psycopg.Connection[Any], text: str) -> str | None:
    """Run a text and cancel it as soon as it waits."""
    caught: list[psycopg.Error] = []

    def remove() -> None:
        try:
            agent.execute(text.encode())
        except psycopg.Error as error:
            caught.append(error)

    removing = threading.Thread(target=remove)
    removing.start()
    wait_for_lock(sandbox)
    agent.cancel_safe(timeout=5)
    removing.join(20)
    assert not removing.is_alive()
    return caught[0].sqlstate if caught else None


def test_a_cancel_while_rows_are_read_is_the_answer(
    open_wall: OpenWall, database: Database, observer: tuple[str, str], tmp_path: Path
) -> None:
    unlimited = RULES.replace("limits: {rows: 1000}", "limits: {scan: 1GiB}")
    wall = open_wall(unlimited, observer__dsn=database.dsn(*observer), snapshots__url=str(tmp_path / "s"))
    sandbox = Sandbox(wall, tmp_path / "s")
    sandbox.person("INSERT INTO heap SELECT repeat('x', 50), g FROM generate_series(1, 500000) g")
    with wall.connect() as agent:
        caught: list[psycopg.Error] = []

        def remove() -> None:
            try:
                agent.execute("TRUNCATE heap")
            except psycopg.Error as error:
                caught.append(error)

        removing = threading.Thread(target=remove)
        removing.start()
        deadline = time.monotonic() + 10
        with wall.database.connect() as watcher:
            while not watcher.execute(
                "SELECT FROM pg_stat_activity WHERE query ~ '^COPY .SELECT' AND state = 'active'"
                " AND datname = current_database() AND application_name = 'sqlwall observer'"
            ).rowcount:
                assert time.monotonic() < deadline
        agent.cancel_safe(timeout=5)
        removing.join(30)
        assert not removing.is_alive()
        assert [error.sqlstate for error in caught] == ["57014"]
        assert agent.execute("SELECT count(*) FROM heap").fetchone() == (500030,)
        agent.execute("TRUNCATE heap")
    sandbox.settled()
    assert sandbox.undo().conflicts == ()
    assert sum(sandbox.bags()["heap"].values()) == 500030
    assert list((tmp_path / "s").glob("*.partial")) == []


def test_without_an_observer_nothing_is_emptied(
    open_wall: OpenWall, database: Database, tmp_path: Path
) -> None:
    wall = open_wall(
        RULES, observer__dsn=database.dsn("nobody", "nothing"), snapshots__url=str(tmp_path / "s")
    )
    sandbox = Sandbox(wall, tmp_path / "s")
    before = sandbox.state()
    with wall.connect() as agent:
        for text in ("TRUNCATE heap", "DROP TABLE secured", "DROP TABLE heap"):
            with pytest.raises(psycopg.Error, match="closed"):
                agent.execute(text.encode())
        assert agent.execute("SELECT count(*) FROM heap").fetchone() == (30,)
        agent.execute("BEGIN")
        with pytest.raises(psycopg.Error, match="closed"):
            agent.execute("TRUNCATE heap")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            agent.execute("SELECT 1")
        agent.execute("ROLLBACK")
    assert sandbox.state() == before


def test_a_pipeline_of_removals_is_covered(sandbox: Sandbox) -> None:
    before = sandbox.state()
    with sandbox.wall.connect() as agent, agent.pipeline():
        for text in ("TRUNCATE plain RESTART IDENTITY", "INSERT INTO plain (v) VALUES ('x')", "DROP TABLE heap",
                     "DELETE FROM watched WHERE id = 1", "TRUNCATE parent CASCADE"):  # fmt: skip
            agent.execute(text.encode())
    with sandbox.wall.connect() as agent:
        agent.execute("BEGIN")
        with agent.pipeline():
            agent.execute("TRUNCATE toasted")
            agent.execute("SAVEPOINT s")
            agent.execute("DROP TABLE nothing")
            agent.execute("ROLLBACK TO s")
            agent.execute("TRUNCATE grown")
        agent.execute("COMMIT")
    sandbox.settled()
    assert len(sandbox.snapshots.list(state=SnapshotState.COMMITTED)) == 2
    assert "heap" not in sandbox.bags() and "nothing" in sandbox.bags()
    assert sandbox.undo().conflicts == ()
    assert undrawn(sandbox.state(), is_restarted=False) == undrawn(before, is_restarted=False)


def test_prune_drops_for_good_what_nothing_brings_back_any_more(sandbox: Sandbox) -> None:
    sandbox.agent("DROP TABLE heap")
    (record,) = sandbox.snapshots.list(state=SnapshotState.COMMITTED)
    (move,) = sandbox.snapshots.open(record.id).manifest.moves
    with sandbox._undoer() as undoer:
        assert undoer.discard(move)
        assert not undoer.discard(move)
    assert [conflict.kind for conflict in sandbox.undo().conflicts] == [ConflictKind.MISSING]


def test_default_privileges_do_not_pass_for_something_hidden(sandbox: Sandbox) -> None:
    """The empty table that is dropped instead has entries in more catalogs then, and so has the one to compare with."""
    sandbox.person(
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {APP} IN SCHEMA public GRANT SELECT ON TABLES TO {OBSERVER}"
    )
    before = sandbox.state()
    sandbox.agent("DROP TABLE plain, heap")
    assert sandbox.undo().conflicts == ()
    assert sandbox.state() == before


def test_what_cannot_be_read_behind_a_drop_is_said(sandbox: Sandbox) -> None:
    """DROP locks the tables that the dropped one refers to, so that nobody can see their rows as they were."""
    before = sandbox.state()
    with sandbox.wall.connect() as agent:
        agent.execute("BEGIN")
        agent.execute("DROP TABLE grandchild")
        agent.execute("UPDATE child SET note = 'x' WHERE id = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="a DROP beside it locks it"):
            agent.execute("COMMIT")
    assert sandbox.state() == before


def test_a_client_sees_what_the_server_says_without_a_wall(sandbox: Sandbox) -> None:
    """Notices, tags and errors of removals are PostgreSQL's own."""
    heard: list[list[Any]] = []
    dsn = sandbox.wall.database.dsn(APP, APP_PASSWORD)
    for connect in (lambda: psycopg.connect(dsn, autocommit=True), sandbox.wall.connect):
        said: list[Any] = []
        with connect() as client:
            client.add_notice_handler(lambda notice, said=said: said.append(notice.message_primary))
            for text in ("BEGIN", "SAVEPOINT s", "TRUNCATE parent", "ROLLBACK TO s", "TRUNCATE parent CASCADE",
                         "DROP TABLE IF EXISTS nowhere, heap", "DROP TABLE missing", "ROLLBACK TO s", "DROP TABLE parent",
                         "ROLLBACK TO s", "DROP TABLE heap", "SELECT * FROM heap", "ROLLBACK"):  # fmt: skip
                try:
                    said.append(client.execute(text.encode()).statusmessage)
                except psycopg.Error as error:
                    said.append((error.sqlstate, str(error)))
        heard.append(said)
    assert heard[0] == heard[1]
