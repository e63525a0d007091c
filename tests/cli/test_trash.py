"""Where agents may drop tables: what provision makes for it, what doctor asks, what undo and prune say and do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from tests.cli.test_commands import Run, run
from tests.cli.test_snapshots import Shop, roles, settings
from tests.e2e.wall import running_wall
from tests.postgres import Database

__all__ = ["roles", "run", "settings"]

RULES = """
version: 1
name: dropping
mode: enforce
rules:
  - {id: reads, operations: [select, transaction], action: allow}
  - {id: removals, operations: [truncate, drop], tables: ["public.*"], action: allow, snapshot: required}
"""


@pytest.fixture
def dropping(
    database: Database, settings: dict[str, str], roles: dict[str, str], run: Run, tmp_path: Path
) -> Iterator[Shop]:
    """A wall under a ruleset that lets agents drop their own tables."""
    folder = tmp_path / "wall"
    folder.mkdir()
    ruleset = tmp_path / "dropping.yaml"
    ruleset.write_text(RULES)
    with database.connect() as connection:
        agent = sql.Identifier(roles["agent"])
        connection.execute(sql.SQL("ALTER TABLE log OWNER TO {}").format(agent))
        connection.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(agent))
    given = {
        "upstream__dsn": settings["SQLWALL_UPSTREAM"],
        "observer__dsn": settings["SQLWALL_OBSERVER"],
        "snapshots__url": settings["SQLWALL_SNAPSHOTS_URL"],
    }
    with running_wall(database, folder, RULES, **given) as wall:
        store = {"SQLWALL_STORE": f"sqlite:///{wall.store}", "SQLWALL_RULESET": str(ruleset)}
        yield Shop(database, wall, run, settings | store)


def provision(shop: Shop, roles: dict[str, str]) -> None:
    named = [f"--{word}={name}" for word, name in roles.items()]
    done = shop._run("provision", "--apply", "--drops", *named, SQLWALL_ADMIN=shop.database.dsn())
    assert done.returncode == 0, done.stderr


def tables_in_trash(shop: Shop) -> int:
    with shop.database.connect() as connection:
        return connection.execute(
            "SELECT FROM pg_class WHERE relnamespace = '_sqlwall_trash'::regnamespace AND relkind = 'r'"
        ).rowcount


def test_doctor_asks_for_the_trash_where_a_rule_lets_tables_be_dropped(
    dropping: Shop, roles: dict[str, str]
) -> None:
    before = [ailment["name"] for ailment in dropping.json("doctor", status=1)]
    assert {name for name in before if name.startswith(("dropped", "undo may"))} == {
        "dropped tables have no place to go to",
        "undo may not act for the owner of agents' tables",
    }
    provision(dropping, roles)
    after = [ailment["name"] for ailment in dropping.json("doctor", status=1)]
    assert [name for name in after if name.startswith(("dropped", "undo"))] == []


def test_a_dropped_table_is_shown_brought_back_and_in_the_end_dropped_for_good(
    dropping: Shop, roles: dict[str, str]
) -> None:
    provision(dropping, roles)
    state = dropping.state()
    snapshot = dropping.write("DROP TABLE log")
    assert tables_in_trash(dropping) == 1
    assert "public.log: dropped" in dropping("snapshot", "diff", snapshot)
    assert "0 snapshots, 0 with faults" not in dropping("snapshot", "verify")
    assert "public.log: brought back from the trash" in dropping("undo", snapshot)
    assert dropping.state() == state
    again = dropping.write("DROP TABLE log")
    dropping("snapshot", "prune", "--older-than", "0s")
    assert tables_in_trash(dropping) == 0
    assert "there is no snapshot" in dropping("undo", again, status=3)


def test_without_an_undo_role_prune_says_what_stays_in_the_trash(
    dropping: Shop, roles: dict[str, str]
) -> None:
    provision(dropping, roles)
    dropping.write("DROP TABLE log")
    settings = {name: value for name, value in dropping.settings.items() if name != "SQLWALL_UNDO"}
    done = dropping._run("snapshot", "prune", "--older-than", "0s", **settings)
    assert done.returncode == 0
    assert "public.log stays in the trash as log_" in done.stdout + done.stderr
    assert tables_in_trash(dropping) == 1
