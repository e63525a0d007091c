"""What strikes a wall under load, and the oracle that says afterwards which promise it broke.

The oracle asks others than the wall: triggers and a sequence that no rollback turns back, the server's own log of
every text that it was given, the tables, and the clients' memory of what they were told.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from sqlwall.cli.rulesets import find_ruleset
from sqlwall.proxy.record import BETWEEN
from sqlwall.store.database import reading
from sqlwall.store.index import SnapshotState
from sqlwall.store.schema import AUDIT
from tests.e2e.wall import APP
from tests.promises.chaos_agents import Agent, Memory, Vandal
from tests.promises.chaos_drivers import Asyncpg, Driver, Pg8000, Psycopg
from tests.promises.crash import OBSERVER, Answer, Cluster, Scene, Serve
from tests.proxy.test_supervisor import eventually

#: Seconds before a worker's death in which a read that was answered may have missed the record: the clock's 0.1, the
#: audit log's 0.05, one commit of the store, and what a busy machine adds.
UNWRITTEN = 1.0
#: Seconds in which the sessions of clients that have gone are gone from the server.
GONE = 10.0

VAULT = f"""
CREATE SCHEMA vault;
CREATE SEQUENCE vault.touched;
CREATE TABLE vault.secrets (id int PRIMARY KEY, value text);
INSERT INTO vault.secrets VALUES (1, 'one'), (2, 'two');
CREATE FUNCTION vault.touch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$ BEGIN PERFORM nextval('vault.touched'); RETURN NULL; END $$;
CREATE TRIGGER touches BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON vault.secrets
    FOR EACH STATEMENT EXECUTE FUNCTION vault.touch();
CREATE FUNCTION vault.write_secret() RETURNS int LANGUAGE sql SECURITY DEFINER AS
    $$ SELECT nextval('vault.touched'); UPDATE vault.secrets SET value = 'gone' RETURNING 1 $$;
CREATE PROCEDURE vault.write_all() LANGUAGE sql SECURITY DEFINER AS
    $$ SELECT nextval('vault.touched'); UPDATE vault.secrets SET value = 'gone' $$;
CREATE FUNCTION vault.many() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$ BEGIN IF (SELECT count(*) FROM was) > 1 THEN PERFORM nextval('vault.touched'); END IF; RETURN NULL; END $$;
CREATE TRIGGER many_updated AFTER UPDATE ON account REFERENCING OLD TABLE AS was
    FOR EACH STATEMENT EXECUTE FUNCTION vault.many();
CREATE TRIGGER many_deleted AFTER DELETE ON account REFERENCING OLD TABLE AS was
    FOR EACH STATEMENT EXECUTE FUNCTION vault.many();
CREATE TABLE shifting (value int);
INSERT INTO shifting VALUES (1);
GRANT USAGE ON SCHEMA vault TO {APP};
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON vault.secrets TO {APP};
GRANT USAGE, UPDATE ON SEQUENCE vault.touched TO {APP};
GRANT SELECT ON shifting TO {APP};
ALTER ROLE {APP} SET log_min_duration_statement = 0;
"""
STRICT = "  - {id: not-now, operations: [select], tables: [public.shifting], action: deny}\n"

#: Holds the store's write lock for as many seconds as each line of its input says.
STALLER = """
import json, sqlite3, sys, time
store = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for line in sys.stdin:
    store.execute("BEGIN EXCLUSIVE")
    began = time.time()
    time.sleep(float(line))
    store.execute("ROLLBACK")
    print(json.dumps([began, time.time()]), flush=True)
