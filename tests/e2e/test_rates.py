"""How many statements an agent may send: what is refused, what never is, and what the others notice of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from sqlwall.wire import frontend
from tests.e2e.wall import WAIVED, OpenWall, RunningWall, waiving
from tests.e2e.wire import FLUSH, SYNC, RawClient, codes, errors, rows, run, states, status

#: One statement in a hundred seconds: no test is slow enough to earn a second one.
SLOW = {"limits__per_agent_rate": "0.01"}
ONE = b"SELECT 1"


def limited(open_wall: OpenWall, burst: int) -> RunningWall:
    return open_wall(waiving(*WAIVED), limits__per_agent_burst=str(burst), **SLOW)


def counters(wall: RunningWall) -> dict[str, object]:
    async def ask() -> dict[str, object]:
        return wall.wall.worker.counters.snapshot()

    return wall.run(ask())


WAYS: dict[str, Callable[[RawClient], list[object]]] = {
    "simple": lambda client: list(client.query("SELECT 1")),
    "extended": lambda client: list(client.ask(run("SELECT 1"), SYNC)),
    "prepare": lambda client: list(client.ask(frontend.parse(b"", ONE), SYNC)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_over_the_limit_is_refused_by_name_and_the_session_goes_on(
    open_wall: OpenWall, way: str
) -> None:
    wall = limited(open_wall, 3)
    with RawClient(wall.dsn()) as client:
        for _ in range(3):
            assert states(WAYS[way](client)) == []  # type: ignore[arg-type]
        for _ in range(20):
            found = WAYS[way](client)
            assert codes(found) == "EZ"  # type: ignore[arg-type]
            assert status(found) == "I"  # type: ignore[arg-type]
        (error,) = errors(found)  # type: ignore[arg-type]
        assert (error.sqlstate, error.constraint) == ("53400", "rate-limit")
        assert error.message.startswith(
            "sqlwall refused the statement [rate-limit]: agent bot is over its limit of 0.01 statements per second "
            "(3 at once). Nothing was executed. Retry in "
        )
        assert "retryable=true event=" in error.detail
        assert codes(client.ask(SYNC)) == "Z", "a Sync alone asks for nothing"


def test_the_limit_is_the_agents_whatever_its_sessions_and_nobody_elses(open_wall: OpenWall) -> None:
    wall = limited(open_wall, 2)
    other = wall.add_agent("other")
    with RawClient(wall.dsn()) as first, RawClient(wall.dsn()) as second:
        assert states(first.query("SELECT 1")) == states(second.query("SELECT 1")) == []
        assert states(first.query("SELECT 1")) == states(second.query("SELECT 1")) == ["53400"]
        with RawClient(wall.dsn("other", other)) as third:
            assert rows(third.query("SELECT 2")) == [(b"2",)]


def test_a_pipeline_is_refused_whole_and_answered_in_its_place(open_wall: OpenWall) -> None:
    wall = limited(open_wall, 1)
    with RawClient(wall.dsn()) as client:
        found = client.ask(run("SELECT 1"), run("SELECT 2"), SYNC)
        assert rows(found) == [(b"1",), (b"2",)], "a pipeline goes whole where one statement may"
        client.send(run("SELECT 3"), FLUSH)
        assert states(client.until("E")) == ["53400"]
        client.send(run("SELECT 4"), FLUSH)
        assert client.silence(0.05), "what stands behind an error is skipped up to Sync"
        assert codes(client.ask(SYNC)) == "Z"
        assert states(client.ask(run("SELECT 5"), SYNC)) == ["53400"]


@pytest.mark.parametrize("way", ["simple", "extended", "named"])
def test_a_refusal_fails_the_block_and_its_end_is_never_refused(open_wall: OpenWall, way: str) -> None:
    wall = limited(open_wall, 3 if way == "named" else 2)

    def end(text: str) -> str:
        if way == "simple":
            found = client.query(text)
        elif way == "extended":
            found = client.ask(run(text), SYNC)
        else:
            found = client.ask(frontend.bind(b"", b"end"), frontend.execute(b""), SYNC)
        assert states(found) == []
        return status(found)

    with RawClient(wall.dsn()) as client:
        if way == "named":
            assert states(client.ask(frontend.parse(b"end", b"ROLLBACK"), SYNC)) == []
        client.query("BEGIN")
        client.query("INSERT INTO orders VALUES (500, 1, 'x')")
        for _ in range(3):
            found = client.query("SELECT 1") if way == "simple" else client.ask(run("SELECT 1"), SYNC)
            assert (states(found), status(found)) == (["53400"], "E")
        assert end("COMMIT" if way == "extended" else "ROLLBACK") == "I"
        assert states(client.query("BEGIN")) == ["53400"]
    with wall.database.connect() as direct:
        assert direct.execute("SELECT count(*) FROM orders WHERE id = 500").fetchone() == (0,)


def test_a_commit_is_not_refused_and_a_chained_one_is(open_wall: OpenWall) -> None:
    wall = limited(open_wall, 2)
    with RawClient(wall.dsn()) as client:
        client.query("BEGIN")
        client.query("INSERT INTO orders VALUES (500, 1, 'x')")
        assert states(client.query("COMMIT; SELECT 1")) == ["53400"]
        client.query("ROLLBACK")
    wall = limited(open_wall, 2)
    with RawClient(wall.dsn()) as client:
        client.query("BEGIN")
        client.query("INSERT INTO orders VALUES (501, 1, 'x')")
        assert status(client.query("COMMIT")) == "I"
        assert states(client.query("ROLLBACK")) == ["53400"], "there is no block to end"
    with wall.database.connect() as direct:
        assert direct.execute("SELECT id FROM orders WHERE id IN (500, 501)").fetchall() == [(501,)]


def test_each_statement_of_a_string_counts(open_wall: OpenWall) -> None:
    wall = open_wall(limits__per_agent_rate="1", limits__per_agent_burst="5")
    with RawClient(wall.dsn()) as client:
        assert states(client.query("SELECT 1; " * 200)) == []
        (error,) = errors(client.query("SELECT 1"))
        assert "Retry in 19" in error.message


def test_a_flood_is_one_record_for_many_and_counted_each(open_wall: OpenWall) -> None:
    wall = limited(open_wall, 1)
    with RawClient(wall.dsn()) as client:
        client.query("SELECT 1")
        client.send(frontend.query(ONE) * 5000)
        events = set()
        for _ in range(5000):
            (error,) = errors(client.until())
            events.add(error.detail.rpartition("event=")[2])
        assert counters(wall)["throttled"] == [["bot", 5000]]
        assert ["rate-limit", 5000] in counters(wall)["refusals"]  # type: ignore[operator]
    while not any(record["kind"] == "logout" for record in wall.audit()):
        wall.run(asyncio.sleep(0.02))
    found = [record for record in wall.audit() if record["rule"] == "rate-limit"]
    assert {record["event"] for record in found} == events
    assert len(found) < 500
    times = [record["outcome"] for record in found]
    assert sum(1 if text == "once" else int(text.partition(" ")[0]) for text in times) == 5000
    assert {(record["kind"], record["sqlstate"], record["agent"]) for record in found} == {
        ("refusal", "53400", "bot")
    }


def test_a_client_that_does_not_read_its_refusals_makes_no_more_of_them(open_wall: OpenWall) -> None:
    wall = limited(open_wall, 1)
    with RawClient(wall.dsn(), timeout=0.5) as client:
        client.query("SELECT 1")
        flood = frontend.query(ONE) * 4000
        with pytest.raises(TimeoutError):
            for _ in range(2000):  # 100 MB, were it all taken
                client.send(flood)
        made = counters(wall)["throttled"]
        with psycopg.connect(wall.dsn("other", wall.add_agent("other")), autocommit=True) as other:
            assert other.execute("SELECT 1").fetchone() == (1,)
        assert counters(wall)["throttled"] == made
        assert made[0][1] < 100_000  # type: ignore[index]


def test_a_reload_changes_the_limit_of_open_sessions(open_wall: OpenWall) -> None:
    from dataclasses import replace

    wall = limited(open_wall, 1)
    worker = wall.wall.worker

    async def reload(rate: float) -> None:
        limits = replace(worker.config.limits, per_agent_rate=rate)
        worker.take_over(worker.prepare(replace(worker.config, limits=limits)))

    with RawClient(wall.dsn()) as client:
        client.query("SELECT 1")
        assert states(client.query("SELECT 1")) == ["53400"]
        wall.run(reload(0))
        assert [states(client.query("SELECT 1")) for _ in range(5)] == [[]] * 5
        wall.run(reload(0.01))
        client.query("SELECT 1")
        assert states(client.query("SELECT 1")) == ["53400"]
