"""asyncpg: its tests from the source distribution, against the wheel of the same version."""

from __future__ import annotations

from pathlib import Path

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import copy_tests, edit, fetch_sdist, make_venv, run_pytest

VERSION = "0.30.0"


def fetch(folder: Path) -> None:
    """The tests and an environment. Two tests of pools take it that the database is ``postgres``."""
    source = fetch_sdist(folder, f"asyncpg=={VERSION}")
    copy_tests(source / "tests", folder / "suite" / "tests")
    edit(folder / "suite" / "tests" / "test_cache_invalidation.py", "database='postgres'", "database=None")
    make_venv(folder, f"asyncpg=={VERSION}", "uvloop", "distro", "pytest", "pytest-timeout")


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """With PGHOST set, the tests use that server and skip what starts and configures servers of its own."""
    return run_pytest(folder, target, log, folder / "suite", "tests")


#: Both fail against a busy server without a wall too.
INHERENT = {
    "tests.test_execute.TestExecuteMany::test_executemany_server_failure_during_writes": (
        "a race: the client has to see the server's error before it has written 4 MiB"
    ),
    "tests.test_pool.TestPool::test_pool_handles_inactive_connection_errors": "a login has 100 ms",
}

SUITE = Suite("asyncpg", f"asyncpg {VERSION}: the whole suite, against a given server", fetch, run, INHERENT)
