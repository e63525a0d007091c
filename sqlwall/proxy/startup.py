"""Startup parameters: what an agent may say before it has said who it is, judged by an allow-list.

A startup parameter becomes a setting's default for the whole session, which RESET brings back; so only what cannot
change policy, identity or the meaning of a text passes. Pure: names and values in, a dictionary or a refusal out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.errors import ProtocolError
from sqlwall.session.refusal import Refusal
from sqlwall.wire import sqlstate
from sqlwall.wire.startup import StartupMessage

#: Spellings of "no" that PostgreSQL's parse_bool() takes.
_NO: Final = frozenset({"0", "off", "of", "false", "fals", "fal", "fa", "f", "no", "n"})
_YES: Final = frozenset({"1", "on", "true", "tru", "tr", "t", "yes", "ye", "y"})
_PROTOCOL_OPTION: Final = "_pq_."


class LoginRefusedError(ProtocolError):
    """The login ends with this ErrorResponse; the client has been sent it, or is about to be."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, refusal.sqlstate)
        self.refusal: Final = refusal


def startup_parameters(startup: StartupMessage) -> dict[str, str]:
    """The parameters an agent may give, under PostgreSQL's own spelling; `user` and `database` are always there.

    `_pq_.` options are left out: NegotiateProtocolVersion has declined them. Raises LoginRefusedError for the
    first that may not be given.
    """
    if startup.repeated:
        names = ", ".join(_shown(name) for name in startup.repeated)
        raise _refused(
            f"startup parameter given more than once: {names}", "Give each once.", sqlstate.PROTOCOL_VIOLATION
        )
    accepted: dict[str, str] = {}
    for raw_name, raw_value in startup.parameters:
        name, value = _decode(raw_name, raw_name), _decode(raw_value, raw_name)
        if not name.startswith(_PROTOCOL_OPTION):
            _accept(name, value, accepted)
    if not accepted.get("user"):
        raise _refused(
            "no PostgreSQL user name specified in startup packet",
            "The user name is the agent's name.",
            sqlstate.INVALID_AUTHORIZATION_SPECIFICATION,
        )
    accepted["database"] = accepted.get("database") or accepted["user"]
    return accepted


def observed_parameters(startup: StartupMessage) -> dict[str, str]:
    """The parameters as they came, for a session that is only observed. Replication is not served all the same."""
    given: dict[str, str] = {}
    for raw_name, raw_value in startup.parameters:
        name = _decode(raw_name, raw_name)
        if name == "replication":
            _accept(name, _decode(raw_value, raw_name), {})
        elif not name.startswith(_PROTOCOL_OPTION):
            given[name] = _decode(raw_value, raw_name)
    given["database"] = given.get("database") or given.get("user", "")
    return given


def _accept(name: str, value: str, accepted: dict[str, str]) -> None:
    if name in ("user", "database"):
        accepted[name] = value
    elif name == "replication":
        if value.lower() not in _NO:
            raise _refused(
                "replication connections are not supported",
                "Connect to the server itself to replicate.",
                sqlstate.FEATURE_NOT_SUPPORTED,
            )
    elif name == "options":
        if value.strip():
            raise _refused_parameter(
                name, "Leave PGOPTIONS and options= out; give the settings as startup parameters or with SET."
            )
    else:
        _accept_setting(name, value, accepted)


def _accept_setting(name: str, value: str, accepted: dict[str, str]) -> None:
    """Names of settings know no case."""
    found = _SETTINGS.get(name.lower())
    if found is None:
        raise _refused_parameter(name, f"Leave it out. These are accepted: {', '.join(_ACCEPTED)}.")
    canonical, judge, hint = found
    judged = judge(value)
    if judged is None:
        raise _refused(
            f'sqlwall denied the value of startup parameter "{canonical}"',
            hint,
            sqlstate.INSUFFICIENT_PRIVILEGE,
        )
    if judged:
        accepted[canonical] = judged


