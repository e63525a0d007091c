"""``sqlwall provision``, ``snapshot``, ``undo`` and ``doctor`` in the order in which a DBA meets them, on a real wall."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.cli.test_commands import Run, run
from tests.e2e.wall import RunningWall, running_wall
from tests.postgres import Database

__all__ = ["run"]

SHOP = """
CREATE TABLE customers (id int PRIMARY KEY, name text, city text);
CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers ON DELETE CASCADE, note text);
CREATE TABLE log (line text);
INSERT INTO customers SELECT g, 'customer ' || g, 'Vienna' FROM generate_series(1, 9) g;
INSERT INTO orders SELECT g, g, E'tab\\t and \\\\ line\\n' || g FROM generate_series(1, 9) g;
INSERT INTO log VALUES ('same'), ('same'), (NULL);
"""


class Shop:
    """A database with the roles that provision made, a wall before it, and the commands with its settings."""

    def __init__(self, database: Database, wall: RunningWall, run: Run, settings: dict[str, str]) -> None:
        self.database = database
        self.wall = wall
        self._run = run
        self.settings = settings

    def __call__(self, *arguments: str, status: int = 0) -> str:
        done = self._run(*arguments, **self.settings)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *arguments: str, status: int = 0) -> Any:
        done = self._run(*arguments, "--json", **self.settings)
        assert done.returncode == status, done.stdout + done.stderr
        return json.loads(done.stdout)

    def write(self, *statements: str) -> str:
        """Write as an agent, in one transaction; the id of its snapshot."""
        known = {record["id"] for record in self.json("snapshot", "list")}
        with self.wall.connect() as agent, agent.transaction():
            for statement in statements:
                agent.execute(statement.encode())
        (made,) = [record["id"] for record in self.json("snapshot", "list") if record["id"] not in known]
        return str(made)

    def state(self) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return [
                row
                for table in ("customers", "orders", "log")
                for row in connection.execute(
                    sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(sql.Identifier(table))
                )
            ]


@pytest.fixture
def roles(database: Database) -> Iterator[dict[str, str]]:
    """Names of roles of this test's own."""
    end = database.name[-6:]
    names = {word: f"{word}_{end}" for word in ("agent", "observer", "undo")}
    yield names
    with database.connect() as connection:
        for name in names.values():
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).rowcount:
                role = sql.Identifier(name)
                connection.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(role))


@pytest.fixture
def settings(database: Database, roles: dict[str, str], run: Run, tmp_path: Path) -> dict[str, str]:
    """What `provision --apply` says to set."""
    database.execute(SHOP)
    named = [f"--{word}={name}" for word, name in roles.items()]
    done = run("provision", "--apply", *named, "--json", SQLWALL_ADMIN=database.dsn())
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)["settings"]
    assert sorted(found) == ["SQLWALL_OBSERVER", "SQLWALL_UNDO", "SQLWALL_UPSTREAM"]
    found["SQLWALL_UPSTREAM"] += f"/{database.name}"
    return found | {
        "SQLWALL_STORE": f"sqlite:///{tmp_path / 'wall.db'}",
        "SQLWALL_SNAPSHOTS_URL": str(tmp_path / "snapshots"),
    }


@pytest.fixture
def shop(database: Database, settings: dict[str, str], run: Run, tmp_path: Path) -> Iterator[Shop]:
    folder = tmp_path / "wall"
    folder.mkdir()
    with running_wall(
        database,
        folder,
        **{
            "upstream__dsn": settings["SQLWALL_UPSTREAM"],
            "observer__dsn": settings["SQLWALL_OBSERVER"],
            "snapshots__url": settings["SQLWALL_SNAPSHOTS_URL"],
        },
    ) as wall:
        yield Shop(database, wall, run, settings | {"SQLWALL_STORE": f"sqlite:///{wall.store}"})


def test_doctor_finds_nothing_wrong_with_what_provision_made(shop: Shop) -> None:
    found = shop._run("doctor", "--json", **shop.settings)
    names = [ailment["name"] for ailment in json.loads(found.stdout)]
    assert [name for name in names if re.search("observer|undo|_sqlwall", name)] == []


def test_provision_twice_changes_nothing_and_tells_no_password_again(
    shop: Shop, roles: dict[str, str]
) -> None:
    named = [f"--{word}={name}" for word, name in roles.items()]
    done = shop._run("provision", "--apply", *named, SQLWALL_ADMIN=shop.database.dsn())
    assert (done.returncode, done.stdout) == (0, "the roles are there\n")
    with psycopg.connect(shop.settings["SQLWALL_UPSTREAM"]) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (9,)


