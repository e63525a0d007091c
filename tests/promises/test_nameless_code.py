"""Code that no text names: a view, a trigger, a domain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.wall import WAIVED, RunningWall, running_wall, waiving
from tests.e2e.wire import FLUSH, SYNC
from tests.postgres import Server, fresh_database
from tests.promises.test_nothing_uncovered import (
    HELD,
    PAY,
    PAY_AND_HIDE,
    PAYING_CURSOR,
    READ_WRITE,
    B,
    E,
    P,
    ex,
    q,
    text_of,
    withstand,
)

NAMELESS_SHOP = """
CREATE TABLE scripts (id int PRIMARY KEY, body text);
CREATE FUNCTION run_script(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    'BEGIN PERFORM public.run_text(body) FROM public.scripts WHERE id = $1; RETURN 1; END';
CREATE VIEW ran AS SELECT id, run_script(id) AS result FROM scripts;
CREATE TABLE acts (id int);
CREATE FUNCTION on_acts() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM public.run_text(body) FROM public.scripts WHERE id = 3; RETURN NULL; END';
CREATE TRIGGER runs BEFORE UPDATE ON acts FOR EACH STATEMENT EXECUTE FUNCTION on_acts();
GRANT SELECT, INSERT, UPDATE, DELETE ON scripts, acts, ran TO sqlwall_test_app;
"""
RAN = "SELECT result FROM ran WHERE id = {}"
HELD_SETTING = f"DECLARE h CURSOR WITH HOLD FOR {text_of(READ_WRITE)}"
SCRIPTS = {1: READ_WRITE, 2: PAY_AND_HIDE, 3: HELD, 4: HELD_SETTING, 5: PAY, 6: PAYING_CURSOR}
#: The portal of transaction control is another's cursor before it is executed.
REPLACED = B(b"p", b"") + ex(RAN.format(6)) + E(b"p")

NAMELESS: dict[str, list[bytes]] = {
    "held by a view": [q("BEGIN"), q(RAN.format(3)), q("COMMIT")],
    "held by a view, pipeline": [q("BEGIN"), ex(RAN.format(3)), SYNC, ex("COMMIT"), SYNC],
    "held by a view, one pipeline": [ex("BEGIN"), ex(RAN.format(3)), ex("COMMIT"), SYNC],
    "held by a view, savepoint": [q("BEGIN"), q("SAVEPOINT a"), q(RAN.format(3)), q("COMMIT")],
    "held by a view, chain": [q("BEGIN"), q(RAN.format(3)), q("COMMIT AND CHAIN"), q("COMMIT")],
    "held by a trigger that writes nothing": [
        q("BEGIN"),
        q("UPDATE acts SET id = 1 WHERE id = 0"),
        q("COMMIT"),
    ],
    "held by a trigger, savepoint": [
        q("BEGIN"),
        q("SAVEPOINT a"),
        q("UPDATE acts SET id = 1 WHERE id = 0"),
        q("COMMIT"),
    ],
    "held by a trigger outside": [q("UPDATE acts SET id = 1 WHERE id = 0")],
    "setting by a view, string": [q(f"{RAN.format(1)}; COMMIT; {RAN.format(2)}")],
    "setting by a view, string in block": [
        q("BEGIN READ ONLY"),
        q(f"{RAN.format(1)}; COMMIT; {RAN.format(2)}"),
    ],
    "setting by a view, pipeline": [ex(RAN.format(1)), ex("COMMIT"), ex(RAN.format(2)), SYNC],
    "setting by a view, ro pipeline": [
        ex("BEGIN READ ONLY"),
        ex(RAN.format(1)),
        ex("COMMIT"),
        ex(RAN.format(2)),
        SYNC,
    ],
    "setting by a view, ro pipeline begin": [
        ex("BEGIN READ ONLY"),
        ex(RAN.format(1)),
        ex("COMMIT"),
        ex("BEGIN"),
        ex(RAN.format(2)),
        ex("COMMIT"),
        SYNC,
    ],
    "setting by a view, flush": [ex(RAN.format(1)), FLUSH, ex("COMMIT"), ex(RAN.format(2)), SYNC],
    "setting by a view, flush, Query": [ex(RAN.format(1)), FLUSH, q(f"COMMIT; {RAN.format(2)}")],
    "setting by a held cursor of a view, string": [
        q("BEGIN READ ONLY"),
        q(RAN.format(4)),
        q(f"COMMIT; {RAN.format(2)}"),
    ],
    "setting by a held cursor of a view, pipeline": [
        q("BEGIN READ ONLY"),
        q(RAN.format(4)),
        ex("COMMIT"),
        ex(RAN.format(2)),
        SYNC,
    ],
    "setting by a held cursor, string": [
        q("BEGIN READ ONLY"),
        q(HELD_SETTING),
        q(f"COMMIT; {text_of(PAY_AND_HIDE)}"),
    ],
    "setting by a held cursor, pipeline": [
        q("BEGIN READ ONLY"),
        q(HELD_SETTING),
        ex("COMMIT"),
        ex(text_of(PAY_AND_HIDE)),
        SYNC,
    ],
    "setting by a held cursor, chain": [
        q("BEGIN READ ONLY"),
        q(HELD_SETTING),
        ex("COMMIT AND CHAIN"),
        ex("ROLLBACK"),
        ex(text_of(PAY_AND_HIDE)),
        SYNC,
    ],
    "setting by a held cursor of code, string": [
        q("BEGIN READ ONLY"),
        q(text_of(HELD_SETTING)),
        q(f"COMMIT; {text_of(PAY_AND_HIDE)}"),
    ],
    "setting by a held cursor, rw, string": [
        q("BEGIN"),
        q(HELD_SETTING),
        q(f"COMMIT; {text_of(PAY_AND_HIDE)}"),
    ],
    "setting hidden by a reset": [
        q(f"{RAN.format(1)}; COMMIT; BEGIN; RESET ALL"),
        q(RAN.format(5)),
        q("COMMIT"),
    ],
    "setting hidden by a reset, in a block": [
        q("BEGIN READ ONLY"),
        q(RAN.format(1) + "; COMMIT; BEGIN; RESET ALL"),
        q(RAN.format(5)),
        q("COMMIT"),
    ],
    "setting by a held cursor, hidden by a reset": [
        q("BEGIN READ ONLY"),
        q(RAN.format(4)),
        q("COMMIT; BEGIN; RESET ALL"),
        q(RAN.format(5)),
        q("COMMIT"),
    ],
    "setting hidden by a reset, pipeline": [
        ex(RAN.format(1)),
        ex("COMMIT"),
        ex("BEGIN"),
        ex("RESET ALL"),
        SYNC,
        q(RAN.format(5)),
        q("COMMIT"),
    ],
    "setting, commit, flush": [ex(RAN.format(1)), ex("COMMIT"), FLUSH, ex(RAN.format(2)), SYNC],
    "setting, commit, flush, Query": [ex(RAN.format(1)), ex("COMMIT"), FLUSH, q(RAN.format(2))],
    "setting, commit, Query": [ex(RAN.format(1)), ex("COMMIT"), q(RAN.format(2))],
    "a portal of ROLLBACK replaced": [q("BEGIN"), P(b"", b"ROLLBACK") + REPLACED, ex("COMMIT"), SYNC],
    "a portal of ROLLBACK replaced, one pipeline": [
        ex("BEGIN"),
        P(b"", b"ROLLBACK") + REPLACED,
        ex("COMMIT"),
        SYNC,
    ],
    "a portal of ROLLBACK replaced, flush": [q("BEGIN"), P(b"", b"ROLLBACK") + REPLACED, FLUSH, q("COMMIT")],
    "a portal of ROLLBACK replaced, alone": [q("BEGIN"), P(b"", b"ROLLBACK") + REPLACED, SYNC, q("COMMIT")],
    "a portal of COMMIT replaced": [
        q("BEGIN"),
        q("SAVEPOINT a"),
        P(b"", b"COMMIT") + REPLACED,
        ex("COMMIT"),
        SYNC,
    ],
    "a portal of COMMIT AND CHAIN replaced": [
        q("BEGIN"),
        q("SAVEPOINT a"),
        P(b"", b"COMMIT AND CHAIN") + REPLACED,
        ex("COMMIT"),
        SYNC,
    ],
    "setting in a string block": [q(f"BEGIN READ ONLY; {HELD_SETTING}; COMMIT; {text_of(PAY_AND_HIDE)}")],
    "setting in a pipelined block": [
        ex("BEGIN READ ONLY"),
        ex(HELD_SETTING),
        ex("COMMIT"),
        ex(text_of(PAY_AND_HIDE)),
        SYNC,
    ],
}


@pytest.fixture(scope="module")
def nameless(
    postgres: Server, database_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWall]:
    with fresh_database(postgres, database_template) as database:
        with database.connect() as owner:
            owner.execute(NAMELESS_SHOP)
            for number, body in SCRIPTS.items():
                owner.execute("INSERT INTO scripts VALUES (%s, %s)", (number, body))
        ruleset = waiving(*WAIVED, "scripts", "acts", functions=("public.run_text",))
        with running_wall(database, tmp_path_factory.mktemp("nameless"), ruleset) as wall:
            yield wall


@pytest.mark.parametrize("name", NAMELESS)
def test_code_that_no_text_names_is_behind_the_gate_too(nameless: RunningWall, name: str) -> None:
    withstand(nameless, NAMELESS[name])
