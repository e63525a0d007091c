"""One agent's load and what another one notices of it: its statements run on, its records are taken, its texts read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from sqlwall.sql.parse import IN_PROCESS_LIMIT
from sqlwall.wire import frontend
from tests.e2e.wall import RunningWall
from tests.e2e.wire import FLUSH, SYNC, RawClient, codes, errors, rows, run, states

#: Statements that another agent must get through while the attack runs; a single one had to wait for all of it once.
ENOUGH = 4


def costly(number: int) -> bytes:
    """A text that no cache knows, and that takes milliseconds to parse."""
    numbers = b", ".join(b"%d" % ((1000 + number) * 10_000 + n) for n in range(1500))
    text = b"SELECT " + numbers
    assert 8192 < len(text) <= IN_PROCESS_LIMIT, len(text)
    return text


def large(number: int) -> bytes:
    """A text that only the sandbox reads."""
    return b"SELECT %d WHERE 1 IN (%s)" % (number, b", ".join(b"%d" % n for n in range(20_000)))


@contextmanager
def other_agent(wall: RunningWall) -> Iterator[Callable[[], int]]:
    """Another agent, who runs one statement after the other; says how many so far."""
    done = [0]
    failures: list[Exception] = []
    over, begun = threading.Event(), threading.Event()
    dsn = wall.dsn("other", wall.add_agent("other"))

    def work() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                while not over.is_set():
                    assert connection.execute("SELECT 1").fetchone() == (1,)
                    done[0] += 1
                    begun.set()
        except Exception as error:  # noqa: BLE001 - shown by the test
            failures.append(error)
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert begun.wait(20)
        yield lambda: done[0]
    finally:
        over.set()
        thread.join(60)
    assert not failures, failures


PIPELINES = {
    "costly texts": lambda: b"".join(frontend.parse(b"", costly(n)) for n in range(150)),
    "many texts": lambda: b"".join(frontend.parse(b"", b"SELECT 1 AS c%d" % n) for n in range(10_000)),
    "many messages": lambda: (frontend.bind(b"", b"one") + frontend.execute(b"")) * 50_000,
}


@pytest.mark.parametrize("what", PIPELINES)
def test_a_long_pipeline_does_not_keep_others_waiting(wall: RunningWall, what: str) -> None:
    with RawClient(wall.dsn(), timeout=100) as client, other_agent(wall) as count:
        assert codes(client.ask(frontend.parse(b"one", b"SELECT 1"), SYNC)) == "1Z"
        client.send(PIPELINES[what]())
        before = count()
        client.send(SYNC)
        found = client.until()
        assert states(found) == []
        assert codes(found)[-1] == "Z"
        assert count() - before >= ENOUGH
        assert codes(found).count("1" if "texts" in what else "C") in (150, 10_000, 50_000)


def test_a_long_pipeline_is_answered_as_a_short_one(wall: RunningWall) -> None:
    """Names that it makes, an error in its middle, a refusal at its end, a Flush instead of a Sync."""
    many = b"".join(run(f"SELECT {n}") for n in range(100))
    with RawClient(wall.dsn()) as client:
        found = client.ask(frontend.parse(b"mine", b"SELECT 'mine'"), many, SYNC)
        assert [row[0] for row in rows(found)] == [b"%d" % n for n in range(100)]
        assert rows(client.ask(frontend.bind(b"", b"mine"), frontend.execute(b""), SYNC)) == [(b"mine",)]
        found = client.ask(many, run("SELECT 1/0"), many, SYNC)
        assert (len(rows(found)), states(found)) == (100, ["22012"])
        found = client.ask(many, run("DROP TABLE orders"), many, SYNC)
        assert (len(rows(found)), states(found)) == (100, ["42501"])
        client.send(many, FLUSH)
        found = []
        while len(rows(found)) < 100:
            found += client.until("C")
        assert codes(client.ask(SYNC)) == "Z"
        assert rows(client.query("SELECT 5")) == [(b"5",)]


def test_a_client_may_leave_in_the_middle_of_a_long_pipeline(wall: RunningWall) -> None:
    for _ in range(3):
        with RawClient(wall.dsn()) as client:
            client.send(b"".join(frontend.parse(b"", costly(n)) for n in range(70)), SYNC)
    with wall.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_texts_that_are_costly_are_read_elsewhere_once_they_are_many(wall: RunningWall) -> None:
    def flood(number: int) -> None:
        with RawClient(wall.dsn(), timeout=100) as client:
            for n in range(10):
                assert len(rows(client.query(costly(number * 100 + n).decode()))) == 1

    async def diverted() -> int:
        found: int = wall.wall.worker.counters.snapshot()["watched"]["parses_diverted"]
        return found

    with other_agent(wall) as count:
        before = count()
        threads = [threading.Thread(target=flood, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert count() - before >= ENOUGH
    assert wall.run(diverted()) > 0


def test_several_large_texts_in_one_pipeline_are_each_read_once(wall: RunningWall) -> None:
    with RawClient(wall.dsn(), timeout=60) as client:
        found = client.ask(*(run(large(n).decode()) for n in range(3)), run("SELECT 1"), SYNC)
        assert [row[0] for row in rows(found)] == [b"0", b"1", b"2", b"1"]
        assert rows(client.query(large(7).decode())) == [(b"7",)]


def test_a_large_text_is_read_before_those_that_another_agent_has_waiting(wall: RunningWall) -> None:
    """All sessions of a flood have one waiting; beyond eight they are told to come again."""
    password = wall.add_agent("other")
    order: list[str] = []
    refused: list[str] = []
    asked = threading.Barrier(11)

    def ask(dsn: str, text: bytes, name: str) -> None:
        with RawClient(dsn, timeout=60) as client:
            asked.wait(60)
            for error in errors(client.query(text.decode())):
                refused.append(error.sqlstate)
                assert "of this agent are being parsed" in error.message
                return
            order.append(name)

    with RawClient(wall.dsn("other", password), timeout=60) as mine:
        mine.query(large(0).decode())  # the parser has started
        threads = [
            threading.Thread(target=ask, args=(wall.dsn(), large(number), "flood")) for number in range(10)
        ]
        for thread in threads:
            thread.start()
        asked.wait(60)
        assert rows(mine.query(large(99).decode())) == [(b"99",)]
        order.append("mine")
        for thread in threads:
            thread.join(100)
    assert set(refused) <= {"53400"}
    assert len(order) + len(refused) == 11
    assert order.index("mine") <= len(order) // 2
