"""Promises 1 to 3 against a client that says whatever bytes it likes: what no rule permits stays as it was.

Each attack is a script of raw messages. Afterwards every row that the ruleset does not let an agent write, every
sequence and every catalog must be as before; under agent-safe, where no snapshot can be taken, all of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from sqlwall.wire import frontend
from tests.e2e.wall import WAIVED, OpenWall, RunningWall, running_wall, waiving
from tests.e2e.wire import FLUSH, SYNC, RawClient, run
from tests.postgres import Server, fresh_database

#: Permitted by its text, and its trigger writes public.payroll.
SNEAKY = "UPDATE watched SET v = 2 WHERE id = 1"
#: Refused by its text.
REFUSED = "DELETE FROM payroll"
#: Permitted altogether, and harmless.
PLAIN = "INSERT INTO orders VALUES (1000, 1, 'x')"

Q, P, B, E = frontend.query, frontend.parse, frontend.bind, frontend.execute
PORTAL, STATEMENT = frontend.Kind.PORTAL, frontend.Kind.STATEMENT


def ex(text: str) -> bytes:
    return run(text)


def q(text: str) -> bytes:
    return frontend.query(text.encode())


def raw(code: bytes, body: bytes) -> bytes:
    """A message with any body."""
    return code + (len(body) + 4).to_bytes(4, "big") + body


#: Each list is sent in one go, item by item; SYNC and Query are waited for only at the end.
ATTACKS: dict[str, list[bytes]] = {
    # -- commit points that are no COMMIT of its own
    "flush, then a Query": [ex(SNEAKY), FLUSH, q("SELECT 1")],
    "flush, flush, sync": [ex(SNEAKY), FLUSH, ex("SELECT 1"), FLUSH, SYNC],
    "flush, then terminate": [ex(SNEAKY), FLUSH, frontend.terminate()],
    "flush behind bind only": [P(b"", SNEAKY.encode()), B(b"", b""), FLUSH, E(b""), FLUSH, SYNC],
    "write and Query in one segment": [ex(SNEAKY), q("SELECT 1")],
    "write, flush, write, Query": [ex(PLAIN), FLUSH, ex(SNEAKY), q("SELECT 1")],
    "write, flush, then a Query with a write": [ex(SNEAKY), FLUSH, q(PLAIN)],
    "read, flush, write, sync": [ex("SELECT 1"), FLUSH, ex(SNEAKY), SYNC],
    "write behind a FunctionCall": [ex(SNEAKY), frontend.function_call(1598, [], [], 0), SYNC],
    # -- transaction control inside pipelines
    "begin, write, commit": [ex("BEGIN"), ex(SNEAKY), ex("COMMIT"), SYNC],
    "write, commit, then something refused": [ex(SNEAKY), ex("COMMIT"), ex(REFUSED), SYNC],
    "write, begin, commit, then something refused": [ex(SNEAKY), ex("BEGIN"), ex("COMMIT"), ex(REFUSED), SYNC],
    "read, begin, write, commit": [ex("SELECT 1"), ex("BEGIN"), ex(SNEAKY), ex("COMMIT"), SYNC],
    "set, begin read write, write, commit": [
        ex("SET TimeZone = 'UTC'"), ex("BEGIN READ WRITE"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "show, begin read write, write, commit and chain": [
        ex("SHOW TimeZone"), ex("BEGIN READ WRITE"), ex(SNEAKY), ex("COMMIT AND CHAIN"), ex("COMMIT"), SYNC,
    ],
    "two transactions, the first clean": [
        ex("BEGIN"), ex(PLAIN), ex("COMMIT"), ex("BEGIN READ WRITE"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "two transactions, the first of the same tables": [
        ex("BEGIN"), ex("UPDATE orders SET note = 'y' WHERE id = 1"), ex("COMMIT"),
        ex("BEGIN READ WRITE"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "commit behind a savepoint": [
        ex("BEGIN"), ex("SAVEPOINT a"), ex(SNEAKY), ex("RELEASE a"), ex("COMMIT"), SYNC,
    ],
    "rollback to, then write and commit": [
        ex("BEGIN"), ex("SAVEPOINT a"), ex(PLAIN), ex("ROLLBACK TO a"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "rollback and chain out of a failed block": [
        q("BEGIN"), q("SELECT 1/0"), ex("ROLLBACK AND CHAIN"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "commit and chain out of a failed block": [
        q("BEGIN"), q("SELECT 1/0"), ex("COMMIT AND CHAIN"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "rollback to out of a failed block": [
        q("BEGIN"), q("SAVEPOINT a"), q("SELECT 1/0"), ex("ROLLBACK TO a"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "rollback and chain in a string": [q("BEGIN"), q("SELECT 1/0"), q(f"ROLLBACK AND CHAIN; {SNEAKY}; COMMIT")],
    "rollback and chain, then strings": [
        q("BEGIN"), q("SELECT 1/0"), q("ROLLBACK AND CHAIN; SELECT 1"), q(SNEAKY), q("COMMIT"),
    ],
    "end under another name": [q("BEGIN"), q(SNEAKY), q("END TRANSACTION")],
    "commit as a prepared statement": [
        P(b"c", b"COMMIT"), P(b"b", b"BEGIN"), P(b"w", SNEAKY.encode()), SYNC,
        B(b"", b"b"), E(b""), B(b"", b"w"), E(b""), B(b"", b"c"), E(b""), SYNC,
    ],
    "commit bound before the write": [
        q("BEGIN"), P(b"c", b"COMMIT"), B(b"pc", b"c"), P(b"w", SNEAKY.encode()), B(b"pw", b"w"), E(b"pw"), E(b"pc"), SYNC,
    ],
    "commit portal kept over a flush": [
        q("BEGIN"), P(b"c", b"COMMIT"), B(b"pc", b"c"), FLUSH, ex(SNEAKY), FLUSH, E(b"pc"), FLUSH, SYNC,
    ],
    # -- a COMMIT past the lane, with something else in its segment
    "commit behind a bind that plans": [
        P(b"w", b"SELECT * FROM writing_view"), SYNC, q("BEGIN"), P(b"c", b"COMMIT"), B(b"pw", b"w"), B(b"", b"c"), E(b""), SYNC,
    ],
    "commit behind a parse that analyzes": [
        q("BEGIN"), P(b"", b"SELECT id FROM words WHERE found = '{a}'"), P(b"c", b"COMMIT"), B(b"", b"c"), E(b""), SYNC,
    ],
    "commit behind a describe that analyzes": [
        P(b"w", b"SELECT id FROM words WHERE found = '{a}'"), SYNC, q("BEGIN"), P(b"c", b"COMMIT"),
        frontend.describe(STATEMENT, b"w"), B(b"", b"c"), E(b""), SYNC,
    ],
    "commit by the portal of another segment": [
        q("BEGIN"), P(b"c", b"COMMIT"), B(b"pc", b"c"), SYNC, q("SELECT * FROM writing_view"), E(b"pc"), SYNC,
    ],
    "commit behind a read that writes": [q("BEGIN"), q("SELECT * FROM writing_view"), q("COMMIT")],
    "commit behind a parse of its own": [
        q("BEGIN"), P(b"", b"SELECT id FROM words WHERE found = '{a}'"), SYNC, ex("COMMIT"), SYNC,
    ],
    "commit behind a cursor over a view that writes": [
        q("BEGIN"), q("DECLARE c CURSOR FOR SELECT * FROM writing_view"), q("FETCH c"), ex("COMMIT"), SYNC,
    ],
    # -- commands that run what the protocol has prepared, under another name
    "commit as an EXECUTE": [P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), q("EXECUTE c")],
    "commit as an EXECUTE in a pipeline": [P(b"c", b"COMMIT"), SYNC, q("BEGIN"), ex(SNEAKY), ex("EXECUTE c"), SYNC],
    "commit as the EXECUTE of an EXECUTE": [
        P(b"c", b"COMMIT"), P(b"d", b"EXECUTE c"), SYNC, q("BEGIN"), q(SNEAKY), q("EXECUTE d"),
    ],
    "commit as an EXECUTE that is fetched": [
        P(b"w", b"SELECT 1"), SYNC, q("BEGIN"), P(b"", b"EXECUTE w"), B(b"p", b""), SYNC, q("DEALLOCATE w"),
        P(b"w", b"COMMIT"), SYNC, q(SNEAKY), q("FETCH p"),
    ],
    "commit as an EXECUTE that is moved over": [
        P(b"w", b"SELECT 1"), SYNC, q("BEGIN"), P(b"", b"EXECUTE w"), B(b"p", b""), SYNC, q("DEALLOCATE w"),
        P(b"w", b"COMMIT"), SYNC, q(SNEAKY), ex("MOVE p"), SYNC,
    ],
    "with hold as an EXECUTE": [
        P(b"c", b"DECLARE h CURSOR WITH HOLD FOR SELECT * FROM writing_view"), SYNC, q("BEGIN"), q("EXECUTE c"), q("COMMIT"),
    ],
    "prepare as an EXECUTE": [
        P(b"c", f"PREPARE x AS {REFUSED}".encode()), P(b"x", b"SELECT 1"), SYNC, q("DEALLOCATE x"), q("EXECUTE c"),
        q("BEGIN"), q("EXECUTE x"), q("COMMIT"),
    ],
    "an update that is fetched": [
        q("BEGIN"), P(b"", f"{SNEAKY} RETURNING v".encode()), B(b"p", b""), SYNC, q("FETCH p"), q("COMMIT"),
    ],
    # -- strings of several statements
    "begin and write in a string, commit behind": [q(f"BEGIN; {SNEAKY}"), q("COMMIT")],
    "begin read write in a string": [q(f"BEGIN READ WRITE; {SNEAKY}; COMMIT")],
    "commit and write in a string": [q("BEGIN"), q(f"COMMIT; {SNEAKY}")],
    "write and commit in a string": [q("BEGIN"), q(f"{SNEAKY}; COMMIT")],
    "write and begin in a string": [q(f"{SNEAKY}; BEGIN; COMMIT")],
    "commit, begin, write, commit in a string": [q("BEGIN"), q(f"COMMIT; BEGIN; {SNEAKY}; COMMIT")],
    "rollback, begin, write, commit in a string": [q("BEGIN"), q(f"ROLLBACK; BEGIN READ WRITE; {SNEAKY}; COMMIT")],
    # -- read-write by other means
    "begin read write inside a block": [q("BEGIN READ ONLY"), q("BEGIN READ WRITE"), q(SNEAKY), q("COMMIT")],
    "begin read write inside a block, pipelined": [
        ex("BEGIN READ ONLY"), ex("BEGIN READ WRITE"), ex(SNEAKY), ex("COMMIT"), SYNC,
    ],
    "set transaction read write in a pipeline": [ex("SET TRANSACTION READ WRITE"), ex(SNEAKY), SYNC],
    "set local transaction_read_only": [ex("SET LOCAL transaction_read_only = off"), ex(SNEAKY), SYNC],
    "set_config transaction_read_only": [ex("SELECT set_config('transaction_read_only', 'off', true)"), ex(SNEAKY), SYNC],
    "set default_transaction_read_only": [q("SET default_transaction_read_only = off"), q(SNEAKY)],
    "session characteristics": [q("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"), q(SNEAKY)],
    "default by string": [q(f"SET default_transaction_read_only = off; COMMIT; {SNEAKY}")],
    "discard all": [q("DISCARD ALL"), q("SELECT 1"), q(SNEAKY)],
    "reset all in a pipeline": [ex("RESET ALL"), ex(SNEAKY), SYNC],
    "two-phase": [q("BEGIN"), q(SNEAKY), q("PREPARE TRANSACTION 'x'"), q("COMMIT PREPARED 'x'")],
    "two-phase in a pipeline": [ex("BEGIN"), ex(SNEAKY), ex("PREPARE TRANSACTION 'x'"), SYNC, q("COMMIT PREPARED 'x'")],
    # -- names that come to mean something else
    "prepare over a parsed name": [
        P(b"x", b"SELECT 1"), SYNC, q("DEALLOCATE x"), q(f"PREPARE x AS {SNEAKY}"), q("EXECUTE x"),
    ],
    "parse, deallocate and prepare in one pipeline": [
        P(b"x", b"SELECT 1"), ex("DEALLOCATE x"), ex(f"PREPARE x AS {SNEAKY}"), SYNC,
        q("BEGIN"), q("EXECUTE x"), q("COMMIT"),
    ],
    "protocol execution of a prepared text": [
        q(f"PREPARE x AS {SNEAKY}"), q("BEGIN"), B(b"", b"x"), E(b""), SYNC, q("COMMIT"),
    ],
    "prepare a refused text": [q(f"PREPARE x AS {REFUSED}"), q("EXECUTE x"), B(b"", b"x"), E(b""), SYNC],
    "stale name after deallocate": [
        P(b"x", b"SELECT 1"), SYNC, q("DEALLOCATE x"), P(b"x", REFUSED.encode()), SYNC, B(b"", b"x"), E(b""), SYNC,
    ],
    "stale name after discard": [
        P(b"x", SNEAKY.encode()), SYNC, q("DISCARD ALL"), B(b"", b"x"), E(b""), SYNC, q("EXECUTE x"),
    ],
    "refused parse, then its name": [
        P(b"x", b"SELECT 1"), SYNC, P(b"x", REFUSED.encode()), SYNC, B(b"", b"x"), E(b""), SYNC,
    ],
    "refused parse, bind behind it in the pipeline": [P(b"", REFUSED.encode()), B(b"", b""), E(b""), SYNC],
    "execute of a portal from another transaction": [
        q("BEGIN"), P(b"", SNEAKY.encode()), B(b"p", b""), SYNC, q("COMMIT"), E(b"p"), SYNC,
    ],
    "a cursor's name for a portal": [
        q("BEGIN"), q("DECLARE c CURSOR FOR SELECT 1"), P(b"", SNEAKY.encode()), B(b"c", b""), E(b"c"), SYNC, q("COMMIT"),
    ],
    "one of our own names": [q("EXECUTE _sqlwall_x"), P(b"_sqlwall_x", b"SELECT 1"), SYNC, q("DEALLOCATE _sqlwall_x")],
    "a guessed poison": [q("_sqlwall_000000000000000000000000"), P(b"", b"_sqlwall_0"), SYNC, q(REFUSED)],
    # -- held cursors
    "with hold over a writing view": [
        q("BEGIN"), q("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM writing_view"), q("COMMIT"), q("FETCH ALL FROM c"),
    ],
    "with hold in a pipeline": [
        ex("BEGIN"), ex("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM writing_view"), ex("COMMIT"), SYNC,
    ],
    "with hold and a permitted write": [
        q("BEGIN"), q(PLAIN), q("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM writing_view"), q("COMMIT"),
    ],
    "with hold outside a block": [q("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM writing_view"), q("FETCH ALL FROM c")],
    # -- what texts mean
    "search_path in a pipeline": [
        ex("SET search_path = shadow"), ex("UPDATE orders SET note = 'hit' WHERE id = 1"), SYNC,
    ],
    "search_path by set_config": [
        q("SELECT set_config('search_path', 'shadow', false); UPDATE orders SET note = 'hit' WHERE id = 1"),
    ],
    "a function of the same name": [
        q("SET search_path = shadow, public"), q("SELECT upper('x')"), q("BEGIN"), q("SELECT shadow.upper('x')"), q("COMMIT"),
    ],
    "conforming strings": [ex("SET standard_conforming_strings = off"), ex(r"SELECT '\'; DELETE FROM payroll; --'"), SYNC],
    "encoding": [ex("SET client_encoding = 'SJIS'"), q("SELECT 1"), q(REFUSED)],
    "a NUL in the text": [raw(b"Q", b"SELECT 1\0; DELETE FROM payroll\0")],
    "no NUL at the end": [b"Q\0\0\0\x0cSELECT 1"],
    "bytes that are no UTF-8": [frontend.query(b"SELECT '\xc2'; DELETE FROM payroll")],
    # -- messages out of their place
    "copy data without copy": [frontend.copy_data(b"1\n") * 200, frontend.copy_done(), frontend.copy_fail(b"x"), q("SELECT 1")],
    "a Query inside copy": [q("COPY orders FROM STDIN"), q(REFUSED), frontend.copy_done()],
    "copy failed, then data": [
        q("COPY orders FROM STDIN"), frontend.copy_data(b"nonsense\n"), frontend.copy_done(), frontend.copy_data(b"x"), q(REFUSED),
    ],
    "copy into what is refused": [q("COPY payroll FROM STDIN"), frontend.copy_data(b"9\t9\n"), frontend.copy_done()],
    "copy with a trigger": [q("COPY watched FROM STDIN"), frontend.copy_data(b"9\t9\n"), frontend.copy_done()],
    "extended copy with a trigger": [
        ex("COPY watched FROM STDIN"), SYNC, frontend.copy_data(b"9\t9\n"), frontend.copy_done(), SYNC,
    ],
    "extended copy with a trigger, without sync": [
        ex("COPY watched FROM STDIN"), frontend.copy_data(b"9\t9\n"), frontend.copy_done(), SYNC,
    ],
    "extended copy with a trigger in a block": [
        q("BEGIN"), ex("COPY watched FROM STDIN"), SYNC, frontend.copy_data(b"9\t9\n"), frontend.copy_done(), SYNC, q("COMMIT"),
    ],
    "extended copy, then commit at once": [
        ex("BEGIN"), ex("COPY watched FROM STDIN"), frontend.copy_data(b"9\t9\n"), frontend.copy_done(), ex("COMMIT"), SYNC,
    ],
    "a flood of syncs": [SYNC * 2000, q(REFUSED)],
    "a flood of flushes": [FLUSH * 2000, ex(SNEAKY), FLUSH * 100, SYNC],
    "an unknown type": [b"z\0\0\0\4", q(REFUSED)],
    "a startup message again": [b"\0\0\0\x08\x04\xd2\x16\x2f", q(REFUSED)],
    "a length of three": [b"Q\0\0\0\3", q(REFUSED)],
    "a length beyond all": [b"Q\x7f\xff\xff\xff", b"x" * 1000],
    "half a message": [q(REFUSED)[:-3]],
    "a password message": [b"p\0\0\0\x08abc\0", q(REFUSED)],
    "a function by its number": [frontend.function_call(1598, [], [], 0)],
    # -- writes that are no statements of their own
    "explain analyze": [q(f"EXPLAIN ANALYZE {REFUSED}"), q(f"EXPLAIN ANALYZE {SNEAKY}")],
    "explain analyze execute": [q(f"PREPARE x AS {SNEAKY}"), q("EXPLAIN ANALYZE EXECUTE x")],
    "create table as execute": [q(f"PREPARE x AS {SNEAKY} RETURNING 1"), q("CREATE TEMP TABLE t AS EXECUTE x")],
    "a cte": [q(f"WITH a AS ({SNEAKY} RETURNING 1) SELECT * FROM a"), q(f"WITH a AS ({REFUSED} RETURNING 1) SELECT 1")],
    "a do block": [q("DO $$ BEGIN DELETE FROM payroll; END $$")],
    "sequences": [q("SELECT nextval('notes_id_seq')"), q("BEGIN"), q("SELECT setval('notes_id_seq', 99)"), q("COMMIT")],
    "large objects": [q("BEGIN"), q("SELECT lo_create(0)"), q("SELECT lo_from_bytea(0, 'x')"), q("COMMIT")],
    "listen and notify": [q("LISTEN x"), q("NOTIFY x, 'y'")],
    "temporary tables": [q("BEGIN"), q("CREATE TEMP TABLE pg_locks (pid int)"), q(SNEAKY), q("COMMIT")],
    "advisory locks and backends": [q("SELECT pg_terminate_backend(pg_backend_pid())"), q("SELECT pg_sleep(100)")],
    "deferred work made deferred again": [q("BEGIN"), q(SNEAKY), q("SET CONSTRAINTS ALL DEFERRED"), q("COMMIT")],
}  # fmt: skip


def guarded(wall: RunningWall) -> dict[str, object]:
    """All that the waiving ruleset does not let an agent write."""
    state = dict(wall.state())
    for table in (*WAIVED, "notes_id_seq"):
        state.pop(f"public.{table}", None)
    return state


def attack(wall: RunningWall, script: list[bytes]) -> None:
    """Send it message by message and in one write; then try to commit, and wait until all of it has been answered."""
    for is_slow in (True, False):
        with RawClient(wall.dsn(), timeout=2) as client:
            try:
                for message in script if is_slow else [b"".join(script)]:
                    client.send(message)
                    if is_slow:
                        client.drain(0.03)
                client.send(SYNC, q("COMMIT"), q("SELECT 'the end'"))
                while (frame := client.read()) is not None and b"the end" not in frame.raw:
                    pass
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass


def withstand(wall: RunningWall, script: list[bytes]) -> None:
    """An attack on a wall that others attack, too, changes nothing that it must not."""
    wall.database.execute("UPDATE payroll SET salary = 1000")  # what another attack may have done
    before = guarded(wall)
    attack(wall, script)
    assert guarded(wall) == before


@pytest.fixture(scope="module")
def besieged(
    postgres: Server, database_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWall]:
    """One wall for all attacks: none of them may change anything that another sees."""
    with fresh_database(postgres, database_template) as database:
        folder = tmp_path_factory.mktemp("besieged")
        with running_wall(database, folder, waiving(*WAIVED)) as wall:
            yield wall


@pytest.mark.parametrize("name", ATTACKS)
def test_what_no_rule_permits_is_not_changed(besieged: RunningWall, name: str) -> None:
    withstand(besieged, ATTACKS[name])


def test_a_value_for_a_commit_is_checked_before_the_gate(besieged: RunningWall) -> None:
    """A Parse may give COMMIT a parameter of any type. That of a domain has its checks run by the Bind."""
    before = guarded(besieged)
    with besieged.database.connect() as owner:
        row = owner.execute("SELECT 'writing_word'::regtype::oid").fetchone()
    assert row is not None
    for value in (b"a", None):
        attack(besieged, [q("BEGIN"), P(b"", b"COMMIT", row), B(b"", b"", [value]), E(b""), SYNC])
        attack(besieged, [P(b"c", b"COMMIT", row), SYNC, q("BEGIN"), B(b"", b"c", [value]), E(b""), SYNC])
    assert guarded(besieged) == before


def test_without_snapshots_nothing_is_changed_at_all(wall: RunningWall) -> None:
    before = wall.state()
    for script in ATTACKS.values():
        attack(wall, script)
    assert wall.state() == before


def test_a_waived_function_is_still_behind_the_gate(open_wall: OpenWall) -> None:
    wall = open_wall(
        waiving(*WAIVED, functions=("public.raise_salaries", "public.calm_raise", "shadow.upper"))
    )
    before = guarded(wall)
    scripts = (
        [ex("SELECT raise_salaries()"), SYNC],
        [ex("BEGIN"), ex("SELECT raise_salaries()"), SYNC, q("COMMIT")],
        [ex("BEGIN"), ex("SELECT raise_salaries()"), ex("COMMIT"), SYNC],
        [q("BEGIN"), P(b"", b"SELECT calm_raise()"), B(b"", b""), SYNC, q("COMMIT")],
        [q("BEGIN"), q("EXPLAIN SELECT calm_raise()"), q("COMMIT")],
        [q("BEGIN"), q("DECLARE c CURSOR WITH HOLD FOR SELECT raise_salaries()"), q("COMMIT")],
        [q("BEGIN"), q("DECLARE c CURSOR FOR SELECT raise_salaries()"), q("FETCH c"), q("COMMIT")],
        [q("BEGIN"), q(PLAIN), q("SELECT * FROM writing_view"), q("COMMIT")],
        [q("SELECT raise_salaries(); COMMIT")],
        [ex("INSERT INTO orders SELECT 2000 + raise_salaries(), 1, 'x'"), FLUSH, q("SELECT 1")],
        [q("PREPARE x AS SELECT raise_salaries()"), q("BEGIN"), q("EXECUTE x"), q("COMMIT")],
    )
    for script in scripts:
        attack(wall, script)
        assert guarded(wall) == before


#: COMMIT as something that a function's dynamic SQL can EXECUTE: PREPARE takes none, the protocol's Parse does.
PARSED_COMMITS: dict[str, list[bytes]] = {
    "commit": [P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), q("SELECT run_text('EXECUTE c')")],
    "commit and chain": [P(b"c", b"COMMIT AND CHAIN"), SYNC, q("BEGIN"), q(SNEAKY), q("SELECT run_text('EXECUTE c')"), q("ROLLBACK")],
    "end": [P(b"c", b"END"), SYNC, q("BEGIN"), q(SNEAKY), q("SELECT run_text('EXECUTE c')")],
    "in one text": [P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(f"SELECT run_text('{SNEAKY}; EXECUTE c')")],
    "outside a block": [P(b"c", b"COMMIT"), SYNC, q(f"INSERT INTO orders SELECT 3000, 1, run_text('{SNEAKY}; EXECUTE c')::text")],
    "in one pipeline": [
        P(b"c", b"COMMIT"), ex("BEGIN"), ex(SNEAKY), ex("SELECT run_text('EXECUTE c')"), SYNC,
    ],
    "bound": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), B(b"p", b"c"), FLUSH, q("SELECT run_text('EXECUTE c')"),
    ],
    "described": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), frontend.describe(STATEMENT, b"c"), FLUSH,
        ex("SELECT run_text('EXECUTE c')"), SYNC,
    ],
    "a bind of it that fails": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), q("SAVEPOINT a"), B(b"p", b"c"), B(b"p", b"c"), SYNC,
        q("ROLLBACK TO a"), q("SELECT run_text('EXECUTE c')"),
    ],
    "made twice": [
        P(b"c", b"COMMIT"), P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), q("SELECT run_text('EXECUTE c')"),
    ],
    "its name prepared again": [
        P(b"c", b"COMMIT"), SYNC, q("PREPARE c AS SELECT 1"), q("BEGIN"), q(SNEAKY), q("SELECT run_text('EXECUTE c')"),
    ],
    "its name freed in a string": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), q("SELECT run_text('EXECUTE c'); DEALLOCATE c"),
    ],
    "by the name that the server shows": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY),
        q("SELECT run_text('EXECUTE ' || quote_ident(name)) FROM pg_prepared_statements"),
    ],
    "by a portal": [P(b"c", b"COMMIT"), B(b"p", b"c"), q("BEGIN"), B(b"p", b"c"), SYNC, q(SNEAKY), q("SELECT run_text('FETCH p')")],
}  # fmt: skip


def text_of(text: str) -> str:
    """The SELECT that has a function run the text."""
    return "SELECT run_text('" + text.replace("'", "''") + "')"


#: What a function's dynamic SQL can prepare for later.
PAY = "UPDATE payroll SET salary = 0"
READ_WRITE = "SET default_transaction_read_only = off"
PAY_AND_HIDE = f"{PAY}; SET default_transaction_read_only = on"
HELD = f"DECLARE h CURSOR WITH HOLD FOR {text_of(PAY)}"
PAYING_CURSOR = f"CLOSE p; DECLARE p CURSOR FOR {text_of(PAY)}"

DYNAMIC: dict[str, list[bytes]] = {
    # -- the server tells of a setting with ReadyForQuery only, and a Flush brings none
    "a setting, flush, commit": [
        ex("BEGIN READ ONLY"), ex(text_of(READ_WRITE)), FLUSH, ex("COMMIT"), ex(text_of(PAY_AND_HIDE)), SYNC,
    ],
    "a setting, flush, commit of nothing": [
        ex(text_of(READ_WRITE)), FLUSH, ex("COMMIT"), ex(text_of(PAY_AND_HIDE)), SYNC,
    ],
    "a setting, flush, flush, commit": [
        ex(text_of(READ_WRITE)), FLUSH, P(b"", b"SELECT 1"), FLUSH, ex("COMMIT"), ex(text_of(PAY_AND_HIDE)), SYNC,
    ],
    "a setting, flush, then a Query": [ex(text_of(READ_WRITE)), FLUSH, q(f"COMMIT; {text_of(PAY_AND_HIDE)}")],
    # -- a WITH HOLD cursor runs at COMMIT
    "a held cursor": [q("BEGIN"), q(text_of(HELD)), q("COMMIT")],
    "a held cursor beside a write": [q("BEGIN"), q(PLAIN), q(text_of(HELD)), q("COMMIT")],
    "a held cursor outside a block": [q(f"INSERT INTO orders SELECT 4000, 1, ({text_of(HELD)})::text")],
    "a held cursor in pipelines": [ex("BEGIN"), SYNC, ex(text_of(HELD)), SYNC, ex("COMMIT"), SYNC],
    "a held cursor, chained": [q("BEGIN"), q(text_of(HELD)), q("COMMIT AND CHAIN"), q("COMMIT")],
    "a held cursor behind a savepoint": [q("BEGIN"), q("SAVEPOINT a"), q(text_of(HELD)), q("COMMIT")],
    "a held cursor of its own behind a savepoint": [q("BEGIN"), q("SAVEPOINT a"), q(HELD), q("COMMIT")],
    "a held cursor by a FETCH": [
        q("BEGIN"), P(b"", text_of(HELD).encode()), B(b"k", b""), SYNC, q("FETCH k"), q("COMMIT"),
    ],
    "a setting by a FETCH": [
        q("BEGIN READ ONLY"), q(f"DECLARE k CURSOR FOR {text_of(READ_WRITE)}"),
        ex("FETCH k"), ex("COMMIT"), ex(text_of(PAY_AND_HIDE)), SYNC,
    ],
    "a setting by a FETCH, in a string": [
        q("BEGIN READ ONLY"), q(f"DECLARE k CURSOR FOR {text_of(READ_WRITE)}"),
        q(f"FETCH k; COMMIT; {text_of(PAY_AND_HIDE)}"),
    ],
    "a setting by a cursor of the code's": [
        q("BEGIN READ ONLY"), q(text_of(f"DECLARE k CURSOR FOR {text_of(READ_WRITE)}")),
        ex("FETCH k"), ex("COMMIT"), ex(text_of(PAY_AND_HIDE)), SYNC,
    ],
    "a setting by a replaced statement": [
        P(b"x", b"SELECT 1"), SYNC, q(text_of(f"DEALLOCATE x; PREPARE x AS {text_of(READ_WRITE)}")),
        B(b"", b"x"), E(b""), ex("COMMIT"), ex(text_of(PAY_AND_HIDE)), SYNC,
    ],
    "a setting by a replaced statement, flush": [
        P(b"x", b"SELECT 1"), SYNC, q(text_of(f"DEALLOCATE x; PREPARE x AS {text_of(READ_WRITE)}")),
        B(b"", b"x"), E(b""), FLUSH, q(f"COMMIT; {text_of(PAY_AND_HIDE)}"),
    ],
    "a setting by a replaced statement, in a string": [
        q("PREPARE x AS SELECT 1"), q(text_of(f"DEALLOCATE x; PREPARE x AS {text_of(READ_WRITE)}")),
        q(f"EXECUTE x; COMMIT; {text_of(PAY_AND_HIDE)}"),
    ],
    "a setting by a replaced portal": [
        q("BEGIN READ ONLY"), P(b"", b"SELECT 1"), B(b"k", b""), SYNC,
        q(text_of(f"CLOSE k; DECLARE k CURSOR FOR {text_of(READ_WRITE)}")),
        E(b"k"), ex("COMMIT"), ex(text_of(PAY_AND_HIDE)), SYNC,
    ],
    # -- what a name stood for may be something else by now
    "a portal of COMMIT replaced": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), B(b"p", b"c"), SYNC, q(text_of(PAYING_CURSOR)),
        E(b"p"), ex("COMMIT"), SYNC,
    ],
    "a portal of ROLLBACK replaced": [
        P(b"c", b"ROLLBACK"), SYNC, q("BEGIN"), B(b"p", b"c"), SYNC, q(text_of(PAYING_CURSOR)),
        E(b"p"), ex("COMMIT"), SYNC,
    ],
    "a portal of DEALLOCATE replaced": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY),
        P(b"d", b"DEALLOCATE c"), B(b"p", b"d"), SYNC,
        q(text_of(f"CLOSE p; DECLARE p CURSOR FOR {text_of('EXECUTE c')}")), E(b"p"), SYNC,
    ],
    "a prepared DEALLOCATE replaced": [
        P(b"c", b"COMMIT"), SYNC, q("BEGIN"), q(SNEAKY), P(b"d", b"DEALLOCATE c"), SYNC,
        q(text_of(f"DEALLOCATE d; PREPARE d AS {text_of('EXECUTE c')}")), B(b"p", b"d"), E(b"p"), SYNC,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def tricked(
    postgres: Server, database_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWall]:
    """A wall whose ruleset lets the agent call a function that runs any text."""
    with fresh_database(postgres, database_template) as database:
        ruleset = waiving(*WAIVED, functions=("public.run_text",))
        with running_wall(database, tmp_path_factory.mktemp("tricked"), ruleset) as wall:
            yield wall


@pytest.mark.parametrize("name", PARSED_COMMITS)
def test_a_commit_that_the_protocol_has_parsed_is_no_statement_for_functions(
    tricked: RunningWall, name: str
) -> None:
    withstand(tricked, PARSED_COMMITS[name])


@pytest.mark.parametrize("name", DYNAMIC)
def test_what_dynamic_sql_prepares_for_later_is_behind_the_gate_too(tricked: RunningWall, name: str) -> None:
    withstand(tricked, DYNAMIC[name])


def test_attacks_leave_no_session_of_the_wall_behind(writing_wall: RunningWall) -> None:
    for name in ("half a message", "a Query inside copy", "a length beyond all", "flush, then terminate"):
        with RawClient(writing_wall.dsn()) as client:
            client.send(*ATTACKS[name])
            client.drain(0.1)
    with writing_wall.database.connect() as direct:
        for _ in range(50):
            found = direct.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
                " AND state LIKE 'idle in transaction%%'",
                ("sqlwall_test_app",),
            ).fetchone()
            if found == (0,):
                break
            direct.execute("SELECT pg_sleep(0.1)")
        assert found == (0,)


def test_the_counters_of_one_transaction_are_no_baseline_for_the_next(open_wall: OpenWall) -> None:
    """Counters outlive a transaction for up to a second, those of a refused one too. Read then and kept, they would
    hide as many rows of a later transaction, once the server has set them to zero.
    """
    ruleset = waiving("mixed").replace(
        "[insert, update, delete, merge, copy_in]\n    tables: [public.mixed]",
        "[insert]\n    tables: [public.mixed]",
    )
    wall = open_wall(ruleset)
    with wall.database.connect() as owner:
        owner.execute("CREATE TABLE mixed (id int)")
        owner.execute("INSERT INTO mixed SELECT generate_series(1, 3)")
        owner.execute(
            "CREATE FUNCTION wipe() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN IF NEW.id < 0 THEN DELETE FROM mixed WHERE id BETWEEN 1 AND 3; END IF; RETURN NULL; END'"
        )
        owner.execute("CREATE TRIGGER wipes AFTER INSERT ON mixed FOR EACH ROW EXECUTE FUNCTION wipe()")
        owner.execute("GRANT SELECT, INSERT, DELETE ON mixed TO sqlwall_test_app")
    time.sleep(2.5)
    with wall.connect() as client:
        client.execute("INSERT INTO mixed VALUES (10)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute("INSERT INTO mixed VALUES (-1)")
        client.execute("INSERT INTO mixed VALUES (11)")
        time.sleep(1.2)
        client.execute("SELECT 1")
        client.execute("BEGIN READ WRITE")
        client.execute("INSERT INTO mixed SELECT generate_series(20, 30)")
        client.execute("INSERT INTO mixed VALUES (-1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute("COMMIT")
        assert client.execute("SELECT count(*) FROM mixed WHERE id BETWEEN 1 AND 3").fetchone() == (3,)
