"""Every command as a person runs it: a process, its output, its exit status. An error is one clear line."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sqlwall.cli.main import app
from sqlwall.store.audit import AuditWriter
from sqlwall.store.chain import AuditedText, AuditKind, AuditRecord
from sqlwall.store.database import open_store
from tests.postgres import Database, Server


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in an empty folder and in this process, which saves a second each time."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, **environment: str) -> Done:
        unset = {name: None for name in os.environ if name.startswith(("SQLWALL_", "PG"))}
        done = CliRunner().invoke(app, arguments, env={**unset, "COLUMNS": "200", **environment})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture
def start(tmp_path: Path) -> Run:
    """Runs a command in an empty folder as a process of its own, as a person does."""

    def call(*arguments: str, **environment: str) -> Done:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SQLWALL_", "PG"))}
        done = subprocess.run(
            [sys.executable, "-m", "sqlwall", *arguments],
            cwd=tmp_path,
            env=kept | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return call


def found(done: Done) -> Any:
    """The JSON document of a command that went well."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def complaint(done: Done, *statuses: int) -> str:
    """The one line of a command that failed."""
    assert done.returncode in (statuses or (2, 3)), (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sqlwall: ")]
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


# -- demo


def test_the_demo_shows_every_verdict_as_expected(start: Run) -> None:
    shown = found(start("demo", "--once", "--json"))
    assert len(shown["steps"]) > 10
    assert all(step["as_expected"] for step in shown["steps"])
    assert shown["state_before"] == shown["state_undone"] != shown["state_written"]
    assert shown["conflicts"] == []
    assert any("status: paid → sent" in line for line in shown["changes"])
    assert {step["sqlstate"] for step in shown["steps"]} == {"", "42501", "42601"}


# -- agent


def test_an_agent_is_added_listed_rotated_and_revoked(run: Run) -> None:
    added = found(run("agent", "add", "bot", "--connections", "3", "--note", "reports", "--json"))
    assert added["name"] == "bot"
    assert re.fullmatch(r"postgresql://bot:[^@]+@127\.0\.0\.1:6543/postgres", added["dsn"])
    (listed,) = found(run("agent", "list", "--json"))
    assert listed["state"] == "active"
    assert (listed["ruleset"], listed["connections"], listed["note"]) == ("agent-safe", 3, "reports")
    rotated = found(run("agent", "rotate", "bot", "--json"))
    assert rotated["dsn"] != added["dsn"]
    assert "revoked" in run("agent", "revoke", "bot").stdout
    (listed,) = found(run("agent", "list", "--json"))
    assert listed["state"] == "revoked"
    assert "bot" in run("agent", "list").stdout


def test_a_password_is_in_no_list_and_not_in_the_store(start: Run, tmp_path: Path) -> None:
    dsn = start("agent", "add", "bot").stdout.strip()
    password = dsn.split(":")[2].split("@")[0]
    assert password not in start("agent", "list", "--json").stdout
    for file in tmp_path.iterdir():
        assert password.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("agent", "add", "bot"), "bot"),
        (("agent", "rotate", "nobody"), "nobody"),
        (("agent", "revoke", "nobody"), "nobody"),
        (("agent", "add", ""), "name"),
        (("agent", "add", "x" * 500), "name"),
        (("agent", "add", "other", "--ruleset", "agent-saef"), "agent-safe"),
        (("agent", "add", "other", "--ruleset", "./missing.yaml"), "missing.yaml"),
    ],
)
def test_an_agent_that_cannot_be_is_one_clear_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    assert run("agent", "add", "bot").returncode == 0
    assert words in complaint(run(*arguments))


# -- explain


def test_a_permitted_statement_is_explained(run: Run) -> None:
    shown = found(run("explain", "SELECT * FROM orders", "--json"))
    assert shown["verdict"]["action"] == "allow"
    assert shown["statements"][0]["effects"]


