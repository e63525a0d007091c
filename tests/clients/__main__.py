"""``python -m tests.clients NAME...``: clients' own test suites, direct and through the wall, and what differs.

The server is the one of the tests: that of ``SQLWALL_TEST_DSN`` (a superuser), else an embedded one. Only fetching
needs the network, and is done once for a work folder. Exit code 1 if anything differs, 2 if a suite gave no result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.clients import asyncpg, django, node, pg8000, pgjdbc, postgresql, psycopg2, psycopg3, sqlalchemy
from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import SuiteError, fresh_databases
from tests.clients.wall import serve_wall
from tests.postgres import Server, open_server

SUITES: tuple[Suite, ...] = (
    psycopg3.SUITE,
    asyncpg.SUITE,
    pg8000.SUITE,
    django.SUITE,
    *sqlalchemy.SUITES,
    psycopg2.SUITE,
    pgjdbc.SUITE,
    node.SUITE,
    postgresql.SUITE,
)

#: Exists in a suite's folder when `fetch` has come to its end.
FETCHED = "FETCHED"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One suite's two runs. `error` says why there is no result."""

    name: str
    passed_direct: int = 0
    failed_direct: int = 0
    passed_through: int = 0
    failed_through: int = 0
    only_direct: tuple[str, ...] = ()
    only_through: tuple[str, ...] = ()
    inherent: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    sessions: int = 0
    server_version: int = 0
    error: str = ""

    @property
    def differs(self) -> bool:
        """Whether the wall was to be told from the server; a test that is only skipped through it counts too."""
        ran_direct = self.passed_direct + self.failed_direct
        ran_through = self.passed_through + self.failed_through
        return bool(self.only_direct or self.only_through or self.complaints or ran_direct != ran_through)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="suites to run; without any, all")
    parser.add_argument("--list", action="store_true", help="print the suites")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fetch-only", action="store_true", help="fetch, run nothing")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "sqlwall-clients",
        help="folder for what is fetched, and for the logs",
    )
    options = parser.parse_args()
    known = {suite.name: suite for suite in SUITES}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names] or list(SUITES)
    if options.list:
        list_suites(chosen, as_json=options.json)
        return 0
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if options.fetch_only:
        return fetch_all(chosen, work)
    try:
        compared = [compare(suite, work) for suite in chosen]
    except pytest.skip.Exception as error:
        print(error, file=sys.stderr)
        return 2
    print_table(compared, as_json=options.json)
    if any(one.error for one in compared):
        return 2
    return 1 if any(one.differs for one in compared) else 0


def list_suites(suites: list[Suite], *, as_json: bool) -> None:
    """Names and what they are."""
    if as_json:
        print(json.dumps([{"name": suite.name, "about": suite.about} for suite in suites], indent=2))
        return
    width = max(len(suite.name) for suite in suites)
    for suite in suites:
        print(f"{suite.name:{width}}  {suite.about}")


def fetch_all(suites: list[Suite], work: Path) -> int:
    """Fetch, and say of each what became of it."""
    code = 0
    for suite in suites:
        try:
            fetched(suite, work)
        except SuiteError as error:
            code = 2
            print(f"{suite.name}: {error}")
        else:
            print(f"{suite.name}: fetched")
    return code


def fetched(suite: Suite, work: Path) -> Path:
    """The suite's folder with everything in it."""
    folder = work / suite.name
    folder.mkdir(exist_ok=True)
    if not (folder / FETCHED).exists():
        say(f"{suite.name}: fetching")
        suite.fetch(folder)
        (folder / FETCHED).touch()
    return folder


def compare(suite: Suite, work: Path) -> Comparison:
    """Run one suite direct, then through the wall, each with a server and a database as new as can be had."""
    name = f"clients_{suite.name.replace('-', '_')}"
    try:
        folder = fetched(suite, work)
        with open_server() as server:
            version = server.version()
            first = run(suite, target_of(server, name), target_of(server, name), folder, "direct")
        with open_server() as server, serve_wall(server, folder) as wall:
            direct = target_of(server, name)
            through = replace(direct, host="127.0.0.1", port=wall.port, password=wall.password)
            second = run(suite, through, direct, folder, "through")
            sessions = wall.count("sqlwall_sessions_started")
            complaints = wall.complaints()
        if not sessions:
            raise SuiteError("the suite has gone past the wall")
    except SuiteError as error:
        return Comparison(suite.name, error=str(error))
    found = difference(suite, first, second)
    return replace(found, complaints=tuple(complaints), sessions=sessions, server_version=version)


def target_of(server: Server, dbname: str) -> Target:
    """The server itself."""
    return Target(server.host, server.port, server.user, server.password, dbname)


def run(suite: Suite, target: Target, direct: Target, folder: Path, way: str) -> Outcome:
    """One run. The database is made and dropped past the wall."""
    log = folder / f"{way}.log"
    log.unlink(missing_ok=True)
    say(f"{suite.name}: {way}")
    with fresh_databases(direct, target.dbname):
        outcome = suite.run(target, folder, log)
    say(f"{suite.name}: {way}: {outcome.passed} passed, {len(outcome.failed)} failed; {outcome.log}")
    return outcome


def difference(suite: Suite, direct: Outcome, through: Outcome) -> Comparison:
    """What the two runs do not have in common."""
    differing = direct.failed ^ through.failed
    return Comparison(
        suite.name,
        direct.passed,
        len(direct.failed),
        through.passed,
        len(through.failed),
        tuple(sorted(direct.failed - through.failed - set(suite.inherent))),
        tuple(sorted(through.failed - direct.failed - set(suite.inherent))),
        tuple(f"{name}: {suite.inherent[name]}" for name in sorted(differing & set(suite.inherent))),
    )


def print_table(compared: list[Comparison], *, as_json: bool) -> None:
    """The result, for people or for programs."""
    if as_json:
        rows: list[dict[str, Any]] = [{**asdict(one), "differs": one.differs} for one in compared]
        print(json.dumps(rows, indent=2))
        return
    table = Table(
        "suite", "passed direct", "failed direct", "passed through", "failed through", "sessions", "differing"
    )
    for one in compared:
        if one.error:
            table.add_row(one.name, "-", "-", "-", "-", "-", escape(one.error))
            continue
        differing = [f"through: {test}" for test in one.only_through]
        differing += [f"direct only: {test}" for test in one.only_direct]
        differing += [f"inherent: {test}" for test in one.inherent]
        differing += [f"wall: {line}" for line in one.complaints[:5]]
        counts = (one.passed_direct, one.failed_direct, one.passed_through, one.failed_through, one.sessions)
        table.add_row(one.name, *map(str, counts), escape("\n".join(differing)))
    Console(width=160 if not sys.stdout.isatty() else None).print(table)


def say(text: str) -> None:
    """Progress, out of the way of the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
