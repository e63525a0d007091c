"""The table of SQLSTATEs says what PostgreSQL's own table says."""

from __future__ import annotations

import psycopg
import pytest

from sqlwall.wire import sqlstate

CODES = {name: value for name, value in vars(sqlstate).items() if name.isupper() and isinstance(value, str)}


@pytest.mark.parametrize("name", CODES)
def test_a_code_is_the_one_of_its_name(name: str) -> None:
    """psycopg's classes are made from errcodes.txt."""
    assert len(CODES[name]) == 5
    if CODES[name][:2] in ("00", "01", "02"):
        return
    names = {
        error.__name__.replace("_", "").lower()
        for error in vars(psycopg.errors).values()
        if isinstance(error, type) and getattr(error, "sqlstate", None) == CODES[name]
    }
    wanted = name.replace("_", "").lower().removesuffix("error")
    assert any(found.startswith(wanted) for found in names), names
