"""From bytes to facts. Guards stand before the parser, which can stall or kill the process (MECHANICS, section 10).

The JSON form of libpg_query is decoded into plain dicts: it raises clean errors where the tree of Python objects
crashes, and is ten times as fast. A text that no guard and no grammar accepts is an answer, `Unparsable`, never an
exception that someone may drop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson
from pglast.parser import ParseError, parse_sql_json

from sqlwall.sql.analyze import analyze
from sqlwall.sql.repetition import is_repetitive
from sqlwall.sql.statement import Statement, Unparsable

#: Larger texts are read by the sandboxed parser only (bytes).
IN_PROCESS_LIMIT: Final = 16 * 1024
#: No text is larger than this (bytes).
TEXT_LIMIT: Final = 64 * 1024 * 1024
#: The lexer is quadratic in runs of operator characters, closed comments without a blank among them.
OPERATOR_RUN_LIMIT: Final = 256

_OPERATOR_CHARACTERS: Final = b"+-*/<>=~!@#%^&|`?"
_MARK: Final = b"+"
#: Every operator character becomes the mark, every other byte a blank: a run is then found in linear time.
_MARKED: Final = bytes(_MARK[0] if byte in _OPERATOR_CHARACTERS else 32 for byte in range(256))
_LONGEST_RUN: Final = _MARK * OPERATOR_RUN_LIMIT

_TOO_COMPLEX: Final = "54001"
_SYNTAX_ERROR: Final = "42601"
_LIMITS: Final = ("stack depth", "memory exhausted", "out of memory", "too complex", "too deeply")


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A text that only the sandboxed parser may read."""


def analyze_text(text: bytes) -> tuple[Statement, ...] | Unparsable | TooLarge:
    """Facts about each statement of a text, in order; none for a text of blanks and comments."""
    if len(text) > IN_PROCESS_LIMIT:
        return TooLarge()
    return analyze_guarded(text)


def analyze_guarded(text: bytes) -> tuple[Statement, ...] | Unparsable:
    """The same without the in-process limit: for the sandbox, which may be killed."""
    fault = _guard(text)
    if fault is not None:
        return fault
    try:
        tree = orjson.loads(parse_sql_json(text.decode("utf-8")))
        return tuple(
            [
                analyze(raw.get("stmt", {}), start := raw.get("stmt_location", 0), _end(raw, start, text))
                for raw in tree.get("stmts", ())
            ]
        )
    except UnicodeDecodeError as error:
        # As pg_verifymbstr() says it.
        shown = " ".join(f"0x{byte:02x}" for byte in text[error.start : error.start + 3])
        return Unparsable("22021", f'invalid byte sequence for encoding "UTF8": {shown}')
    except ParseError as error:
        return _syntax_error(error, text)
    except (RecursionError, orjson.JSONDecodeError, MemoryError):
        return Unparsable(_TOO_COMPLEX, "statement is nested too deeply to be judged")


def _end(raw: dict[str, int], start: int, text: bytes) -> int:
    length = raw.get("stmt_len", 0)
    return start + length if length else len(text)


def _guard(text: bytes) -> Unparsable | None:
    if b"\0" in text:
        return Unparsable("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    if len(text) > TEXT_LIMIT:
        return Unparsable(_TOO_COMPLEX, f"statement is longer than {TEXT_LIMIT} bytes")
    if len(text) > OPERATOR_RUN_LIMIT and _LONGEST_RUN in text.translate(_MARKED):
        return Unparsable(_TOO_COMPLEX, "statement has a run of operator characters that is too long")
    if is_repetitive(text):
        return Unparsable(_TOO_COMPLEX, "statement repeats parts of itself too often to be judged")
    return None


def _syntax_error(error: ParseError, text: bytes) -> Unparsable:
    """PostgreSQL's message; its position counts characters from 1."""
    message = str(error.args[0]) if error.args else "syntax error"
    if any(word in message for word in _LIMITS):
        return Unparsable(_TOO_COMPLEX, message)
    location = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], int) else None
    if location is None and message.endswith("at end of input"):
        location = len(text.decode("utf-8"))
    if location is None and message.endswith("at end of input"):
        location = len(text.decode("utf-8"))
    return Unparsable(_SYNTAX_ERROR, message, 0 if location is None else location + 1)
