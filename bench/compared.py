"""Rows in which the wall stands beside the server, PgBouncer and pgpool-II under the same load."""

from __future__ import annotations

import re

import psycopg

from bench import load
from bench.figures import DIRECT, Aim, Figure
from bench.processes import Target
from bench.stage import Stage, edited_ruleset, observing, open_folder
from bench.targets import Wall

#: Limits of agent-safe's reads, and what the ruleset of the large results has instead: they are counted all the same.
READ_LIMITS = re.compile(r"limits: \{rows: 50000, bytes: 256MiB, time: 30s\}")
LIFTED = "limits: {rows: 1000000000, bytes: 1000GiB, time: 600min}"

CPU = "CPU us per statement"
#: Mode of pgbench -S, and how many times PgBouncer's CPU the wall may use in it.
MODES = {"prepared": 1.15, "extended": 1.25, "simple": 1.6}


def measure_prepared(stage: Stage) -> None:
    """Parse once, then Bind and Execute."""
    _select_only(stage, "prepared")


def measure_extended(stage: Stage) -> None:
    """Parse, Bind and Execute each time; the text stays the same."""
    _select_only(stage, "extended")


def measure_simple(stage: Stage) -> None:
    """A new literal each time, so that each text is judged."""
    _select_only(stage, "simple")


def _select_only(stage: Stage, mode: str) -> None:
    clients = stage.options.clients
    work = f"pgbench -S {mode}, {clients} clients"
    cpu = Figure(mode, f"{work}: {CPU}", "us", Aim(MODES[mode]))
    tps = Figure(mode, f"{work}: tps", "tps")

    def measure(target: Target) -> None:
        found = load.rate(target, load.SELECT_ONLY, mode, clients, stage.options.seconds)
        if target.pid:
            stage.add(cpu, target, found.cpu_us)
        stage.add(tps, target, found.tps)

    with stage.targets(Wall("agent-safe")) as targets:
        stage.interleave(mode, targets, measure)


def measure_tpcb(stage: Stage) -> None:
    """Writes, which `observe` lets pass and records."""
    clients = stage.options.clients
    tps = Figure(
        "tpcb",
        f"TPC-B-like under observe, simple, {clients} clients: tps",
        "tps",
        Aim(0.95, at_least=True),
    )

    def measure(target: Target) -> None:
        with psycopg.connect(stage.direct.dsn, autocommit=True) as connection:
            connection.execute(
                "VACUUM pgbench_branches, pgbench_tellers"
            )  # what the run before has left behind
        stage.add(tps, target, load.rate(target, load.TPCB, "simple", clients, stage.options.seconds).tps)

    with stage.targets(Wall("observe")) as targets:
        stage.interleave("tpcb", targets, measure)


def measure_transaction(stage: Stage) -> None:
    """Transactions that write nothing: the wall asks the server's witnesses at each COMMIT."""
    clients = stage.options.clients

    def measure(target: Target, mode: str, tps: Figure) -> None:
        found = load.rate(target, script, mode, clients, stage.options.seconds)
        stage.add(tps, target, found.tps)

    with open_folder() as folder:
        (folder / "reads.sql").write_text(load.READS)
        script = ("-f", str(folder / "reads.sql"), "-s", "10")
        how = Wall("agent-safe", settings=observing(stage.server, folder / "snapshots"))
        with stage.targets(how) as targets:
            for mode in ("prepared", "simple"):
                tps = Figure(
                    "transaction",
                    f"BEGIN; 3 SELECTs; COMMIT under agent-safe, {mode}, {clients} clients: tps",
                    "tps",
                    Aim(0.8, at_least=True),
                )
                stage.interleave(
                    f"transaction, {mode}",
                    targets,
                    lambda target, mode=mode, tps=tps: measure(target, mode, tps),  # type: ignore[misc]
                )


def measure_latency(stage: Stage) -> None:
    """What is added to the time of one statement."""
    aim = Aim(1.5, less=DIRECT)
    p50 = Figure("latency", "1 client, prepared: p50 us (ratio: of what is added)", "us", aim)
    p99 = Figure("latency", "1 client, prepared: p99 us (ratio: of what is added)", "us", aim)

    def measure(target: Target) -> None:
        found = load.latency(target, "prepared", stage.options.seconds)
        stage.add(p50, target, found.p50)
        stage.add(p99, target, found.p99)

    with stage.targets(Wall("agent-safe")) as targets:
        stage.interleave("latency", targets, measure)


def measure_workers(stage: Stage) -> None:
    """Two workers against PgBouncer's one process."""
    figures = {
        clients: Figure(
            "workers",
            f"pgbench -S prepared, {clients} clients, 2 workers: tps",
            "tps",
            Aim(1.0, at_least=True),
        )
        for clients in (8, 64)
    }

    def measure(target: Target) -> None:
        for clients, figure in figures.items():
            found = load.rate(target, load.SELECT_ONLY, "prepared", clients, stage.options.seconds)
            stage.add(figure, target, found.tps)

    with stage.targets(Wall("agent-safe", workers=2)) as targets:
        stage.interleave("workers", targets, measure)


def measure_stream(stage: Stage) -> None:
    """A result that is as large as is asked for, as the bytes of the protocol come in."""
    size = stage.options.megabytes
    aim = Aim(0.95, at_least=True)
    select = Figure("stream", f"SELECT of {size} MB: MB/s", "MB/s", aim)
    copy = Figure("stream", f"COPY TO STDOUT of {size} MB: MB/s", "MB/s", aim)

    def measure(target: Target) -> None:
        stage.add(select, target, load.throughput(target, size, copy=False))
        stage.add(copy, target, load.throughput(target, size, copy=True))

    stage.note(
        "stream: agent-safe with its limits of reads (50,000 rows, 256 MiB, 30 s) raised, counted all the same"
    )
    with (
        open_folder() as folder,
        stage.targets(Wall(edited_ruleset(folder, "lifted", READ_LIMITS, LIFTED))) as targets,
    ):
        stage.interleave("stream", targets, measure)
