"""Rows about the wall alone, or beside what a person would do by hand: memory, verdicts, guarded writes, its start."""

from __future__ import annotations

import random
import statistics
from contextlib import ExitStack

import psycopg

from bench import guarded, micro
from bench.figures import DIRECT, PGBOUNCER, WALL, Aim, Figure, quantile
from bench.load import initialise
from bench.processes import Target
from bench.sources import find_statements
from bench.stage import Stage, add_observer, observing, open_folder, say
from bench.targets import Wall, find_program, first_query, pgbouncer, prepare_wall, wall
from sqlwall.cli.embedded import EmbeddedServer

#: Idle connections from which the slope is taken: what comes before is start-up.
IDLE_FROM = 200
#: Connections that PostgreSQL keeps for itself and for ours beside the idle ones.
SPARE = 100


def measure_idle(stage: Stage) -> None:
    """Memory of a client's connection and its server's, after one query, as the slope between few and many."""
    low, high = min(IDLE_FROM, stage.options.idle // 2), stage.options.idle
    title = f"idle connection, plaintext, {low} to {high}: KB"
    pss = Figure("idle", f"{title} of PSS for each pair", "KB", Aim(25, against=""))
    rss = Figure("idle", f"{title} of RSS for each pair", "KB")
    settings = {"max_connections": str(high + SPARE), "shared_buffers": "32MB"}
    with ExitStack() as stack:
        say(f"idle: starting PostgreSQL for {high} connections")
        server = stack.enter_context(EmbeddedServer(settings=settings))
        for number in range(stage.options.rounds):
            for name in random.sample((PGBOUNCER, WALL), 2):
                if name == PGBOUNCER and find_program("pgbouncer") is None:
                    continue
                say(f"idle, round {number + 1} of {stage.options.rounds}: {name}")
                with open_folder() as folder:
                    start = (
                        pgbouncer(server, folder, high + SPARE)
                        if name == PGBOUNCER
                        else wall(server, folder, Wall("agent-safe", connections=high + SPARE))
                    )
                    with start as target:
                        slopes = _slopes(target, low, high)
                stage.add(pss, name, slopes[0])
                stage.add(rss, name, slopes[1])


def _slopes(target: Target, low: int, high: int) -> tuple[float, float]:
    """KB of PSS and RSS for each connection more. The first query makes a pool take a server's connection."""
    with ExitStack() as stack:
        found = []
        opened = 0
        for count in (low, high):
            for _ in range(count - opened):
                connection = stack.enter_context(
                    psycopg.connect(target.dsn, autocommit=True, sslmode="disable", gssencmode="disable")
                )
                connection.execute("SELECT 1").fetchone()
            opened = count
            found.append(target.memory())
    (pss, rss), (more_pss, more_rss) = found
    return (more_pss - pss) / (high - low), (more_rss - rss) / (high - low)


def measure_misses(stage: Stage) -> None:
    """Parse, analyze and judge of texts that no cache knows, each once a round."""
    source = find_statements(stage.options.regress)
    p50 = Figure("miss", "cache miss, parse + analyze + judge: median us", "us", Aim(40, against=""))
    p99 = Figure("miss", "cache miss, parse + analyze + judge: p99 us", "us", Aim(1000, against=""))
    for number in range(stage.options.rounds):
        say(f"miss, round {number + 1} of {stage.options.rounds}")
        times, left_out = micro.time_misses(source.texts)
        stage.add(p50, WALL, statistics.median(times))
        stage.add(p99, WALL, quantile(times, 0.99))
        stage.note(
            f"miss: {len(times)} different statements of {source.name}; "
            f"{left_out} that do not parse (or are over 16 KiB) are left out"
        )


def measure_micro(stage: Stage) -> None:
    """Single texts, for comparison with an earlier run."""
    say("micro")
    for name, value in micro.run().items():
        stage.add(Figure("micro", f"{name}: us", "us"), WALL, value)


def measure_guarded(stage: Stage) -> None:
    """One row by key: sent to the wall that takes snapshots, and by hand with FOR UPDATE, on a server that syncs."""
    options = stage.options
    work = guarded.WORKS[0]
    stage.note(
        "guarded: the column direct is the same by hand (BEGIN; SELECT ... FOR UPDATE; UPDATE; COMMIT), commits synced"
    )
    with ExitStack() as stack:
        say("guarded: starting PostgreSQL that syncs")
        server = stack.enter_context(EmbeddedServer(settings=guarded.SETTINGS))
        direct = Target(DIRECT, server.dsn())
        initialise(direct, 1)
        add_observer(server)
        folder = stack.enter_context(open_folder())
        how = Wall("agent-safe", settings=observing(server, folder / "snapshots"))
        ours = stack.enter_context(wall(server, folder, how))
        for number in range(options.rounds):
            for mode in guarded.MODES:
                p50 = Figure(
                    "guarded", f"guarded UPDATE by key, {mode}: p50 us", "us", Aim(2, against=DIRECT)
                )
                p99 = Figure("guarded", f"guarded UPDATE by key, {mode}: p99 us", "us")
                for target, kind in random.sample(((direct, "by hand"), (ours, "guarded")), 2):
                    say(f"guarded, round {number + 1} of {options.rounds}: {mode}, {kind}")
                    count = options.updates + guarded.WARM
                    times = guarded.run_script(target, work.script(kind), mode, count, 0)[guarded.WARM :]
                    stage.add(p50, target, statistics.median(times))
                    stage.add(p99, target, quantile(times, 0.99))


def measure_start(stage: Stage) -> None:
    """From `sqlwall serve` with one worker to a client's first row."""
    seconds = Figure("start", "start of sqlwall serve to first query: s", "s", Aim(1.5, against=""))
    with open_folder() as folder:
        # An installed wall has its bytecode; one that may not write it would compile itself at each start.
        bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        prepared = prepare_wall(stage.server, folder, Wall("agent-safe", settings=bytecode))
        say("start, not counted")
        first_query(prepared)
        for number in range(stage.options.rounds):
            say(f"start, round {number + 1} of {stage.options.rounds}")
            stage.add(seconds, WALL, first_query(prepared))
