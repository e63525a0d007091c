"""psql and pg_dump, under agent-safe with an observer: psql shows what it shows without a wall, and its writes are covered."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.tools import covered, find_tool, modelled
from tests.e2e.wall import APP, APP_PASSWORD
from tests.promises.guarded import Guarded, guarded, observer

__all__ = ["guarded", "modelled", "observer"]

#: What people and agents look around with.
SHOWS = (
    r"\d", r"\d+", r"\d people", r"\d+ people", r'\d "Their Pets"', r"\d+ happy_people", r"\d measured", r"\d+ measured",
    r"\d+ measured_2025", r"\d people_born", r"\d notes_id_seq", r"\d+ counted_people", r"\d p*", r"\d watched", r"\dS pg_class",
    r"\dt", r"\dt+", r"\dt *.*", r"\di", r"\di+", r"\dv", r"\dv+", r"\dm+", r"\ds+", r"\df", r"\df+", r"\df upper",
    r"\da", r"\daS count", r"\dn", r"\dn+", r"\du", r"\du+", r"\dg", r"\dp", r"\z people", r"\ddp", r"\dT", r"\dT+", r"\dD",
    r"\dD+", r"\dC", r"\do", r"\dO", r"\dc", r"\dx", r"\dx+", r"\dL", r"\dy", r"\dF", r"\dFd", r"\dFp", r"\dFt", r"\dP", r"\dPi+",
    r"\dX", r"\dA", r"\dAc", r"\dAf", r"\dAo", r"\dAp", r"\db", r"\dd", r"\dE", r"\det", r"\dew", r"\des", r"\deu",
    r"\dl", r"\lo_list", r"\dRp", r"\dRs", r"\drds", r"\dconfig work_mem", r"\l template*", r"\l+ template0", r"\sf double_it", r"\sf+ on_watched",
    r"\sv happy_people", r"\sv+ staff", "SELECT id, name FROM people ORDER BY id \\gdesc",
    "SELECT id, feels, name FROM people \\crosstabview", "SELECT 1 AS one \\gset\nSELECT :one", r"\encoding",
    "SELECT format('SELECT %s', id) FROM people ORDER BY id \\gexec", r"\copy orders to stdout", r"\copy (SELECT 1) to stdout csv",
)  # fmt: skip


def run_psql(dsn: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What psql makes of a script."""
    return subprocess.run(
        [find_tool("psql"), "-X", "-P", "pager=off", *options, dsn],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def show_all(dsn: str) -> dict[str, str]:
    """What psql says to each of SHOWS, errors included."""
    script = "".join(f"\\echo ==={n}\n{text}\n" for n, text in enumerate(SHOWS))
    ran = subprocess.run(
        [find_tool("psql"), "-X", "-P", "pager=off", dsn],
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    parts = ran.stdout.split("===")[1:]
    assert len(parts) == len(SHOWS)
    return {text: part.partition("\n")[2] for text, part in zip(SHOWS, parts, strict=True)}


def test_psql_shows_what_it_shows_without_a_wall(modelled: Guarded) -> None:
    direct = show_all(modelled.wall.database.dsn(APP, APP_PASSWORD))
    seen = show_all(modelled.wall.dsn())
    assert {text: said for text, said in seen.items() if said != direct[text]} == {}
    assert "people_born" in seen[r"\d people"] and "double_it" in seen[r"\df"]


def test_psql_writes_are_covered(guarded: Guarded, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.write_text("300\t1\tcopied\n301\t2\tcopied\n")
    script = f"""
        \\set AUTOCOMMIT off
        \\set ON_ERROR_ROLLBACK on
        UPDATE orders SET note = 'psql' WHERE id = 1;
        INSERT INTO orders VALUES (1, 1, 'twice');
        DELETE FROM orders;
        DELETE FROM orders WHERE id = 2;
        COMMIT;
        \\set AUTOCOMMIT on
        \\set FETCH_COUNT 7
        SELECT id FROM orders WHERE id < 30;
        \\copy orders FROM '{rows}'
        UPDATE orders SET note = 'a' WHERE id = 3 \\; UPDATE orders SET note = 'b' WHERE id = 4;
        INSERT INTO notes (body) VALUES ('x') RETURNING id \\gset
        UPDATE notes SET body = 'y' WHERE id = :id;
    """
    with covered(guarded, 5):
        ran = run_psql(guarded.wall.dsn(), script)
    assert ran.stderr.count("ERROR") == 2
    assert "duplicate key" in ran.stderr and "WHERE clause" in ran.stderr
    with covered(guarded, 1):
        ran = run_psql(
            guarded.wall.dsn(), "UPDATE orders SET note = 'c' WHERE id = 5;\n", "-1", "-v", "ON_ERROR_STOP=1"
        )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_pg_dump_is_told_what_it_may_not(guarded: Guarded) -> None:
    """It wants no timeouts, row security its own way, and a setting whose name the server tells: none of it is an agent's."""
    ran = subprocess.run(
        [find_tool("pg_dump"), "--schema-only", guarded.wall.dsn()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    line = "sqlwall denied SET on synchronize_seqscans [default-deny]: no rule allows it."
    assert f"ERROR:  {line} Nothing was executed. Do not retry unchanged.\n" in ran.stderr
    assert "DETAIL:  rule=default-deny retryable=false event=" in ran.stderr
