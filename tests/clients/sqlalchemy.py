"""SQLAlchemy: its dialect suite and its tests of PostgreSQL and of the engine, with each driver.

``--backend-only`` leaves out what asks no server.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from urllib.parse import quote

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import connect, environment, fetch_sdist, make_venv, run_pytest

VERSION = "2.1.9"
DRIVERS = ("psycopg", "psycopg2", "asyncpg", "pg8000")

TESTS = (
    "test/dialect/test_suite.py", "test/dialect/postgresql", "test/engine", "test/sql/test_query.py",
    "test/sql/test_types.py", "test/sql/test_returning.py", "test/sql/test_insert_exec.py", "test/sql/test_sequences.py",
)  # fmt: skip


def fetch(folder: Path) -> None:
    """The source and an environment with all drivers."""
    source = fetch_sdist(folder, f"SQLAlchemy=={VERSION}")
    source.rename(folder / "source")
    make_venv(
        folder, f"SQLAlchemy[asyncio]=={VERSION}", "psycopg[binary]", "psycopg2-binary", "asyncpg", "pg8000", "pytest",
        "pytest-timeout",
    )  # fmt: skip


def run(driver: str, target: Target, folder: Path, log: Path) -> Outcome:
    """What the README of its tests asks for is set up first."""
    with connect(target) as connection:
        connection.execute("CREATE SCHEMA test_schema; CREATE SCHEMA test_schema_2")
        connection.execute("CREATE EXTENSION hstore; CREATE EXTENSION citext")
        connection.execute("SELECT set_config('search_path', '', false)")
        name = target.dbname.replace('"', '""')
        connection.execute(
            f"ALTER DATABASE \"{name}\" SET default_text_search_config = 'pg_catalog.english'".encode()
        )
    login = f"{quote(target.user, safe='')}:{quote(target.password, safe='')}"
    url = f"postgresql+{driver}://{login}@{target.host}:{target.port}/{target.dbname}"
    return run_pytest(
        folder,
        target,
        log,
        folder / "source",
        "--maxfail=100000",
        "-q",
        "--backend-only",
        "--dburi",
        url,
        *TESTS,
        env=environment(),
    )


SUITES = tuple(
    Suite(
        f"sqlalchemy-{driver}",
        f"SQLAlchemy {VERSION} on {driver}: dialect, engine, types",
        fetch,
        partial(run, driver),
    )
    for driver in DRIVERS
)
