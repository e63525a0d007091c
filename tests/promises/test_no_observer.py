"""Without an observer's role the agents' own looks: what it may read whole is covered, everything else is refused."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.e2e.wall import APP, OpenWall
from tests.postgres import Database
from tests.promises.guarded import Guarded, database_template, observer
from tests.promises.scripts import SCRIPTS

__all__ = ["database_template", "observer"]


@pytest.fixture
def unobserved(open_wall: OpenWall, observer: tuple[str, str], tmp_path: Path) -> Guarded:
    """`observer` makes the role of undo; the wall knows of neither."""
    folder = tmp_path / "snapshots"
    return Guarded(open_wall(snapshots__url=str(folder)), folder)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_what_agents_may_read_is_covered_and_comes_back(unobserved: Guarded, script: list[str]) -> None:
    before = unobserved.bags()
    with unobserved.wall.connect() as agent:
        for statement in script:
            agent.execute(statement.encode())
    unobserved.settled()
    assert unobserved.bags() == unobserved.apply(before, set())
    assert unobserved.undo().conflicts == ()
    assert unobserved.bags() == before


REFUSED = {
    "not readable": f"REVOKE SELECT ON parent FROM {APP}; GRANT SELECT (id) ON parent TO {APP}",
    "row security": "ALTER TABLE parent ENABLE ROW LEVEL SECURITY; CREATE POLICY all_of_it ON parent USING (true)",
    "a cascade to what is not readable": f"REVOKE SELECT ON child FROM {APP}",
}


@pytest.mark.parametrize("barrier", REFUSED.values(), ids=REFUSED.keys())
def test_what_agents_may_not_read_whole_is_refused(
    unobserved: Guarded, database: Database, barrier: str
) -> None:
    with database.connect() as connection:
        for statement in barrier.split(";"):
            connection.execute(statement.encode())
    before = unobserved.bags()
    with (
        unobserved.wall.connect() as agent,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="the observer may not read all of it"),
    ):
        agent.execute("UPDATE parent SET id = 103 WHERE id = 3")
    assert unobserved.bags() == before


def test_no_place_for_snapshots_no_write(open_wall: OpenWall, database: Database) -> None:
    with (
        open_wall(snapshots__url="").connect() as agent,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="no snapshot can be taken"),
    ):
        agent.execute("UPDATE parent SET name = 'x' WHERE id = 3")
