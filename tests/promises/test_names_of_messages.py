"""Names in messages: what the server takes for one name is one name for the wall, too."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from sqlwall.wire import frontend
from tests.e2e.wall import make_shop, running_wall
from tests.e2e.wire import SYNC, RawClient, states, tags
from tests.postgres import Database, Server
from tests.promises.guarded import Guarded, database_template, guarded, observer

__all__ = ["database_template", "guarded", "observer"]

P, B, E, CLOSE = frontend.parse, frontend.bind, frontend.execute, frontend.close
PORTAL, STATEMENT = frontend.Kind.PORTAL, frontend.Kind.STATEMENT
#: What the server keeps of a longer name.
KEPT = b"a" * 63
READ = b"SELECT id FROM parent WHERE id = 1"
WRITE = "UPDATE parent SET name = 'hacked' WHERE id = 1"


def q(text: str) -> bytes:
    return frontend.query(text.encode())


def test_a_commit_is_not_hidden_behind_a_long_name_for_a_portal(guarded: Guarded) -> None:
    """The portal of a SELECT is closed by what the server has kept of its name, and comes back as that of a COMMIT."""
    before = guarded.bags()
    with RawClient(guarded.wall.dsn()) as client:
        client.ask(q("BEGIN"))
        client.ask(P(b"", READ), B(KEPT + b"x", b""), SYNC)
        client.ask(q(WRITE))
        said = client.ask(CLOSE(PORTAL, KEPT), P(b"", b"COMMIT"), B(KEPT + b"y", b""), E(KEPT + b"x"), SYNC)
        assert tags(said) == [b"COMMIT"]
    guarded.settled()
    assert guarded.apply(before, set()) == guarded.bags() != before


def test_a_commit_is_not_hidden_behind_a_long_name_for_a_statement(guarded: Guarded) -> None:
    before = guarded.bags()
    with RawClient(guarded.wall.dsn()) as client:
        client.ask(P(KEPT + b"x", READ), SYNC)
        client.ask(CLOSE(STATEMENT, KEPT), P(KEPT + b"y", b"COMMIT"), SYNC)
        client.ask(q("BEGIN"))
        client.ask(q(WRITE))
        assert tags(client.ask(B(b"", KEPT + b"x"), E(b""), SYNC)) == [b"COMMIT"]
    guarded.settled()
    assert guarded.apply(before, set()) == guarded.bags() != before


def test_long_names_work_as_they_do_without_a_wall(guarded: Guarded) -> None:
    script = (
        (P(KEPT + b"x", READ), B(KEPT + b"y", KEPT + b"z"), E(KEPT), SYNC),
        (P(KEPT, READ), SYNC),
        (q("DEALLOCATE " + "a" * 70),),
        (B(b"", KEPT + b"x"), SYNC),
        (P(KEPT + b"x", b"COMMIT"), SYNC),
        (P(KEPT + b"y", b"COMMIT"), SYNC),
        (q("PREPARE " + "a" * 64 + " AS SELECT 1"),),
    )
    said = []
    for dsn in (guarded.wall.dsn(), guarded.wall.database.dsn()):
        with RawClient(dsn) as client:
            said.append([(tags(found), states(found)) for found in [client.ask(*one) for one in script]])
    assert said[0] == said[1]


def test_a_database_in_which_two_names_may_be_one_is_not_served(
    postgres: Server, observer: tuple[str, str], tmp_path: Path
) -> None:
    name = "sqlwall_test_names"
    with postgres.connect() as owner:
        owner.execute(
            f"CREATE DATABASE {name} ENCODING 'EUC_JP' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    try:
        make_shop(postgres, name)
        with running_wall(Database(postgres, name), tmp_path) as wall:
            with pytest.raises(psycopg.OperationalError, match="encoding EUC_JP"):
                wall.connect()
    finally:
        with postgres.connect() as owner:
            owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
