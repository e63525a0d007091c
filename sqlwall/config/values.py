"""How the text of a setting becomes its value: readers that raise ValueError with what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

AUTH_METHODS = ("none", "password", "md5", "scram-sha-256")

_SIZE = re.compile(r"([0-9]+)\s*(B|kB|KB|KiB|MB|MiB|GB|GiB)?")
_SIZES = {"": 1, "B": 1, "kB": 1024, "KB": 1024, "KiB": 1024, "MB": 1024**2, "MiB": 1024**2} | {
    "GB": 1024**3,
    "GiB": 1024**3,
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|h|d)?")
_DURATIONS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Secret:
    """A text that no repr, format or log line shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "'***'" if self._text else "''"


def read_text(raw: object) -> str:
    """Any text without NUL."""
    if not isinstance(raw, str):
        raise ValueError("must be a text")
    if "\0" in raw:
        raise ValueError("must not hold a NUL character")
    return str(raw)


def read_secret(raw: object) -> Secret:
    """A text that is never shown."""
    return Secret(read_text(raw))


def read_path(raw: object) -> Path | None:
    """A file name; empty is none."""
    text = read_text(raw)
    return Path(text).expanduser() if text else None


def read_root_certificates(raw: object) -> Path | str | None:
    """A file name, or the word ``system``."""
    return "system" if raw == "system" else read_path(raw)


def read_url(raw: object) -> str:
    """A database URL; a bare file name is SQLite's."""
    text = read_text(raw)
    if not text:
        raise ValueError("must not be empty")
    return text if "://" in text else f"sqlite:///{text}"


def read_boolean(raw: object) -> bool:
    """true or false; the environment also says on, off, yes, no, 1 and 0."""
    if isinstance(raw, bool):
        return raw
    word = raw.lower() if isinstance(raw, str) else ""
    if word in ("true", "on", "yes", "1"):
        return True
    if word in ("false", "off", "no", "0"):
        return False
    raise ValueError("must be true or false")


def integer(low: int, high: int) -> Callable[[object], int]:
    """A reader of whole numbers between two bounds, both included."""

    def read(raw: object) -> int:
        text = raw if isinstance(raw, str) else str(raw) if type(raw) is int or isinstance(raw, int) else ""
        if isinstance(raw, bool) or not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
            raise ValueError(f"must be a whole number from {low} to {high}")
        if not low <= int(text) <= high:
            raise ValueError(f"must be from {low} to {high}")
        return int(text)

    return read


def number(low: float, high: float) -> Callable[[object], float]:
    """A reader of decimal numbers between two bounds, both included."""

    def read(raw: object) -> float:
        text = "" if isinstance(raw, bool) else str(raw).strip()
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text, re.ASCII) or not low <= float(text) <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return float(text)

    return read


def size(low: int, high: int) -> Callable[[object], int]:
    """A reader of sizes in bytes: ``65536`` or ``64MiB``; kB, MB and GB count by 1024, as PostgreSQL's do."""

    def read(raw: object) -> int:
        match = None if isinstance(raw, bool) else _SIZE.fullmatch(str(raw).strip())
        if match is None:
            raise ValueError("must be a size such as 65536, 512kB or 64MiB")
        found = int(match.group(1)) * _SIZES[match.group(2) or ""]
        if not low <= found <= high:
            raise ValueError(f"must be from {low} to {high} bytes")
        return found

    return read


def read_duration(raw: object) -> float:
    """Seconds: ``30``, ``30s``, ``500ms``, ``10min``, ``1h``, ``30d``; 0 is no limit."""
    match = None if isinstance(raw, bool) else _DURATION.fullmatch(str(raw).strip())
    if match is None:
        raise ValueError("must be a duration such as 30s, 500ms, 10min or 30d")
    return float(match.group(1)) * _DURATIONS[match.group(2) or ""]


def read_positive_duration(raw: object) -> float:
    """As `read_duration`, but there must be a limit."""
    seconds = read_duration(raw)
    if not seconds:
        raise ValueError("must be more than 0")
    return seconds


def read_auth_methods(raw: object) -> str:
    """libpq's `require_auth`: a list of methods, all of them bare or all of them with an exclamation mark."""
    text = read_text(raw).replace(" ", "")
    methods = [method for method in text.split(",") if method]
    for method in methods:
        bare = method.removeprefix("!")
        if bare not in AUTH_METHODS:
            raise ValueError(
                f"unknown method {bare}: one of {', '.join(AUTH_METHODS)}{nearest(bare, AUTH_METHODS)}"
            )
    if len({method.startswith("!") for method in methods}) > 1:
        raise ValueError("must be a list of methods, or of methods with ! each, not of both")
    return ",".join(methods)


def nearest(given: str, words: Iterable[str]) -> str:
    """``; did you mean x?`` where there is such a word, otherwise nothing."""
    known = list(words)
    found = get_close_matches(given, known, n=1, cutoff=0.6)
    found = found or [name for name in known if given and name.startswith(given)]
    return f"; did you mean {found[0]}?" if found else ""


def word(*words: str) -> Callable[[object], str]:
    """A reader of one of some words."""

    def read(raw: object) -> str:
        if isinstance(raw, str) and raw in words:
            return str(raw)
        raise ValueError(f"must be one of {', '.join(words)}{nearest(str(raw), words)}")

    return read
