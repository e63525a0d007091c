"""Limits: of one statement, of an agent, of all; and the timeouts of a session."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time
from pathlib import Path

import asyncpg
import psycopg
import pytest
from psycopg import pq

from sqlwall.proxy import connection
from sqlwall.wire import frontend
from tests.e2e.test_faults import server_sessions
from tests.e2e.wall import WAIVED, OpenWall, RunningWall, waiving
from tests.e2e.wire import FLUSH, SYNC, RawClient, codes, errors, rows, run, states, status
from tests.proxy.test_supervisor import eventually

IDLE, FAILED = pq.TransactionStatus.IDLE, pq.TransactionStatus.INERROR
MANY = "SELECT g FROM generate_series(1, 20000) g"
WIDE = "SELECT repeat('x', 10000) FROM generate_series(1, 1000) g"


def limited(limits: str) -> str:
    """A ruleset with these limits on reads."""
    return waiving(*WAIVED, functions=("public.nap",), limits=limits)


# -- of one statement


@pytest.mark.parametrize("way", ["simple", "extended"])
def test_who_does_not_read_keeps_neither_a_server_session_nor_a_socket(
    open_wall: OpenWall, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The server cannot send what nobody reads, and hears of no cancel meanwhile."""
    monkeypatch.setattr(connection, "LAST_WORDS", 0.5)
    wall = open_wall(limited("{time: 300ms}"), timeouts__cancel_grace="300ms")
    text = "SELECT repeat('x', 10000) FROM generate_series(1, 10000) g"
    with wall.connect() as other, RawClient(wall.dsn()) as client:
        files = len(list(Path("/proc/self/fd").iterdir()))
        client.send(run(text) + SYNC if way == "extended" else frontend.query(text.encode()))
        eventually(lambda: len(server_sessions(wall)) == 1)
        # Ours and the server's end of two lines; the client's own is still open.
        eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files - 2)
        assert other.execute("SELECT 1").fetchone() == (1,)
        reasons = [record["reason"] for record in wall.audit()]
        assert "it took longer than the ruleset allows" in " ".join(reason or "" for reason in reasons)


@pytest.mark.parametrize(
    ("limits", "text", "words"),
    [
        ("{rows: 50}", MANY, "more than 50 rows"),
        ("{bytes: 64KiB}", WIDE, "more than 65536 bytes"),
        ("{time: 300ms}", "SELECT nap(20)", "it took longer than the ruleset allows"),
        ("{rows: 50}", f"COPY ({MANY}) TO STDOUT", "more than 50 rows"),
    ],
)
@pytest.mark.parametrize("way", ["simple", "extended", "block", "extended block"])
def test_a_statement_over_its_limit_is_stopped(
    open_wall: OpenWall, limits: str, text: str, words: str, way: str
) -> None:
    wall = open_wall(limited(limits))
    with RawClient(wall.dsn()) as client:
        if "block" in way:
            assert status(client.query("BEGIN")) == "T"
        found = client.ask(run(text), SYNC) if "extended" in way else client.query(text)
        error = errors(found)[-1]
        assert (len(errors(found)), error.sqlstate) == (1, "53400")
        assert words in error.message
        event = error.detail.rpartition("event=")[2]
        eventually(lambda: event in [record["event"] for record in wall.audit()])
        assert "C" not in codes(found)
        assert len(rows(found)) <= 50 or "bytes" in words
        if "block" in way:
            assert status(found) == "E"
            assert states(client.query("SELECT 1")) == ["25P02"]
            assert [frame.raw[5:-1] for frame in client.query("COMMIT") if frame.type_code == ord("C")] == [
                b"ROLLBACK"
            ]
        else:
            assert status(found) == "I"
        assert rows(client.query("SELECT 1")) == [(b"1",)]
        assert rows(client.ask(run("SELECT 2"), SYNC)) == [(b"2",)]


@pytest.mark.parametrize("way", ["simple", "extended"])
def test_a_limit_that_is_hit_by_the_last_rows_fails_the_block_all_the_same(
    open_wall: OpenWall, way: str
) -> None:
    wall = open_wall(limited("{rows: 3}"))
    text = "SELECT id FROM orders WHERE id < 6"
    with RawClient(wall.dsn()) as client:
        for _ in range(20):
            client.query("BEGIN")
            found = client.ask(run(text), SYNC) if way == "extended" else client.query(text)
            assert (states(found), status(found)) == (["53400"], "E")
            assert states(client.query("SELECT 1")) == ["25P02"]
            assert status(client.query("ROLLBACK")) == "I"
        for _ in range(20):
            found = client.ask(run(text), run("SELECT 1"), SYNC) if way == "extended" else client.query(text)
            assert (states(found), status(found)) == (["53400"], "I")
            assert b"SELECT 1" not in [frame.raw[5:-1] for frame in found if frame.type_code == ord("C")]
            assert rows(client.query("SELECT 1")) == [(b"1",)]


