"""Brings a store to the revision that this program writes. Driven by alembic, configured here and not from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from sqlwall.store.schema import REVISION_TABLE

_HERE: Final = Path(__file__).parent


def configuration() -> Config:
    """Alembic's configuration for the revisions in this folder; a percent sign in the path would be interpolated."""
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    return config


def current(connection: Connection) -> str | None:
    """The revision that the store says it has; None for a database that is no store yet."""
    context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
    return context.get_current_revision()


def head() -> str:
    """The newest revision that this program knows."""
    revision = ScriptDirectory.from_config(configuration()).get_current_head()
    assert revision is not None
    return revision


def is_known(revision: str) -> bool:
    """Whether this program has `revision`; one that it has not was written by a newer program."""
    return any(
        script.revision == revision
        for script in ScriptDirectory.from_config(configuration()).walk_revisions()
    )


def upgrade(connection: Connection) -> None:
    """Run what is missing inside the caller's transaction: either all of it stays or none."""
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
