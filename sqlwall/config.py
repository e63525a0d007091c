"""What a wall is told: ``sqlwall.yaml``, then ``SQLWALL_*`` from the environment, then flags, in rising order.

Every setting is a field below, with its meaning beside it. Reading reports every mistake at once, with file, line and
column, and the nearest valid word. Knows no other room: whether a certificate fits its key is for who uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sqlwall.errors import ConfigError, Problem

T = TypeVar("T")

PREFIX = "SQLWALL_"
#: Environment variables of this prefix that are not settings: the file's own name, and the tests' variables.
RESERVED = ("SQLWALL_CONFIG", "SQLWALL_TEST_")
SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
CHANNEL_BINDINGS = ("disable", "prefer", "require")
TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
#: Sections whose most important key may stand for the section: ``workers: 4``, ``SQLWALL_UPSTREAM=postgresql://…``.
PRIMARY = {"upstream": "dsn", "ruleset": "path", "store": "url", "workers": "count"}

_SIZE = re.compile(r"([0-9]+)\s*(B|kB|KB|KiB|MB|MiB|GB|GiB)?")
_SIZES = {"": 1, "B": 1, "kB": 1024, "KB": 1024, "KiB": 1024, "MB": 1024**2, "MiB": 1024**2} | {
    "GB": 1024**3,
    "GiB": 1024**3,
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|h)?")
_DURATIONS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
#: What Kubernetes and Docker put into the environment for a service that is called sqlwall.
_SERVICE_LINK = re.compile(r".*_SERVICE_(HOST|PORT)(_.*)?|.*_PORT(_[0-9]+_(TCP|UDP)(_.*)?)?")


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
    """Seconds: ``30``, ``30s``, ``500ms``, ``10min``, ``1h``; 0 is no limit."""
    match = None if isinstance(raw, bool) else _DURATION.fullmatch(str(raw).strip())
    if match is None:
        raise ValueError("must be a duration such as 30s, 500ms or 10min")
    return float(match.group(1)) * _DURATIONS[match.group(2) or ""]


def word(*words: str) -> Callable[[object], str]:
    """A reader of one of some words."""

    def read(raw: object) -> str:
        if isinstance(raw, str) and raw in words:
            return str(raw)
        raise ValueError(f"must be one of {', '.join(words)}{nearest(str(raw), words)}")

    return read


def setting(default: T, meaning: str, read: Callable[[object], Any]) -> T:
    """A field of a section, with what `describe` says of it and how its value is read."""
    return cast(T, field(default=default, metadata={"meaning": meaning, "read": read}))


PORT = integer(1, 65535)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where agents connect."""

    host: str = setting("127.0.0.1", "address that agents connect to", read_text)
    port: int = setting(6543, "TCP port that agents connect to", PORT)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The PostgreSQL server behind the wall, and how to log in to it. Words are libpq's."""

    dsn: Secret = setting(Secret(""), "the server as a libpq URI or key=value string; sets the keys below", read_secret)
    host: str = setting("", "host name, address, or folder of the Unix socket of the server", read_text)
    port: int = setting(5432, "port of the server", PORT)
    user: str = setting("", "role that the wall logs in as", read_text)
    password: Secret = setting(Secret(""), "password of that role; better in password_file", read_secret)
    password_file: Path | None = setting(None, "file that holds the password, read at start and reload", read_path)
    dbname: str = setting("", "database; empty: the one that the agent asks for", read_text)
    sslmode: str = setting("prefer", f"one of {', '.join(SSLMODES)}", word(*SSLMODES))
    sslrootcert: Path | str | None = setting(
        None, "file of certificates that may sign the server's, or system", read_root_certificates
    )
    sslcert: Path | None = setting(None, "certificate to show to the server", read_path)
    sslkey: Path | None = setting(None, "private key of that certificate", read_path)
    channel_binding: str = setting("prefer", "one of " + ", ".join(CHANNEL_BINDINGS), word(*CHANNEL_BINDINGS))


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption towards agents."""

    certificate: Path | None = setting(None, "certificate chain shown to agents; without it there is no TLS", read_path)
    key: Path | None = setting(None, "private key of the certificate", read_path)
    client_ca: Path | None = setting(None, "certificates that must have signed one that an agent shows", read_path)
    require: bool = setting(False, "refuse agents that do not use TLS", read_boolean)
    min_version: str = setting("TLSv1.2", "oldest TLS version, one of " + ", ".join(TLS_VERSIONS), word(*TLS_VERSIONS))


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is allowed."""

    path: str = setting("agent-safe", "file of the default ruleset, or the name of a shipped one", read_text)


@dataclass(frozen=True, slots=True)
class Store:
    """Where agents, audit records and decisions are kept."""

    url: str = field(
        default="sqlite:///sqlwall.db",
        repr=False,
        metadata={"meaning": "SQLAlchemy URL of the store, or a file name for SQLite", "read": read_url},
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where /metrics, /healthz and /readyz are served."""

    host: str = setting("127.0.0.1", "address of /metrics, /healthz and /readyz", read_text)
    port: int = setting(9643, "port of /metrics, /healthz and /readyz", PORT)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that protect the wall itself."""

    max_connections: int = setting(200, "sessions in all, over all workers", integer(1, 100_000))
    per_agent_connections: int = setting(50, "sessions of one agent, where the agent has no number of its own", integer(1, 100_000))
    segment_bytes: int = setting(64 * 1024**2, "bytes held of a client until its Sync, Flush or Query ends", size(64 * 1024, 1024**3))
    statement_bytes: int = setting(16 * 1024**2, "longest text of a statement", size(1024, 1024**3))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the wall waits; 0 is for ever."""

    login: float = setting(60.0, "for an agent to finish its login", read_duration)
    idle_in_transaction: float = setting(600.0, "for an agent that holds a transaction open and says nothing", read_duration)
    statement: float = setting(0.0, "for one statement, on top of what rules say", read_duration)
    drain: float = setting(30.0, "for open transactions when the wall stops", read_duration)
    upstream_connect: float = setting(10.0, "for the server to accept a connection and our login", read_duration)


@dataclass(frozen=True, slots=True)
class Workers:
    """How many processes share the port."""

    count: int = setting(0, "worker processes; 0: one per core", integer(0, 256))


@dataclass(frozen=True, slots=True)
class Audit:
    """The record of what was asked and decided."""

    statement_bytes: int = setting(8192, "bytes of a statement's text kept in the record", size(0, 1024**2))
    queue: int = setting(10_000, "records that may wait to be written before statements wait too", integer(1, 1_000_000))


@dataclass(frozen=True, slots=True)
class Log:
    """The wall's own log, on standard error."""

    level: str = setting("info", "one of " + ", ".join(LOG_LEVELS), word(*LOG_LEVELS))
    format: str = setting("text", "one of " + ", ".join(LOG_FORMATS), word(*LOG_FORMATS))


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a wall is told. Sections are fields, settings are theirs."""

    listen: Listen = Listen()
    upstream: Upstream = Upstream()
    tls: Tls = Tls()
    ruleset: Ruleset = Ruleset()
    store: Store = Store()
    metrics: Metrics = Metrics()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    workers: Workers = Workers()
    audit: Audit = Audit()
    log: Log = Log()
