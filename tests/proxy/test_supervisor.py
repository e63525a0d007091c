"""``sqlwall serve`` as a person runs it: two worker processes, signals, and what becomes of sessions."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sqlwall.store import agents
from sqlwall.store.chain import AuditKind
from sqlwall.store.database import open_store
from sqlwall.store.verify import tail
from tests.postgres import Database, Server, fresh_database

Connection = psycopg.Connection[tuple[Any, ...]]

RULES = """
version: 1
name: own
mode: enforce
rules:
  - {id: reads, operations: [select, show, explain, transaction], action: allow}
  - {id: naps, operations: [function], functions: [pg_catalog.pg_sleep, pg_sleep], action: allow}
  - {id: writes, operations: [insert], tables: [public.t], action: allow, snapshot: none}
"""
STRICTER = RULES + "  - {id: no-t, operations: [select], tables: [public.t], action: deny}\n"


@dataclass(slots=True)
class Serving:
    """A running ``sqlwall serve``."""

    process: subprocess.Popen[bytes]
    dsn: str
    console: str
    ruleset: Path
    log_file: Path
    store: str

    def connect(self) -> Connection:
        """An agent's session in autocommit mode."""
        return psycopg.connect(self.dsn, autocommit=True, connect_timeout=10)

    def log(self) -> str:
        """What it has logged so far."""
        return self.log_file.read_text()

    def read(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the console."""
        try:
            with urllib.request.urlopen(self.console + path, timeout=10) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name with these labels."""
        _, text = self.read("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def workers(self) -> list[int]:
        """The process ids of the workers that run."""
        return [pid for pid in children(self.process.pid) if "spawn_main" in command_line(pid)]

    def reload(self, outcome: str) -> None:
        """Send SIGHUP and wait until the log says what came of it."""
        before = self.log().count(outcome)
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.log().count(outcome) > before)


def children(pid: int) -> list[int]:
    """The processes that a process has started, as the kernel knows them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if int(parent) == pid and state != "Z":
            found.append(int(file.parent.name))
    return sorted(found)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serve(database: Database, folder: Path, **settings: str) -> Iterator[Serving]:
    """Two workers before a database; ended in any case."""
    store, ruleset, log_file = folder / "store.db", folder / "own.yaml", folder / "log"
    url = f"sqlite:///{store}"
    engine = open_store(url)
    try:
        password = agents.add_agent(engine, "bot")
    finally:
        engine.dispose()
    ruleset.write_text(RULES)
    (folder / "sqlwall.yaml").write_text(f"ruleset: {{path: {ruleset}}}\n")
    database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    port, console = free_port(), free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SQLWALL_", "PG"))
    }
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SQLWALL_UPSTREAM": database.dsn(),
        "SQLWALL_STORE": url,
        "SQLWALL_TIMEOUTS_DRAIN": "20s",
        **settings,
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "sqlwall", "serve", "--workers=2",
                f"--listen=127.0.0.1:{port}", f"--metrics=127.0.0.1:{console}",
            ],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    serving = Serving(
        process,
        f"postgresql://bot:{password}@127.0.0.1:{port}/{database.name}",
        f"http://127.0.0.1:{console}",
        ruleset,
        log_file,
        url,
    )
    workers: list[int] = []
    try:
        eventually(lambda: "agents connect to" in serving.log() or process.poll() is not None, 40)
        assert process.poll() is None, serving.log()
        workers = serving.workers()
        yield serving
        assert "Traceback" not in serving.log(), serving.log()
    finally:
        process.kill()
        process.wait(10)
        eventually(lambda: not any(is_alive(pid) for pid in workers), 30)


@pytest.fixture(scope="module")
def lasting(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for all tests that leave it running."""
    with (
        fresh_database(postgres) as database,
        serve(database, tmp_path_factory.mktemp("lasting")) as found,
    ):
        yield found


@pytest.fixture
def serving(lasting: Serving) -> Serving:
    """The same, under the ruleset that it began with."""
    if not lasting.ruleset.exists() or lasting.ruleset.read_text() != RULES:
        lasting.ruleset.write_text(RULES)
        lasting.reload("reloaded")
    eventually(lambda: lasting.metric("sqlwall_sessions") == 0 and lasting.metric("sqlwall_ready") == 1)
    return lasting


@pytest.fixture
def ending(database: Database, tmp_path: Path) -> Iterator[Serving]:
    """One for a test that ends it."""
    with serve(database, tmp_path) as found:
        yield found


def one(connection: Connection, text: str = "SELECT count(*) FROM t") -> Any:
    row = connection.execute(text.encode()).fetchone()
    assert row is not None
    return row[0]


def spread(serving: Serving) -> dict[int, list[Connection]]:
    """Sessions on both workers, by the worker's process id: the kernel decides who gets which."""
    found: dict[int, list[Connection]] = {}
    for _ in range(40):
        connection = serving.connect()
        found.setdefault(owner(serving, connection), []).append(connection)
        if len(found) == 2 and all(len(several) >= 2 for several in found.values()):
            return found
    raise AssertionError("all connections went to one worker")


def owner(serving: Serving, connection: Connection) -> int:
    """The worker that holds the other end of a session's socket."""
    ours = socket.socket(fileno=os.dup(connection.fileno()))
    try:
        local = ours.getsockname()[1]
    finally:
        ours.close()
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[2].split(":")[1], 16) == local
    }
    for pid in serving.workers():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(link.readlink())
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:[") and target[8:-1] in inodes:
                return pid
    raise AssertionError("no worker holds the session")


def close(sessions: dict[int, list[Connection]]) -> None:
    for several in sessions.values():
        for connection in several:
            connection.close()


def test_two_workers_serve_and_the_console_sums_them_up(serving: Serving) -> None:
    assert len(serving.workers()) == 2
    denied = serving.metric("sqlwall_statements_total", operation="delete", action="deny")
    sessions = spread(serving)
    count = sum(len(several) for several in sessions.values())
    for several in sessions.values():
        for connection in several:
            assert one(connection) == 1
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM t")
    assert serving.metric("sqlwall_workers") == 2
    assert serving.metric("sqlwall_sessions", agent="bot") == count
    assert serving.metric("sqlwall_statements_total", operation="delete", action="deny") == denied + count
    assert serving.read("/healthz")[0] == 200
    status, body = serving.read("/readyz")
    assert (status, json.loads(body)["problems"]) == (200, [])
    close(sessions)
    eventually(lambda: serving.metric("sqlwall_sessions", agent="bot") == 0)


def test_a_reload_binds_open_sessions_and_a_bad_one_changes_nothing(serving: Serving) -> None:
    sessions = spread(serving)
    everyone = [connection for several in sessions.values() for connection in several]
    assert [one(connection) for connection in everyone] == [1] * len(everyone)
    serving.ruleset.write_text(STRICTER)
    serving.reload("reloaded")
    for connection in everyone:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-t"):
            one(connection)
    assert serving.metric("sqlwall_last_reload_successful") == 1
    for bad in ("version: 1\nname: own\nruels: []\n", ""):
        serving.ruleset.write_text(bad)
        serving.reload("reload refused")
        assert serving.metric("sqlwall_last_reload_successful") == 0
    serving.ruleset.unlink()
    serving.reload("reload refused")
    for connection in everyone:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-t"):
            one(connection)
    with serving.connect() as late, pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-t"):
        one(late)
    serving.ruleset.write_text(RULES)
    serving.reload("reloaded")
    assert [one(connection) for connection in everyone] == [1] * len(everyone)
    assert serving.metric("sqlwall_last_reload_successful") == 1
    close(sessions)


def test_a_reload_that_one_worker_cannot_take_over_no_worker_takes_over(
    serving: Serving, tmp_path: Path
) -> None:
    """The second agent's ruleset is known only to the worker that serves it, and has been broken since."""
    other = tmp_path / "other.yaml"
    other.write_text(RULES)
    engine = open_store(serving.store)
    try:
        password = agents.add_agent(engine, "second", ruleset=str(other))
    finally:
        engine.dispose()
    parameters = psycopg.conninfo.conninfo_to_dict(serving.dsn) | {"user": "second", "password": password}
    sessions = spread(serving)
    with psycopg.connect(**parameters, autocommit=True) as second:  # type: ignore[arg-type]
        other.write_text("broken: true")
        serving.ruleset.write_text(STRICTER)
        serving.reload("reload refused")
        everyone = [second, *(connection for several in sessions.values() for connection in several)]
        assert [one(connection) for connection in everyone] == [1] * len(everyone)
        other.write_text(RULES)
        serving.reload("reloaded")
        assert one(second) == 1
        for connection in everyone[1:]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-t"):
                one(connection)
    close(sessions)


def test_a_reload_that_names_another_ruleset_binds_open_sessions_at_once(serving: Serving) -> None:
    config = serving.ruleset.with_name("sqlwall.yaml")
    before = config.read_text()
    stricter = serving.ruleset.with_name("stricter.yaml")
    stricter.write_text(STRICTER)
    sessions = spread(serving)
    try:
        config.write_text(f"ruleset: {{path: {stricter}}}\n")
        serving.ruleset.unlink()  # nobody needs it any more
        serving.reload("reloaded")
        for several in sessions.values():
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-t"):
                one(several[0])
    finally:
        serving.ruleset.write_text(RULES)
        config.write_text(before)
        serving.reload("reloaded")
    assert all(one(connection) == 1 for several in sessions.values() for connection in several)
    close(sessions)


def test_a_reload_is_on_the_record(serving: Serving) -> None:
    def recorded() -> list[str]:
        engine = open_store(serving.store, read_only=True)
        try:
            records = tail(engine, 1000)
            return [record["outcome"] for record in records if record["kind"] == AuditKind.RELOAD.value]
        finally:
            engine.dispose()

    def since() -> tuple[int, int]:
        found = recorded()
        return found.count("success") - before.count("success"), found.count("failure") - before.count(
            "failure"
        )

    time.sleep(0.3)  # what came before this test is being written still
    before = recorded()
    serving.reload("reloaded")
    serving.ruleset.write_text("broken: true")
    serving.reload("reload refused")
    with contextlib.suppress(AssertionError):
        eventually(lambda: since() == (2, 2), 5)
    assert since() == (2, 2)


def test_many_reloads_at_once_come_to_the_last(serving: Serving) -> None:
    for number in range(6):
        serving.ruleset.write_text(STRICTER if number % 2 else RULES)
        serving.process.send_signal(signal.SIGHUP)
    with serving.connect() as connection:
        serving.reload("reloaded")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-t"):
            one(connection)


def test_a_worker_that_is_killed_takes_only_its_own_sessions_and_comes_back(serving: Serving) -> None:
    sessions = spread(serving)
    victim, other = sessions
    counted = serving.metric("sqlwall_sessions_started_total", agent="bot")
    restarts = serving.metric("sqlwall_worker_restarts")
    os.kill(victim, signal.SIGKILL)
    for connection in sessions[other]:
        assert one(connection) == 1
    for connection in sessions[victim]:
        with pytest.raises(psycopg.OperationalError):
            one(connection)
    eventually(lambda: len(serving.workers()) == 2 and serving.metric("sqlwall_ready") == 1)
    assert victim not in serving.workers()
    assert serving.metric("sqlwall_worker_restarts") == restarts + 1
    assert serving.metric("sqlwall_sessions", agent="bot") == len(sessions[other])
    assert serving.metric("sqlwall_sessions_started_total", agent="bot") == counted, "counters never fall"
    assert all(one(connection) == 1 for connection in sessions[other])
    again = spread(serving)
    close(again)
    close(sessions)


def test_a_worker_that_comes_back_uses_what_was_reloaded(serving: Serving) -> None:
    serving.ruleset.write_text(STRICTER)
    serving.reload("reloaded")
    (victim, _) = serving.workers()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in serving.workers() and len(serving.workers()) == 2)
    eventually(lambda: serving.metric("sqlwall_ready") == 1)
    sessions = spread(serving)
    for several in sessions.values():
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-t"):
            one(several[0])
    close(sessions)


