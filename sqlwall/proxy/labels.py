"""Whose session it is: what every record and every snapshot of it carries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionLabels:
    """The agent, an id of the session, the client's address, and the database."""

    agent: str
    session: str
    client: str
    database: str
