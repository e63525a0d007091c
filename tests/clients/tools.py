"""What the suites share: sources and environments to fetch, commands to run, results to read.

A suite's folder holds what `fetch` brought; the file `FETCHED` in it says that it is complete.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.clients.suite import Outcome, Target

#: Seconds for a whole suite; what is not done by then hangs.
SUITE_TIMEOUT = 3600

#: Seconds for one test, where the suite sets no limit of its own.
TEST_TIMEOUT = 120

#: What no suite may see of ours: where its own server is, it is told.
_PRIVATE = re.compile(r"^(PG|SQLWALL_|PSYCOPG|PYTEST_|DJANGO_)|^(PYTHONPATH|PYTHONWARNINGS|VIRTUAL_ENV)$")


class SuiteError(Exception):
    """A suite could not be fetched, or gave no result."""


def environment(target: Target | None = None, **more: str) -> dict[str, str]:
    """Our environment without what would reach a client, plus libpq's names for the target."""
    kept = {name: value for name, value in os.environ.items() if not _PRIVATE.match(name)}
    if target is not None:
        kept |= {
            "PGHOST": target.host,
            "PGPORT": str(target.port),
            "PGUSER": target.user,
            "PGPASSWORD": target.password,
            "PGDATABASE": target.dbname,
        }
    return kept | more


def run_logged(
    command: Iterable[str | Path],
    log: Path,
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float = SUITE_TIMEOUT,
) -> int:
    """Run a command, append all it says to the log, return its exit code. Raises SuiteError if it hangs."""
    words = [str(word) for word in command]
    with log.open("ab") as output:
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        try:
            return subprocess.run(
                words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                timeout=timeout, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise SuiteError(f"{words[0]} was not done in {timeout:.0f} s, see {log}") from error


def fetch_command(*words: str | Path, cwd: Path) -> None:
    """A step of fetching. Raises SuiteError with the end of what it said."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SuiteError(f"{' '.join(map(str, words))}: {done.stdout[-1500:].strip()}")


# -- sources ---------------------------------------------------------------------------------------------------------


def fetch_sdist(folder: Path, requirement: str) -> Path:
    """The unpacked source distribution of ``name==version``."""
    fetch_command(
        sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", "-d", folder, requirement,
        cwd=folder,
    )  # fmt: skip
    name, version = requirement.split("==")
    return unpack(only(folder, f"{name}-{version}.tar.gz", f"{name.lower()}-{version}.tar.gz"), folder)


def fetch_debian_source(folder: Path, package: str, suite: str, pattern: str) -> Path:
    """The unpacked upstream tarball of a Debian source package, with apt's lists in a folder of their own.

    A mirror may lack parts of the package; the tarball that matches `pattern` is all that is wanted.
    """
    lists, cache = folder / "apt" / "lists", folder / "apt" / "cache"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    source_list = folder / "apt" / "sources.list"
    source_list.write_text(f"deb-src http://deb.debian.org/debian {suite} main\n")
    apt = [
        "apt-get", "-q", "-o", f"Dir::Etc::sourcelist={source_list}", "-o", "Dir::Etc::sourceparts=/dev/null",
        "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    fetch_command(*apt, "update", cwd=folder)
    try:
        fetch_command(*apt, "source", "--download-only", package, cwd=folder)
    except SuiteError:
        if not list(folder.glob(pattern)):
            raise
    return unpack(only(folder, pattern), folder)


def only(folder: Path, *patterns: str) -> Path:
    """The one file that fits a pattern."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if len(found) != 1:
        raise SuiteError(f"{folder} has {len(found)} files like {' or '.join(patterns)}")
    return found[0]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tarball of one top folder, and return that."""
    with tarfile.open(archive) as tar:
        top = tar.getnames()[0].split("/")[0]
        tar.extractall(folder, filter="data")
    return folder / top


def make_venv(folder: Path, *requirements: str) -> Path:
    """An environment with these packages; returns its python."""
    place = folder / "venv"
    fetch_command(sys.executable, "-m", "venv", "--clear", place, cwd=folder)
    python = place / "bin" / "python"
    fetch_command(python, "-m", "pip", "install", "-q", "--prefer-binary", *requirements, cwd=folder)
    return python


def venv_python(folder: Path) -> Path:
    """The python of the suite's environment."""
    return folder / "venv" / "bin" / "python"


def copy_tests(source: Path, place: Path) -> None:
    """The tests alone, so that the installed package is imported and not the source beside them."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text that must be there."""
    text = path.read_text()
    if old not in text:
        raise SuiteError(f"{path} has no {old!r}")
    path.write_text(text.replace(old, new))


# -- runs ------------------------------------------------------------------------------------------------------------


def run_pytest(
    folder: Path,
    target: Target,
    log: Path,
    cwd: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    not_to_skip: str = "",
) -> Outcome:
    """Run pytest in the suite's environment and read its JUnit report; see `read_junit`."""
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    run_logged(
        [venv_python(folder), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}",
         f"--timeout={TEST_TIMEOUT}", "--tb=short", *arguments],
        log, cwd=cwd, env=env if env is not None else environment(target),
    )  # fmt: skip
    if not report.exists():
        raise SuiteError(f"pytest left no report, see {log}")
    return read_junit(report, log, not_to_skip)


def read_junit(report: Path, log: Path, not_to_skip: str = "") -> Outcome:
    """The outcome in a JUnit report. A test that passed and then erred in its teardown has failed.

    So has one that is skipped for a reason that holds `not_to_skip`: what the run has been given to use did not work.
    """
    passed: set[str] = set()
    failed: set[str] = set()
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        if not_to_skip and any(not_to_skip in child.get("message", "") for child in case.iter("skipped")):
            kinds.add("failure")
        if kinds & {"failure", "error"}:
            failed.add(name)
        elif "skipped" not in kinds:
            passed.add(name)
    if not passed:
        raise SuiteError(f"no test has passed, see {log}")
    return Outcome(len(passed - failed), frozenset(failed), log)


_FAILED = re.compile(r"^(?:FAIL|ERROR|UNEXPECTED SUCCESS): (\S+ \([\w.]+\))", re.MULTILINE)
_RAN = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)
_SKIPPED = re.compile(r"\b(?:skipped|expected failures)=(\d+)")


def read_unittest(log: Path) -> Outcome:
    """The outcome in what unittest prints. A subtest counts for its test."""
    text = log.read_text("utf-8", "replace")
    ran = _RAN.findall(text)
    if not ran:
        raise SuiteError(f"unittest did not come to its end, see {log}")
    failed = frozenset(_FAILED.findall(text))
    tail = text[text.rindex("\nRan ") :]
    skipped = sum(int(number) for number in _SKIPPED.findall(tail))
    return Outcome(int(ran[-1]) - skipped - len(failed), failed, log)


def connect(target: Target, dbname: str | None = None) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in autocommit mode, for what a suite needs beforehand."""
    return psycopg.connect(
        host=target.host, port=target.port, user=target.user, password=target.password,
        dbname=dbname or target.dbname, autocommit=True, connect_timeout=10,
    )  # fmt: skip


@contextmanager
def fresh_databases(target: Target, *names: str) -> Iterator[None]:
    """Empty databases of these names, dropped at the end."""
    drop_databases(target, *names)
    with connect(target, "postgres") as connection:
        for name in names:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(name))
            )
    try:
        yield
    finally:
        drop_databases(target, *names)


def drop_databases(target: Target, *names: str) -> None:
    """Drop databases with all their sessions."""
    with connect(target, "postgres") as connection:
        for name in names:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )
