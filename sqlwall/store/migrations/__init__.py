"""Brings a store to the revision that this program writes. Driven by alembic, configured here and not from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from sqlwall.store.schema import REVISION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

# Alembic takes as long to load as all the rest of the store, and is needed once in a store's life.
# ruff: noqa: PLC0415

_HERE: Final = Path(__file__).parent
#: The newest revision; a test holds it against the files.
_HEAD: Final = "0002"


def configuration() -> Config:
    """Alembic's configuration for the revisions in this folder; a percent sign in the path would be interpolated."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    return config


def current(connection: Connection) -> str | None:
    """The revision that the store says it has; None for a database that is no store yet."""
    if not sa.inspect(connection).has_table(REVISION_TABLE):
        return None
    revision: str | None = connection.scalar(
        sa.select(sa.column("version_num")).select_from(sa.table(REVISION_TABLE))
    )
    return revision


def head() -> str:
    """The newest revision that this program knows."""
    return _HEAD


def is_known(revision: str) -> bool:
    """Whether this program has `revision`; one that it has not was written by a newer program."""
    from alembic.script import ScriptDirectory

    return any(
        script.revision == revision
        for script in ScriptDirectory.from_config(configuration()).walk_revisions()
    )


def upgrade(connection: Connection) -> None:
    """Run what is missing inside the caller's transaction: either all of it stays or none."""
    from alembic import command

    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
