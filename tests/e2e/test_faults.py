"""What breaks: the server, the store, a client, an agent's standing. The one is told, the others go on, nothing opens."""

from __future__ import annotations

import os
import select
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import pq, sql
from psycopg.pq import PGconn, PollingStatus

from sqlwall.wire import frontend
from tests.e2e.wall import APP, WAIVED, OpenWall, RunningWall, waiving
from tests.e2e.wire import FLUSH, SYNC, RawClient, codes, errors, rows, run, states, status
from tests.proxy.test_supervisor import eventually

IDLE, FAILED = pq.TransactionStatus.IDLE, pq.TransactionStatus.INERROR
CLOSED = "58000"


def server_sessions(wall: RunningWall) -> list[int]:
    """The server processes of the agents' sessions; the side connection of the wall is not among them."""
    with wall.database.connect() as direct:
        found = direct.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
            " AND application_name NOT LIKE 'sqlwall%%' ORDER BY backend_start",
            (APP,),
        ).fetchall()
    return [row[0] for row in found]


def terminate(wall: RunningWall, pid: int) -> None:
    """End one server process."""
    with wall.database.connect() as direct:
        assert direct.execute("SELECT pg_terminate_backend(%s)", (pid,)).fetchone() == (True,)


def backend_of(client: psycopg.Connection) -> int:
    """The process that serves a client, as the server numbers it."""
    row = client.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


# -- the server


def test_an_agent_whose_server_session_ends_is_told_and_the_others_go_on(writing_wall: RunningWall) -> None:
    with writing_wall.connect() as victim, writing_wall.connect() as other:
        other.execute("BEGIN")
        other.execute("INSERT INTO orders VALUES (1000, 1, 'x')")
        terminate(writing_wall, backend_of(victim))
        with pytest.raises(psycopg.OperationalError) as caught:
            victim.execute("SELECT 1")
        assert victim.closed
        assert caught.value.sqlstate in ("57P01", None)
        other.execute("COMMIT")
        assert other.execute("SELECT count(*) FROM orders").fetchone() == (101,)


def test_the_servers_last_words_reach_the_agent(wall: RunningWall) -> None:
    with RawClient(wall.dsn()) as client:
        found = client.query("SELECT pg_backend_pid()")
        value = rows(found)[0][0]
        assert value is not None
        terminate(wall, int(value))
        last = errors(client.drain(1))
        assert (last[0].severity, last[0].sqlstate) == ("FATAL", "57P01")
        assert client.is_closed


@pytest.mark.parametrize("way", ["simple", "extended", "gate"])
def test_a_server_that_dies_in_the_middle_of_a_statement_ends_the_session(
    open_wall: OpenWall, way: str
) -> None:
    wall = open_wall(waiving(*WAIVED, functions=("public.nap",)))
    with RawClient(wall.dsn()) as client:
        value = rows(client.query("SELECT pg_backend_pid()"))[0][0]
        assert value is not None
        if way == "gate":
            client.send(frontend.query(b"INSERT INTO slow_later VALUES (1)"))
        elif way == "simple":
            client.send(frontend.query(b"SELECT nap(20)"))
        else:
            client.send(run("SELECT nap(20)"), SYNC)
        time.sleep(0.4)
        terminate(wall, int(value))
        found = client.drain(2)
        assert [error.severity for error in errors(found)] == ["FATAL"]
        assert "Z" not in codes(found)
        assert client.is_closed
    with wall.connect() as other:
        assert other.execute("SELECT count(*) FROM slow_later").fetchone() == (0,)


def test_a_client_that_goes_away_before_its_answer_is_no_failure_of_ours(
    wall: RunningWall, caplog: pytest.LogCaptureFixture
) -> None:
    """The refusal is on the record first: by then there is nobody to tell."""
    for _ in range(20):
        login = psycopg.connect(wall.dsn())
        line = socket.socket(fileno=os.dup(login.fileno()))
        line.setblocking(True)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with Path(os.devnull).open("r+b", buffering=0) as nothing:
            os.dup2(nothing.fileno(), login.fileno())  # libpq says nothing more, and closes nothing
        login.close()
        line.sendall(frontend.query(b"DROP TABLE orders"))
        line.close()
    eventually(lambda: server_sessions(wall) == [])
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    assert [record["kind"] for record in wall.audit()].count("refusal") <= 20


def test_a_client_that_goes_away_leaves_nothing_running(open_wall: OpenWall) -> None:
    wall = open_wall(waiving(*WAIVED, functions=("public.nap",)))
    before = wall.state()
    scripts = (
        [frontend.query(b"SELECT nap(30)")],
        [frontend.query(b"BEGIN"), frontend.query(b"INSERT INTO orders VALUES (1000, 1, 'x')")],
        [run("INSERT INTO orders VALUES (1001, 1, 'x')"), FLUSH],
        [frontend.query(b"INSERT INTO slow_later VALUES (1)")],
        [frontend.query(b"COPY orders FROM STDIN"), frontend.copy_data(b"1002\t1\tx\n")],
        [frontend.query(b"SELECT repeat('x', 100000) FROM generate_series(1, 2000)")],
        [frontend.query(b"DROP TABLE orders")[:-4]],
    )
    for script in scripts:
        with RawClient(wall.dsn()) as client:
            client.send(*script)
            client.drain(0.1)
    for _ in range(60):
        if not server_sessions(wall):
            break
        time.sleep(0.1)
    assert server_sessions(wall) == []
    assert wall.state() == before


