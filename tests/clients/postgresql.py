"""PostgreSQL's own regression suite, run by pg_regress against a server of the same major version.

Needs the server's development files (``pg_config --pgxs``, a C compiler) and the server on this machine: it loads
``regress.so``, ``refint.so`` and ``autoinc.so`` from the suite's folder.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from psycopg import sql

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import (
    SuiteError,
    connect,
    environment,
    fetch_command,
    fetch_debian_source,
    fresh_databases,
    run_logged,
)

MAJOR = 15
DEBIAN = "bookworm"

#: What ``make installcheck`` sets for its database, and what the expected output was made with.
DATABASE_SETTINGS = {
    "bytea_output": "hex",
    "lc_messages": "C",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "timezone_abbreviations": "Default",
}

_RESULT = re.compile(r"^(?:test|    |     ) ?(\S+)\s+\.\.\. (ok|FAILED|failed)", re.MULTILINE)


def fetch(folder: Path) -> None:
    """The source, and the three libraries its tests load."""
    source = fetch_debian_source(folder, f"postgresql-{MAJOR}", DEBIAN, f"postgresql-{MAJOR}_*.orig.tar.*")
    regress = source / "src" / "test" / "regress"
    spi = source / "contrib" / "spi"
    headers = ask_pg_config("--includedir-server")
    for code in (regress / "regress.c", spi / "refint.c", spi / "autoinc.c"):
        library = regress / f"{code.stem}.so"
        flags = ["-O1", "-fPIC", "-shared", "-w", "-DREFINT_VERBOSE", f"-I{headers}"]
        fetch_command("gcc", *flags, code, "-o", library, cwd=folder)
    shutil.rmtree(folder / "source", ignore_errors=True)
    source.rename(folder / "source")
    fetch_command("chmod", "-R", "a+rX", folder, cwd=folder)


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """The parallel schedule, in a database of the name that the expected output has."""
    target = replace(target, dbname="regression")
    with fresh_databases(target, target.dbname):
        prepare(target)
        return run_schedule(target, folder / "source" / "src" / "test" / "regress", log)


def run_schedule(target: Target, regress: Path, log: Path) -> Outcome:
    """pg_regress, and what it says of each test. The server too writes files into the results."""
    output = log.with_suffix(".output")
    shutil.rmtree(output, ignore_errors=True)
    for place in (output, output / "results"):
        place.mkdir()
        place.chmod(0o777)
    pgxs = Path(ask_pg_config("--pgxs")).parents[2]
    run_logged(
        [pgxs / "src" / "test" / "regress" / "pg_regress", "--use-existing", f"--dbname={target.dbname}",
         f"--host={target.host}", f"--port={target.port}", f"--user={target.user}",
         f"--bindir={ask_pg_config('--bindir')}", f"--dlpath={regress}", "--inputdir=.", f"--outputdir={output}",
         "--schedule=parallel_schedule"],
        log, cwd=regress, env=environment(target),
    )  # fmt: skip
    found = _RESULT.findall(log.read_text("utf-8", "replace"))
    if not found:
        raise SuiteError(f"pg_regress ran nothing, see {log}")
    failed = frozenset(name for name, result in found if result != "ok")
    return Outcome(len(found) - len(failed), failed, log)


def prepare(target: Target) -> None:
    """The settings of the database. Raises SuiteError if the server is of another version."""
    with connect(target) as connection:
        if connection.info.server_version // 10000 != MAJOR:
            raise SuiteError(f"needs a server of version {MAJOR}; name one in SQLWALL_TEST_DSN")
        for name, value in DATABASE_SETTINGS.items():
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET {} TO {}").format(
                    sql.Identifier(target.dbname), sql.Identifier(name), sql.Literal(value)
                )
            )


def ask_pg_config(option: str) -> str:
    """One answer of pg_config."""
    try:
        asked = subprocess.run(["pg_config", option], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SuiteError(f"pg_config {option}: {error}") from error
    return asked.stdout.strip()


SUITE = Suite("postgresql", f"PostgreSQL {MAJOR}: pg_regress, the parallel schedule", fetch, run)
