"""``sqlwall serve`` as a process before a real server, and the parts of it that need none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sqlwall.cli.agent import dsn
from sqlwall.cli.embedded import find_free_port
from sqlwall.cli.serve import UpstreamProbe, address_flags, has_password
from sqlwall.config import Config, load_config
from sqlwall.errors import ConfigError
from tests.postgres import Database


def configured(**flags: object) -> Config:
    return load_config(None, {}, {name.replace("__", "."): value for name, value in flags.items()})


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:6543", "127.0.0.1", "6543"),
        ("[::1]:1", "::1", "1"),
        ("wall.internal:80", "wall.internal", "80"),
    ],
)
def test_an_address_is_host_and_port(address: str, host: str, port: str) -> None:
    assert address_flags("listen", "listen", address) == {"listen.host": host, "listen.port": port}


@pytest.mark.parametrize(
    "address", ["", ":1", "h:", "h", "h:x", "::1:80", "[::1:80", "::1]:80", "h:-1", "h:１"]
)
def test_anything_else_says_how_to_write_it(address: str) -> None:
    try:
        flags = address_flags("console", "metrics", address)
    except ConfigError as error:
        assert "--console" in str(error)
    else:
        with pytest.raises(ConfigError, match=r"metrics\.port"):  # what looks like digits, but is none
            load_config(None, {}, flags)


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ("postgresql://u:p@h/d", True),
        ("postgresql://h/d?password=p", True),
        ("host=h password=p", True),
        ("postgresql://u@h/d", False),
        ("nonsense", False),
    ],
)
def test_a_password_on_the_command_line_is_noticed(upstream: str, expected: bool) -> None:
    assert has_password(upstream) is expected


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "@127.0.0.1:"), ("::1", "@[::1]:"), ("wall.internal", "@wall.internal:")],
)
def test_an_agents_dsn_can_be_used_as_it_is(host: str, shown: str) -> None:
    found = dsn(configured(listen__host=host), "bot", "p")
    assert shown in found
    assert psycopg.conninfo.conninfo_to_dict(found)["host"] == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_agents_dsn_never_names_every_address(host: str) -> None:
    assert psycopg.conninfo.conninfo_to_dict(dsn(configured(listen__host=host), "bot", "p"))["host"] not in (
        "",
        host,
    )


async def test_the_probe_logs_in_as_sessions_do(database: Database) -> None:
    good, wrong = (
        configured(upstream=database.dsn()),
        configured(upstream=database.dsn(database.server.user, "no")),
    )
    gone = configured(upstream=database.dsn().replace(database.name, "no_such_database"))
    closed = configured(upstream=f"postgresql://u:p@127.0.0.1:{find_free_port()}/x")
    assert await UpstreamProbe(lambda: good).problems() == []
    assert await UpstreamProbe(lambda: wrong).problems() == ["upstream: refuses the wall's login (28P01)"]
    assert await UpstreamProbe(lambda: gone).problems() == ["upstream: does not have the database (3D000)"]
    assert await UpstreamProbe(lambda: closed).problems() == ["upstream: does not answer (08001)"]


async def test_the_probe_does_not_ask_each_time(database: Database) -> None:
    asked: list[int] = []

    def config() -> Config:
        asked.append(1)
        return configured(upstream=database.dsn())

    probe = UpstreamProbe(config, interval=60.0)
    for _ in range(5):
        assert await probe.problems() == []
    assert len(asked) == 1


@contextmanager
def served(
    folder: Path, *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A wall as a process: itself, the base of its console's URLs, and the agents' port."""
    port, console = find_free_port(), find_free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SQLWALL_", "PG"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "sqlwall", "serve", "--workers=1", f"--listen=127.0.0.1:{port}",
         f"--console=127.0.0.1:{console}", *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{console}", port
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def ask(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, json.load(answer)


def ask_until(url: str, status: int) -> Any:
    """The answer once it has this status."""
    deadline = time.monotonic() + 30
    while True:
        try:
            found, value = ask(url)
            if found == status:
                return value
        except urllib.error.URLError:
            pass
        assert time.monotonic() < deadline, f"{url} never answered {status}"
        time.sleep(0.1)


def test_it_serves_and_ends_on_sigterm_with_status_0(tmp_path: Path, database: Database) -> None:
    with served(tmp_path, SQLWALL_UPSTREAM=database.dsn()) as (process, url, _):
        assert ask_until(f"{url}/readyz", 200) == {"status": "ready", "problems": []}
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in shown
    assert "warning" not in shown


def test_a_server_that_is_down_is_said_by_readyz_not_by_ending(tmp_path: Path) -> None:
    upstream = f"postgresql://u:s3cret@127.0.0.1:{find_free_port()}/x"
    with served(tmp_path, "--upstream", upstream) as (process, url, _):
        assert ask_until(f"{url}/readyz", 503)["problems"] == ["upstream: does not answer (08001)"]
        assert ask(f"{url}/healthz")[0] == 200
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "can read the password in --upstream" in shown
    assert "s3cret" not in shown
