"""pgjdbc: checks of our own in Java with the driver that Debian packages; its own tests are in no source that we reach."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import SuiteError, environment, fetch_command, run_logged

DRIVER = Path("/usr/share/java/postgresql.jar")
SOURCE = Path(__file__).with_name("Checks.java")


def fetch(folder: Path) -> None:
    """Compile the checks. Raises SuiteError without a compiler or the driver."""
    if not DRIVER.exists():
        raise SuiteError("pgjdbc is missing: apt-get install libpostgresql-jdbc-java default-jdk-headless")
    fetch_command("javac", "-encoding", "UTF-8", "-cp", DRIVER, "-d", folder, SOURCE, cwd=folder)


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """Each check in each mode is a test."""
    log.write_bytes(b"")
    url = f"jdbc:postgresql://{target.host}:{target.port}/{target.dbname}"
    run_logged(["java", "-cp", f"{DRIVER}:{folder}", "Checks", url], log, cwd=folder, env=environment(target))
    said = log.read_text("utf-8", "replace")
    passed = re.findall(r"^ok (.*)$", said, re.MULTILINE)
    failed = re.findall(r"^not ok (.*?\]):", said, re.MULTILINE)
    if not passed:
        raise SuiteError(f"no check passed, see {log}")
    return Outcome(len(passed), frozenset(failed), log)


SUITE = Suite("pgjdbc", "pgjdbc of Debian: our checks in all query modes, text and binary", fetch, run)