@pytest.mark.parametrize("way", ["simple", "extended", "flush", "string"])
def test_a_write_that_returns_too_much_is_not_committed(open_wall: OpenWall, way: str) -> None:
    wall = open_wall(waiving(*WAIVED).replace("rows: 1000,", "rows: 3,"))
    text = "INSERT INTO orders SELECT 1000 + g, 1, 'x' FROM generate_series(1, 8) g RETURNING id"
    with RawClient(wall.dsn()) as client:
        for _ in range(10):
            if way == "simple":
                found = client.query(text)
            elif way == "string":
                found = client.query(f"SELECT 1; {text}; SELECT 2")
            elif way == "extended":
                found = client.ask(run(text), SYNC)
            else:
                client.send(run(text), FLUSH)
                found = client.until("E")
                found += client.ask(run("SELECT 1"), SYNC)
            assert (states(found), status(found)) == (["53400"], "I")
            assert rows(client.query("SELECT count(*) FROM orders WHERE id > 1000")) == [(b"0",)]


def test_a_limit_before_a_flush_fails_the_block_too(open_wall: OpenWall) -> None:
    wall = open_wall(limited("{rows: 3}"))
    with RawClient(wall.dsn()) as client:
        for _ in range(10):
            client.query("BEGIN")
            client.send(run("SELECT id FROM orders WHERE id < 6"), FLUSH)
            assert states(client.until("E")) == ["53400"]
            client.send(run("SELECT 1"), FLUSH)
            assert client.silence(0.05)
            assert status(client.ask(SYNC)) == "E"
            assert states(client.query("SELECT 1")) == ["25P02"]
            client.query("ROLLBACK")


def test_a_limit_is_on_the_record(open_wall: OpenWall) -> None:
    wall = open_wall(limited("{rows: 50}"))
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            client.execute(MANY)
    for _ in range(40):
        if any("more than 50 rows" in (record["reason"] or "") for record in wall.audit()):
            return
        time.sleep(0.05)
    raise AssertionError("the record does not have it")


def test_a_cursor_may_be_read_in_steps_below_the_limit(open_wall: OpenWall) -> None:
    wall = open_wall(limited("{rows: 50}"))
    with wall.connect(autocommit=False) as client, client.cursor(name="steps") as cursor:
        cursor.itersize = 20
        cursor.execute("SELECT id FROM orders ORDER BY id")
        assert len(list(cursor)) == 100


# -- of sessions


def test_an_agent_has_only_so_many_connections(open_wall: OpenWall) -> None:
    wall = open_wall(limits__per_agent_connections="2")
    with wall.connect(), wall.connect():
        with pytest.raises(psycopg.OperationalError, match='too many connections for agent "bot"'):
            wall.connect()
    for _ in range(50):
        try:
            wall.connect().close()
            break
        except psycopg.OperationalError:
            time.sleep(0.05)
    else:
        raise AssertionError("connections that were closed still count")


def test_all_agents_have_only_so_many_connections(open_wall: OpenWall) -> None:
    wall = open_wall(limits__max_connections="2")
    other = wall.add_agent("other")
    with wall.connect(), psycopg.connect(wall.dsn("other", other)):
        with pytest.raises(psycopg.OperationalError, match="too many clients already"):
            wall.connect()


def test_an_agent_may_have_a_limit_of_its_own(wall: RunningWall) -> None:
    password = wall.add_agent("single", connection_limit=1)
    with psycopg.connect(wall.dsn("single", password)):
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(wall.dsn("single", password))
        wall.connect().close()


def test_an_idle_transaction_is_ended(open_wall: OpenWall) -> None:
    wall = open_wall(timeouts__idle_in_transaction="300ms")
    with wall.connect() as client:
        client.execute("SELECT 1")
        time.sleep(0.8)
        client.execute("BEGIN")
        time.sleep(1)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            client.execute("SELECT 1")
        assert client.closed


def test_the_walls_own_statement_timeout_holds_too(open_wall: OpenWall) -> None:
    wall = open_wall(waiving(*WAIVED, functions=("public.nap",)), timeouts__statement="300ms")
    with wall.connect() as client:
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            client.execute("SELECT nap(20)")
        assert client.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.Error) as caught:
            client.execute("INSERT INTO slow_later VALUES (1)")
        assert caught.value.sqlstate in ("53400", "57014")
        assert client.info.transaction_status == IDLE
        assert client.execute("SELECT count(*) FROM slow_later").fetchone() == (0,)