def test_a_server_that_is_away_is_told_in_one_line(wall: RunningWall) -> None:
    with wall.database.server.connect() as direct:
        name = sql.Identifier(wall.database.name)
        direct.execute(sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(name))
        try:
            with pytest.raises(psycopg.OperationalError) as caught:
                wall.connect()
            assert "not currently accepting connections" in str(caught.value) or "sqlwall" in str(
                caught.value
            )
        finally:
            direct.execute(sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true").format(name))
    wall.connect().close()


# -- the store


@contextmanager
def broken_store(wall: RunningWall) -> Iterator[None]:
    """The audit table is gone; then it is back."""
    with closing(sqlite3.connect(wall.store, timeout=10, isolation_level=None)) as store:
        store.execute("PRAGMA legacy_alter_table = ON")
        store.execute("ALTER TABLE sqlwall_audit RENAME TO away")
        try:
            yield
        finally:
            store.execute("ALTER TABLE away RENAME TO sqlwall_audit")


def until_closed(client: psycopg.Connection) -> None:
    """Until a read is refused: reads go on the record in batches."""
    for _ in range(100):
        try:
            client.execute("SELECT 1")
        except psycopg.Error as error:
            assert error.sqlstate == CLOSED
            return
        time.sleep(0.05)
    raise AssertionError("reads go on without a record")


def test_without_a_record_nothing_runs(writing_wall: RunningWall) -> None:
    before = writing_wall.state()
    with writing_wall.connect() as client, writing_wall.connect() as in_block:
        in_block.execute("BEGIN")
        in_block.execute("INSERT INTO orders VALUES (2000, 1, 'before')")
        with broken_store(writing_wall):
            endings: list[str] = []
            for text in (
                "INSERT INTO orders VALUES (1000, 1, 'x')",
                "INSERT INTO orders VALUES (1000, 1, 'x')",
                "UPDATE orders SET note = 'y' WHERE id = 1; SELECT 1",
            ):
                with pytest.raises(psycopg.errors.SystemError) as caught:
                    client.execute(text.encode())
                assert caught.value.diag.constraint_name == "closed"
                endings.append((caught.value.diag.message_primary or "").split(". ")[1])
                assert client.info.transaction_status == IDLE
            with pytest.raises(psycopg.errors.SystemError):
                client.execute("INSERT INTO orders VALUES (%s, 1, 'x')", (1001,))
            # The record of the first one was on its way when it ran; from then on nothing runs.
            assert endings == ["The transaction was rolled back", *["Nothing was executed"] * 2]
            until_closed(client)
            with pytest.raises(psycopg.errors.SystemError):
                in_block.execute("COMMIT")
            assert in_block.info.transaction_status in (IDLE, FAILED)
            in_block.execute("ROLLBACK")  # an end that undoes all needs no record
            assert in_block.info.transaction_status == IDLE
            assert writing_wall.problems()
        for _ in range(100):
            try:
                client.execute("INSERT INTO orders VALUES (3000, 1, 'after')")
                break
            except psycopg.errors.SystemError:
                time.sleep(0.05)
        after = writing_wall.state()
        assert [row for row in after["public.orders"] if row not in before["public.orders"]] == [
            ("(3000,1,after)",)
        ]
    assert not writing_wall.problems()


def test_what_ran_before_the_store_failed_is_on_the_record_when_it_is_back(wall: RunningWall) -> None:
    """The reads of a session that is over by then, and its end."""
    with wall.connect() as client, broken_store(wall):
        client.execute("SELECT 'told', count(*) FROM orders")
        until_closed(client)
        client.close()
        eventually(lambda: server_sessions(wall) == [])
    eventually(lambda: not wall.problems())

    def records() -> list[tuple[str, str | None]]:
        return [(record["kind"], record["statement"]) for record in wall.audit()]

    eventually(lambda: ("logout", None) in records())
    assert ("statement", "SELECT 'told', count(*) FROM orders") in records()


def test_a_commit_that_cannot_be_recorded_is_rolled_back_in_a_pipeline(writing_wall: RunningWall) -> None:
    with RawClient(writing_wall.dsn()) as client:
        client.query("BEGIN")
        client.query("INSERT INTO orders VALUES (1000, 1, 'x')")
        with broken_store(writing_wall):
            found = client.ask(run("COMMIT"), SYNC)
            assert states(found) == [CLOSED]
            assert status(found) in "IE"
        client.query("ROLLBACK")
    assert not [row for row in writing_wall.state()["public.orders"] if row[0].startswith("(1000,")]


def test_nobody_logs_in_without_a_store(wall: RunningWall) -> None:
    with closing(sqlite3.connect(wall.store, timeout=10, isolation_level=None)) as store:
        store.execute("PRAGMA legacy_alter_table = ON")
        store.execute("ALTER TABLE sqlwall_agents RENAME TO away")
        try:
            with pytest.raises(psycopg.OperationalError) as caught:
                wall.connect()
            assert "Traceback" not in str(caught.value)
        finally:
            store.execute("ALTER TABLE away RENAME TO sqlwall_agents")
    wall.connect().close()


# -- the agent


def test_a_revoked_agent_is_out(wall: RunningWall) -> None:
    password = wall.add_agent("other")
    with wall.connect() as staying, psycopg.connect(wall.dsn("other", password), autocommit=True) as leaving:
        leaving.execute("SELECT 1")
        wall.revoke("other")
        with pytest.raises(psycopg.OperationalError, match="has been revoked"):
            for _ in range(60):
                leaving.execute("SELECT 1")
                time.sleep(0.1)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(wall.dsn("other", password))
        assert staying.execute("SELECT 1").fetchone() == (1,)


def test_a_wrong_password_and_an_unknown_agent_are_told_alike(wall: RunningWall) -> None:
    seen = []
    for name, password in (("bot", "wrong"), ("nobody", "wrong")):
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(wall.dsn(name, password))
        seen.append(str(caught.value).replace(name, "?"))
    assert seen[0] == seen[1]


# -- the end


def test_a_wall_that_drains_lets_open_transactions_end(open_wall: OpenWall) -> None:
    wall = open_wall(waiving(*WAIVED))
    with wall.connect() as idle, wall.connect() as busy:
        idle.execute("SELECT 1")
        busy.execute("BEGIN")
        busy.execute("INSERT INTO orders VALUES (1000, 1, 'x')")
        ended = threading.Event()

        def drain() -> None:
            wall.run(wall.wall.worker.drain(10))
            ended.set()

        thread = threading.Thread(target=drain)
        thread.start()
        try:
            time.sleep(0.5)
            with pytest.raises(psycopg.errors.AdminShutdown):
                idle.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError):
                wall.connect()
            assert not ended.is_set()
            busy.execute("COMMIT")
            assert ended.wait(5)
        finally:
            thread.join()
        with pytest.raises(psycopg.OperationalError):
            busy.execute("SELECT 1")
    with wall.database.connect() as direct:
        assert direct.execute("SELECT count(*) FROM orders").fetchone() == (101,)