"""
#: A line of the server's log that carries a text of an agent.
LOGGED = re.compile(
    rf" {APP}@\S+ LOG:  duration: [\d.]+ ms  (?:statement|(?:parse|bind|execute) [^:]*): (.*)"
)
TOKEN = re.compile(r"'t-\d+-\d+-'")


def texts_of(statements: Iterable[str | None]) -> set[str]:
    """All texts that stand in records; one of reads may hold several."""
    return {text for statement in statements if statement for text in statement.split(BETWEEN.decode())}


@dataclass(slots=True)
class Ruling:
    """A time in which all workers had one ruleset, by the monotonic clock."""

    is_strict: bool
    since: float
    until: float = float("inf")


@dataclass(slots=True)
class History:
    """What was done to the wall, and when."""

    strikes: Counter[str] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    rulings: list[Ruling] = field(default_factory=list)


class Chaos(Scene):
    """A wall under load and what strikes it."""

    def __init__(self, cluster: Cluster, serve: Serve, folder: Path, seed: str) -> None:
        self.cluster = cluster
        self.serve = serve
        self.history = History()
        self.before = self.bags()
        self._ruleset = folder / "own.yaml"
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._stalled_until = 0.0
        self.agents = make_agents(serve.dsn, seed, self._stop)
        self.writers = self.agents  # type: ignore[assignment]
        self.vault = self._vault()

    @property
    def memories(self) -> list[Memory]:
        return [agent.memory for agent in self.agents]

    # -- what happens to the wall

    def rage(self, seconds: float) -> None:
        """Strike at random for so long."""
        self.history.rulings.append(Ruling(is_strict=False, since=time.monotonic()))
        with staller(self.serve.store_file, self.history.stalls) as stall:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, self._chance.uniform(0.02, 0.5)))  # the blow falls anywhere
                self._strike_once(stall, left)

    def _strike_once(self, stall: Callable[[float], None], left: float) -> None:
        (name,) = self._chance.choices(("cancel", "kill", "stall", "reload"), (10, 3, 2, 2))
        if name == "cancel":
            driver = self._chance.choice(self.agents).driver
            if driver is not None:
                driver.cancel()
        elif name == "kill":
            if len(self.serve.workers()) < self.serve.count:
                return
            self.history.kills.append(time.time())
            self.serve.kill_worker(self._chance)
        elif name == "stall":
            # The last one is longer than the wall's patience with its store.
            (length,) = self._chance.choices((0.1, 0.5, 1.5, 6.5), (4, 3, 2, 1))
            if time.monotonic() < self._stalled_until or length > left:
                return
            self._stalled_until = time.monotonic() + length + 1
            stall(length)
        else:
            self._reload()
        self.history.strikes[name] += 1

    def _reload(self) -> None:
        """The other ruleset, in force once the supervisor says so."""
        current = self.history.rulings[-1]
        if current.until == float("inf"):
            current.until = time.monotonic()
        is_strict = not current.is_strict
        self._ruleset.write_text(ruleset(is_strict=is_strict))
        outcomes = ("supervisor: reloaded", "reload refused", "reload not finished")
        before = [self.serve.log().count(outcome) for outcome in outcomes]
        self.serve.tell(signal.SIGHUP)
        eventually(lambda: [self.serve.log().count(outcome) for outcome in outcomes] != before, 60)
        if self.serve.log().count(outcomes[0]) > before[0]:
            self.history.rulings.append(Ruling(is_strict, time.monotonic()))
        else:
            # Some workers may have it, others not: nothing can be said of this time.
            self.history.rulings.append(Ruling(is_strict, float("inf"), 0.0))

    def calm(self) -> list[str]:
        """Let all agents end, and look at what remains of their sessions."""
        found = self.stop_writers()
        eventually(lambda: len(self.serve.workers()) == self.serve.count, 60)
        found.extend(f"its client has gone, it has not: {session}" for session in self._sessions())
        found.extend(f"its client has gone, the wall's socket has not: {line}" for line in self._lines())
        self.serve.stop(signal.SIGTERM)
        found.extend(f"the wall has gone, it has not: {session}" for session in self._sessions(but=""))
        return found

    def _sessions(self, but: str = "sqlwall%") -> list[str]:
        """The wall's sessions that have not ended after a while, but for those that are no agent's."""
        deadline = time.monotonic() + GONE
        with self.cluster.connect() as connection:
            while True:
                found = connection.execute(
                    "SELECT concat_ws(' ', usename, application_name, state, wait_event, left(query, 100))"
                    " FROM pg_stat_activity WHERE usename IN (%s, %s) AND backend_type = 'client backend'"
                    " AND application_name NOT LIKE %s",
                    (APP, OBSERVER, but),
                ).fetchall()
                if not found or time.monotonic() > deadline:
                    return [session for (session,) in found]
                time.sleep(0.1)

    def _lines(self) -> list[str]:
        """The wall's sockets towards agents that have not been closed after a while, as the kernel shows them."""
        deadline = time.monotonic() + GONE
        while True:
            table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            # Established, or closed by the other side alone.
            found = [
                " ".join(row[:4])
                for row in table
                if int(row[1].rpartition(":")[2], 16) == self.serve.port and row[3] in ("01", "08")
            ]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    # -- the oracle

    def findings(self) -> list[str]:
        """What is wrong, in words."""
        log = self.cluster.whole_log()
        return [
            *super().findings(),
            *(error for agent in self.agents for error in agent.errors),
            *self._unjudged(log),
            *self._wrong_verdicts(),
            *self._unrecorded(),
        ]

    def _vault(self) -> object:
        with self.cluster.connect() as connection:
            return (
                connection.execute("SELECT last_value, is_called FROM vault.touched").fetchone(),
                connection.execute("SELECT * FROM vault.secrets ORDER BY 1").fetchall(),
                connection.execute("SELECT count(*) FROM account").fetchone(),
                connection.execute("SELECT count(*) FROM pg_class").fetchone(),
            )

    def _unjudged(self, log: str) -> Iterator[str]:
        """What reached the server and must not have."""
        if self._vault() != self.vault:
            yield f"the vault was {self.vault}, and is {self._vault()}"
        sent = set().union(*(memory.sent for memory in self.memories))
        count = 0
        for line in log.splitlines():
            if "forbidden" in line:
                yield f"reached the server: {line[:300]}"
            found = LOGGED.search(line)
            if found is not None and TOKEN.search(found[1]):
                count += 1
                if found[1] not in sent:
                    yield f"nobody sent: {found[1][:300]}"
        if count < sum(len(memory.reads) for memory in self.memories):
            yield f"the server's log is no witness: {count} texts"

    def _wrong_verdicts(self) -> Iterator[str]:
        """Probes that lie within the time of one ruleset, and were judged by another."""
        for probe in (probe for memory in self.memories for probe in memory.probes):
            for ruling in self.history.rulings:
                is_certain = ruling.since < probe.sent and probe.answered < ruling.until
                if is_certain and probe.is_allowed is ruling.is_strict:
                    late = probe.sent - ruling.since
                    yield f"allowed: {probe.is_allowed}, {late:.3f} s after a reload to strict: {ruling.is_strict}"

    def _unrecorded(self) -> Iterator[str]:
        """What the record lacks."""
        with reading(self.serve.engine) as connection:
            rows = connection.execute(
                sa.select(
                    AUDIT.c.kind,
                    AUDIT.c.event,
                    AUDIT.c.statement,
                    AUDIT.c.target,
                    AUDIT.c.outcome,
                    AUDIT.c.action,
                )
            ).all()
        denied = {row.event for row in rows if row.kind == "refusal" or row.kind == "outcome"}
        texts = texts_of(row.statement for row in rows if row.kind == "statement" and row.action == "allow")
        committing = {row.target for row in rows if row.outcome == "committing"}
        for memory in self.memories:
            for event, shown in memory.events.items():
                if event not in denied and not (shown.is_late and self._may_be_lost(shown.at)):
                    yield f"not on the record: {event} at {shown.at}: {shown.message}"
        for record in self.serve.snapshots.list(state=SnapshotState.COMMITTED):
            if record.id not in committing:
                yield f"its commit is not on the record: snapshot {record.id}"
        written = TOKEN.findall("\n".join(texts))
        for memory in self.memories:
            for token, answer in memory.answers.items():
                if answer is Answer.COMMITTED and f"'{token}'" not in written:
                    yield f"its statements are not on the record: {token}"
        yield from self._unrecorded_reads(texts)

    def _unrecorded_reads(self, texts: set[str]) -> Iterator[str]:
        """A killed worker may take the reads of its last moment with it, and of a stall of the store before it."""
        for seen in (seen for memory in self.memories for seen in memory.reads):
            if seen.text not in texts and not self._may_be_lost(seen.at):
                yield f"answered at {seen.at}, not on the record: {seen.text}"

    def _may_be_lost(self, at: float) -> bool:
        for kill in self.history.kills:
            since = kill - UNWRITTEN
            since = min(
                (began for began, ended in self.history.stalls if began < kill and ended > since),
                default=since,
            )
            if since - UNWRITTEN < at < kill + UNWRITTEN:
                return True
        return False

    def lost_reads(self) -> list[float]:
        """Of reads that were answered and are not on the record: seconds from the answer to the next kill."""
        with reading(self.serve.engine) as connection:
            texts = texts_of(connection.scalars(sa.select(AUDIT.c.statement)))
        lost = [seen.at for memory in self.memories for seen in memory.reads if seen.text not in texts]
        kills = self.history.kills
        return [
            max(0.0, min((kill - at for kill in kills if kill > at - UNWRITTEN), default=0.0)) for at in lost
        ]

    def summary(self) -> str:
        """What there was to look at."""
        sums: Counter[str] = Counter()
        for memory in self.memories:
            sums += Counter(
                calls=memory.calls,
                reads=len(memory.reads),
                refused=memory.refused,
                excused=memory.excused,
                events=len(memory.events),
                probes=len(memory.probes),
            )
        lost = self.lost_reads()
        return (
            f"{super().summary()}, strikes: {dict(self.history.strikes)}, {dict(sums)}, reads lost with their worker:"
            f" {len(lost)}, answered at most {max(lost, default=0):.3f} s before"
        )