def _as_given(value: str) -> str | None:
    return value if value.isprintable() else None


def _as_name(value: str) -> str | None:
    """The server replaces what is not printable ASCII itself, as it does for every client."""
    return value


def _as_encoding(value: str) -> str | None:
    """PostgreSQL compares letters and digits only (clean_encoding_name() in encnames.c): asyncpg sends 'utf-8'."""
    bare = "".join(c for c in value if c.isascii() and c.isalnum()).lower()
    return "UTF8" if bare in ("utf8", "unicode") else None


def _as_digits(value: str) -> str | None:
    """PostgreSQL's range of extra_float_digits."""
    return value if re.fullmatch(r"-?[0-9]{1,2}", value, re.ASCII) and -15 <= int(value) <= 3 else None


def _as_timeout(value: str) -> str | None:
    """Only a limit may be set, none be lifted: 0 would be for ever. The first digit says so for every unit."""
    return value if re.fullmatch(r"[1-9][0-9]{0,9} ?(ms|s|min|h|d)?", value, re.ASCII) else None


def _as_yes(value: str) -> str | None:
    """A setting that is so already: accepted, and not passed on."""
    return "" if value.lower() in _YES else None


def _as_switch(value: str) -> str | None:
    return value if value.lower() in _YES | _NO else None


_Judge = Callable[[str], str | None]
_TIMEOUT_HINT: Final = "Give a positive number, in milliseconds or with a unit (ms, s, min, h, d)."

#: Lower-case name: PostgreSQL's spelling; what becomes of a value (None: refused, empty: not passed on); the hint.
_SETTINGS: Final[Mapping[str, tuple[str, _Judge, str]]] = MappingProxyType(
    {
        "application_name": ("application_name", _as_name, ""),
        "client_encoding": ("client_encoding", _as_encoding, "Give client_encoding=UTF8, or leave it out."),
        "datestyle": ("DateStyle", _as_given, "Give a style such as ISO."),
        "timezone": ("TimeZone", _as_given, "Give a time zone such as UTC."),
        "intervalstyle": ("IntervalStyle", _as_given, "Give a style such as postgres."),
        "extra_float_digits": ("extra_float_digits", _as_digits, "Give a number from -15 to 3."),
        "search_path": ("search_path", _as_given, "Give a list of schemas, in printable characters."),
        "statement_timeout": ("statement_timeout", _as_timeout, _TIMEOUT_HINT),
        "lock_timeout": ("lock_timeout", _as_timeout, _TIMEOUT_HINT),
        "idle_in_transaction_session_timeout": (
            "idle_in_transaction_session_timeout",
            _as_timeout,
            _TIMEOUT_HINT,
        ),
        "jit": ("jit", _as_switch, "Give on or off."),
        "standard_conforming_strings": (
            "standard_conforming_strings",
            _as_yes,
            "It is on and stays on; leave it out.",
        ),
        "default_transaction_read_only": (
            "default_transaction_read_only",
            _as_yes,
            "Leave it out, and write in a transaction block where the ruleset permits writes.",
        ),
    }
)
_ACCEPTED: Final = tuple(canonical for canonical, _, _ in _SETTINGS.values())


def _decode(raw: bytes, name: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _refused(
            f'startup parameter "{_shown(name)}" is not valid UTF-8',
            "sqlwall speaks UTF8 only.",
            sqlstate.CHARACTER_NOT_IN_REPERTOIRE,
        ) from None


def _refused_parameter(name: str, hint: str) -> LoginRefusedError:
    return _refused(
        f'sqlwall denied startup parameter "{_shown(name.encode())}"', hint, sqlstate.INSUFFICIENT_PRIVILEGE
    )


def _refused(message: str, hint: str, state: str) -> LoginRefusedError:
    return LoginRefusedError(Refusal(state, message, hint=hint, severity="FATAL"))


def _shown(name: bytes) -> str:
    """A name for a message: short and printable, whoever sent it."""
    text = name[:63].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)
