"""Agents: who may connect, under which ruleset, with how many connections. Passwords are shown once and never kept."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from sqlwall.errors import ConfigError
from sqlwall.store.database import reading, writing
from sqlwall.store.schema import AGENTS
from sqlwall.store.scram import Verifier
from sqlwall.store.stamp import format_time, utc_now

#: A name is also a role name towards the client: PostgreSQL's NAMEDATALEN leaves 63 bytes.
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}")

#: 24 random bytes are 32 characters, none of which needs quoting in a DSN.
_PASSWORD_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent. `verifier` is its SCRAM verifier as text; times are UTC in the store's notation.

    `ruleset` None is the wall's default; `connection_limit` None is the configured default.
    """

    name: str
    verifier: str = field(repr=False)
    ruleset: str | None
    connection_limit: int | None
    note: str
    created_at: str
    rotated_at: str | None
    revoked_at: str | None

    @property
    def is_active(self) -> bool:
        """Whether it may log in."""
        return self.revoked_at is None

    def scram(self) -> Verifier:
        """The verifier to check a login against. Raises StoreError if it is damaged."""
        return Verifier.parse(self.verifier)


def add_agent(
    engine: Engine,
    name: str,
    *,
    ruleset: str | None = None,
    connection_limit: int | None = None,
    note: str = "",
) -> str:
    """Add an agent and return its password, which exists nowhere else. A revoked name starts afresh.

    Raises ConfigError for a bad name or limit, or a name in use.
    """
    _check(name, connection_limit)
    password = _new_password()
    values = {
        "name": name,
        "verifier": Verifier.of_password(password).text(),
        "ruleset": ruleset,
        "connection_limit": connection_limit,
        "note": note,
        "created_at": format_time(utc_now()),
    }
    try:
        with writing(engine) as connection:
            _insert(connection, values)
    except _NameTaken:
        raise ConfigError(
            f"agent {name} exists; `sqlwall agent rotate {name}` gives it a new password"
        ) from None
    return password


def rotate(engine: Engine, name: str) -> str:
    """Give an agent a new password and return it. The old one stops working for the next login.

    Raises ConfigError for an unknown or revoked agent: rotating all must not bring back the dismissed.
    """
    password = _new_password()
    verifier = Verifier.of_password(password).text()
    with writing(engine) as connection:
        _require_active(connection, name)
        connection.execute(
            sa.update(AGENTS)
            .where(AGENTS.c.name == name)
            .values(verifier=verifier, rotated_at=format_time(utc_now()))
        )
    return password


def revoke(engine: Engine, name: str) -> None:
    """End an agent's right to log in. Raises ConfigError if it is unknown or already revoked."""
    with writing(engine) as connection:
        _require_active(connection, name)
        connection.execute(
            sa.update(AGENTS).where(AGENTS.c.name == name).values(revoked_at=format_time(utc_now()))
        )


def find(engine: Engine, name: str) -> Agent | None:
    """The agent of that name, revoked or not; None if there is none."""
    if not _NAME.fullmatch(name):
        return None
    with reading(engine) as connection:
        return _find(connection, name)


def list_agents(engine: Engine) -> tuple[Agent, ...]:
    """All agents by name, the revoked ones included."""
    with reading(engine) as connection:
        return tuple(_agent(row) for row in connection.execute(_SELECT.order_by(AGENTS.c.name)))


class _NameTaken(Exception):  # noqa: N818 - not an error of ours but an answer
    pass


_SELECT: Final = sa.select(
    AGENTS.c.name,
    AGENTS.c.verifier,
    AGENTS.c.ruleset,
    AGENTS.c.connection_limit,
    AGENTS.c.note,
    AGENTS.c.created_at,
    AGENTS.c.rotated_at,
    AGENTS.c.revoked_at,
)


def _insert(connection: Connection, values: dict[str, Any]) -> None:
    connection.execute(
        sa.delete(AGENTS).where(AGENTS.c.name == values["name"], AGENTS.c.revoked_at.is_not(None))
    )
    try:
        connection.execute(sa.insert(AGENTS), values)
    except IntegrityError as error:
        raise _NameTaken from error


def _require_active(connection: Connection, name: str) -> None:
    agent = _find(connection, name)
    if agent is None:
        raise ConfigError(f"there is no agent {name!r}; `sqlwall agent list` shows them")
    if not agent.is_active:
        raise ConfigError(f"agent {name} is revoked; `sqlwall agent add {name}` starts it afresh")


def _find(connection: Connection, name: str) -> Agent | None:
    row = connection.execute(_SELECT.where(AGENTS.c.name == name)).one_or_none()
    return None if row is None else _agent(row)


def _agent(row: Sequence[Any]) -> Agent:
    return Agent(*row)


def _check(name: str, connection_limit: int | None) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"agent name {name!r}: 1 to 63 of a-z, 0-9, _ and -")
    if connection_limit is not None and not 0 <= connection_limit < 2**31:
        raise ConfigError(f"connection limit {connection_limit}: 0 or more")


def _new_password() -> str:
    return secrets.token_urlsafe(_PASSWORD_BYTES)
