"""``sqlwall explain``: for whom, under which ruleset, and what it says of text that does not parse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sqlwall.cli.main import app
from tests.postgres import Database

runner = CliRunner()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SQLWALL_UPSTREAM", "SQLWALL_STORE", "SQLWALL_RULESET", "SQLWALL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_an_agent_is_explained_under_its_own_ruleset() -> None:
    assert runner.invoke(app, ["agent", "add", "reader", "--ruleset", "read-only"]).exit_code == 0
    done = runner.invoke(app, ["explain", "INSERT INTO t VALUES (1)", "--as", "reader", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["ruleset"] == "read-only"


@pytest.mark.parametrize("is_store_there", [False, True])
def test_an_agent_that_is_not_there_is_not_explained_as_another(is_store_there: bool) -> None:
    if is_store_there:
        runner.invoke(app, ["agent", "add", "bot"])
    done = runner.invoke(app, ["explain", "SELECT 1", "--as", "bto"])
    assert done.exit_code == 2
    assert done.stderr.startswith("sqlwall: there is no agent 'bto'")
    assert done.stdout == ""


def test_a_revoked_agent_is_said_to_be_revoked() -> None:
    runner.invoke(app, ["agent", "add", "bot"])
    runner.invoke(app, ["agent", "revoke", "bot"])
    assert "revoked" in runner.invoke(app, ["explain", "SELECT 1", "--as", "bot"]).stderr


def test_with_a_ruleset_nobody_has_to_exist() -> None:
    done = runner.invoke(app, ["explain", "SELECT 1", "--as", "planned", "--ruleset", "read-only"])
    assert (done.exit_code, done.stderr) == (0, "")


def test_explaining_makes_no_store(tmp_path: Path) -> None:
    runner.invoke(app, ["explain", "SELECT 1", "--as", "bot"])
    runner.invoke(app, ["explain", "SELECT 1"])
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_a_syntax_error_is_told() -> None:
    done = runner.invoke(app, ["explain", "SELECT 1 FORM t x", "--json"])
    fault = json.loads(done.stdout)["unparsable"]
    assert fault["sqlstate"] == "42601"
    assert fault["position"] > 1


def test_a_statement_cannot_reach_the_terminal_through_its_explanation() -> None:
    done = runner.invoke(app, ["explain", 'DELETE FROM "\x1b[2J\x9b1m"'])
    assert done.exit_code == 1
    assert "\\x1b[2J" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\x9b" not in done.stdout


def test_a_database_may_be_given_as_a_dsn(database: Database) -> None:
    database.execute("CREATE SCHEMA s; CREATE VIEW s.v AS SELECT 1 AS a")
    done = runner.invoke(app, ["explain", "SELECT * FROM s.v", "--database", database.dsn(), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["statements"][0]["effects"][0]["target"] == "s.v"
