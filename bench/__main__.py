"""``python -m bench``: the whole table, direct against PgBouncer against the wall, interleaved, medians and spread."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from bench import load, micro
from bench.targets import Target, pgbouncer, wall
from sqlwall.cli.embedded import EmbeddedServer, give_away

Samples = dict[tuple[str, str], list[float]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of each pgbench run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each pair")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rows", type=int, default=500_000, help="of the large result")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sqlwall-bench-")))
        give_away(folder)
        folder.chmod(0o711)
        settings = {"shared_buffers": "256MB", "synchronous_commit": "off"}
        server = stack.enter_context(EmbeddedServer(settings=settings))
        direct = Target("direct", server.dsn())
        _initialise(direct)
        targets = [
            direct,
            stack.enter_context(pgbouncer(server, folder)),
            stack.enter_context(wall(server, folder, "agent-safe")),
            stack.enter_context(wall(server, folder, "observe")),
        ]
        samples = _measure(targets, options)
    _print(samples, [target.name for target in targets], micro.run(), as_json=options.json)


def _initialise(target: Target) -> None:
    subprocess.run([load.find_pgbench(), "-i", "-q", "-s", "10", target.dsn], check=True, capture_output=True)


def _measure(targets: list[Target], options: argparse.Namespace) -> Samples:
    """Every pair in every round, in a new random order each time: drift of the machine hits all alike."""
    samples: Samples = defaultdict(list)
    for number in range(options.rounds):
        pairs = [(target, mode) for target in targets for mode in load.MODES]
        random.shuffle(pairs)
        for target, mode in pairs:
            sys.stderr.write(f"round {number + 1} of {options.rounds}: {target.name}, {mode}\n")
            found = load.rate(target, mode, options.clients, options.seconds)
            samples[f"{mode}: tps", target.name].append(found.tps)
            samples[f"{mode}: CPU us per statement", target.name].append(found.cpu_us)
            times = load.latency(target, mode, max(1, options.seconds / 2))
            samples[f"{mode}: p50 us, 1 client", target.name].append(times.p50)
            samples[f"{mode}: p99 us, 1 client", target.name].append(times.p99)
        for target in random.sample(targets, len(targets)):
            rows = options.rows if target.name != "sqlwall agent-safe" else 40_000
            samples["SELECT MB/s", target.name].append(load.throughput(target, rows, copy=False))
            samples["COPY MB/s", target.name].append(load.throughput(target, rows, copy=True))
    return samples


def _print(samples: Samples, names: list[str], small: dict[str, float], *, as_json: bool) -> None:
    if as_json:
        rows = [{"figure": f, "target": t, "samples": v} for (f, t), v in samples.items()]
        sys.stdout.write(json.dumps({"samples": rows, "micro_us": small}, indent=2) + "\n")
        return
    figures = list(dict.fromkeys(figure for figure, _ in samples))
    sys.stdout.write("| median (min-max) | " + " | ".join(names) + " | agent-safe / PgBouncer |\n")
    sys.stdout.write("|---|" + "---|" * (len(names) + 1) + "\n")
    for figure in figures:
        cells = []
        for name in names:
            values = samples[figure, name]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})")
        peer = statistics.median(samples[figure, "pgbouncer"])
        ours = statistics.median(samples[figure, "sqlwall agent-safe"])
        ratio = f"{ours / peer:.2f}" if peer else ""
        sys.stdout.write(f"| {figure} | " + " | ".join(cells) + f" | {ratio} |\n")
    sys.stdout.write("\n| our own work | us, median |\n|---|---|\n")
    for name, value in small.items():
        sys.stdout.write(f"| {name} | {value:.2f} |\n")


if __name__ == "__main__":
    main()