# -- cancel


def cancelled(client: psycopg.Connection, text: str) -> str | None:
    """The SQLSTATE with which a statement ends that is cancelled after a moment."""
    timer = threading.Timer(0.4, client.cancel_safe)
    timer.start()
    try:
        with pytest.raises(psycopg.Error) as caught:
            client.execute(text.encode())
        return caught.value.sqlstate
    finally:
        timer.join()


@pytest.fixture
def napping(open_wall: OpenWall) -> RunningWall:
    """A wall where agents may take a nap."""
    return open_wall(waiving(*WAIVED, functions=("public.nap",)))


def test_psycopg_cancels_a_long_statement(napping: RunningWall) -> None:
    with napping.connect() as client:
        assert cancelled(client, "SELECT nap(20)") == "57014"
        assert client.execute("SELECT 1").fetchone() == (1,)
        client.execute("BEGIN")
        assert cancelled(client, "SELECT nap(20)") == "57014"
        assert client.info.transaction_status == FAILED
        client.execute("ROLLBACK")
        client.cancel_safe()
        assert client.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("in_block", [False, True])
def test_a_cancel_reaches_what_the_gate_waits_for(napping: RunningWall, in_block: bool) -> None:
    with napping.connect() as client:
        if in_block:
            client.execute("BEGIN")
            client.execute("INSERT INTO slow_later VALUES (1)")
        text = "COMMIT" if in_block else "INSERT INTO slow_later VALUES (1)"
        started = time.monotonic()
        assert cancelled(client, text) == "57014"
        assert time.monotonic() - started < 5
        assert client.info.transaction_status == IDLE
        assert client.execute("SELECT count(*) FROM slow_later").fetchone() == (0,)
        client.execute("INSERT INTO orders VALUES (1000, 1, 'x')")


async def test_asyncpg_times_out(napping: RunningWall) -> None:
    client = await asyncpg.connect(napping.dsn())
    try:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await client.fetchval("SELECT nap($1)", 20.0, timeout=0.3)
            assert await client.fetchval("SELECT $1::int", 1) == 1
    finally:
        await client.close()


def test_a_storm_of_cancels_leaves_transactions_whole(napping: RunningWall) -> None:
    with napping.connect() as client:
        done = threading.Event()

        def storm() -> None:
            while not done.is_set():
                client.cancel_safe()

        thread = threading.Thread(target=storm)
        thread.start()
        outcomes: dict[str | None, int] = {}
        try:
            for number in range(150):
                state = None
                try:
                    client.execute("INSERT INTO orders VALUES (%s, 1, 'x')", (1000 + number,))
                except psycopg.Error as error:
                    state = error.sqlstate
                assert client.info.transaction_status == IDLE
                outcomes[state] = outcomes.get(state, 0) + 1
        finally:
            done.set()
            thread.join()
        assert set(outcomes) <= {None, "57014"}
        time.sleep(0.2)
        found = client.execute("SELECT count(*) FROM orders WHERE id >= 1000").fetchone()
        assert found == (outcomes.get(None, 0),)


def test_a_cancel_with_a_wrong_key_does_nothing(napping: RunningWall) -> None:
    from sqlwall.wire.startup import cancel_request

    with napping.connect() as client:
        pid = client.info.backend_pid
        for key in (b"\0\0\0\0", b"abcd", b"x" * 32, b"x" * 256):
            with socket.create_connection(napping.address) as other:
                other.sendall(cancel_request(pid, key))
                assert other.recv(10) == b""
        assert client.execute("SELECT nap(0.3)").fetchone() == ("rested",)


# -- memory


def test_a_reader_that_does_not_read_keeps_the_memory_flat(open_wall: OpenWall) -> None:
    wall = open_wall(waiving(*WAIVED, limits="{rows: 100000000}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with RawClient(wall.dsn()) as client:
        client.send(frontend.query(b"SELECT repeat('x', 100000) FROM generate_series(1, 5000)"))
        time.sleep(1.5)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 60 * 1024  # of 500 MB
        assert len(client.until("D")) == 2
        with wall.connect() as other:
            assert other.execute("SELECT 1").fetchone() == (1,)


def test_a_writer_that_never_ends_its_pipeline_is_ended(open_wall: OpenWall) -> None:
    wall = open_wall(limits__segment_bytes="65536")
    with RawClient(wall.dsn()) as client:
        try:
            for _ in range(40):
                client.send(frontend.bind(b"", b"", [b"x" * 10_000]))
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert states(client.drain(2)) in (["54000"], [])
        assert client.is_closed