def test_what_provision_prints_is_what_a_person_can_run(
    run: Run, database: Database, roles: dict[str, str]
) -> None:
    database.execute(SHOP)
    script = run("provision", *[f"--{word}={name}" for word, name in roles.items()])
    assert script.returncode == 0
    database.execute(script.stdout)
    with database.connect() as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(roles["agent"])))
        assert connection.execute("UPDATE orders SET note = 'x' WHERE id = 1").rowcount == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE mine (i int)")


@pytest.mark.parametrize(
    ("ailing", "named"),
    [
        ("ALTER ROLE {observer} NOBYPASSRLS", "observer is bound by row security"),
        ("REVOKE pg_read_all_data FROM {observer}", "observer cannot read public.customers"),
        ("GRANT INSERT ON log TO {observer}", "observer may write public.log"),
        ("ALTER ROLE {undo} NOBYPASSRLS", "undo is bound by row security"),
        ("REVOKE pg_write_all_data FROM {undo}", "undo cannot write public.customers"),
        ("REVOKE SET ON PARAMETER session_replication_role FROM {undo}", "undo cannot switch triggers off"),
    ],
)
def test_each_lack_of_a_role_is_found_with_the_cure(
    run: Run, settings: dict[str, str], database: Database, roles: dict[str, str], ailing: str, named: str
) -> None:
    def examined() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(run("doctor", "--json", **settings).stdout)
        return [ailment for ailment in found if re.search("observer|undo", ailment["name"])]

    assert examined() == []
    database.execute(ailing.format(**roles))
    (ailment,) = examined()
    assert ailment["name"].startswith(named)
    database.execute(ailment["remedy"])
    assert examined() == []


def test_an_observer_that_cannot_log_in_is_found(run: Run, settings: dict[str, str]) -> None:
    wrong = make_conninfo(settings["SQLWALL_OBSERVER"], password="wrong")
    done = run("doctor", **settings | {"SQLWALL_OBSERVER": wrong})
    assert done.returncode == 1
    assert "observer: no login" in done.stdout


def test_an_update_is_listed_shown_compared_undone_and_done_again(shop: Shop) -> None:
    before = shop.state()
    snapshot = shop.write(
        "UPDATE orders SET note = 'changed' WHERE id IN (3, 4)",
        "DELETE FROM customers WHERE id = 9",
        "INSERT INTO log VALUES ('new')",
    )
    after = shop.state()
    assert snapshot in shop("snapshot", "list")
    shown = shop("snapshot", "show", snapshot)
    assert "public.orders" in shown and "DELETE FROM customers WHERE id = 9" in shown
    differing = shop("snapshot", "diff", snapshot)
    assert "~ id=3  note: tab\\x09 and \\ line\\x0a3 → changed" in differing
    assert "- id=9, name=customer 9, city=Vienna" in differing
    assert "- id=9, customer=9" in differing  # the cascade
    assert "+ line=new" in differing
    assert "1 snapshots, 0 with faults" in shop("snapshot", "verify", "--rehearse")

    planned = shop("undo", snapshot[:12], "--dry-run")
    assert "would be put back" in planned
    assert shop.state() == after
    done = shop.json("undo", snapshot)
    assert shop.state() == before
    assert [record["undone_by"] for record in done["undoes"]] == [None]
    assert shop.json("snapshot", "show", snapshot)["undone_by"] == done["snapshots"][0]
    shop("undo", *done["snapshots"])
    assert shop.state() == after
    shop("undo", snapshot)
    assert shop.state() == before

    kinds = [
        (record["kind"], record["outcome"])
        for record in shop.json("audit", "tail", "-n", "100")
        if record["kind"] == "undo"
    ]
    assert kinds == [("undo", "begun"), ("undo", "done")] * 3
    assert "0 faults" in shop("audit", "verify")


def test_what_an_agent_did_since_a_time_goes_back_together_after_a_plan(shop: Shop) -> None:
    before = shop.state()
    for number in (1, 2, 3):
        shop.write(f"UPDATE orders SET note = 'x{number}' WHERE id <= {number}")
    after = shop.state()
    asked = shop("undo", "--agent", "bot", "--since", "1h", status=2)
    assert "3 snapshots would go back: look at them with --dry-run, then write --yes" in asked
    assert "goes back, in this order" in asked
    assert shop.state() == after
    assert shop.json("undo", "--agent", "bot", "--since", "1h", "--dry-run")["conflicts"] == []
    assert shop.state() == after
    shop("undo", "--agent", "bot", "--since", "1h", "--yes")
    assert shop.state() == before
    assert "no snapshot that could be undone" in shop(
        "undo", "--agent", "bot", "--since", "1h", "-y", status=1
    )


