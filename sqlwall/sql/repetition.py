"""How often the parser would write the same part of a text into its tree.

In ``SET (a, b) = (…)`` the tree holds the right side once for each column, and a WITH query inside it may assign again:
800 bytes of text can become a gigabyte of tree. So the columns are counted on the tokens, before the parser runs.
"""

from __future__ import annotations

import re
from typing import Final

from pglast.parser import ParseError, scan

#: Tokens that may stand in a tree beyond their number in the text.
REPETITION_LIMIT: Final = 20_000

#: Nothing is assigned to several columns without a closing parenthesis before an equals sign, perhaps behind a comment.
_ASSIGNMENT: Final = re.compile(rb"\)[ \t\n\r\f\v]*(?:=|/\*|--)")
_SET: Final = re.compile(rb"[sS][eE][tT]")
#: Bytes outside ASCII are letters to the lexer; as one ASCII letter, positions need no counting in the scanner.
_ASCII: Final = bytes(byte if byte < 0x80 else ord("x") for byte in range(256))
_COMMENTS: Final = frozenset({"C_COMMENT", "SQL_COMMENT"})


def is_repetitive(text: bytes) -> bool:
    """Whether the tree of a text would be far larger than the text."""
    if _ASSIGNMENT.search(text) is None or _SET.search(text) is None:
        return False
    try:
        tokens = [token.name for token in scan(text.translate(_ASCII).decode("ascii"))]
    except ParseError:
        # The parser has the same lexer: it fails on the same token, and makes no tree.
        return False
    return _repeated([name for name in tokens if name not in _COMMENTS]) > REPETITION_LIMIT


def _repeated(tokens: list[str]) -> int:
    """Tokens that repetition adds, counted until they are too many.

    `open_groups` holds where each open parenthesis stands; `assigned` the depth of each assignment whose right side may
    go on, with the number of its columns.
    """
    open_groups: list[int] = []
    assigned: list[tuple[int, int]] = []
    factor, repeated = 1, 0
    for position, name in enumerate(tokens):
        repeated += factor - 1
        if repeated > REPETITION_LIMIT:
            break
        if name == "ASCII_40":
            open_groups.append(position)
        elif name == "ASCII_41" and open_groups:
            start = open_groups.pop()
            columns = _columns_assigned(tokens, start, position)
            ended = len(open_groups) + (0 if columns else 1)
            while assigned and assigned[-1][0] >= ended:
                factor //= assigned.pop()[1]
            if columns:
                assigned.append((len(open_groups), columns))
                factor *= columns
        elif name == "ASCII_59":
            while assigned and assigned[-1][0] >= len(open_groups):
                factor //= assigned.pop()[1]
    return repeated


def _columns_assigned(tokens: list[str], start: int, end: int) -> int:
    """The number of columns in a group in parentheses if a value is assigned to it, else 0."""
    if (
        tokens[end + 1 : end + 2] != ["ASCII_61"]
        or start == 0
        or tokens[start - 1] not in ("SET", "ASCII_44")
    ):
        return 0
    return tokens[start:end].count("ASCII_44") + 1
