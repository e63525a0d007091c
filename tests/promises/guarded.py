"""Walls whose writes are snapshotted, before tables of every shape, and an oracle that knows nothing of how.

The oracle is the tables themselves, read by a superuser before and after, as bags of rows: what there was, less the
before-images, plus the after-images, must be what there is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from sqlwall.config import Secret, Upstream
from sqlwall.proxy.undo import Outcome, Undoer, open_undo
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.snapshot import provision
from sqlwall.store.database import open_store
from sqlwall.store.index import SnapshotState
from sqlwall.store.snapshots import Snapshots
from tests.e2e.wall import APP, OpenWall, RunningWall, make_shop
from tests.postgres import Database, Server, fresh_database

OBSERVER, OBSERVER_PASSWORD = "sqlwall_test_observer", "observer"
UNDO, UNDO_PASSWORD = "sqlwall_test_undo", "undo"

SCHEMA = """
CREATE TABLE parent (id int PRIMARY KEY, name text, amount numeric);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, note text);
CREATE TABLE grandchild (id int PRIMARY KEY, child int REFERENCES child ON DELETE SET NULL, boss int REFERENCES grandchild);
INSERT INTO parent SELECT g, 'p' || g, g / 3.0 FROM generate_series(1, 20) g;
INSERT INTO child SELECT g, g % 20 + 1, 'c' || g FROM generate_series(1, 60) g;
INSERT INTO grandchild SELECT g, g % 60 + 1, NULL FROM generate_series(1, 90) g;
CREATE TABLE heap (v text, n int);
INSERT INTO heap SELECT 'same', g % 3 FROM generate_series(1, 30) g;
CREATE TABLE counted (id int PRIMARY KEY, touched int DEFAULT 0);
INSERT INTO counted VALUES (1, 0);
CREATE TABLE counter (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN UPDATE counted SET touched = touched + 1 WHERE id = 1; RETURN NEW; END $$;
CREATE TABLE noisy (id int PRIMARY KEY, v text);
INSERT INTO noisy SELECT g, 'n' || g FROM generate_series(1, 10) g;
CREATE TRIGGER counts AFTER INSERT OR UPDATE ON noisy FOR EACH ROW EXECUTE FUNCTION count_it();
CREATE TABLE parted (id int, part int, v text) PARTITION BY LIST (part);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
INSERT INTO parted SELECT g, g % 2 + 1, 'v' FROM generate_series(1, 20) g;
CREATE VIEW parents AS SELECT id, name FROM parent;
CREATE TABLE computed (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO computed SELECT g, g FROM generate_series(1, 5) g;
CREATE TABLE odd ("select" int PRIMARY KEY, "a""b" text, ctid_ text);
INSERT INTO odd VALUES (1, E'tab\\there\\nand\\\\there', NULL);
CREATE TABLE "Weird Name" (id int PRIMARY KEY, v text);
INSERT INTO "Weird Name" VALUES (1, 'x'), (2, 'y');
CREATE TABLE types (id int PRIMARY KEY, d timestamptz, i interval, f float8, j json, b bytea, a text[], m money, r regclass);
INSERT INTO types VALUES (1, '2026-01-31 12:00+02', '1 mon -3 days', 0.1::float8 + 0.2, '{"b":1,  "a":2}', '\\x00ff', '{a,NULL,"b c"}',
    '12.34', 'parent'), (2, 'infinity', '00:00:01', 'NaN', 'null', '', '{}', '-0.01', 'pg_class');
INSERT INTO types (id) SELECT g FROM generate_series(3, 6) g;
CREATE TABLE grown (id int PRIMARY KEY, base int);
CREATE TABLE sprout (leaf text) INHERITS (grown);
INSERT INTO grown VALUES (1, 1);
INSERT INTO sprout VALUES (2, 2, 'green');
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {app};
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {app};
"""


#: Every table of schema public with its columns but for those that are computed when they are read, each as
#: something of which its text tells all: that of an xml leaves things out, and a name is not an object.
COLUMNS = """
SELECT c.relname, coalesce(array_agg(quote_ident(a.attname) || CASE
    WHEN a.atttypid = 'xml'::regtype THEN '::text' WHEN a.atttypid = 'xml[]'::regtype THEN '::text[]'
    WHEN t.typname ~ '^_reg' THEN '::oid[]' WHEN t.typname ~ '^reg' THEN '::oid' ELSE '' END
  ORDER BY a.attnum) FILTER (WHERE a.attname IS NOT NULL), '{}')
FROM pg_class c LEFT JOIN (pg_attribute a JOIN pg_type t ON t.oid = a.atttypid)
  ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' GROUP BY 1
"""


def rows_of(name: str, columns: Sequence[str]) -> sql.Composed:
    """COPY of all rows of a table of schema public."""
    return sql.SQL("COPY (SELECT {} FROM ONLY {}) TO STDOUT").format(
        sql.SQL(", ".join(columns)),  # type: ignore[arg-type]
        sql.Identifier("public", name),
    )


@pytest.fixture(scope="session")
def observer(postgres: Server) -> tuple[str, str]:
    """The role that sees every row, and its password."""
    with postgres.connect() as connection:
        if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (OBSERVER,)).rowcount:
            for statement in provision.roles(OBSERVER, UNDO):
                connection.execute(statement.encode())
            for role, password in ((OBSERVER, OBSERVER_PASSWORD), (UNDO, UNDO_PASSWORD)):
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
                )
    return OBSERVER, OBSERVER_PASSWORD


class Guarded:
    """A wall whose writes are snapshotted, the tables behind it, and the snapshots."""

    def __init__(self, wall: RunningWall, folder: Path) -> None:
        self.wall = wall
        self.folder = folder
        self.engine = open_store(f"sqlite:///{wall.store}")
        self.snapshots = Snapshots(self.engine, str(folder))

    def bags(self) -> dict[str, Counter[bytes]]:
        """Every row of every table, as COPY text."""
        found: dict[str, Counter[bytes]] = {}
        with self.wall.database.connect() as connection:
            connection.execute("SET search_path = pg_catalog")
            connection.execute("SET timezone = 'UTC'")
            for name, columns in connection.execute(COLUMNS).fetchall():
                with connection.cursor() as cursor, cursor.copy(rows_of(name, columns)) as copy:
                    found[name] = Counter(bytes(line) for line in copy)
        return found

    def settled(self) -> None:
        """Wait until the outcome of every snapshot has been noted."""
        deadline = time.monotonic() + 10
        while self.snapshots.unsettled():
            assert time.monotonic() < deadline, "a snapshot was never settled"
            time.sleep(0.01)

    def undo(self, *snapshot_ids: str, dry_run: bool = False) -> Outcome:
        """Undo these, or all that was committed."""
        records = [self.snapshots.find(found) for found in snapshot_ids] or [
            record
            for record in self.snapshots.list(state=SnapshotState.COMMITTED)
            if record.undone_by is None and not record.undoes
        ]
        with self._undoer() as undoer:
            return undoer.undo(records, actor="test", dry_run=dry_run)

    def rehearse(self, snapshot_id: str) -> Sequence[str]:
        """What does not come back as it was."""
        with self._undoer() as undoer:
            return undoer.rehearse(snapshot_id)

    @contextmanager
    def _undoer(self) -> Iterator[Undoer]:
        database = self.wall.database
        server = conninfo_to_dict(database.dsn())
        settings = UpstreamSettings.of(
            Upstream(
                host=str(server["host"]),
                port=int(str(server["port"])),
                user=UNDO,
                password=Secret(UNDO_PASSWORD),
            )
        )
        with open_undo(settings, database.name) as connection:
            yield Undoer(connection, self.snapshots, lambda _: None)

    def apply(self, before: dict[str, Counter[bytes]], since: set[str]) -> dict[str, Counter[bytes]]:
        """What the tables must be now if the committed snapshots are complete and exact."""
        expected = {name: Counter(bag) for name, bag in before.items()}
        records = [
            record for record in self.snapshots.list(state=SnapshotState.COMMITTED) if record.id not in since
        ]
        for record in sorted(records, key=lambda record: record.id):
            reader = self.snapshots.open(record.id)
            for change in reader.manifest.changes:
                bag = expected[change.name]
                for line in reader.lines(change.before):
                    assert bag[line.rstrip(b"\n") + b"\n"] > 0, (
                        f"{change.label}: a before-image of no row: {line!r}"
                    )
                    bag[line.rstrip(b"\n") + b"\n"] -= 1
                for line in reader.lines(change.after):
                    bag[line.rstrip(b"\n") + b"\n"] += 1
        return {name: +bag for name, bag in expected.items()}


@pytest.fixture(scope="session")
def database_template(postgres: Server) -> Iterator[str]:
    """The tables of these tests instead of the shop."""
    with fresh_database(postgres) as first, fresh_database(postgres) as found:
        make_shop(postgres, first.name)  # makes the role
        with postgres.connect(found.name) as connection:
            connection.execute(SCHEMA.replace("{app}", APP).encode())
        yield found.name


@pytest.fixture
def guarded(open_wall: OpenWall, database: Database, observer: tuple[str, str], tmp_path: Path) -> Guarded:
    folder = tmp_path / "snapshots"
    wall = open_wall(observer__dsn=database.dsn(*observer), snapshots__url=str(folder))
    return Guarded(wall, folder)
