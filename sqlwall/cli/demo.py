"""``sqlwall demo``: a PostgreSQL of its own, a small shop, the wall, and an agent that shows every verdict."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, LiteralString

import psycopg
import typer
import uvloop

from sqlwall.cli.agent import dsn
from sqlwall.cli.embedded import EmbeddedServer, find_free_port
from sqlwall.cli.options import AsJson
from sqlwall.cli.output import Exit, reported, say, show_json, show_table
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.cli.snapshot import described, settle, undoer
from sqlwall.config import Config, Listen, Metrics, load_config
from sqlwall.console.app import create_app, serve_app
from sqlwall.proxy.wall import Wall
from sqlwall.snapshot import provision
from sqlwall.store import agents
from sqlwall.store.database import open_store
from sqlwall.store.index import SnapshotState
from sqlwall.store.snapshots import Snapshots

_SHOP: Final[LiteralString] = """
CREATE ROLE shop_app LOGIN PASSWORD 'shop_app';
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, city text);
CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers ON DELETE CASCADE,
                     status text NOT NULL, total numeric(10, 2) NOT NULL);
INSERT INTO customers
    SELECT g, 'customer ' || g, (ARRAY['Vienna', 'Graz', 'Linz'])[1 + g % 3] FROM generate_series(1, 50) g;
INSERT INTO orders
    SELECT g, 1 + g % 50, (ARRAY['new', 'paid', 'sent'])[1 + g % 3], g * 1.5 FROM generate_series(1, 200) g;
CREATE VIEW open_orders AS SELECT * FROM orders WHERE status = 'new';
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO shop_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO shop_app;
"""


#: Rows of each table that are shown.
ROWS: Final = 6
_OBSERVER, _UNDO = "shop_observer", "shop_undo"


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of the agent, and the SQLSTATE it must come to; empty for one that passes."""

    sql: str
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of it: SQLSTATE or empty, and the line that the agent reads."""

    step: Step
    sqlstate: str
    line: str

    @property
    def is_expected(self) -> bool:
        """Whether it came out as it must."""
        return self.sqlstate == self.step.expected


_DENIED: Final = "42501"
STEPS: Final = (
    Step("SELECT city, count(*) FROM customers GROUP BY city ORDER BY city"),
    Step(
        "SELECT c.name, sum(o.total) FROM customers c JOIN orders o ON o.customer_id = c.id"
        " GROUP BY 1 ORDER BY 2 DESC LIMIT 3"
    ),
    Step("SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"),
    Step("DELETE FROM orders", _DENIED),
    Step("UPDATE orders SET total = 0 WHERE 1 = 1", _DENIED),
    Step("WITH gone AS (DELETE FROM orders RETURNING 1) SELECT count(*) FROM gone", _DENIED),
    Step("DROP TABLE orders", _DENIED),
    Step("TRUNCATE customers CASCADE", _DENIED),
    Step("SELECT 1; DROP VIEW open_orders", _DENIED),
    Step("SELECT pg_read_file('/etc/passwd')", _DENIED),
    Step("COPY orders TO PROGRAM 'cat > /tmp/orders'", _DENIED),
    Step("SET default_transaction_read_only = off", _DENIED),
    Step("DO $$ BEGIN DELETE FROM orders; END $$", _DENIED),
    Step("SELEC 1", "42601"),
    Step("BEGIN ISOLATION LEVEL REPEATABLE READ"),
    Step("SELECT count(*) FROM open_orders"),
    Step("COMMIT"),
)  # fmt: skip
#: What it may write; each is a transaction, and is brought back afterwards.
WRITES: Final = (
    Step("UPDATE orders SET status = 'sent', total = total + 1 WHERE id IN (7, 8)"),
    Step("DELETE FROM customers WHERE id = 3"),
    Step("INSERT INTO customers (id, name) VALUES (51, 'customer 51')"),
)


@reported
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="show the verdicts and exit; 0 if all are as expected")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start PostgreSQL, a small shop and the wall; let an agent try what agents try; then serve until Ctrl-C."""
    # SIGTERM ends it as Ctrl-C does: PostgreSQL is a session of its own, and would outlive us.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _folder() as folder, EmbeddedServer() as server:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute(_SHOP)
                _make_roles(connection)
            uvloop.run(_show(server, folder, once=once, as_json=as_json))
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sqlwall-demo-") as name:
        yield Path(name)


def _configure(server: EmbeddedServer, folder: Path) -> Config:
    # The passwords are made above, and gone with the demo.
    flags: dict[str, object] = {
        "upstream": server.dsn(user="shop_app", password="shop_app"),  # noqa: S106
        "observer": server.dsn(user=_OBSERVER, password=_OBSERVER),
        "undo": server.dsn(user=_UNDO, password=_UNDO),
        "store": f"sqlite:///{folder / 'sqlwall.db'}",
        "snapshots": str(folder / "snapshots"),
        "listen.port": _port(Listen().port),
    }
    return load_config(None, {}, flags)


def _make_roles(connection: psycopg.Connection[Any]) -> None:
    """As `sqlwall provision` does."""
    made = [*provision.roles(_OBSERVER, _UNDO), *provision.functions(_OBSERVER, "shop_app")]
    made += [f"ALTER ROLE {name} PASSWORD '{name}'" for name in (_OBSERVER, _UNDO)]
    for statement in made:
        connection.execute(statement.encode())