def test_a_refused_statement_is_explained_with_status_1(run: Run) -> None:
    done = run("explain", "DELETE FROM orders", "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    assert shown["verdict"]["action"] == "deny"
    rules = [rule["rule"] for rule in shown["statements"][0]["effects"][0]["rules"] if rule["matched"]]
    assert shown["verdict"]["rule"] in rules
    assert shown["verdict"]["rule"] in run("explain", "DELETE FROM orders").stdout


@pytest.mark.parametrize("text", ["SELEC 1", "", "SELECT '", "\udcff"])
def test_what_does_not_parse_is_explained_too(run: Run, text: str) -> None:
    done = run("explain", text)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout


def test_names_are_asked_of_the_server(run: Run, database: Database) -> None:
    database.execute(
        "CREATE FUNCTION w() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN RETURN 1; END $$;"
        " CREATE VIEW v AS SELECT w() AS a"
    )
    done = run("explain", "SELECT * FROM v", "--json", SQLWALL_UPSTREAM=database.dsn())
    assert done.returncode == 1, done.stderr
    assert run("explain", "SELECT * FROM v", "--offline", SQLWALL_UPSTREAM=database.dsn()).returncode == 0


# -- rules


def test_shipped_rulesets_are_sound_and_their_cases_pass(run: Run) -> None:
    assert run("rules", "check", "agent-safe", "read-only").returncode == 0
    observe = run("rules", "check", "--json", "observe")
    assert observe.returncode == 1
    assert {finding["concern"] for finding in json.loads(observe.stdout)} == {"mode", "sensitive", "foreign"}
    rows = found(run("rules", "test", "--json"))
    assert len(rows) > 100
    assert all(row["passed"] for row in rows)


def test_the_schema_is_json(run: Run) -> None:
    assert "properties" in found(run("rules", "schema"))


def test_a_case_that_fails_is_status_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "version: 1\nname: own\nmode: enforce\nrules:\n"
        "  - {id: reads, operations: [select], action: allow}\n"
        "cases:\n  - {sql: DELETE FROM t, expect: {action: allow}}\n"
    )
    done = run("rules", "test", "./own.yaml")
    assert done.returncode == 1
    assert "0 of 1 cases pass" in done.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 1\nname: x\nmode: enforce\nruels: []\n", "rules"),
        ("version: [\n", ""),
        ("", ""),
        ("\x00", ""),
        ("- 1\n", ""),
        ("a: &a [*a]\n", ""),
    ],
)
def test_a_bad_ruleset_says_where(run: Run, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    for command in ("check", "test"):
        done = run("rules", command, "./own.yaml")
        assert done.returncode == 2, done.stderr
        assert "own.yaml" in done.stderr
        assert words in done.stderr


@pytest.mark.parametrize("name", ["missing", "./missing.yaml", "/", ""])
def test_a_ruleset_that_is_not_there_is_one_clear_line(run: Run, name: str) -> None:
    assert len(run("rules", "check", name).stderr.splitlines()) == 1
    complaint(run("rules", "test", name), 2)


# -- audit


@pytest.fixture
def recorded(run: Run, tmp_path: Path) -> Iterator[str]:
    """A store with a few records, as an option's value."""
    url = f"sqlite:///{tmp_path / 'sqlwall.db'}"
    engine = open_store(url)
    writer = AuditWriter(engine)
    writer.append(
        [
            AuditRecord(AuditKind.START),
            *(
                AuditRecord(AuditKind.REFUSAL, agent="bot", statement=AuditedText.of(b"DELETE %d" % n))
                for n in range(5)
            ),
            AuditRecord(AuditKind.REFUSAL, agent="other", statement=AuditedText.of(b"DROP")),
        ]
    )
    engine.dispose()
    yield url


def test_the_record_is_shown_verified_and_exported(run: Run, recorded: str) -> None:
    assert len(found(run("audit", "tail", "--json"))) == 8  # and the genesis
    shown = found(run("audit", "tail", "-n", "2", "--agent", "bot", "--json"))
    assert [record["statement"] for record in shown] == ["DELETE 3", "DELETE 4"]
    assert "DROP" in run("audit", "tail").stdout
    verified = found(run("audit", "verify", "--json"))
    assert (verified["records"], verified["faults"]) == (8, [])
    lines = run("audit", "export").stdout.splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert len(lines) >= 8
    heads = found(run("audit", "heads", "--json"))
    assert run("audit", "verify", *(f"--head={head}" for head in heads)).returncode == 0


def test_a_record_that_was_altered_or_cut_is_status_1(run: Run, recorded: str, tmp_path: Path) -> None:
    import sqlite3

    heads = found(run("audit", "heads", "--json"))
    connection = sqlite3.connect(tmp_path / "sqlwall.db")
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute("DELETE FROM sqlwall_audit WHERE position = (SELECT max(position) FROM sqlwall_audit)")
    connection.commit()
    cut = run("audit", "verify", *(f"--head={head}" for head in heads))
    assert cut.returncode == 1
    connection.execute("UPDATE sqlwall_audit SET agent = 'else' WHERE agent = 'bot'")
    connection.commit()
    connection.close()
    altered = run("audit", "verify")
    assert altered.returncode == 1
    assert "faults" in altered.stdout


def test_a_head_that_is_none_is_one_clear_line(run: Run, recorded: str) -> None:
    assert "--head" in complaint(run("audit", "verify", "--head", "x"), 2)


@pytest.mark.parametrize("command", ["tail", "verify", "export", "heads"])
def test_a_store_that_is_not_there_is_one_clear_line_and_is_not_made(
    run: Run, tmp_path: Path, command: str
) -> None:
    complaint(run("audit", command))
    assert not (tmp_path / "sqlwall.db").exists()


# -- doctor


def test_the_doctor_shows_how_to_take_rights_from_a_superuser(run: Run, database: Database) -> None:
    done = run("doctor", SQLWALL_UPSTREAM=database.dsn())
    assert done.returncode == 1, done.stderr
    assert f"ALTER ROLE {database.server.user} NOSUPERUSER;" in done.stdout


def test_the_doctors_own_remedies_leave_nothing_to_put_right(
    run: Run, database: Database, postgres: Server
) -> None:
    role = "sqlwall_test_" + database.name[-6:]
    database.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'secret' CREATEDB BYPASSRLS".encode())
    try:
        database.execute(f'CREATE TABLE "Odd ""t" (id int); ALTER TABLE "Odd ""t" OWNER TO {role}'.encode())
        database.execute(f"GRANT pg_write_all_data TO {role}".encode())
        dsn = database.dsn(role, "secret")
        done = run("doctor", "--json", SQLWALL_UPSTREAM=dsn)
        assert done.returncode == 1, done.stderr
        ailments = [item for item in json.loads(done.stdout) if item["name"] != "ruleset"]
        assert len(ailments) >= 5
        for item in ailments:
            remedy = item["remedy"].replace("another_role", postgres.user)
            database.execute(remedy.encode())
        done = run("doctor", "--json", SQLWALL_UPSTREAM=dsn)
        assert json.loads(done.stdout) == []
        assert done.returncode == 0
    finally:
        database.execute(f"DROP OWNED BY {role}".encode())
        postgres.execute(f"DROP ROLE {role}".encode())


# -- what is wrong is said in one line


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("command", ["doctor", "serve"])
@pytest.mark.parametrize(
    "dsn", ["nonsense", "postgresql://[", "mysql://x", "host=", "postgresql://h:99999/x"]
)
def test_a_wrong_dsn_is_one_clear_line(run: Run, command: str, dsn: str) -> None:
    line = complaint(run(command, SQLWALL_UPSTREAM=dsn))
    assert "upstream" in line.lower()


@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_without_an_upstream_the_line_says_how_to_name_one(run: Run, command: str) -> None:
    assert "upstream" in complaint(run(command)).lower()


def test_a_password_never_shows_in_a_complaint(run: Run, closed_port: int) -> None:
    for dsn in (
        f"postgresql://u:s3cr3tword@127.0.0.1:{closed_port}/x",
        "postgresql://u:s3cr3tword@127.0.0.1:99999/x",
        "postgresql://u:s3cr3tword@[/x",
        "u:s3cr3tword@nonsense",
    ):
        done = run("doctor", SQLWALL_UPSTREAM=dsn)
        assert done.returncode in (2, 3)
        assert "s3cr3tword" not in done.stdout + done.stderr


def test_a_server_that_is_down_is_one_clear_line(run: Run, closed_port: int) -> None:
    dsn = f"postgresql://u:p@127.0.0.1:{closed_port}/x"
    for command in (("doctor",), ("explain", "SELECT 1")):
        assert str(closed_port) in complaint(run(*command, SQLWALL_UPSTREAM=dsn), 3)


def test_a_wrong_password_is_one_clear_line(run: Run, database: Database) -> None:
    dsn = database.server.dsn(database.name, database.server.user, "wrong")
    assert "password" in complaint(run("doctor", SQLWALL_UPSTREAM=dsn), 3)


@pytest.mark.parametrize("which", ["listen", "metrics"])
def test_a_port_in_use_is_one_clear_line(
    start: Run, database: Database, closed_port: int, which: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = f"127.0.0.1:{taken.getsockname()[1]}"
        other = "metrics" if which == "listen" else "listen"
        done = start(
            "serve", "--workers=1", f"--{which}={used}", f"--{other}=127.0.0.1:{closed_port}",
            SQLWALL_UPSTREAM=database.dsn(),
        )  # fmt: skip
    assert used in complaint(done, 3)


@pytest.mark.parametrize(
    "address", ["6543", "127.0.0.1:", "127.0.0.1:x", ":::", "127.0.0.1:99999", "1.2.3.4:9"]
)
def test_an_address_that_is_none_is_one_clear_line(run: Run, database: Database, address: str) -> None:
    complaint(run("serve", "--workers=1", f"--listen={address}", SQLWALL_UPSTREAM=database.dsn()))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unreadable_certificate_is_one_clear_line(
    run: Run, database: Database, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "wall.pem"
    if content is not None:
        file.write_text(content)
    done = run(
        "serve", "--workers=1", "--listen=127.0.0.1:1", SQLWALL_UPSTREAM=database.dsn(),
        SQLWALL_TLS_CERTIFICATE=str(file), SQLWALL_TLS_KEY=str(file),
    )  # fmt: skip
    assert "wall.pem" in complaint(done)


def test_a_config_file_reports_all_that_is_wrong_with_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sqlwall.yaml").write_text("listen:\n  prot: 1\nupstraem: x\n")
    done = run("doctor")
    assert done.returncode == 2
    assert "sqlwall.yaml:2" in done.stderr and "sqlwall.yaml:3" in done.stderr
    assert "port" in done.stderr and "upstream" in done.stderr


@pytest.mark.parametrize("text", ["listen: [", "\t- x: y\n  z", "a: b: c"])
def test_a_config_file_that_is_no_yaml_is_said_to_be_none(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "sqlwall.yaml").write_text(text)
    done = run("doctor")
    assert done.returncode == 2
    assert "sqlwall.yaml" in done.stderr


def test_a_config_file_that_is_named_must_be_there(run: Run) -> None:
    assert "other.yaml" in complaint(run("doctor", "--config", "other.yaml"), 2)


@pytest.mark.parametrize(
    "url", ["sqlite:////dev/null/x.db", "nonsense://x", "postgresql://127.0.0.1:1/x", "/"]
)
def test_a_store_that_cannot_be_opened_is_one_clear_line(run: Run, url: str) -> None:
    complaint(run("agent", "list", "--store", url))


def test_a_store_that_is_no_database_is_one_clear_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sqlwall.db").write_text("this is not a database, but a text of some length " * 100)
    complaint(run("agent", "list"))
    complaint(run("audit", "verify"))


def test_a_setting_of_another_kind_is_one_clear_line(run: Run) -> None:
    assert "SQLWALL_LISTEN_PORT" in complaint(run("agent", "list", SQLWALL_LISTEN_PORT="many"), 2)


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("agent", "nothing"), ("explain",), ("audit", "tail", "-n", "x")]
)
def test_a_command_that_is_none_is_a_usage_error(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_help_and_version(start: Run) -> None:
    assert start("version").stdout.startswith("sqlwall ")
    assert "serve" in start("--help").stdout