def test_a_wall_that_stops_rolls_back_what_is_open(open_wall: OpenWall) -> None:
    wall = open_wall(waiving(*WAIVED))
    with wall.connect() as client:
        client.execute("BEGIN")
        client.execute("INSERT INTO orders VALUES (1000, 1, 'x')")
        wall.run(wall.wall.worker.stop())
        with pytest.raises(psycopg.OperationalError):
            client.execute("COMMIT")
    with wall.database.connect() as direct:
        assert direct.execute("SELECT count(*) FROM orders").fetchone() == (100,)


@pytest.mark.parametrize("ruleset", ["agent-safe", "observe"])
def test_a_client_that_is_gone_before_its_login_ends_leaves_nothing(
    open_wall: OpenWall, ruleset: str
) -> None:
    wall = open_wall(ruleset)
    wall.connect().close()
    for number in range(60):
        reset_in_login(wall.dsn(), number / 2000)
    eventually(lambda: not server_sessions(wall))
    eventually(lambda: wall.run(open_sessions(wall)) == 0)


async def open_sessions(wall: RunningWall) -> int:
    return len(wall.wall.worker._connections)


def reset_in_login(dsn: str, seconds: float) -> None:
    """Begin a login, and break it off after so long."""
    pgconn = PGconn.connect_start(dsn.encode())
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and pgconn.connect_poll() in (PollingStatus.READING, PollingStatus.WRITING):
        select.select([pgconn.socket], [], [], max(0, min(0.001, ends - time.monotonic())))
    with socket.socket(fileno=os.dup(pgconn.socket)) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # The last descriptor of the socket closes it: libpq's own farewell would be another end.
    descriptor = pgconn.socket
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    pgconn.finish()


@pytest.mark.parametrize(
    "data",
    [
        b"X\0\0\0\4",
        b"\0\0\0\0",
        b"\0\0\0\7abc",
        b"GET / HTTP/1.0\r\n\r\n",
        struct.pack("!III", 12, 80877102, 1),
    ],
)
def test_what_is_no_startup_packet_gets_the_answer_that_the_server_gives(
    wall: RunningWall, data: bytes
) -> None:
    server = wall.database.server
    assert answered(wall.address, data) == answered((server.host, server.port), data) == b""


def answered(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as line:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        found = b""
        while part := line.recv(4096):
            found += part
    return found