def test_a_cancel_reaches_the_session_whichever_worker_gets_it(serving: Serving) -> None:
    with serving.connect() as connection:
        for _ in range(6):  # the chance that none goes to the other worker is one in 64
            failures: list[psycopg.Error] = []

            def nap(found: list[psycopg.Error] = failures) -> None:
                try:
                    connection.execute("SELECT pg_sleep(20)")
                except psycopg.Error as error:
                    found.append(error)

            sleeper = threading.Thread(target=nap)
            started = time.monotonic()
            sleeper.start()
            time.sleep(0.2)
            connection.cancel_safe(timeout=5)
            sleeper.join(10)
            assert time.monotonic() - started < 10
            assert isinstance(failures[0], psycopg.errors.QueryCanceled)
        assert one(connection) == 1


def test_a_stop_lets_an_open_transaction_finish_and_ends_idle_sessions(
    ending: Serving, database: Database
) -> None:
    with ending.connect() as idle, ending.connect() as busy:
        assert one(idle) == 1
        busy.execute("BEGIN")
        busy.execute("INSERT INTO t VALUES (2)")
        ending.process.send_signal(signal.SIGTERM)
        with pytest.raises(psycopg.OperationalError) as ended:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                one(idle)
                time.sleep(0.1)
        assert ended.value.sqlstate in ("57P01", None)
        with pytest.raises(psycopg.OperationalError):
            ending.connect()
        assert one(busy) == 2
        assert ending.process.poll() is None
        busy.execute("COMMIT")
    assert ending.process.wait(15) == 0
    with database.connect() as connection:
        assert one(connection) == 2


