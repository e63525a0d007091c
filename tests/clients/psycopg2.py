"""psycopg2: its tests from the source distribution, against the binary wheel of the same version."""

from __future__ import annotations

from pathlib import Path

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import connect, copy_tests, environment, fetch_sdist, make_venv, run_pytest

VERSION = "2.9.10"

#: How the replication tests say that they got no replication connection.
UNREACHED = "replication db not configured"

NO_REPLICATION = "the wall gives no replication connections, in no mode"

INHERENT = {
    f"tests.test_replication.{name}": NO_REPLICATION
    for name in (
        "AsyncReplicationTest::test_async_replication",
        "ReplicationTest::test_create_replication_slot",
        "ReplicationTest::test_datestyle",
        "ReplicationTest::test_keepalive",
        "ReplicationTest::test_logical_replication_connection",
        "ReplicationTest::test_physical_replication_connection",
        "ReplicationTest::test_start_and_recover_from_error",
        "ReplicationTest::test_start_on_missing_replication_slot",
        "ReplicationTest::test_start_replication_expert_sql",
        "ReplicationTest::test_stop_replication",
    )
}


def fetch(folder: Path) -> None:
    """The tests and an environment."""
    source = fetch_sdist(folder, f"psycopg2=={VERSION}")
    copy_tests(source / "tests", folder / "suite" / "tests")
    make_venv(folder, f"psycopg2-binary=={VERSION}", "pytest", "pytest-timeout")


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """Replication tests too."""
    with connect(target) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    env = environment(target, PSYCOPG2_TESTDB=target.dbname, PSYCOPG2_TEST_REPL_DSN="")
    return run_pytest(folder, target, log, folder / "suite", "tests", env=env, not_to_skip=UNREACHED)


SUITE = Suite("psycopg2", f"psycopg2 {VERSION}: the whole suite, replication too", fetch, run, INHERENT)
