"""``sqlwall demo`` goes on serving until it is told to stop, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from sqlwall.cli.embedded import find_embedded_binaries
from sqlwall.errors import ConfigError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_removes_everything(tmp_path: Path, number: signal.Signals) -> None:
    try:
        find_embedded_binaries()
    except ConfigError as missing:
        pytest.skip(str(missing))
    with subprocess.Popen(
        [sys.executable, "-m", "sqlwall", "demo", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        shown = json.loads("".join(lines))
        assert all(step["as_expected"] for step in shown["steps"])
        with psycopg.connect(shown["dsn"], autocommit=True) as agent:
            assert agent.execute("SELECT count(*) FROM orders").fetchone() == (200,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                agent.execute("DELETE FROM orders")
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        process.send_signal(number)
        _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (0, "")
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
