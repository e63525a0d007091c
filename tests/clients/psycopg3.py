"""psycopg 3: its tests from Debian's source package (the distribution on PyPI has none), against the binary wheel."""

from __future__ import annotations

from pathlib import Path

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import copy_tests, environment, fetch_debian_source, make_venv, run_pytest

VERSION = "3.1.7"
DEBIAN = "bookworm"


def fetch(folder: Path) -> None:
    """The tests and an environment."""
    source = fetch_debian_source(folder, "psycopg3", DEBIAN, "psycopg3_*.orig.tar.*")
    copy_tests(source / "tests", folder / "suite" / "tests")
    (folder / "suite" / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\naddopts = -m 'not slow'\n")
    make_venv(
        folder, f"psycopg[binary]=={VERSION}", "psycopg-pool==3.1.*", "anyio<4", "pytest<8", "pytest-asyncio<0.21",
        "pytest-timeout", "pytest-randomly", "mypy", "pproxy", "dnspython", "shapely<2.1", "flake8",
    )  # fmt: skip


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """In the order of the files; the type checker's tests have nothing to do with a server."""
    dsn = f"host={target.host} port={target.port} user={target.user} password={target.password} dbname={target.dbname}"
    env = environment(PSYCOPG_TEST_DSN=dsn)
    return run_pytest(
        folder,
        target,
        log,
        folder / "suite",
        "-p",
        "no:randomly",
        "--ignore=tests/test_typing.py",
        "tests",
        env=env,
    )


SUITE = Suite("psycopg3", f"psycopg {VERSION}: the suite of Debian's source package", fetch, run)
