"""What the crash tests stand on: a server and a wall that can be killed and started again, writers that never stop, and
an oracle that needs neither of them.

Each transaction of a writer writes a token that no other ever wrote into the table `ledger`, by its own words or by a
trigger. So the tables tell which transactions committed, whatever the wall, the snapshots and the clients believe.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from sqlwall.cli.embedded import EmbeddedServer
from sqlwall.errors import SqlwallError
from sqlwall.store import agents
from sqlwall.store.database import open_store
from sqlwall.store.index import SnapshotState
from sqlwall.store.snapshots import Snapshots
from sqlwall.store.verify import verify as verify_audit
from tests.e2e.wall import APP, APP_PASSWORD
from tests.postgres import Database, embedded_server, system_binaries
from tests.proxy.test_supervisor import children, command_line, eventually, free_port, is_alive

Connection = psycopg.Connection[tuple[Any, ...]]
Bags = dict[str, Counter[bytes]]

#: Seconds in which a client must have an answer, or the end of its connection, whatever was killed.
PATIENCE = 20.0
OBSERVER, OBSERVER_PASSWORD = "sqlwall_test_observer", "observer"
TABLES = ("account", "child", "ledger", "parent")
#: Classes of SQLSTATE that say nothing of what became of a COMMIT: the line or the server was lost.
LOST = ("08", "57")

SCHEMA = f"""
CREATE TABLE ledger (token text PRIMARY KEY);
CREATE TABLE account (id int PRIMARY KEY, token text, filler text DEFAULT repeat('x', 200));
CREATE TABLE parent (id int PRIMARY KEY, token text);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, token text);
CREATE FUNCTION enter() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO ledger VALUES (NEW.token); RETURN NULL; END $$;
CREATE TRIGGER enters AFTER UPDATE ON account FOR EACH ROW EXECUTE FUNCTION enter();
INSERT INTO account SELECT g, 'first ' || g FROM generate_series(0, 20) g;
INSERT INTO parent SELECT g, 'first ' || g FROM generate_series(0, 20) g;
INSERT INTO child SELECT g, g / 3, 'first ' || g FROM generate_series(0, 62) g;
CREATE ROLE {APP} LOGIN PASSWORD '{APP_PASSWORD}';
CREATE ROLE {OBSERVER} LOGIN BYPASSRLS PASSWORD '{OBSERVER_PASSWORD}';
GRANT pg_read_all_data TO {OBSERVER};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {APP};
"""


class Victim(Enum):
    """What is killed, and how."""

    WORKER = "a worker, SIGKILL"
    SUPERVISOR = "the supervisor, SIGKILL"
    SESSION = "an agent's session, pg_terminate_backend"
    OBSERVING = "an observer's session, pg_terminate_backend"
    BACKEND = "a backend, SIGKILL: the server ends all others and recovers"
    IMMEDIATE = "the server, immediate stop"
    POSTMASTER = "the postmaster, SIGKILL"


class Cluster:
    """A server that keeps its promises when it is killed: what was committed is there after."""

    def __init__(self, **others: str) -> None:
        # A lost process is not a lost machine: the kernel keeps what was written, so that fsync may stay off. A lazy
        # WAL writer leaves what no COMMIT has flushed to be lost.
        settings = {"synchronous_commit": "on", "wal_writer_delay": "10s"} | others
        reasons: list[str] = []
        for bin_dir in (None, system_binaries()):
            try:
                self._server = EmbeddedServer(bin_dir=bin_dir, settings=settings)
                self._server.start()
            except SqlwallError as error:
                reasons.append(str(error))
            else:
                return
        pytest.skip("no PostgreSQL of our own to kill: " + "; ".join(reasons))

    @property
    def database(self) -> Database:
        """Its database, as other tests see it."""
        return Database(embedded_server(self._server), "postgres")

    def connect(self) -> Connection:
        """The superuser's session, once the server takes it."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return psycopg.connect(self.database.dsn(), autocommit=True, connect_timeout=5)
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.05)

    def log(self) -> str:
        return self.whole_log()[-8000:]

    def whole_log(self) -> str:
        return self._server.read_log()

    def end_session(self, role: str) -> None:
        """End one session of a role in the polite way."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
                " AND backend_type = 'client backend' ORDER BY random() LIMIT 1",
                (role,),
            )

    def kill_backend(self, role: str) -> None:
        """Kill one session of a role: the postmaster then ends every other and recovers from the log."""
        with self.connect() as connection:
            found = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE usename = %s AND backend_type = 'client backend'"
                " ORDER BY random() LIMIT 1",
                (role,),
            ).fetchone()
        if found is not None:
            with suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGKILL)

    def kill(self, number: signal.Signals) -> None:
        """Stop the server without its leave (SIGQUIT or SIGKILL), and start it again."""
        server = self._server
        process = server._process
        assert process is not None
        started = children(process.pid)
        process.send_signal(number)
        process.wait(60)
        eventually(lambda: not any(is_alive(pid) for pid in started), 60)
        deadline = time.monotonic() + 60
        while True:
            server._launch()
            if server._await_readiness():
                return
            assert time.monotonic() < deadline, self.log()

    def stop(self) -> None:
        self._server.stop()


class Serve:
    """``sqlwall serve`` with several workers, which can be killed and started again on the same port."""

    def __init__(self, cluster: Cluster, folder: Path, settings: Mapping[str, str], workers: int = 2) -> None:
        self.count = workers
        self._folder = folder
        self.store_file = folder / "store.db"
        self._store = f"sqlite:///{self.store_file}"
        self.port = free_port()
        self.engine = open_store(self._store)
        self.snapshots = Snapshots(self.engine, str(folder / "snapshots"))
        password = agents.add_agent(self.engine, "bot")
        self.dsn = f"postgresql://bot:{password}@127.0.0.1:{self.port}/postgres"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SQLWALL_", "PG"))}
        self._environment = {
            **kept,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SQLWALL_UPSTREAM": cluster.database.dsn(APP, APP_PASSWORD),
            "SQLWALL_OBSERVER": cluster.database.dsn(OBSERVER, OBSERVER_PASSWORD),
            "SQLWALL_SNAPSHOTS": str(folder / "snapshots"),
            "SQLWALL_STORE": self._store,
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def start(self) -> None:
        """Start it; returns when agents may connect."""
        began = self.log().count("agents connect to") if self._process else 0
        with (self._folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "sqlwall", "serve", f"--workers={self.count}",
                 f"--listen=127.0.0.1:{self.port}", f"--metrics=127.0.0.1:{free_port()}"],
                cwd=self._folder, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        eventually(lambda: self.log().count("agents connect to") > began or process.poll() is not None, 40)
        assert process.poll() is None, self.log()[-8000:]

    def tell(self, number: signal.Signals) -> None:
        """Tell the supervisor."""
        assert self._process is not None
        self._process.send_signal(number)

    def workers(self) -> list[int]:
        assert self._process is not None
        return [pid for pid in children(self._process.pid) if "spawn_main" in command_line(pid)]

    def kill_worker(self, chance: random.Random) -> None:
        """Kill one, if the supervisor has any just now."""
        running = self.workers()
        if running:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(running), signal.SIGKILL)

    def restart(self, number: signal.Signals) -> None:
        """End the supervisor by a signal, wait for its workers to end by themselves, and start anew."""
        self.stop(number)
        self.start()

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        running = self.workers()
        process.send_signal(number)
        process.wait(60)
        eventually(lambda: not any(is_alive(pid) for pid in running), 30)


class Answer(Enum):
    """What a writer was told of a transaction."""

    COMMITTED = "committed"
    REFUSED = "refused"
    LOST = "lost"


@dataclass(slots=True)
class Writer:
    """An agent that writes one transaction after the other, connecting anew whenever it has lost its session."""

    number: int
    dsn: str
    stop: threading.Event
    answers: dict[str, Answer] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    commits: int = 0
    waits_since: float | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"writer {self.number}", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Whether it has ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        tokens = (f"{self.number}-{number}" for number in itertools.count())
        scripts = itertools.cycle((self._update, self._block, self._pipeline, self._family, self._shared))
        try:
            while not self.stop.is_set():
                connection = self._connect()
                if connection is None:
                    self.stop.wait(0.05)
                    continue
                with suppress(psycopg.Error), connection:
                    while not self.stop.is_set() and not connection.closed:
                        self._write(connection, next(scripts), next(tokens))
        except BaseException as error:
            self.errors.append(f"writer {self.number}: {error!r}")
            raise

    def _connect(self) -> Connection | None:
        self.waits_since = time.monotonic()
        try:
            return psycopg.connect(self.dsn, autocommit=True, connect_timeout=int(PATIENCE))
        except psycopg.errors.ConnectionTimeout as error:
            self.errors.append(f"writer {self.number}: connecting: {error}")
        except psycopg.OperationalError:
            return None
        finally:
            self.waits_since = None
        return None

    def _write(self, connection: Connection, script: Callable[[Connection, str], None], token: str) -> None:
        self.answers[token] = Answer.LOST
        self.waits_since = time.monotonic()
        try:
            script(connection, token)
        except psycopg.Error as error:
            state = error.sqlstate
            if state is not None and not state.startswith(LOST):
                self.answers[token] = Answer.REFUSED
                self.errors.extend([f"{token}: {error}"] if not state.startswith("58") else [])
            if not connection.closed:
                connection.rollback()
        else:
            self.answers[token] = Answer.COMMITTED
            self.commits += 1
        finally:
            self.waits_since = None

    # -- the transactions

    def _update(self, connection: Connection, token: str) -> None:
        """A Query outside a block; a trigger writes the ledger."""
        with psycopg.ClientCursor(connection) as cursor:
            cursor.execute("UPDATE account SET token = %s WHERE id = %s", (token, self.number))

    def _block(self, connection: Connection, token: str) -> None:
        with connection.transaction():
            connection.execute("UPDATE parent SET token = %s WHERE id = %s", (token, self.number))
            connection.execute("INSERT INTO ledger VALUES (%s)", (token,))

    def _pipeline(self, connection: Connection, token: str) -> None:
        with connection.pipeline(), connection.transaction():
            connection.execute("INSERT INTO ledger VALUES (%s)", (token,))
            connection.execute("UPDATE child SET token = %s WHERE parent = %s", (token, self.number))

    def _family(self, connection: Connection, token: str) -> None:
        """A cascade, and the same keys again."""
        with connection.transaction():
            connection.execute("DELETE FROM parent WHERE id = %s", (self.number,))
            connection.execute("INSERT INTO parent VALUES (%s, %s)", (self.number, token))
            first = 3 * self.number
            connection.execute(
                "INSERT INTO child SELECT g, %s, %s FROM generate_series(%s::int, %s::int) g",
                (self.number, token, first, first + 2),
            )
            connection.execute("INSERT INTO ledger VALUES (%s)", (token,))

    def _shared(self, connection: Connection, token: str) -> None:
        """A row that all writers want, and the extended protocol outside a block."""
        connection.execute("UPDATE account SET token = %s WHERE id = 0", (token,))


class Scene:
    """A server, a wall and writers; `findings` says what promise they broke."""

    def __init__(self, cluster: Cluster, serve: Serve, writers: int) -> None:
        self.cluster = cluster
        self.serve = serve
        self._stop = threading.Event()
        self.writers = [Writer(number, serve.dsn, self._stop) for number in range(1, writers + 1)]
        self.before = self.bags()

    def bags(self) -> Bags:
        """Every row of every table, as COPY text."""
        found: Bags = {}
        with self.cluster.connect() as connection:
            for name in TABLES:
                query = sql.SQL("COPY public.{} TO STDOUT").format(sql.Identifier(name))
                with connection.cursor() as cursor, cursor.copy(query) as copy:
                    found[name] = Counter(bytes(line) for line in copy)
        return found

    def start_writers(self) -> None:
        for writer in self.writers:
            writer.start()

    def stop_writers(self) -> list[str]:
        """Let each end its transaction; those that hang."""
        self._stop.set()
        return [f"writer {writer.number} hangs" for writer in self.writers if not writer.join(PATIENCE)]

    def await_progress(self) -> None:
        """Wait until each writer has committed once more."""
        before = [writer.commits for writer in self.writers]
        deadline = time.monotonic() + 2 * PATIENCE
        while any(writer.commits == count for writer, count in zip(self.writers, before, strict=True)):
            now = time.monotonic()
            waiting = [now - since for writer in self.writers if (since := writer.waits_since) is not None]
            assert max(waiting, default=0) < PATIENCE, "a client's session hangs\n" + self.serve.log()[-8000:]
            problems = [error for writer in self.writers for error in writer.errors]
            assert not problems, problems
            assert now < deadline, "writers get nowhere\n" + self.serve.log()[-8000:]
            time.sleep(0.01)

    def strike(self, victim: Victim, chance: random.Random) -> None:
        """Kill, and put back what does not come back by itself."""
        if victim is Victim.WORKER:
            self.serve.kill_worker(chance)
        elif victim is Victim.SUPERVISOR:
            self.serve.restart(signal.SIGKILL)
        elif victim is Victim.SESSION:
            self.cluster.end_session(APP)
        elif victim is Victim.OBSERVING:
            self.cluster.end_session(OBSERVER)
        elif victim is Victim.BACKEND:
            self.cluster.kill_backend(chance.choice((APP, OBSERVER)))
        elif victim is Victim.IMMEDIATE:
            self.cluster.kill(signal.SIGQUIT)
        else:
            self.cluster.kill(signal.SIGKILL)

    def settle(self) -> list[str]:
        """Start the wall anew and give it time to find out what became of every transaction."""
        self.serve.restart(signal.SIGTERM)
        deadline = time.monotonic() + 15
        while left := self.serve.snapshots.unsettled():
            if time.monotonic() > deadline:
                return [
                    f"snapshot {record.id} of transaction {record.xid} is never settled" for record in left
                ]
            time.sleep(0.05)
        return []

    def summary(self) -> str:
        """What there was to look at."""
        records = self.serve.snapshots.list()
        states = Counter(record.state.value for record in records)
        answers = Counter(answer.value for writer in self.writers for answer in writer.answers.values())
        return f"answers: {dict(answers)}, snapshots: {dict(states)}"

    # -- the oracle

    def findings(self) -> list[str]:
        """What is wrong with snapshots, tables and answers, in words."""
        now = self.bags()
        committed = {line.decode().rstrip("\n") for line in now["ledger"]}
        return [
            *self._wrong_answers(committed),
            *self._wrong_snapshots(committed),
            *self._wrong_images(now),
            *(str(fault) for fault in verify_audit(self.serve.engine).faults),
            *(f"logged: {text[:3000]}" for text in self.serve.log().split("Traceback")[1:]),
        ]

    def _wrong_answers(self, committed: set[str]) -> Iterator[str]:
        for writer in self.writers:
            for token, answer in writer.answers.items():
                if answer is Answer.COMMITTED and token not in committed:
                    yield f"{token}: its client was told that it committed, and it did not"
                if answer is Answer.REFUSED and token in committed:
                    yield f"{token}: its client was told that it failed, and it committed"

    def _wrong_snapshots(self, committed: set[str]) -> Iterator[str]:
        covered: set[str] = set()
        for record in self.serve.snapshots.list():
            yield from (f"snapshot {record.id}: {what}" for what in self.serve.snapshots.verify(record.id))
            reader = self.serve.snapshots.open(record.id)
            tokens = [
                line.decode().rstrip("\n")
                for change in reader.manifest.changes
                if change.name == "ledger"
                for line in reader.lines(change.after)
            ]
            if len(tokens) != 1:
                yield f"snapshot {record.id} is of {len(tokens)} transactions"
                continue
            expected = SnapshotState.COMMITTED if tokens[0] in committed else SnapshotState.ABORTED
            if record.state is not expected:
                yield (
                    f"snapshot {record.id} of {tokens[0]}, transaction {record.xid}: the index says"
                    f" {record.state.value}, the table {expected.value}, pg_xact_status {self._status(record.xid)}"
                )
            covered.update(tokens)
        yield from (f"{token} committed without a snapshot" for token in sorted(committed - covered))

    def _status(self, xid: str) -> str:
        with self.cluster.connect() as connection:
            try:
                row = connection.execute("SELECT pg_xact_status(%s::text::xid8)", (xid,)).fetchone()
            except psycopg.Error as error:
                return str(error)
        return str(row[0]) if row is not None else ""

    def _wrong_images(self, now: Bags) -> Iterator[str]:
        """Tokens never repeat: so the sums agree only if each image is one that the table really held."""
        sums: dict[str, Counter[bytes]] = {name: Counter(bag) for name, bag in self.before.items()}
        for record in self.serve.snapshots.list(state=SnapshotState.COMMITTED):
            reader = self.serve.snapshots.open(record.id)
            for change in reader.manifest.changes:
                sums[change.name].subtract(Counter(reader.lines(change.before)))
                sums[change.name].update(Counter(reader.lines(change.after)))
        for name, bag in sums.items():
            bag.subtract(now[name])
            for line, count in bag.items():
                if count:
                    yield f"{name}: {line!r} is {count:+} times in the snapshots against the table"


@contextmanager
def mortal_cluster(**settings: str) -> Iterator[Cluster]:
    """A server with the tables, ended in any case."""
    cluster = Cluster(**settings)
    try:
        with cluster.connect() as connection:
            connection.execute(SCHEMA.encode())
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def scene(cluster: Cluster, folder: Path, *, writers: int = 3, **settings: str) -> Iterator[Scene]:
    """A wall and writers before a server, ended in any case."""
    serve = Serve(cluster, folder, settings)
    try:
        serve.start()
        found = Scene(cluster, serve, writers)
        try:
            yield found
        finally:
            found.stop_writers()
    finally:
        serve.stop()
        serve.engine.dispose()
