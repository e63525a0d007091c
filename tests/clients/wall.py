"""A real ``sqlwall serve`` before the server under test, with the ruleset that forwards everything."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from sqlwall.cli.embedded import find_free_port
from tests.postgres import Server

#: Where `sqlwall` and the tests lie: the wall that runs is the one beside this file.
ROOT = Path(__file__).resolve().parents[2]

#: Seconds for the wall to listen.
START_TIMEOUT = 20.0

_COMPLAINT = re.compile(r"^.*(?:Traceback|Exception|ERROR|CRITICAL|never awaited).*$", re.MULTILINE)

#: Counters that stay at nought.
_NEVER = (
    "sqlwall_worker_restarts",
    "sqlwall_parser_timeouts",
    "sqlwall_audit_failed_writes",
)


@dataclass(frozen=True, slots=True)
class ServingWall:
    """Where clients reach the wall, and what it writes."""

    port: int
    password: str
    metrics: int
    log: Path

    def count(self, name: str) -> int:
        """A counter of /metrics, over all its labels."""
        with urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(
            int(float(value))
            for value in re.findall(rf"^{name}(?:_total)?(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        )

    def complaints(self) -> list[str]:
        """What no suite should cause, whatever it sends."""
        found = [
            line
            for line in _COMPLAINT.findall(self.log.read_text("utf-8", "replace"))
            if "server refused" not in line  # a client asked for a database that is not there
        ]
        found += [f"{name} {self.count(name)}" for name in _NEVER if self.count(name)]
        return found


@contextmanager
def serve_wall(server: Server, folder: Path, ruleset: str = "observe") -> Iterator[ServingWall]:
    """A wall of one worker; its agent bears the superuser's name, so that clients cannot tell by the user."""
    store, log = folder / "wall.db", folder / "wall.log"
    for path in folder.glob("wall.db*"):
        path.unlink()
    login = f"{quote(server.user, safe='')}:{quote(server.password, safe='')}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQLWALL_")}
    environment |= {
        "SQLWALL_UPSTREAM": f"postgresql://{login}@{server.host}:{server.port}/",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "sqlwall"]
    added = subprocess.run(
        [*command, "agent", "add", server.user, "--store", str(store), "--json"],
        env=environment, cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    password = urlsplit(json.loads(added.stdout)["dsn"]).password or ""
    port, metrics = find_free_port(), find_free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "serve", "--store", str(store), "--ruleset", ruleset, "--workers", "1",
             "--listen", f"127.0.0.1:{port}", "--metrics", f"127.0.0.1:{metrics}"],
            env=environment, cwd=folder, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            _await_port(port, process)
            yield ServingWall(port, password, metrics, log)
        finally:
            process.terminate()
            process.wait(60)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"sqlwall serve has ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")