def ruleset(*, is_strict: bool) -> str:
    """agent-safe, or agent-safe without one table."""
    text, _ = find_ruleset("agent-safe")
    return text[: text.index("\ncases:")] + "\n" + (STRICT if is_strict else "")


def make_agents(dsn: str, seed: str, stop: threading.Event) -> list[Agent]:
    """One of each kind; the numbers are the rows that are theirs."""
    plain = f"{dsn}?sslmode=disable"
    ways: list[Callable[[], Driver]] = [
        lambda: Psycopg(plain, "simple"),
        lambda: Psycopg(plain, "extended"),
        lambda: Psycopg(plain, "pipeline"),
        lambda: Asyncpg(dsn),
        lambda: Pg8000(dsn),
    ]
    polite = [Agent(number, way, seed, stop) for number, way in enumerate(ways, 1)]
    return [*polite, *(Vandal(number, plain, seed, stop) for number in range(len(ways) + 1, len(ways) + 3))]


@contextmanager
def staller(store: Path, stalls: list[tuple[float, float]]) -> Iterator[Callable[[float], None]]:
    """Another process that can hold the store; in the end `stalls` says when it did."""
    process = subprocess.Popen(
        [sys.executable, "-c", STALLER, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    lines = process.stdin

    def stall(seconds: float) -> None:
        lines.write(f"{seconds}\n")
        lines.flush()

    try:
        yield stall
        out, _ = process.communicate(timeout=60)
        stalls.extend((began, ended) for began, ended in map(json.loads, out.splitlines()))
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def raging(cluster: Cluster, folder: Path, seed: str, workers: int) -> Iterator[Chaos]:
    """A wall with agents, ended in any case."""
    (folder / "own.yaml").write_text(ruleset(is_strict=False))
    with cluster.connect() as connection:
        connection.execute(VAULT.encode())
    serve = Serve(cluster, folder, {"SQLWALL_RULESET_PATH": str(folder / "own.yaml")}, workers)
    try:
        serve.start()
        found = Chaos(cluster, serve, folder, seed)
        try:
            yield found
        finally:
            found.stop_writers()
    finally:
        serve.stop()
        serve.engine.dispose()
