"""Promise 11: whatever breaks under a statement, its agent is told, nothing of it passes, and the others go on.

What breaks at any moment is in `test_crash`, a store that takes nothing in `test_store_down`, the rest in
`tests/e2e/test_faults.py`: here it is the parser, the catalog, the observer, a line or a worker, at a known moment.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg import pq, sql

from sqlwall.proxy import worker
from sqlwall.proxy.catalog import CatalogCache
from sqlwall.proxy.counters import merge
from sqlwall.proxy.metrics import WallCollector
from sqlwall.wire import frontend
from tests.e2e.test_faults import backend_of, broken_store, terminate, until_closed
from tests.e2e.wall import APP, APP_PASSWORD, OpenWall
from tests.e2e.wire import RawClient, codes, errors
from tests.postgres import Database
from tests.promises.guarded import OBSERVER, Guarded, database_template, guarded, observer
from tests.proxy.test_supervisor import (
    children,
    close,
    command_line,
    eventually,
    is_alive,
    one,
    serve,
    spread,
)

__all__ = ["database_template", "guarded", "observer"]

Connection = psycopg.Connection[tuple[Any, ...]]

CLOSED = "58000"
NOTHING_RAN = (
    "sqlwall refused the statement [closed]: an internal failure. Nothing was executed. Retry later."
)
ROLLED_BACK = (
    "sqlwall refused COMMIT [closed]: an internal failure. The transaction was rolled back. Retry later."
)
IDLE, FAILED = pq.TransactionStatus.IDLE, pq.TransactionStatus.INERROR
WRITE = b"UPDATE parent SET name = 'written' WHERE id = 3"


def large(text: str, number: int = 0) -> bytes:
    """A text that only the sandboxed parser reads; the number makes it another."""
    return f"{text} AND id NOT IN ({', '.join(str(10_000 + number + n) for n in range(4000))})".encode()


LARGE_WRITE = "UPDATE parent SET name = 'written' WHERE id = 3"
LARGE_READ = "SELECT count(*) FROM parent WHERE id > 0"


def metric(found: Guarded, name: str, **labels: str) -> float:
    """What /metrics would say."""
    registry = CollectorRegistry()
    counters = found.wall.wall.worker.counters
    registry.register(WallCollector(lambda: (merge([counters.snapshot()]), {})))
    return registry.get_sample_value(name, labels) or 0.0


@contextmanager
def colleagues(found: Guarded) -> Iterator[Callable[[], None]]:
    """Two agents who have nothing to do with it: what they read and write in the meantime works."""
    password = found.wall.add_agent("other")
    with found.wall.connect() as same, psycopg.connect(found.wall.dsn("other", password)) as other:
        other.autocommit = True

        def work() -> None:
            for number, agent in ((11, same), (12, other)):
                agent.execute("UPDATE counted SET touched = touched + 1 WHERE id = 1")
                row = agent.execute("SELECT name FROM parent WHERE id = %s", (number,)).fetchone()
                assert row == (f"p{number}",)

        yield work


def unchanged(found: Guarded, before: dict[str, Any]) -> None:
    """Nothing passed but what the colleagues did, and that is in the snapshots."""
    after = found.bags()
    assert {name: bag for name, bag in after.items() if name != "counted"} == {
        name: bag for name, bag in before.items() if name != "counted"
    }
    found.settled()
    assert found.apply(before, set()) == {name: +bag for name, bag in after.items()}


def told(error: psycopg.Error, line: str) -> None:
    """The documented refusal of a wall that is closed."""
    assert (error.sqlstate, error.diag.message_primary) == (CLOSED, line)
    assert error.diag.constraint_name == "closed"
    assert "rule=closed retryable=true event=" in str(error.diag.message_detail)


# -- the parser


def parser() -> int:
    """The process of the sandboxed parser."""
    (pid,) = [pid for pid in children(os.getpid()) if "sqlwall.sql.sandbox" in command_line(pid)]
    return pid


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that takes no step."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)


def asked(found: Guarded, texts: int) -> float:
    """How many texts no cache knew, once there are so many more."""
    return metric(found, "sqlwall_facts_cache_misses_total") + texts


@pytest.fixture
def hasty(guarded: Guarded) -> None:
    """A reload gives a text more time than the wall began with."""

    async def reload() -> None:
        worker = guarded.wall.wall.worker
        timeouts = replace(worker.config.timeouts, parse=3.0)
        worker.take_over(worker.prepare(replace(worker.config, timeouts=timeouts)))

    guarded.wall.run(reload())


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("way", ["simple", "extended", "in a block"])
@pytest.mark.parametrize(
    ("fault", "words", "counter"),
    [
        ("dies", "too complex to be parsed", "sqlwall_parser_deaths_total"),
        ("hangs", "could not be parsed within 3 s", "sqlwall_parser_timeouts_total"),
    ],
)
def test_a_parser_that_fails_refuses_the_text_that_it_has(
    guarded: Guarded, way: str, fault: str, words: str, counter: str
) -> None:
    before = guarded.bags()
    with guarded.wall.connect() as agent, colleagues(guarded) as work, ThreadPoolExecutor() as elsewhere:
        agent.execute(large(LARGE_READ))
        if way == "in a block":
            agent.execute("BEGIN")
            agent.execute("UPDATE parent SET name = 'lost' WHERE id = 4")
        with stopped(parser()):
            expected = asked(guarded, 1)
            refused = elsewhere.submit(agent.execute, large(LARGE_WRITE), binary=way == "extended")
            eventually(lambda: metric(guarded, "sqlwall_facts_cache_misses_total") >= expected)
            work()
            assert not refused.done()
            if fault == "dies":
                os.kill(parser(), signal.SIGKILL)
            with pytest.raises(psycopg.errors.StatementTooComplex, match=words):
                refused.result(10)
        assert agent.info.transaction_status == (FAILED if way == "in a block" else IDLE)
        agent.execute("ROLLBACK")
        work()
        unchanged(guarded, before)
        assert metric(guarded, counter) == 1
        assert metric(guarded, "sqlwall_refusals_total", rule="builtin-unparsable") == 1
        agent.execute(large(LARGE_WRITE, 1))
        assert agent.execute("SELECT name FROM parent WHERE id = 3").fetchone() == ("written",)


def test_a_parser_that_has_too_much_to_do_turns_texts_away(guarded: Guarded) -> None:
    before = guarded.bags()
    with ExitStack() as stack, colleagues(guarded) as work:
        waiting = [stack.enter_context(guarded.wall.connect()) for _ in range(8)]
        late = stack.enter_context(guarded.wall.connect())
        late.execute(large(LARGE_READ))
        elsewhere = stack.enter_context(ThreadPoolExecutor(8))
        with stopped(parser()):
            expected = asked(guarded, 8)
            answers = [elsewhere.submit(read_large, agent) for agent in waiting]
            eventually(lambda: metric(guarded, "sqlwall_facts_cache_misses_total") >= expected)
            work()
            assert not any(answer.done() for answer in answers)
            with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="too many large statements"):
                late.execute(large(LARGE_WRITE))
        assert [answer.result(20) for answer in answers] == [(20,)] * 8
        unchanged(guarded, before)
        late.execute(large(LARGE_WRITE))
    assert metric(guarded, "sqlwall_parser_deaths_total") == 0


def read_large(agent: Connection) -> tuple[Any, ...] | None:
    """What a large read gives."""
    return agent.execute(large(LARGE_READ)).fetchone()


# -- a client that goes away


@pytest.mark.parametrize("end", [socket.SHUT_WR, socket.SHUT_RDWR], ids=["writing", "altogether"])
@pytest.mark.parametrize(
    ("first", "half"),
    [
        ([b"BEGIN", WRITE], frontend.query(b"COMMIT")),
        ([], frontend.query(WRITE)),
        ([b"BEGIN", WRITE], frontend.query(b"SELECT 1; COMMIT")),
        ([b"COPY parent FROM STDIN"], frontend.copy_data(b"300\tcopied\t1\n")),
    ],
    ids=["commit", "write", "several", "copy"],
)
def test_half_a_message_does_nothing(guarded: Guarded, first: list[bytes], half: bytes, end: int) -> None:
    before = guarded.bags()
    with RawClient(guarded.wall.dsn()) as client, colleagues(guarded) as work:
        for text in first:
            client.send(frontend.query(text))
            client.until("G" if text.startswith(b"COPY") else "Z")
        client.send(half[:-1])
        work()
        client._socket.shutdown(end)
        if end == socket.SHUT_WR:
            assert set(codes(client.until())) <= {"E"}
            assert client.is_closed
        eventually(lambda: metric(guarded, "sqlwall_sessions_ended_total", reason="client-gone") == 1)
        work()
        unchanged(guarded, before)
        assert metric(guarded, "sqlwall_sessions", agent="bot") == 1
        with guarded.wall.connect() as agent:
            agent.execute(WRITE)  # what it had locked is free


# -- the server


@contextmanager
def held(database: Database, text: str) -> Iterator[None]:
    """Somebody else, without a wall, has locked something and does not let go of it."""
    with database.connect() as other, other.transaction(force_rollback=True):
        other.execute(text.encode())
        yield


def at_a_lock(database: Database, role: str) -> int:
    """The process of a session of this role, once it waits for a lock."""
    found: list[tuple[int]] = []

    def is_there() -> bool:
        with database.connect() as direct:
            found[:] = direct.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
                " AND wait_event_type = 'Lock'",
                (role,),
            ).fetchall()
        return bool(found)

    eventually(is_there)
    return found[0][0]


#: What the agent has sent, what it sends then, and what it waits for, by the moment at which its server process ends.
MOMENTS = {
    "capture": ([], WRITE, "SELECT FROM parent WHERE id = 3 FOR UPDATE"),
    "statement": ([], b"INSERT INTO parent VALUES (900, 'written', 1)", "INSERT INTO parent VALUES (900)"),
    "block": (
        [b"BEGIN", b"UPDATE parent SET name = 'lost' WHERE id = 4"],
        WRITE,
        "SELECT FROM parent WHERE id = 3 FOR UPDATE",
    ),
    "gate": (
        [b"BEGIN", b"INSERT INTO child VALUES (900, 3, 'written')"],
        b"COMMIT",
        "SELECT FROM parent WHERE id = 3 FOR UPDATE",
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_agent_whose_server_goes_away_in_the_middle_is_told_so(guarded: Guarded, moment: str) -> None:
    database = guarded.wall.database
    database.execute("ALTER TABLE child ALTER CONSTRAINT child_parent_fkey DEFERRABLE INITIALLY DEFERRED")
    before = guarded.bags()
    first, last, lock = MOMENTS[moment]
    with RawClient(guarded.wall.dsn()) as client, colleagues(guarded) as work, held(database, lock):
        for text in first:
            client.query(text.decode())
        client.send(frontend.query(last))
        victim = at_a_lock(database, APP)
        work()
        terminate(guarded.wall, victim)
        (error,) = errors(client.until())
        assert (error.severity, error.sqlstate) == ("FATAL", "57P01")
        assert client.is_closed
        work()
    unchanged(guarded, before)
    assert metric(guarded, "sqlwall_sessions_ended_total", reason="server-fatal") == 1
    with guarded.wall.connect() as agent:
        agent.execute(WRITE)


@pytest.mark.parametrize("victim", ["observer", "agent"])
def test_a_proof_that_is_cut_off_commits_nothing(guarded: Guarded, victim: str) -> None:
    """The observer stands behind somebody who waits for the table: so the moment is known."""
    database = guarded.wall.database
    before = guarded.bags()
    with guarded.wall.connect() as agent, colleagues(guarded) as work, ThreadPoolExecutor() as elsewhere:
        agent.execute("BEGIN")
        agent.execute("UPDATE child SET note = 'lost' WHERE id = 4")
        server = backend_of(agent)
        work()
        altered = elsewhere.submit(
            database.execute, sql.SQL("ALTER TABLE child ALTER note SET STORAGE EXTERNAL")
        )
        at_a_lock(database, str(database.server.user))
        committing: Future[Any] = elsewhere.submit(agent.execute, "COMMIT")
        observing = at_a_lock(database, OBSERVER)
        work()
        assert not committing.done()
        terminate(guarded.wall, observing if victim == "observer" else server)
        with pytest.raises(psycopg.Error) as caught:
            committing.result(10)
        altered.result(10)
        if victim == "observer":
            told(caught.value, ROLLED_BACK)
            assert agent.info.transaction_status == IDLE
            assert metric(guarded, "sqlwall_refusals_total", rule="closed") == 1
        else:
            assert caught.value.sqlstate in ("57P01", None)
            assert agent.closed
            assert metric(guarded, "sqlwall_sessions_ended_total", reason="server-fatal") == 1
        work()
        unchanged(guarded, before)
        with guarded.wall.connect() as again:
            again.execute("UPDATE child SET note = 'written' WHERE id = 4")


# -- what is known of the database


def test_a_catalog_that_is_not_known_closes_its_database_only(
    open_wall: OpenWall,
    database: Database,
    observer: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "CatalogCache", partial(CatalogCache, interval=0.2, stale_after=4.0))
    folder = tmp_path / "snapshots"
    every = database.server.dsn("", APP, APP_PASSWORD)  # whichever database an agent asks for
    wall = open_wall(upstream=every, observer__dsn=database.dsn(*observer), snapshots__url=str(folder))
    found = Guarded(wall, folder)
    elsewhere = found.wall.dsn().replace(database.name, "postgres")
    before = found.bags()
    with found.wall.connect() as agent, found.wall.connect() as busy, psycopg.connect(elsewhere) as other:
        busy.execute("BEGIN")
        busy.execute(WRITE)
        with unreachable(database):
            eventually(found.wall.problems)
            for text in (b"SELECT 1", WRITE, b"SHOW work_mem"):
                with pytest.raises(psycopg.errors.SystemError) as caught:
                    agent.execute(text)
                told(caught.value, NOTHING_RAN)
                assert agent.info.transaction_status == IDLE
            with pytest.raises(psycopg.errors.SystemError):
                busy.execute("COMMIT")
            with pytest.raises(psycopg.OperationalError):
                found.wall.connect()
            assert other.execute("SELECT 1").fetchone() == (1,)
            assert metric(found, "sqlwall_refusals_total", rule="closed") >= 4
        eventually(lambda: not found.wall.problems())
        busy.execute("ROLLBACK")
        unchanged(found, before)
        agent.execute(WRITE)


@contextmanager
def unreachable(database: Database) -> Iterator[None]:
    """No new session, and the one that reads the catalog is ended."""
    name = sql.Identifier(database.name)
    database.server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
    try:
        database.server.execute(
            sql.SQL(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'sqlwall catalog' AND datname = {}"
            ).format(sql.Literal(database.name))
        )
        yield
    finally:
        database.server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


# -- the record


def simple(agent: Connection) -> None:
    agent.execute("SELECT name FROM parent WHERE id = 1")


def extended(agent: Connection) -> None:
    agent.execute("SELECT name FROM parent WHERE id = %s", (1,))


def prepared(agent: Connection) -> None:
    agent.execute("SELECT name FROM parent WHERE id = %s", (1,), prepare=True)


def several(agent: Connection) -> None:
    agent.execute("SELECT 1; SELECT name FROM parent")


def piped(agent: Connection) -> None:
    with agent.pipeline():
        simple(agent)
        extended(agent)


def copied(agent: Connection) -> None:
    with agent.cursor() as cursor, cursor.copy("COPY parent TO STDOUT") as copy:
        list(copy)


def fetched(agent: Connection) -> None:
    agent.execute("FETCH ALL FROM c")


@pytest.mark.parametrize("read", [simple, extended, prepared, several, piped, copied, fetched])
def test_a_read_that_cannot_go_on_the_record_is_refused(
    guarded: Guarded, read: Callable[[Connection], None]
) -> None:
    with guarded.wall.connect() as agent, guarded.wall.connect() as other:
        prepared(agent)
        if read is fetched:
            agent.execute("BEGIN")
            agent.execute("DECLARE c CURSOR FOR SELECT name FROM parent")
        refusals = metric(guarded, "sqlwall_refusals_total", rule="closed")
        with broken_store(guarded.wall):
            until_closed(other)
            for _ in range(2):
                with pytest.raises(psycopg.errors.SystemError) as caught:
                    read(agent)
                told(caught.value, NOTHING_RAN)
                assert agent.info.transaction_status == (FAILED if read is fetched else IDLE)
                if read is fetched:
                    break
            assert guarded.wall.wall.audit.failures > 0
            assert metric(guarded, "sqlwall_refusals_total", rule="closed") > refusals
        agent.execute("ROLLBACK")
        eventually(lambda: not guarded.wall.problems())
        for session in (agent, other):
            assert session.execute("SELECT name FROM parent WHERE id = 1").fetchone() == ("p1",)


# -- a worker


NAPS = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(30)'"


def test_a_worker_that_is_killed_in_the_middle_leaves_nothing_behind(
    database: Database, tmp_path: Path
) -> None:
    with serve(database, tmp_path) as serving, ThreadPoolExecutor() as elsewhere:
        sessions = spread(serving)
        victim, survivor = sessions
        restarts = serving.metric("sqlwall_worker_restarts")
        busy, napping = sessions[victim][:2]
        one(busy, f"SELECT count(*) FROM t WHERE id NOT IN ({', '.join(map(str, range(10, 4000)))})")
        (reader,) = [pid for pid in children(victim) if "sqlwall.sql.sandbox" in command_line(pid)]
        busy.execute("BEGIN")
        busy.execute("INSERT INTO t VALUES (2)")
        nap = elsewhere.submit(napping.execute, "SELECT pg_sleep(30)")
        with database.connect() as direct:
            eventually(lambda: one(direct, NAPS) == 1)
        os.kill(victim, signal.SIGKILL)
        for lost in (nap.result, partial(busy.execute, "COMMIT")):
            with pytest.raises(psycopg.OperationalError):
                lost()
        for agent in sessions[survivor]:
            assert one(agent) == 1
        sessions[survivor][0].execute(
            "INSERT INTO t VALUES (2)"
        )  # the lock is free, and the number not taken
        eventually(lambda: not is_alive(reader))
        eventually(lambda: serving.metric("sqlwall_workers") == 2 and serving.metric("sqlwall_ready") == 1)
        assert serving.metric("sqlwall_worker_restarts") == restarts + 1
        again = spread(serving)
        assert all(one(agent) == 2 for agents in again.values() for agent in agents)
        close(again)
        close(sessions)
    with database.connect() as direct:
        assert one(direct) == 2
