"""``python -m bench``: the whole table, the wall against the server itself, PgBouncer and pgpool-II.

Prints it as Markdown; --json keeps every sample, --plot draws it, --from prints and draws what --json kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from bench import load, plot, report
from bench.figures import Run
from bench.processes import BenchError
from bench.rows import ROWS
from bench.stage import Options, Stage, say
from bench.targets import SQLWALL, find_program
from sqlwall.errors import SqlwallError

#: Debian's packages of the peers, and the column that is left out without them.
PEERS = {"pgbouncer": ("pgbouncer", "PgBouncer"), "pgpool": ("pgpool2", "pgpool-II")}


def main() -> int:
    """Measure, or read what was measured; print. 1 if a row could not be measured."""
    options = parse()
    try:
        if options.plot is not None:
            plot.check(options.plot)
        if options.recorded is not None:
            run = Run.from_json(json.loads(options.recorded.read_text()))
            failed = False
        else:
            run, failed = measure(options)
        if options.json is not None:
            options.json.write_text(json.dumps(run.to_json(), indent=1) + "\n")
        if options.plot is not None:
            plot.draw(run, options.plot)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    sys.stdout.write(report.render(run))
    return int(failed)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    standard = Options()
    parser.add_argument(
        "--only", nargs="+", choices=list(ROWS), metavar="ROW", help=f"some of the rows {', '.join(ROWS)}"
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=standard.seconds, help="of each run of pgbench")
    parser.add_argument("--rounds", type=int, default=standard.rounds, help="runs of each pair")
    parser.add_argument("--clients", type=int, default=standard.clients, help="of pgbench")
    parser.add_argument("--megabytes", type=int, default=standard.megabytes, help="of a large result")
    parser.add_argument("--idle", type=int, default=standard.idle, help="idle connections")
    parser.add_argument("--updates", type=int, default=standard.updates, help="guarded writes of a run")
    parser.add_argument("--regress", type=Path, metavar="FOLDER", help="scripts for the row miss")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to it")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw to it, .png or .svg")
    parser.add_argument(
        "--from", dest="recorded", type=Path, metavar="FILE", help="measure nothing: show what --json wrote"
    )  # fmt: skip
    found = parser.parse_args()
    for name in ("rounds", "clients", "megabytes", "updates", "seconds"):
        if getattr(found, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if found.idle < 2:
        parser.error("--idle must be at least 2")
    return found


def measure(given: argparse.Namespace) -> tuple[Run, bool]:
    """Every row that was asked for. One that fails is named in the notes, and the others go on."""
    names = [name for name in ROWS if given.only is None or name in given.only]
    load.find_pgbench()
    options = Options(
        given.seconds, given.rounds, given.clients, given.megabytes, given.idle, given.updates, given.regress
    )
    failed = False
    with ExitStack() as stack:
        stage = Stage(options, stack)
        stage.run.facts = describe(options)
        for program, (package, column) in PEERS.items():
            if find_program(program) is None:
                stage.note(f"{column} is not installed (Debian: {package}); its column is left out")
                say(f"bench: {stage.run.notes[-1]}")
        for name in names:
            try:
                ROWS[name](stage)
            except (BenchError, SqlwallError, psycopg.Error, OSError, subprocess.SubprocessError) as error:
                failed = True
                stage.note(f"{name} FAILED and is not complete: {error}")
                say(f"bench: {stage.run.notes[-1]}")
    return stage.run, failed


def describe(options: Options) -> dict[str, str]:
    """On what the run was made."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "sqlwall": _first_line([*SQLWALL, "--version"]),
        "pgbench": _first_line([load.find_pgbench(), "--version"]),
        **{
            column: _first_line([found, "--version"])
            for program, (_, column) in PEERS.items()
            if (found := find_program(program)) is not None
        },
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "options": ", ".join(
            f"{name} {getattr(options, name):g}"
            for name in ("seconds", "rounds", "clients", "megabytes", "idle", "updates")
        ),
    }


def _first_line(command: list[str]) -> str:
    """What a program says of its version."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.partition("\n")[0].strip()


if __name__ == "__main__":
    sys.exit(main())
