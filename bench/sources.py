"""SQL to be judged: PostgreSQL's regression suite where it is at hand, else what the project's own tests hold.

Scripts of psql are cut into statements the way psql does it, without its variables: what then does not parse is left
out by whoever asks.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

#: Where ``python -m tests.clients postgresql --fetch-only`` puts the suite.
FETCHED = Path(tempfile.gettempdir()) / "sqlwall-clients/postgresql/source/src/test/regress/sql"
_PROJECT = Path(__file__).parents[1]

_TOKEN = re.compile(
    r"""--[^\n]*
    | /\*.*?\*/
    | [eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$
    | \\;
    | \\[^\n]*
    | [;()]
    """,
    re.DOTALL | re.VERBOSE,
)
_COPY = re.compile(r"\s*copy\b.*\bfrom\s+stdin\b", re.IGNORECASE | re.DOTALL)
_END_OF_DATA = re.compile(r"^\\\.\n?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """Texts, each once: a second time the cache would know it."""

    name: str
    texts: tuple[bytes, ...]


def find_statements(folder: Path | None = None) -> Source:
    """The scripts of a folder, else of the suite that was fetched, else of our tests."""
    for place in (folder, FETCHED):
        if place is not None and (scripts := sorted(place.glob("*.sql"))):
            texts = (text for script in scripts for text in split(script.read_text("utf-8", "replace")))
            return Source("PostgreSQL's regression suite", _unique(texts))
    return Source("the project's tests (PostgreSQL's regression suite is not at hand)", _unique(_own()))


def split(script: str) -> Iterator[str]:
    """The statements of a psql script; no backslash commands, no data of COPY FROM STDIN."""
    start = place = depth = 0
    pieces: list[str] = []
    while (found := _TOKEN.search(script, place)) is not None:
        token, place = found.group(), found.end()
        if token == "(":
            depth += 1
        elif token == ")":
            depth = max(0, depth - 1)
        elif token == ";" and not depth:
            text = "".join([*pieces, script[start : found.start()]]).strip()
            if text:
                yield text
            if _COPY.match(text):
                data = _END_OF_DATA.search(script, place)
                place = data.end() if data is not None else len(script)
            start, pieces = place, []
        elif token == r"\;":
            pieces += [script[start : found.start()], ";"]
            start = place
        elif token.startswith("\\"):
            pieces.append(script[start : found.start()])
            start = place
            if token.startswith((r"\g", r"\crosstabview")):  # sends what there is, as a semicolon does
                text, pieces, depth = "".join(pieces).strip(), [], 0
                if text:
                    yield text


def _own() -> Iterator[str]:
    yaml = YAML(typ="safe")
    for path in sorted(_PROJECT.glob("rulesets/*.yaml")):
        yield from (case["sql"] for case in yaml.load(path)["cases"])
    yield from (case["sql"] for case in yaml.load(_PROJECT / "tests/sql/data/effects.yaml"))
    for path in sorted(_PROJECT.glob("tests/sql/data/*.sql")):
        yield from path.read_text("utf-8").splitlines()


def _unique(texts: Iterator[str]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(text.encode() for text in texts))
