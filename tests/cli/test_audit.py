"""``sqlwall audit tail``: what agents wrote is shown, never obeyed, and nothing is left out while following."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from sqlwall.cli import audit
from sqlwall.cli.main import app
from sqlwall.store.audit import AuditWriter
from sqlwall.store.chain import AuditedText, AuditKind, AuditRecord
from sqlwall.store.database import open_store

runner = CliRunner()
EVIL = "SELECT '\x1b[2J\x9b1m\u202e'\n-- \r"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    found = open_store(tmp_path / "store.db")
    yield found
    found.dispose()


def record(text: str) -> AuditRecord:
    return AuditRecord(AuditKind.STATEMENT, agent="bot", statement=AuditedText.of(text.encode()))


@pytest.mark.parametrize("arguments", [("tail",), ("tail", "--json"), ("export",), ("export", "--json")])
def test_a_statement_on_the_record_cannot_reach_the_terminal(
    engine: Engine, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    AuditWriter(engine).append([record(EVIL)])
    done = runner.invoke(app, ["audit", *arguments, "--store", str(tmp_path / "store.db")])
    assert done.exit_code == 0, done.stderr
    assert not set(done.stdout) & set("\x1b\x9b\u202e\r")
    if arguments[0] == "tail" and "--json" in arguments:
        assert json.loads(done.stdout)[-1]["statement"] == EVIL


def test_following_shows_each_record_once_however_many_come(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = AuditWriter(engine)
    writer.append([record("first")])
    batches = iter([[f"a{n}" for n in range(3)], [f"b{n}" for n in range(3 * audit.FOLLOW_BATCH)], ["last"]])
    monkeypatch.setattr("time.sleep", lambda _: writer.append([record(text) for text in next(batches)]))
    expected = 3 + 3 * audit.FOLLOW_BATCH + 1
    seen = [r["statement"] for r in islice(audit._follow(engine, None, audit.tail(engine, 1)), expected)]
    assert seen == [f"a{n}" for n in range(3)] + [f"b{n}" for n in range(3 * audit.FOLLOW_BATCH)] + ["last"]


def test_following_starts_where_the_record_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = AuditWriter(engine)
    writer.append([record(f"old{n}") for n in range(10)])
    monkeypatch.setattr("time.sleep", lambda _: writer.append([record("new")]))
    assert next(iter(audit._follow(engine, "bot", audit.tail(engine, 5))))["statement"] == "new"
