"""The error tree. What reaches a client carries a SQLSTATE and is built by the constructors in `session.refusal`.

SqlwallError
├── ProtocolError        a peer broke the protocol; the connection ends (08P01)
├── ConfigError          configuration, ruleset or flag is wrong; `problems` lists every one
├── StoreError           durable state is unavailable; statements are refused (58000)
├── SnapshotError        a snapshot is missing, damaged, or not for this database; nothing was changed
├── UpstreamError        the server cannot be reached or refused our login
└── AuthenticationError  the client could not prove who it is (28P01)
"""

from __future__ import annotations

from dataclasses import dataclass


class SqlwallError(Exception):
    """Anything sqlwall raises on purpose."""


class ProtocolError(SqlwallError):
    """A peer sent bytes that the protocol does not allow.

    The wire format is PostgreSQL manual, chapter 54 (Frontend/Backend Protocol). After it the connection is closed:
    the stream's framing can no longer be trusted. `is_silent` says that PostgreSQL closes it without a word: what came
    is hardly from a client.
    """

    def __init__(self, message: str, sqlstate: str = "08P01", *, is_silent: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.is_silent = is_silent


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file or flag: where it is, what is wrong, what to write instead."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        where = (
            f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        )
        return where + self.message


class ConfigError(SqlwallError):
    """Bad configuration or ruleset. All problems of a file are reported at once."""

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class StoreError(SqlwallError):
    """The store cannot be read or written; whoever needs it must fail closed."""


class SnapshotError(SqlwallError):
    """A snapshot cannot be read, or cannot be used where it was asked for. Nothing was changed."""


class UpstreamError(SqlwallError):
    """The PostgreSQL server cannot be reached, or refused our login.

    `sqlstate` is the server's own where it gave one, otherwise 08001 (cannot connect) or 08P01 (it broke the protocol).
    """

    def __init__(self, message: str, sqlstate: str = "08001") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class AuthenticationError(SqlwallError):
    """A client could not prove its identity. Says no more than that: names are not confirmed."""


def first_line(error: BaseException) -> str:
    """One line: libpq adds others with questions and positions, and a timeout says nothing at all."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
