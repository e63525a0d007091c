"""pg8000: its tests from the source distribution, against the installed package of the same version."""

from __future__ import annotations

from pathlib import Path

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import connect, copy_tests, edit, fetch_sdist, make_venv, run_pytest

VERSION = "1.31.6"

#: They need lines in the server's pg_hba.conf for users of md5, password, gss and TLS.
AUTH = "test/{}/auth"


def fetch(folder: Path) -> None:
    """The tests, told of PGUSER and PGDATABASE beside the PGHOST, PGPORT and PGPASSWORD they know."""
    source = fetch_sdist(folder, f"pg8000=={VERSION}")
    copy_tests(source / "test", folder / "suite" / "test")
    for style in ("native", "dbapi", "legacy"):
        edit(
            folder / "suite" / "test" / style / "conftest.py",
            '("port", "PGPORT", int),',
            '("port", "PGPORT", int), ("user", "PGUSER", str), ("database", "PGDATABASE", str),',
        )
    make_venv(
        folder, f"pg8000=={VERSION}", "pytest", "pytest-timeout", "pytest-mock", "pytest-benchmark", "pytz"
    )


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """All but authentication; the README's examples want the port 5432."""
    with connect(target) as connection:
        connection.execute("CREATE EXTENSION hstore")
    ignored = [f"--ignore={AUTH.format(style)}" for style in ("native", "dbapi", "legacy")]
    return run_pytest(
        folder,
        target,
        log,
        folder / "suite",
        *ignored,
        "--ignore=test/test_readme.py",
        "--benchmark-disable",
        "test",
    )


#: A role that the test makes on the server, and logs in as: the wall knows its own agents only.
PASSWORDS = "logs in as a role of the server"

#: Whether a client that writes to a dead connection sees its end or a reset is a race between client and kernel.
RACE = "a race for how a killed connection looks to the client"

INHERENT = {
    "test.dbapi.test_connection::test_password_bytes": PASSWORDS,
    "test.legacy.test_connection::testBytesPassword": PASSWORDS,
    "test.native.test_connection::test_bytes_password": PASSWORDS,
    "test.dbapi.test_connection::test_broken_pipe_read": RACE,
    "test.native.test_connection::test_broken_pipe_read": RACE,
}

SUITE = Suite(
    "pg8000", f"pg8000 {VERSION}: all but authentication and the README's examples", fetch, run, INHERENT
)
