"""A store of each kind: a file, and a database of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine

from sqlwall.store.database import open_store
from tests.postgres import Database

# Properties say what holds, not how quickly: a busy machine must not make one fail.
settings.register_profile("sqlwall", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sqlwall")


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may be opened; there is none yet."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite")
    database: Database = request.getfixturevalue("database")
    return database.dsn()


@pytest.fixture
def engine(location: str) -> Iterator[Engine]:
    """A store at the current revision."""
    opened = open_store(location)
    yield opened
    opened.dispose()


@pytest.fixture
def file_engine(tmp_path: Path) -> Iterator[Engine]:
    """A store in a file, where the kind makes no difference."""
    opened = open_store(tmp_path / "file.sqlite")
    yield opened
    opened.dispose()
