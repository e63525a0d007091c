"""What a TRUNCATE or DROP TABLE names and how far it reaches."""

from __future__ import annotations

import pytest

from sqlwall.sql.parse import analyze_text
from sqlwall.sql.removals import TEXT_LIMIT, Emptying, Removal, read_removal
from sqlwall.sql.statement import Relation


def read(text: str, place: int = 0) -> Emptying | Removal | None:
    facts = analyze_text(text.encode())
    assert isinstance(facts, tuple)
    return read_removal(text.encode(), facts[place])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("TRUNCATE a", Emptying(((Relation(None, "a"), False),), cascades=False, restarts=False)),
        (
            'TRUNCATE TABLE ONLY s.a, "B c" * RESTART IDENTITY CASCADE',
            Emptying(
                ((Relation("s", "a"), True), (Relation(None, "B c"), False)), cascades=True, restarts=True
            ),
        ),
        ("DROP TABLE a", Removal((Relation(None, "a"),), cascades=False)),
        (
            'DROP TABLE IF EXISTS s.a, db.s."B" CASCADE',
            Removal((Relation("s", "a"), Relation("s", "B")), cascades=True),
        ),
        ("DROP VIEW a", None),
        ("DROP FOREIGN TABLE a", None),
        ("ALTER TABLE a DROP COLUMN b", None),
        ("DELETE FROM a", None),
    ],
)
def test_a_removal_is_read(text: str, wanted: Emptying | Removal | None) -> None:
    assert read(text) == wanted


def test_only_the_statement_itself_is_read() -> None:
    text = "SELECT 'ä'; TRUNCATE b; DROP TABLE c"
    assert read(text, 1) == Emptying(((Relation(None, "b"), False),), cascades=False, restarts=False)
    assert read(text, 2) == Removal((Relation(None, "c"),), cascades=False)


def test_a_long_text_is_not_read_again() -> None:
    assert read("TRUNCATE a" + " " * TEXT_LIMIT) is None
