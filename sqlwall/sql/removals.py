"""What a TRUNCATE or DROP TABLE names, with the options that decide how far it reaches.

Facts say which relation a statement is about; here is what else must be known to keep what it removes. Anything that is
not one such statement by itself is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson
from pglast.parser import ParseError, parse_sql_json

from sqlwall.sql.objects import parts_of
from sqlwall.sql.statement import Relation, Statement

#: Longer texts are not read again here.
TEXT_LIMIT: Final = 8192


@dataclass(frozen=True, slots=True)
class Emptying:
    """TRUNCATE. `tables` come with whether ONLY stands before them."""

    tables: tuple[tuple[Relation, bool], ...]
    cascades: bool
    restarts: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """DROP TABLE."""

    tables: tuple[Relation, ...]
    cascades: bool


def read_removal(text: bytes, statement: Statement) -> Emptying | Removal | None:
    """What one statement of a text removes."""
    if len(text) > TEXT_LIMIT:
        return None
    try:
        stmts = orjson.loads(parse_sql_json(text[statement.start : statement.end].decode())).get("stmts", ())
    except (ParseError, UnicodeDecodeError, orjson.JSONDecodeError, RecursionError):
        return None
    if len(stmts) != 1:
        return None
    ((kind, body),) = stmts[0]["stmt"].items()
    cascades = body.get("behavior") == "DROP_CASCADE"
    if kind == "TruncateStmt":
        tables = tuple(_range(item["RangeVar"]) for item in body.get("relations") or ())
        return Emptying(tables, cascades, bool(body.get("restart_seqs")))
    if kind == "DropStmt" and body.get("removeType") == "OBJECT_TABLE" and not body.get("concurrent"):
        named = tuple(parts_of(item) for item in body.get("objects") or ())
        return Removal(tuple(_relation(parts) for parts in named), cascades)
    return None


def _range(body: dict[str, Any]) -> tuple[Relation, bool]:
    return Relation(body.get("schemaname"), body["relname"]), not body.get("inh", False)


def _relation(parts: tuple[str, ...]) -> Relation:
    return Relation(parts[-2] if len(parts) > 1 else None, parts[-1])
