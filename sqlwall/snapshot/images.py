"""Rows as they travel: addresses of row versions, names in SQL, and lines of COPY text.

COPY text is PostgreSQL's own form (`CopyAttributeOutText`, commands/copyto.c), which restores bit for bit where the
settings in `EXACT_SETTINGS` hold on both ends (MECHANICS, section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Final

#: The address of a row version: block number << 16 | line pointer.
Tid = int

#: What the output of values depends on, with the values under which it restores exactly.
EXACT_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "search_path": "pg_catalog",
        "datestyle": "ISO",
        "intervalstyle": "postgres",
        "extra_float_digits": "1",
        "timezone": "UTC",
        "bytea_output": "hex",
        "lc_monetary": "C",
        "xmloption": "content",
        "quote_all_identifiers": "off",
    }
)

#: What a column of pg_attribute `a` is read as, where its type's own text says less than there is: xml loses its
#: declaration, and the name of an object is another's once objects are renamed, or nobody's alone (an overloaded
#: function's). Its type's input takes the result. Empty where the text is exact; what is inside row types is read as it
#: is.
READ_AS: Final = """coalesce((SELECT
      CASE WHEN coalesce(e.typoutput, y.typoutput) OPERATOR(pg_catalog.=) 'pg_catalog.xml_out'::pg_catalog.regproc
        THEN 'text'
      WHEN coalesce(e.typoutput, y.typoutput) OPERATOR(pg_catalog.=) ANY (
        '{regprocout,regprocedureout,regoperout,regoperatorout,regclassout,regcollationout,regtypeout,regroleout,'
        'regnamespaceout,regconfigout,regdictionaryout}'::pg_catalog.regproc[]) THEN 'oid' END
      OPERATOR(pg_catalog.||) CASE WHEN e.oid IS NULL THEN '' ELSE '[]' END
    FROM pg_catalog.pg_type y LEFT JOIN pg_catalog.pg_type b ON b.oid OPERATOR(pg_catalog.=) y.typbasetype
      LEFT JOIN pg_catalog.pg_type e ON y.typoutput OPERATOR(pg_catalog.=) 'pg_catalog.array_out'::pg_catalog.regproc
        AND e.oid OPERATOR(pg_catalog.=) coalesce(nullif(y.typelem, 0), b.typelem)
    WHERE y.oid OPERATOR(pg_catalog.=) a.atttypid), '')"""

_ESCAPES: Final = tuple(
    (character, b"\\" + letter)
    for character, letter in (
        (b"\\", b"\\"), (b"\b", b"b"), (b"\f", b"f"), (b"\n", b"n"), (b"\r", b"r"), (b"\t", b"t"), (b"\v", b"v"),
    )
)  # fmt: skip
_SPECIAL: Final = frozenset(b"\\\b\f\n\r\t\v")
_MEANINGS: Final = {escape[1:]: character for character, escape in _ESCAPES}
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)


def read_tid(text: str | bytes) -> Tid:
    """The address in tid's text form, such as ``(12,3)``. Raises ValueError for anything else."""
    block, separator, line = (text.decode() if isinstance(text, bytes) else text)[1:-1].partition(",")
    if not separator:
        raise ValueError(f"not a tid: {text!r}")
    return int(block) << 16 | int(line)


def tid_text(tid: Tid) -> str:
    """tid's text form."""
    return f"({tid >> 16},{tid & 0xFFFF})"


def tid_array(tids: Iterable[Tid]) -> str:
    """A literal of type tid[]: digits and punctuation only."""
    return "'{" + ",".join(f'"({tid >> 16},{tid & 0xFFFF})"' for tid in tids) + "}'::pg_catalog.tid[]"


def batches(tids: Iterable[Tid], size: int) -> Iterator[Sequence[Tid]]:
    """The same addresses, so many at a time."""
    rest = iter(tids)
    while some := list(islice(rest, size)):
        yield some


def quote_identifier(name: str) -> str:
    """A name as SQL reads it, whatever it contains."""
    return '"' + name.replace('"', '""') + '"'


def qualify(schema: str, name: str) -> str:
    """The server's name of a relation, fully qualified."""
    return f"{quote_identifier(schema)}.{quote_identifier(name)}"


def quote_literal(text: str) -> str:
    """A string constant that means the same whatever standard_conforming_strings says."""
    if "\\" in text:
        return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return "'" + text.replace("'", "''") + "'"


def copy_line(values: Sequence[bytes | None]) -> bytes:
    """One line of COPY text from values in their types' text form."""
    return b"\t".join([b"\\N" if value is None else _escape(value) for value in values]) + b"\n"


def _escape(value: bytes) -> bytes:
    if _SPECIAL.isdisjoint(value):
        return value
    for character, escape in _ESCAPES:
        value = value.replace(character, escape)
    return value


def read_copy_line(line: bytes) -> list[str | None]:
    """The inverse of `copy_line`, of a line with its end or without, of text in UTF-8."""
    return [
        None if field == b"\\N" else _ESCAPED.sub(_unescape, field).decode("utf-8", "backslashreplace")
        for field in line.removesuffix(b"\n").split(b"\t")
    ]


def _unescape(match: re.Match[bytes]) -> bytes:
    return _MEANINGS.get(match[1], match[1])
