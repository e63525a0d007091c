"""A rule may want the agent to be told which snapshot was kept of its write; without one nothing is said."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from sqlwall.cli.rulesets import find_ruleset
from sqlwall.store.audit import AuditKind
from sqlwall.store.index import SnapshotRecord
from sqlwall.store.verify import tail
from tests.e2e.wall import OpenWall
from tests.postgres import Database
from tests.promises.guarded import Guarded, database_template, guarded, observer

__all__ = ["database_template", "guarded", "observer"]

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def telling(open_wall: OpenWall, database: Database, observer: tuple[str, str], tmp_path: Path) -> Guarded:
    """A wall under agent-safe with notices for small writes."""
    text, _ = find_ruleset("agent-safe")
    ruleset = text.replace("    snapshot: required\n", "    snapshot: required\n    notice: true\n", 1)
    folder = tmp_path / "snapshots"
    wall = open_wall(ruleset, observer__dsn=database.dsn(*observer), snapshots__url=str(folder))
    return Guarded(wall, folder)


def simple(agent: Connection) -> None:
    with psycopg.ClientCursor(agent) as cursor:
        cursor.execute("UPDATE parent SET name = 'x' WHERE id < 3")


def extended(agent: Connection) -> None:
    agent.execute("UPDATE parent SET name = %s WHERE id < 3", ("x",))


def block(agent: Connection) -> None:
    with agent.transaction():
        agent.execute("UPDATE parent SET name = 'x' WHERE id < 3")


def pipeline(agent: Connection) -> None:
    with agent.pipeline(), agent.transaction():
        agent.execute("UPDATE parent SET name = 'x' WHERE id < 3")


@pytest.mark.parametrize("write", [simple, extended, block, pipeline])
def test_the_notice_names_the_snapshot_and_the_rows(telling: Guarded, write: object) -> None:
    notices: list[tuple[str | None, str | None, str | None]] = []
    with telling.wall.connect() as agent:
        agent.add_notice_handler(
            lambda found: notices.append((found.severity, found.sqlstate, found.message_primary))
        )
        assert callable(write)
        write(agent)
        agent.execute("SELECT 1")  # a driver reads what came late with the next answer
    record = only(telling)
    message = f"sqlwall keeps snapshot {record.id} of 2 rows of public.parent."
    assert notices == [("NOTICE", "00000", message)]


def test_no_rule_no_notice_and_none_after_a_rollback(telling: Guarded, guarded: Guarded) -> None:
    for wall, expected in ((telling, 0), (guarded, 0)):
        notices: list[object] = []
        with wall.wall.connect() as agent:
            agent.add_notice_handler(notices.append)
            agent.execute("BEGIN")
            agent.execute("UPDATE parent SET name = 'x' WHERE id < 3")
            agent.execute("ROLLBACK")
            if wall is guarded:
                block(agent)
            agent.execute("SELECT 1")
        assert len(notices) == expected


def test_the_record_names_the_snapshot(guarded: Guarded) -> None:
    with guarded.wall.connect() as agent:
        block(agent)
    record = only(guarded)
    found = [
        (entry["target"], entry["rows"])
        for entry in tail(guarded.engine, 100)
        if entry["kind"] == AuditKind.OUTCOME.value and entry["outcome"] == "committing"
    ]
    assert found == [(record.id, 2)]


def only(guarded: Guarded) -> SnapshotRecord:
    guarded.settled()
    (record,) = guarded.snapshots.list()
    return record