def test_a_stop_cuts_what_does_not_end_in_time(database: Database, tmp_path: Path) -> None:
    with serve(database, tmp_path, SQLWALL_TIMEOUTS_DRAIN="1s") as serving, serving.connect() as busy:
        busy.execute("BEGIN")
        busy.execute("INSERT INTO t VALUES (3)")
        started = time.monotonic()
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.wait(15) == 0
        assert time.monotonic() - started < 8
        with pytest.raises(psycopg.OperationalError):
            busy.execute("COMMIT")
    with database.connect() as connection:
        assert one(connection) == 1


def test_a_second_signal_waits_for_nobody(ending: Serving) -> None:
    with ending.connect() as busy:
        busy.execute("BEGIN")
        busy.execute("INSERT INTO t VALUES (4)")
        ending.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert ending.process.poll() is None
        ending.process.send_signal(signal.SIGINT)
        assert ending.process.wait(8) == 0
        with pytest.raises(psycopg.OperationalError):
            busy.execute("COMMIT")


def test_workers_without_a_supervisor_end(ending: Serving) -> None:
    workers = ending.workers()
    sessions = spread(ending)
    ending.process.kill()
    ending.process.wait(10)
    eventually(lambda: not any(is_alive(pid) for pid in workers), 15)
    for several in sessions.values():
        for connection in several:
            with pytest.raises(psycopg.OperationalError):
                one(connection)


