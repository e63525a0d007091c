"""What an honest client hears is what the server says, byte for byte, before and after a function has run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sqlwall.wire import frontend
from tests.e2e.wall import APP, APP_PASSWORD, WAIVED, RunningWall, running_wall, waiving
from tests.e2e.wire import FLUSH, SYNC, RawClient
from tests.postgres import Server, fresh_database
from tests.promises.test_nothing_uncovered import PORTAL, STATEMENT, B, P, ex, q


def e(portal: bytes, rows: int = 0) -> bytes:
    return frontend.execute(portal, rows)


S = "SELECT id FROM orders WHERE id < 6 ORDER BY id"
D = frontend.describe
HONEST = {
    "two blocks": [ex("BEGIN"), ex(S), ex("COMMIT"), ex("BEGIN"), ex(S), ex("COMMIT"), SYNC],
    "two ro blocks": [
        ex("BEGIN READ ONLY"),
        ex(S),
        ex("COMMIT"),
        ex("BEGIN READ ONLY"),
        ex(S),
        ex("COMMIT"),
        SYNC,
    ],
    "rollback, more": [ex("BEGIN"), ex(S), ex("ROLLBACK"), ex(S), SYNC],
    "commit, read": [ex("BEGIN"), ex(S), ex("COMMIT"), ex(S), ex("SELECT 1/0"), ex(S), SYNC, q("SELECT 1")],
    "commit, flush": [ex("BEGIN"), ex(S), ex("COMMIT"), FLUSH, ex(S), FLUSH, SYNC],
    "begin flush commit flush": [
        ex("BEGIN"),
        FLUSH,
        ex(S),
        FLUSH,
        ex("COMMIT"),
        FLUSH,
        ex("SELECT 1/0"),
        ex("SELECT 2"),
        FLUSH,
        SYNC,
    ],
    "commit outside": [ex(S), ex("COMMIT"), ex(S), SYNC],
    "commit as unnamed over segments": [q("BEGIN"), P(b"", b"COMMIT"), SYNC, B(b"", b""), E0 := e(b""), SYNC],
    "commit as named": [
        P(b"c", b"COMMIT"),
        P(b"b", b"BEGIN"),
        P(b"s", S.encode()),
        SYNC,
        B(b"", b"b"),
        E0,
        SYNC,
        B(b"", b"s"),
        E0,
        SYNC,
        B(b"", b"c"),
        E0,
        SYNC,
    ],
    "commit described": [
        P(b"c", b"COMMIT"),
        D(STATEMENT, b"c"),
        SYNC,
        q("BEGIN"),
        B(b"", b"c"),
        D(PORTAL, b""),
        E0,
        SYNC,
    ],
    "chain": [
        q("BEGIN"),
        q(S),
        q("COMMIT AND CHAIN"),
        q(S),
        q("UPDATE orders SET note='z' WHERE id = 5"),
        q("ROLLBACK"),
    ],
    "chain pipeline": [ex("BEGIN"), ex(S), ex("COMMIT AND CHAIN"), ex(S), ex("COMMIT"), SYNC],
    "chain, then write": [
        q("BEGIN"),
        q(S),
        ex("COMMIT AND CHAIN"),
        SYNC,
        q("UPDATE orders SET note='z' WHERE id = 5"),
        q("COMMIT"),
    ],
    "savepoint": [q("BEGIN"), q("SAVEPOINT a"), q(S), q("RELEASE a"), q("COMMIT")],
    "savepoint kept": [q("BEGIN"), q("SAVEPOINT a"), q(S), q("COMMIT")],
    "fetch size": [
        q("BEGIN"),
        P(b"s", S.encode()),
        B(b"C1", b"s"),
        e(b"C1", 2),
        SYNC,
        e(b"C1", 2),
        SYNC,
        e(b"C1", 2),
        SYNC,
        e(b"C1", 2),
        SYNC,
        q("COMMIT"),
    ],
    "hold": [
        q("BEGIN"),
        q(f"DECLARE h CURSOR WITH HOLD FOR {S}"),
        q("COMMIT"),
        q("FETCH 2 h"),
        q("FETCH ALL h"),
        q("CLOSE h"),
    ],
    "hold pipelined": [
        ex("BEGIN"),
        ex(f"DECLARE h CURSOR WITH HOLD FOR {S}"),
        ex("COMMIT"),
        ex("FETCH 2 h"),
        ex("FETCH ALL h"),
        ex("CLOSE h"),
        SYNC,
    ],
    "hold outside": [q(f"DECLARE h CURSOR WITH HOLD FOR {S}"), q("FETCH 2 h"), q("CLOSE h")],
    "cursor": [
        q("BEGIN"),
        q(f"DECLARE h CURSOR FOR {S}"),
        ex("FETCH FORWARD 2 FROM h"),
        SYNC,
        ex("FETCH 2 h"),
        ex("FETCH 2 h"),
        SYNC,
        q("CLOSE h"),
        q("COMMIT"),
    ],
    "prepared": [
        q(f"PREPARE x AS {S}"),
        ex("EXECUTE x"),
        ex("EXECUTE x"),
        SYNC,
        q("BEGIN"),
        ex("EXECUTE x"),
        ex("SELECT 1"),
        SYNC,
        q("COMMIT"),
        q("DEALLOCATE x"),
    ],
    "string": [
        q(f"BEGIN; {S}; COMMIT"),
        q("BEGIN; ROLLBACK; SELECT 1"),
        q(f"BEGIN READ ONLY; {S}; ROLLBACK; {S}"),
        q("COMMIT; SELECT 1"),
    ],
    "commit in a failed block": [q("BEGIN"), q("SELECT 1/0"), ex("COMMIT"), ex(S), SYNC],
    "serializable": [
        q("BEGIN ISOLATION LEVEL SERIALIZABLE"),
        q(S),
        q("COMMIT"),
        q("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        q(S),
        q("COMMIT"),
    ],
    "local settings": [
        q("BEGIN"),
        q("SET LOCAL TimeZone = 'Asia/Tokyo'"),
        q("SHOW TimeZone"),
        q("COMMIT"),
        q("SHOW TimeZone"),
    ],
}


@pytest.fixture(scope="module")
def tricked(
    postgres: Server, database_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWall]:
    with fresh_database(postgres, database_template) as database:
        with database.connect() as owner:
            owner.execute("DROP TRIGGER pays ON watched")
        with running_wall(
            database, tmp_path_factory.mktemp("same"), waiving(*WAIVED, functions=("public.run_text",))
        ) as wall:
            yield wall


def replies(dsn: str, script: list[bytes], has_run: bool) -> list[bytes]:
    out: list[bytes] = []
    with RawClient(dsn, timeout=5) as client:
        if has_run:
            client.send(q("SELECT run_text('SELECT 1')"))
            client.drain(0.1)
        for one in (True, False):
            for message in script if one else [b"".join(script)]:
                client.send(message)
            client.send(q("SELECT 'the end'"))
            while (frame := client.read()) is not None:
                out.append(bytes(frame.raw))
                if b"the end" in frame.raw:
                    break
            client.drain(0.03)
            client.send(q("DEALLOCATE ALL"), q("ROLLBACK"))
            client.drain(0.1)
    return out


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("name", HONEST)
def test_same(tricked: RunningWall, name: str, has_run: bool) -> None:
    direct = replies(tricked.database.dsn(APP, APP_PASSWORD), HONEST[name], has_run)
    assert replies(tricked.dsn(), HONEST[name], has_run) == direct
