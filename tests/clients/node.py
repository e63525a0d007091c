"""node-postgres: the integration tests of package ``pg``, from Debian's source package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import SuiteError, environment, fetch_command, fetch_debian_source, run_logged

VERSION = "8.16.3"
DEBIAN = "sid"

#: Each file is one process, which ends at its first failure.
FILE_TIMEOUT = 120

_NAME = re.compile(r"^  (.+?) (✔|FAILED!|\? - SKIPPED)?$", re.MULTILINE)

#: They need TLS on the server.
NEEDS_TLS = ("connection-pool/tls-tests.js", "client/ssl-tests.js", "gh-issues/2085-tests.js")


def fetch(folder: Path) -> None:
    """The package with its tests; what it depends on comes from npm."""
    source = fetch_debian_source(folder, "node-postgres", DEBIAN, f"node-postgres_{VERSION}*.orig.tar.*")
    place = folder / "suite"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source / "packages" / "pg", place)
    description = json.loads((place / "package.json").read_text())
    wanted = description["devDependencies"]
    description["devDependencies"] = {
        name: wanted[name] for name in ("async", "bluebird", "co", "pg-copy-streams")
    }
    (place / "package.json").write_text(json.dumps(description, indent=2))
    fetch_command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=peer", cwd=place)


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """Every file, once with text results and once with binary ones."""
    place = folder / "suite"
    url = f"postgres://{quote(target.user, safe='')}:{quote(target.password, safe='')}@{target.host}:{target.port}"
    url += f"/{target.dbname}"
    env = environment(target)
    run_logged(["node", "script/create-test-tables.js", url], log, cwd=place, env=env, timeout=FILE_TIMEOUT)
    passed, failed = 0, set()
    for path in sorted((place / "test" / "integration").rglob("*-tests.js")):
        name = path.relative_to(place / "test" / "integration").as_posix()
        if name in NEEDS_TLS:
            continue
        for mode in ("text", "binary"):
            output, code = run_file(path, place, [url, "binary"] if mode == "binary" else [url], env, log)
            good = [test for test, mark in _NAME.findall(output) if mark == "✔"]
            passed += len(good)
            if code == 0:
                passed += not good  # a file without named tests is one test
            else:
                failed.add(f"{name} ({mode}) after {good[-1] if good else 'nothing'}")
    return Outcome(passed, frozenset(failed), log)


def run_file(
    path: Path, place: Path, arguments: list[str], env: dict[str, str], log: Path
) -> tuple[str, int]:
    """What a file printed, and its exit code; 124 if it hangs."""
    try:
        done = subprocess.run(
            ["node", str(path), *arguments], cwd=place, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=FILE_TIMEOUT, check=False,
        )  # fmt: skip
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = (error.stdout or b"") + b"\nTIMEOUT", 124
    except OSError as error:
        raise SuiteError(f"node cannot run: {error}") from error
    text = output.decode("utf-8", "replace")
    with log.open("a") as stream:
        stream.write(f"\n$ node {path.name} {arguments[1:]} -> {code}\n{text}\n")
    return text, code


SUITE = Suite(
    "node-postgres", f"node-postgres {VERSION}: integration tests, text and binary results", fetch, run
)
