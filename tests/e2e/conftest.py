"""Fixtures for tests that run a whole wall."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.wall import WAIVED, OpenWall, RunningWall, make_shop, running_wall, waiving
from tests.postgres import Database, Server, fresh_database


@pytest.fixture(scope="session")
def database_template(postgres: Server) -> Iterator[str]:
    """The shop: each test gets a copy of its own."""
    with fresh_database(postgres) as shop:
        make_shop(postgres, shop.name)
        yield shop.name


@pytest.fixture
def open_wall(database: Database, tmp_path: Path) -> Iterator[OpenWall]:
    """Starts walls as the test asks, and ends them with it."""
    with ExitStack() as stack:

        def start(ruleset: str = "agent-safe", **settings: str) -> RunningWall:
            folder = tmp_path / f"wall{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(running_wall(database, folder, ruleset, **settings))

        yield start


@pytest.fixture
def wall(open_wall: OpenWall) -> RunningWall:
    """A wall with the shipped ruleset agent-safe: reads pass, no write has a snapshot."""
    return open_wall()


@pytest.fixture
def writing_wall(open_wall: OpenWall) -> RunningWall:
    """The same with snapshots waived for some tables: writes to them run, and pass the gate as waived."""
    return open_wall(waiving(*WAIVED))
