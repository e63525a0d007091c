"""What a client's test suite is to the runner: something to fetch, to run against a server, and a set of failures to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """The server to test, direct or through the wall. The user is a superuser."""

    host: str
    port: int
    user: str
    password: str
    dbname: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave. `failed` names the tests that failed or erred."""

    passed: int
    failed: frozenset[str]
    log: Path


@dataclass(frozen=True, slots=True)
class Suite:
    """One client's suite.

    `fetch` gets what it needs into a folder (network allowed, done once); `run` runs it against a target with that
    folder as the working place, and writes its whole output to the log. `inherent` names tests that cannot come out
    alike, with the reason: they are run and shown, and do not count as a difference.
    """

    name: str
    about: str
    fetch: Callable[[Path], None]
    run: Callable[[Target, Path, Path], Outcome]
    inherent: Mapping[str, str] = field(default_factory=dict)