def test_a_worker_that_cannot_start_waits_longer_each_time_says_so_and_comes_back_with_a_reload(
    ending: Serving,
) -> None:
    ending.ruleset.write_text("broken: true")
    victim = ending.workers()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: "tried 3 times" in ending.read("/readyz")[1], 40)
    status, body = ending.read("/readyz")
    assert status == 503
    (problem,) = [text for text in json.loads(body)["problems"] if "tried" in text]
    assert problem.startswith("worker ")
    assert str(ending.ruleset) not in body
    assert ending.metric("sqlwall_workers_failing") == 1
    assert ending.metric("sqlwall_workers") == 1
    tries = ending.log().count("cannot start")
    ending.ruleset.write_text(RULES)
    ending.reload("reloaded")
    eventually(lambda: ending.metric("sqlwall_workers") == 2 and ending.metric("sqlwall_ready") == 1)
    assert ending.metric("sqlwall_workers_failing") == 0
    assert ending.log().count("cannot start") <= tries + 1
    with ending.connect() as connection:
        assert one(connection) == 1


def test_workers_may_open_as_many_files_as_the_system_lets_them(serving: Serving) -> None:
    for pid in serving.workers():
        (line,) = [
            line
            for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
            if line.startswith("Max open files")
        ]
        soft, hard = line.split()[3:5]
        assert soft == hard
