"""``sqlwall doctor`` against a real server: each ailment is found, and its remedy is SQL that cures it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner

from sqlwall.cli.main import app
from tests.postgres import Database

runner = CliRunner()
PASSWORD = "patient"


@pytest.fixture
def patient(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A plain role that may do nothing, in a database where what PUBLIC has by default is taken away."""
    role = f"patient_{database.name[-6:]}"
    name = sql.Identifier(role)
    database.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(PASSWORD)))
    monkeypatch.chdir(tmp_path)
    for variable in ("SQLWALL_STORE", "SQLWALL_RULESET", "SQLWALL_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SQLWALL_UPSTREAM", database.dsn(role, PASSWORD))
    cure(database)
    try:
        yield role
    finally:
        database.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def examine() -> list[dict[str, str]]:
    done = runner.invoke(app, ["doctor", "--json"])
    assert done.exit_code in (0, 1), done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    assert done.exit_code == bool(found)
    return found


def cure(database: Database) -> None:
    """Do what the doctor says."""
    with database.connect() as connection:
        for ailment in examine():
            connection.execute(ailment["remedy"].replace("another_role", database.server.user).encode())


def test_a_plain_role_has_nothing_to_put_right(patient: str) -> None:
    assert examine() == []
    assert "nothing to put right" in runner.invoke(app, ["doctor"]).stdout


AILMENTS = [
    ("ALTER ROLE {r} CREATEDB", "is CREATEDB"),
    ("ALTER ROLE {r} CREATEROLE", "is CREATEROLE"),
    ("ALTER ROLE {r} BYPASSRLS", "is BYPASSRLS"),
    ("ALTER ROLE {r} REPLICATION", "is REPLICATION"),
    ("GRANT pg_write_all_data TO {r}", "member of pg_write_all_data"),
    ("GRANT pg_execute_server_program TO {r}", "member of pg_execute_server_program"),
    ("GRANT pg_signal_backend TO {r}", "member of pg_signal_backend"),
    ("CREATE TABLE owned (i int); ALTER TABLE owned OWNER TO {r}", "owns table public.owned"),
    ("CREATE SCHEMA AUTHORIZATION {r}", "owns schema"),
    ('CREATE TABLE "O\'dd ;\x1b" (i int); ALTER TABLE "O\'dd ;\x1b" OWNER TO {r}', "owns table"),
    (
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION f() OWNER TO {r}",
        "owns routine",
    ),
    ("GRANT CREATE ON SCHEMA public TO {r}", "CREATE in schema public"),
    ("GRANT CREATE ON SCHEMA public TO PUBLIC", "CREATE in schema public"),
    ("GRANT TEMPORARY ON DATABASE {d} TO PUBLIC", "TEMPORARY on database"),
    ("GRANT CREATE ON DATABASE {d} TO {r}", "CREATE on database"),
    ("GRANT EXECUTE ON FUNCTION lo_unlink(oid) TO PUBLIC", "EXECUTE on lo_unlink"),
    ("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO {r}", "EXECUTE on pg_read_file"),
    ("GRANT SET ON PARAMETER session_replication_role TO {r}", "SET on parameter session_replication_role"),
    ("CREATE TABLE t (i int); GRANT TRUNCATE ON t TO {r}", "TRUNCATE on public.t"),
    ("CREATE TABLE t (i int); GRANT TRIGGER ON t TO PUBLIC", "TRIGGER on public.t"),
    ("CREATE SCHEMA s; CREATE TABLE s.t (i int); GRANT DELETE ON s.t TO {r}", "DELETE on s.t"),
    ("CREATE SCHEMA s; CREATE TABLE s.t (a int, b int); GRANT UPDATE (a) ON s.t TO {r}", "UPDATE on s.t"),
    (
        "CREATE FUNCTION hides() RETURNS int LANGUAGE sql SECURITY DEFINER SET track_counts = off AS 'SELECT 1'",
        "hides() runs as a superuser",
    ),
]


@pytest.mark.parametrize(("harm", "found"), AILMENTS, ids=[found for _, found in AILMENTS])
def test_an_ailment_is_found_and_its_remedy_cures_it(
    database: Database, patient: str, harm: str, found: str
) -> None:
    harm = harm.replace("{r}", patient).replace("{d}", database.name)
    try:
        with database.connect() as connection:
            connection.execute(harm.encode())
    except psycopg.errors.FeatureNotSupported as error:
        pytest.skip(str(error))
    ailments = examine()
    assert [a for a in ailments if found in a["name"]], ailments
    shown = runner.invoke(app, ["doctor"])
    assert "\x1b" not in shown.stdout
    cure(database)
    assert examine() == []


def test_a_role_that_it_can_become_counts_as_its_own(database: Database, patient: str) -> None:
    boss = f"boss_{database.name[-6:]}"
    database.execute(sql.SQL("CREATE ROLE {} SUPERUSER").format(sql.Identifier(boss)))
    try:
        database.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(boss), sql.Identifier(patient)))
        assert any(f"can become {boss}" in ailment["name"] for ailment in examine())
        cure(database)
        assert examine() == []
    finally:
        database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(boss)))


def test_foreign_servers_it_may_use_are_found(database: Database, patient: str) -> None:
    try:
        database.execute("CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw")
    except psycopg.errors.FeatureNotSupported as error:
        pytest.skip(str(error))
    database.execute("GRANT USAGE ON FOREIGN SERVER far TO PUBLIC")
    assert any("USAGE on foreign server far" in ailment["name"] for ailment in examine())
    cure(database)
    assert examine() == []


def test_rights_that_a_ruleset_makes_use_of_are_left_alone(database: Database, patient: str) -> None:
    database.execute(
        sql.SQL("CREATE TABLE t (i int); GRANT INSERT, UPDATE, DELETE ON t TO {}").format(
            sql.Identifier(patient)
        )
    )
    assert examine() == []


def test_a_right_counts_as_used_only_if_some_agent_may_use_it(
    database: Database, patient: str, tmp_path: Path
) -> None:
    database.execute(
        sql.SQL("CREATE TABLE t (i int); GRANT INSERT ON t TO {}").format(sql.Identifier(patient))
    )
    assert runner.invoke(app, ["agent", "add", "reader", "--ruleset", "read-only"]).exit_code == 0
    assert [ailment["name"] for ailment in examine()] == ["INSERT on public.t"]
    assert runner.invoke(app, ["agent", "add", "writer"]).exit_code == 0
    assert examine() == []


def test_of_a_superuser_only_that_is_said(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLWALL_UPSTREAM", database.dsn())
    names = [ailment["name"] for ailment in examine()]
    assert f"{database.server.user} is SUPERUSER" in names
    assert all(name.startswith(f"{database.server.user} is ") for name in names)


def test_it_changes_nothing(database: Database, patient: str) -> None:
    def acls() -> list[tuple[Any, ...]]:
        with database.connect() as connection:
            return connection.execute(
                "SELECT relacl::text FROM pg_class UNION ALL SELECT proacl::text FROM pg_proc"
                " UNION ALL SELECT rolname || rolsuper FROM pg_roles ORDER BY 1"
            ).fetchall()

    before = acls()
    examine()
    assert acls() == before
