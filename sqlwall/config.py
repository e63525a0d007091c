"""What a wall is told: ``sqlwall.yaml``, then ``SQLWALL_*`` from the environment, then flags, in rising order.

Every setting is a field below, with its meaning beside it. Reading reports every mistake at once, with file, line and
column, and the nearest valid word. Knows no other room: whether a certificate fits its key is for who uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
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
CLIENT_CERTIFICATES = ("optional", "require", "match")
AUTH_METHODS = ("none", "password", "md5", "scram-sha-256")
TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
#: Sections whose most important key may stand for the section: ``workers: 4``, ``SQLWALL_UPSTREAM=postgresql://…``.
PRIMARY = {"upstream": "dsn", "ruleset": "path", "store": "url", "workers": "count"}
#: Keys of a libpq DSN that are settings of another section here, and those that change nothing for the wall.
DSN_ELSEWHERE = {"connect_timeout": ("timeouts", "upstream_connect")}
DSN_WITHOUT_EFFECT = ("application_name", "fallback_application_name", "gssencmode", "client_encoding")

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
    found = get_close_matches(given, list(words), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


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

    dsn: Secret = setting(
        Secret(""), "the server as a libpq URI or key=value string; sets the keys below", read_secret
    )
    host: str = setting("", "host name, address, or folder of the Unix socket of the server", read_text)
    port: int = setting(5432, "port of the server", PORT)
    user: str = setting("", "role that the wall logs in as", read_text)
    password: Secret = setting(Secret(""), "password of that role; better in password_file", read_secret)
    password_file: Path | None = setting(
        None, "file that holds the password, read at start and reload", read_path
    )
    dbname: str = setting("", "database; empty: the one that the agent asks for", read_text)
    sslmode: str = setting("prefer", f"one of {', '.join(SSLMODES)}", word(*SSLMODES))
    sslrootcert: Path | str | None = setting(
        None, "file of certificates that may sign the server's, or system", read_root_certificates
    )
    sslcert: Path | None = setting(None, "certificate to show to the server", read_path)
    sslkey: Path | None = setting(None, "private key of that certificate", read_path)
    channel_binding: str = setting("prefer", "one of " + ", ".join(CHANNEL_BINDINGS), word(*CHANNEL_BINDINGS))
    require_auth: str = setting(
        "",
        f"comma-separated list of the only methods that the server may ask for: {', '.join(AUTH_METHODS)}; or each with ! for any but these",
        read_auth_methods,
    )


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption towards agents."""

    certificate: Path | None = setting(
        None, "certificate chain shown to agents; without it there is no TLS", read_path
    )
    key: Path | None = setting(None, "private key of the certificate", read_path)
    client_ca: Path | None = setting(
        None, "certificates that must have signed one that an agent shows", read_path
    )
    client_certificate: str = setting(
        "require",
        f"with client_ca, one of {', '.join(CLIENT_CERTIFICATES)}; match: its common name is the agent's",
        word(*CLIENT_CERTIFICATES),
    )
    require: bool = setting(False, "refuse agents that do not use TLS", read_boolean)
    min_version: str = setting(
        "TLSv1.2", "oldest TLS version, one of " + ", ".join(TLS_VERSIONS), word(*TLS_VERSIONS)
    )


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
class Console:
    """Where the console, its API and /metrics are served."""

    host: str = setting("127.0.0.1", "address of the console, /metrics, /healthz and /readyz", read_text)
    port: int = setting(9643, "port of the console, /metrics, /healthz and /readyz", PORT)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that protect the wall itself."""

    max_connections: int = setting(200, "sessions in all, over all workers", integer(1, 100_000))
    connections_per_agent: int = setting(
        50, "sessions of one agent, where the agent has no number of its own", integer(1, 100_000)
    )
    max_message_bytes: int = setting(
        64 * 1024**2, "bytes held of a client until its Sync, Flush or Query ends", size(64 * 1024, 1024**3)
    )
    statement_bytes: int = setting(16 * 1024**2, "longest text of a statement", size(1024, 1024**3))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the wall waits; 0 is for ever."""

    login: float = setting(60.0, "for an agent to finish its login", read_duration)
    idle_in_transaction: float = setting(
        600.0, "for an agent that holds a transaction open and says nothing", read_duration
    )
    statement: float = setting(0.0, "for one statement, on top of what rules say", read_duration)
    drain: float = setting(30.0, "for open transactions when the wall stops", read_duration)
    upstream_connect: float = setting(
        10.0, "for the server to accept a connection and our login", read_duration
    )
    cancel_grace: float = setting(
        5.0, "for the server to end a statement after a cancel, before it is cut off", read_duration
    )
    parse: float = setting(2.0, "for the parser process with one large statement", read_positive_duration)


