"""Promise 3: what a guarded transaction commits is what it was before, less the before-images, plus the after-images."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from sqlwall.store.index import SnapshotState
from tests.e2e.wall import OpenWall
from tests.postgres import Database
from tests.promises.guarded import Guarded, database_template, guarded, observer
from tests.promises.scripts import SCRIPTS

__all__ = ["database_template", "guarded", "observer"]


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_what_is_committed_is_in_the_snapshot(guarded: Guarded, script: list[str], protocol: str) -> None:
    before = guarded.bags()
    with guarded.wall.connect(prepare_threshold=None) as agent:
        for text in script:
            if protocol == "extended" and ";" not in text:
                agent.execute(text, binary=True)
            else:
                agent.execute(text.encode())
    guarded.settled()
    after = guarded.bags()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in after.items()}
    if before != after:
        assert guarded.snapshots.list(state=SnapshotState.COMMITTED)


def test_parameters_reach_the_capture(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        for prepare in (False, True, True):
            agent.execute(
                "UPDATE parent SET name = %s, amount = %s WHERE id = %s", ("x", 1, 3), prepare=prepare
            )
            agent.execute("DELETE FROM heap WHERE n = %b AND v = %t", (1, "same"), prepare=prepare)
    guarded.settled()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in guarded.bags().items()}


def test_copy_in_is_covered(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent, agent.cursor() as cursor:
        with cursor.copy("COPY parent FROM STDIN") as copy:
            for number in range(200, 300):
                copy.write_row((number, "copied", None))
    guarded.settled()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in guarded.bags().items()}


def test_more_rows_than_the_rule_allows_are_refused_before_the_write(guarded: Guarded) -> None:
    with guarded.wall.database.connect() as connection:
        connection.execute("INSERT INTO heap SELECT 'bulk', 100 FROM generate_series(1, 1500)")
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        with pytest.raises(psycopg.Error) as caught:
            agent.execute("DELETE FROM heap WHERE n = 100")
        assert caught.value.sqlstate == "53400"
        assert "Nothing was executed" in str(caught.value)
        assert agent.execute("SELECT 1").fetchone() == (1,)
    assert guarded.bags() == before


def test_a_cascade_counts_against_the_limit(guarded: Guarded) -> None:
    with guarded.wall.database.connect() as connection:
        connection.execute("INSERT INTO child SELECT g, 1, 'many' FROM generate_series(1000, 2500) g")
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="rows"):
            agent.execute("DELETE FROM parent WHERE id = 1")
    guarded.settled()
    assert guarded.bags() == before


def test_a_rule_without_its_observer_is_refused(
    open_wall: OpenWall, database: Database, tmp_path: Path
) -> None:
    wall = open_wall(
        observer__dsn=database.dsn("nobody_there", "x"), snapshots__url=str(tmp_path / "snapshots")
    )
    with wall.connect() as agent, pytest.raises(psycopg.Error) as caught:
        agent.execute("UPDATE parent SET name = 'x' WHERE id = 1")
    assert caught.value.sqlstate == "58000"
    with database.connect() as connection:
        assert connection.execute("SELECT name FROM parent WHERE id = 1").fetchone() == ("p1",)


def test_images_do_not_depend_on_the_agents_settings_and_leave_them_alone(guarded: Guarded) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent:
        for text in (
            "SET datestyle = 'German'",
            "SET intervalstyle = 'iso_8601'",
            "SET extra_float_digits = -10",
        ):
            agent.execute(text.encode())
        agent.execute("UPDATE types SET id = id + 100 WHERE id = 1")
        assert agent.execute("SHOW datestyle").fetchone() == ("German, DMY",)
        assert agent.info.parameter_status("DateStyle") == "German, DMY"
        assert agent.execute("SHOW extra_float_digits").fetchone() == ("-10",)
    guarded.settled()
    assert guarded.apply(before, set()) == {name: +bag for name, bag in guarded.bags().items()}