def test_a_transaction_goes_back_by_its_id(shop: Shop) -> None:
    before = shop.state()
    snapshot = shop.write("UPDATE orders SET note = 'x' WHERE id = 1")
    xid = shop.json("snapshot", "show", snapshot)["xid"]
    shop("undo", "--transaction", xid)
    assert shop.state() == before


def test_a_conflict_is_named_and_is_a_finding(shop: Shop) -> None:
    snapshot = shop.write("UPDATE orders SET note = 'x' WHERE id = 1")
    shop.database.execute("UPDATE orders SET note = 'mine' WHERE id = 1")
    state = shop.state()
    said = shop("undo", snapshot, status=1)
    assert "public.orders (id=1): changed since: note" in said
    assert "1 conflicts: nothing was changed" in said
    (conflict,) = shop.json("undo", snapshot, status=1)["conflicts"]
    assert conflict["kind"] == "changed"
    assert shop.state() == state


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["undo"], 2, "say what to undo"),
        (["undo", "--agent", "bot"], 2, "--agent and --since go together"),
        (["undo", "ABC", "--transaction", "7"], 2, "say what to undo"),
        (["undo", "--agent", "bot", "--since", "yesterday"], 2, "write how long ago"),
        (["undo", "01ZZZZ"], 3, "there is no snapshot 01ZZZZ: see `sqlwall snapshot list`"),
        (["undo", "--transaction", "1"], 1, "no snapshot that could be undone"),
        (["snapshot", "show", "x y"], 3, "there is no snapshot"),
        (["snapshot", "prune", "--older-than", "long"], 2, "must be a duration such as"),
        (["snapshot", "prune", "--max-bytes", "-1"], 2, "must be"),
        (["provision", "--apply"], 2, "needs the DSN of a superuser in SQLWALL_ADMIN"),
        (["provision", "--observer=a", "--undo=a"], 2, "need a role each"),
    ],
)
def test_what_is_asked_wrongly_gets_one_clear_line(
    run: Run, arguments: list[str], status: int, said: str
) -> None:
    done = run(*arguments, SQLWALL_STORE="wall.db", SQLWALL_UPSTREAM="postgresql://a@localhost/a")
    assert done.returncode == status, done.stdout + done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_damaged_blob_is_found_and_undoes_nothing(shop: Shop) -> None:
    snapshot = shop.write("UPDATE orders SET note = 'x' WHERE id = 1")
    (path,) = Path(shop.settings["SQLWALL_SNAPSHOTS_URL"]).glob(f"{snapshot}*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    state = shop.state()
    assert "1 snapshots, 1 with faults" in shop("snapshot", "verify", status=1)
    assert "damaged" in shop("undo", snapshot, status=3)
    assert shop.state() == state


def test_a_snapshot_is_exported_as_files_that_copy_reads(shop: Shop, tmp_path: Path) -> None:
    snapshot = shop.write("DELETE FROM orders WHERE id = 2")
    files = shop.json("snapshot", "export", snapshot, str(tmp_path / "out"))
    (before,) = [Path(name) for name in files if name.endswith("-before.copy")]
    with shop.database.connect() as connection:
        connection.execute("CREATE TABLE back (LIKE orders)")
        with connection.cursor() as cursor, cursor.copy("COPY back FROM STDIN") as rows:
            rows.write(before.read_bytes())
        row = connection.execute("SELECT id, customer, note FROM back").fetchone()
    assert row == (2, 2, "tab\t and \\ line\n2")
    again = shop("snapshot", "export", snapshot, str(tmp_path / "out"), status=3)
    assert "exists" in again


def test_pruning_keeps_what_is_locked(shop: Shop) -> None:
    first, second = (shop.write(f"UPDATE orders SET note = 'x' WHERE id = {n}") for n in (1, 2))
    with closing(sqlite3.connect(shop.wall.store, isolation_level=None)) as store:
        store.execute(
            "UPDATE sqlwall_snapshots SET locked_until = '2999-01-01T00:00:00.000000Z' WHERE id = ?",
            (second,),
        )
    assert "1 snapshots of" in shop("snapshot", "prune", "--older-than", "0s", "--dry-run")
    assert [record["id"] for record in shop.json("snapshot", "prune", "--older-than", "0s")] == [first]
    assert [record["id"] for record in shop.json("snapshot", "list")] == [second]
