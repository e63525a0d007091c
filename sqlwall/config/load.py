"""Reads a configuration: file, environment, flags. Every mistake is reported at once, with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sqlwall.config.settings import Config, Listen, Setting, Upstream
from sqlwall.config.values import nearest, read_secret
from sqlwall.errors import ConfigError, Problem

T = TypeVar("T")

PREFIX = "SQLWALL_"
#: Environment variables of this prefix that are not settings: the file's own name, the superuser of `provision`, what
#: the package's build asks, and the tests' variables.
RESERVED = ("SQLWALL_CONFIG", "SQLWALL_ADMIN", "SQLWALL_COMPILE", "SQLWALL_TEST_")
#: Sections whose most important key may stand for the section: ``workers: 4``, ``SQLWALL_UPSTREAM=postgresql://…``.
PRIMARY = {
    "upstream": "dsn", "observer": "dsn", "undo": "dsn", "ruleset": "path", "store": "url", "snapshots": "url",
    "workers": "count",
}  # fmt: skip
#: Sections that say how to log in to PostgreSQL.
SERVERS = ("upstream", "observer", "undo")
#: Keys of a libpq DSN that are settings of another section here, and those that change nothing for the wall.
DSN_ELSEWHERE = {"connect_timeout": ("timeouts", "upstream_connect")}
DSN_WITHOUT_EFFECT = ("application_name", "fallback_application_name", "gssencmode", "client_encoding")
#: What Kubernetes and Docker put into the environment for a service that is called sqlwall.
_SERVICE_LINK = re.compile(r".*_SERVICE_(HOST|PORT)(_.*)?|.*_PORT(_[0-9]+_(TCP|UDP)(_.*)?)?")
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
        for section in SERVERS:
            given |= _expand_dsn(layer, section, problems)
        given |= layer
    config = _build(given, problems)
    _check_together(config, given, problems)
    if not problems:
        config = replace(
            config,
            upstream=_with_password_file(config.upstream, "upstream", given, problems),
            observer=_with_password_file(config.observer, "observer", given, problems),
            undo=_with_password_file(config.undo, "undo", given, problems),
        )
    if problems:
        raise ConfigError(*problems)
    return config


def settings() -> tuple[tuple[str, str, object], ...]:
    """Name, meaning and default of every setting, in the order of the documentation."""
    return tuple(
        (f"{section}.{item.name}", _readers(section)[item.name].meaning, item.default)
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


def _expand_dsn(layer: _Layer, section: str, problems: list[Problem]) -> _Layer:
    """What the DSN of a source says of the other keys of its section."""
    dsn = layer.get((section, "dsn"))
    if dsn is None or not isinstance(dsn.raw, str) or not dsn.raw:
        return {}
    try:
        parts = conninfo_to_dict(dsn.raw)
    except (ProgrammingError, UnicodeError, ValueError):
        # libpq's own words would quote the text, and with it the password.
        problems.append(
            dsn.problem(
                f"{section}.dsn is neither a libpq URI (postgresql://user@host:port/dbname) nor key=value"
            )
        )
        return {}
    expanded: _Layer = {}
    for key, value in parts.items():
        if value is None:
            continue
        target = DSN_ELSEWHERE.get(key, (section, key))
        if target[1] in _keys(target[0]) and key != "dsn":
            expanded[target] = _Given(str(value), dsn.file, dsn.line, dsn.column)
        elif key not in DSN_WITHOUT_EFFECT:
            problems.append(dsn.problem(f"{section}.dsn: the wall has no use for {key}; leave it out"))
    return expanded


def _build(given: _Layer, problems: list[Problem]) -> Config:
    return Config(
        **{section: _build_section(section, kind, given, problems) for section, kind in SECTIONS.items()}
    )


def _build_section(section: str, kind: type[T], given: _Layer, problems: list[Problem]) -> T:
    values: dict[str, object] = {}
    for name, setting in _readers(section).items():
        here = given.get((section, name))
        if here is None:
            continue
        try:
            values[name] = setting.read(here.raw)
        except ValueError as error:
            problems.append(here.problem(f"{section}.{name} {error}"))
    return kind(**values)


def _check_together(config: Config, given: _Layer, problems: list[Problem]) -> None:
    """What no value says alone."""

    def complain(section: str, key: str, message: str) -> None:
        problems.append(given.get((section, key), _Given(None)).problem(f"{section}.{key} {message}"))

    tls = config.tls
    if tls.certificate is None:
        for key, is_set in (("key", tls.key), ("client_ca", tls.client_ca), ("require", tls.require)):
            if is_set:
                complain("tls", key, "needs tls.certificate")
    if ("tls", "client_certificate") in given and tls.client_ca is None:
        complain("tls", "client_certificate", "needs tls.client_ca")
    for name in SERVERS:
        server: Upstream = getattr(config, name)
        if "," in server.host:
            complain(name, "host", "must be one host")
        if server.sslkey is not None and server.sslcert is None:
            complain(name, "sslkey", f"needs {name}.sslcert")
        if server.sslmode in ("verify-ca", "verify-full") and server.sslrootcert is None:
            complain(name, "sslmode", f"needs {name}.sslrootcert: a file of certificates, or system")
        if server.sslrootcert == "system" and server.sslmode != "verify-full":
            complain(name, "sslrootcert", f"system needs {name}.sslmode verify-full")
    if config.listen == Listen(config.metrics.host, config.metrics.port):
        complain("metrics", "port", "must differ from listen.port")


def _with_password_file(server: Upstream, section: str, given: _Layer, problems: list[Problem]) -> Upstream:
    path = server.password_file
    if path is None or server.password:
        return server
    try:
        text = path.read_text("utf-8").rstrip("\r\n")
        password = read_secret(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "holds no text"
        problems.append(given[section, "password_file"].problem(f"{section}.password_file {path}: {why}"))
        return server
    return replace(server, password=password)


def _readers(section: str) -> dict[str, Setting]:
    """The `Setting` beside each field of a section."""
    hints = get_type_hints(SECTIONS[section], include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def _keys(section: str) -> tuple[str, ...]:
    return tuple(item.name for item in fields(SECTIONS[section]))


def _variable(section: str, key: str) -> str:
    return f"{PREFIX}{section.upper()}_{key.upper()}"