@dataclass(frozen=True, slots=True)
class Workers:
    """How many processes share the port."""

    count: int = setting(0, "worker processes; 0: one per core", integer(0, 256))


@dataclass(frozen=True, slots=True)
class Audit:
    """The record of what was asked and decided."""

    statement_bytes: int = setting(8192, "bytes of a statement's text kept in the record", size(0, 1024**2))
    queue: int = setting(
        10_000, "records that may wait to be written before statements wait too", integer(1, 1_000_000)
    )


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
    console: Console = Console()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    workers: Workers = Workers()
    audit: Audit = Audit()
    log: Log = Log()


SECTIONS: dict[str, type[Any]] = {item.name: type(item.default) for item in fields(Config)}


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as somebody wrote it, and where."""

    raw: object
    file: str = ""
    line: int = 0
    column: int = 0

    def problem(self, message: str) -> Problem:
        return Problem(message, self.file, self.line, self.column)


#: Section and key of each value that one source gives.
_Layer = dict[tuple[str, str], _Given]


def load_config(
    path: Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> Config:
    """Read the file, the environment and the flags; a later one wins, key by key.

    `flags` are named as in the file: ``{"listen.port": 7000, "upstream": "postgresql://…"}``; None is a flag that was
    not given. Raises ConfigError with every problem of all three.
    """
    problems: list[Problem] = []
    layers = (
        _read_file(path, problems) if path is not None else {},
        _read_environment(env or {}, problems),
        _read_flags(flags or {}, problems),
    )
    given: _Layer = {}
    for layer in layers:
        given |= _expand_dsn(layer, problems) | layer
    config = _build(given, problems)
    _check_together(config, given, problems)
    if not problems:
        config = _with_password_file(config, given, problems)
    if problems:
        raise ConfigError(*problems)
    return config


def settings() -> tuple[tuple[str, str, object], ...]:
    """Name, meaning and default of every setting, in the order of the documentation."""
    return tuple(
        (f"{section}.{item.name}", str(item.metadata["meaning"]), item.default)
        for section, kind in SECTIONS.items()
        for item in fields(kind)
    )


def _read_file(path: Path, problems: list[Problem]) -> _Layer:
    name = str(path)
    try:
        document = YAML(typ="rt").load(path.read_text("utf-8"))
    except OSError as error:
        problems.append(Problem(f"cannot be read: {error.strerror}", name))
        return {}
    except UnicodeDecodeError:
        problems.append(Problem("is not UTF-8 text", name))
        return {}
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        problems.append(Problem(f"is not YAML: {error.problem or 'it cannot be read'}", name, line, column))
        return {}
    except (YAMLError, ValueError, RecursionError):
        problems.append(Problem("is not YAML", name))
        return {}
    if document is None:
        return {}
    if not isinstance(document, CommentedMap):
        problems.append(Problem(f"must be a mapping of sections: {', '.join(SECTIONS)}", name, 1, 1))
        return {}
    return _read_sections(document, name, problems)


def _read_sections(document: CommentedMap, name: str, problems: list[Problem]) -> _Layer:
    layer: _Layer = {}
    for section, value in document.items():
        here = _Given(value, name, *_place(document, section))
        if section not in SECTIONS:
            problems.append(here.problem(f"unknown section {section}{nearest(str(section), SECTIONS)}"))
        elif isinstance(value, CommentedMap):
            for key, entry in value.items():
                there = _Given(entry, name, *_place(value, key))
                if key in _keys(section):
                    layer[section, key] = there
                else:
                    problems.append(
                        there.problem(f"unknown key {section}.{key}{nearest(str(key), _keys(section))}")
                    )
        elif section in PRIMARY and value is not None:
            layer[section, PRIMARY[section]] = here
        elif value is not None:
            problems.append(here.problem(f"{section} must be a mapping of: {', '.join(_keys(section))}"))
    return layer


def _place(mapping: CommentedMap, key: object) -> tuple[int, int]:
    try:
        line, column = mapping.lc.key(key)
    except (KeyError, TypeError):  # a key that came by a merge or an alias has no place of its own
        return 0, 0
    return line + 1, column + 1


def _read_environment(env: Mapping[str, str], problems: list[Problem]) -> _Layer:
    layer: _Layer = {}
    names = {_variable(section, key): (section, key) for section in SECTIONS for key in _keys(section)}
    names |= {PREFIX + section.upper(): (section, key) for section, key in PRIMARY.items()}
    for variable, text in env.items():
        if not variable.startswith(PREFIX) or variable.startswith(RESERVED):
            continue
        here = _Given(text, variable)
        if variable in names:
            layer[names[variable]] = here
        elif not _SERVICE_LINK.fullmatch(variable):
            problems.append(Problem(f"unknown variable {variable}{nearest(variable, names)}"))
    return layer


def _read_flags(flags: Mapping[str, object], problems: list[Problem]) -> _Layer:
    layer: _Layer = {}
    for flag, value in flags.items():
        if value is None:
            continue
        section, _, key = flag.partition(".")
        key = key or PRIMARY.get(section, "")
        if section in SECTIONS and key in _keys(section):
            layer[section, key] = _Given(value)
        else:
            known = [f"{name}.{entry}" for name in SECTIONS for entry in _keys(name)]
            problems.append(Problem(f"unknown setting {flag}{nearest(flag, known)}"))
    return layer


def _expand_dsn(layer: _Layer, problems: list[Problem]) -> _Layer:
    """What the DSN of a source says of the other keys of `upstream`."""
    dsn = layer.get(("upstream", "dsn"))
    if dsn is None or not isinstance(dsn.raw, str) or not dsn.raw:
        return {}
    try:
        parts = conninfo_to_dict(dsn.raw)
    except (ProgrammingError, UnicodeError, ValueError):
        # libpq's own words would quote the text, and with it the password.
        problems.append(
            dsn.problem(
                "upstream.dsn is neither a libpq URI (postgresql://user@host:port/dbname) nor key=value"
            )
        )
        return {}
    expanded: _Layer = {}
    for key, value in parts.items():
        if value is None:
            continue
        target = DSN_ELSEWHERE.get(key, ("upstream", key))
        if target[1] in _keys(target[0]) and key != "dsn":
            expanded[target] = _Given(str(value), dsn.file, dsn.line, dsn.column)
        elif key not in DSN_WITHOUT_EFFECT:
            problems.append(dsn.problem(f"upstream.dsn: the wall has no use for {key}; leave it out"))
    return expanded


def _build(given: _Layer, problems: list[Problem]) -> Config:
    return Config(
        **{section: _build_section(section, kind, given, problems) for section, kind in SECTIONS.items()}
    )


def _build_section(section: str, kind: type[T], given: _Layer, problems: list[Problem]) -> T:
    values: dict[str, object] = {}
    for item in _fields(kind):
        here = given.get((section, item.name))
        if here is None:
            continue
        try:
            values[item.name] = item.metadata["read"](here.raw)
        except ValueError as error:
            problems.append(here.problem(f"{section}.{item.name} {error}"))
    return kind(**values)


def _check_together(config: Config, given: _Layer, problems: list[Problem]) -> None:
    """What no value says alone."""

    def complain(section: str, key: str, message: str) -> None:
        problems.append(given.get((section, key), _Given(None)).problem(f"{section}.{key} {message}"))

    tls, upstream = config.tls, config.upstream
    if tls.certificate is None:
        for key, is_set in (("key", tls.key), ("client_ca", tls.client_ca), ("require", tls.require)):
            if is_set:
                complain("tls", key, "needs tls.certificate")
    if ("tls", "client_certificate") in given and tls.client_ca is None:
        complain("tls", "client_certificate", "needs tls.client_ca")
    if "," in upstream.host:
        complain("upstream", "host", "must be one host")
    if upstream.sslkey is not None and upstream.sslcert is None:
        complain("upstream", "sslkey", "needs upstream.sslcert")
    if upstream.sslmode in ("verify-ca", "verify-full") and upstream.sslrootcert is None:
        complain("upstream", "sslmode", "needs upstream.sslrootcert: a file of certificates, or system")
    if upstream.sslrootcert == "system" and upstream.sslmode != "verify-full":
        complain("upstream", "sslrootcert", "system needs upstream.sslmode verify-full")
    if config.listen == Listen(config.console.host, config.console.port):
        complain("console", "port", "must differ from listen.port")


def _with_password_file(config: Config, given: _Layer, problems: list[Problem]) -> Config:
    path = config.upstream.password_file
    if path is None or config.upstream.password:
        return config
    try:
        text = path.read_text("utf-8").rstrip("\r\n")
        password = read_secret(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "holds no text"
        problems.append(given["upstream", "password_file"].problem(f"upstream.password_file {path}: {why}"))
        return config
    return replace(config, upstream=replace(config.upstream, password=password))


def _fields(kind: type[Any]) -> tuple[Field[Any], ...]:
    return fields(kind)


def _keys(section: str) -> tuple[str, ...]:
    return tuple(item.name for item in fields(SECTIONS[section]))


def _variable(section: str, key: str) -> str:
    return f"{PREFIX}{section.upper()}_{key.upper()}"