def _port(usual: int) -> int:
    """The usual port, or any other where that is taken: a demo must not fail for a wall that runs already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", usual))
        except OSError:
            return find_free_port()
    return usual


@dataclass(frozen=True, slots=True)
class Shown:
    """All that the demo has seen. `states` are hashes of every row: before, after the writes, and after undo."""

    seen: list[Seen]
    changes: list[str]
    states: list[str]
    conflicts: list[str]

    @property
    def is_expected(self) -> bool:
        """Whether all verdicts were as they must be, and undo brought everything back."""
        before, between, after = self.states
        return all(found.is_expected for found in self.seen) and before == after != between


async def _show(server: EmbeddedServer, folder: Path, *, once: bool, as_json: bool) -> None:
    config = _configure(server, folder)
    engine = open_store(config.store.url)
    password = agents.add_agent(engine, "demo")
    engine.dispose()
    async with Wall(config, find_ruleset) as wall:
        address = dsn(config, "demo", password)
        shown = await asyncio.to_thread(_play, server, config, address)
        _report(shown, "" if once else address, as_json=as_json)
        if once:
            if not shown.is_expected:
                raise typer.Exit(int(Exit.FINDING))
            return
        await _serve(wall, address, as_json=as_json)


def _play(server: EmbeddedServer, config: Config, address: str) -> Shown:
    """The agent: an ordinary client with an ordinary DSN. Then a person undoes what it wrote."""
    states = [_state_hash(server)]
    with psycopg.connect(address, autocommit=True) as connection:
        seen = [_try(connection, step) for step in (*STEPS, *WRITES)]
    states.append(_state_hash(server))
    engine = open_store(config.store.url)
    try:
        snapshots = Snapshots.of(config.snapshots, engine)
        settle(config, snapshots)
        records = snapshots.list(state=SnapshotState.COMMITTED)
        changes = [
            line for record in reversed(records) for line in described(snapshots.open(record.id), ROWS)
        ]
        with undoer(config, snapshots, "postgres", lambda _: None) as session:
            outcome = session.undo(records, actor="demo", dry_run=False)
    finally:
        engine.dispose()
    states.append(_state_hash(server))
    return Shown(seen, changes, states, [str(conflict) for conflict in outcome.conflicts])


async def _serve(wall: Wall, address: str, *, as_json: bool) -> None:
    """Let a person play until Ctrl-C or SIGTERM."""

    async def metrics() -> tuple[dict[str, Any], dict[str, float]]:
        return wall.worker.counters.snapshot(), {"sqlwall_ready": float(not wall.problems())}

    async def problems() -> list[str]:
        return wall.problems()

    console = await serve_app(create_app(metrics, problems), port=_port(Metrics().port))
    try:
        if not as_json:
            say(f"\nThe wall stands. Try it:\n\n  psql '{address}'\n")
            say(f"Metrics: http://{console.address[0]}:{console.address[1]}/metrics")
            say("Ctrl-C ends it, and removes everything.")
        await _asked_to_stop()
    finally:
        await console.close()


async def _asked_to_stop() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _try(connection: psycopg.Connection[Any], step: Step) -> Seen:
    try:
        cursor = connection.execute(step.sql.encode())
    except psycopg.Error as error:
        return Seen(step, error.sqlstate or "?", str(error.diag.message_primary))
    rows = cursor.fetchall() if cursor.description else None
    shown = f"{len(rows)} rows, first {rows[0]}" if rows else str(cursor.statusmessage)
    return Seen(step, "", shown)


def _state_hash(server: EmbeddedServer) -> str:
    """A hash over every row of the shop, read past the wall."""
    found = hashlib.sha256()
    with psycopg.connect(server.dsn()) as connection:
        for query in ("SELECT * FROM customers ORDER BY id", "SELECT * FROM orders ORDER BY id"):
            for row in connection.execute(query):
                found.update(repr(row).encode())
    return found.hexdigest()[:16]


def _report(shown: Shown, address: str, *, as_json: bool) -> None:
    before, between, after = shown.states
    if as_json:
        show_json(
            {
                "steps": [
                    {"sql": s.step.sql, "expected": s.step.expected, "sqlstate": s.sqlstate, "line": s.line,
                     "as_expected": s.is_expected} for s in shown.seen
                ],
                "changes": shown.changes,
                "state_before": before,
                "state_written": between,
                "state_undone": after,
                "conflicts": shown.conflicts,
                "dsn": address or None,
            }
        )  # fmt: skip
        return
    rows = [(s.step.expected or "pass", s.sqlstate or "pass", s.step.sql, s.line) for s in shown.seen]
    show_table(("expected", "seen", "the agent sends", "the agent reads"), rows)
    say(f"{sum(s.is_expected for s in shown.seen)} of {len(shown.seen)} verdicts as expected.\n")
    say("What its writes changed, as their snapshots have it (sqlwall snapshot diff):\n")
    for line in (*shown.changes, *shown.conflicts):
        say(f"  {line}")
    is_back = "every row is as it was" if before == after else "NOT AS BEFORE"
    say(f"\nState of the shop before {before}, with the writes {between}, after undo {after}: {is_back}.")
