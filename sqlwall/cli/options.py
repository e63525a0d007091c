"""Options that several commands share, and the configuration they come to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from sqlwall.config import Config, load_config
from sqlwall.config.values import read_duration

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="sqlwall.yaml; by default the one in this folder", envvar="SQLWALL_CONFIG"),
]
Store = Annotated[str | None, typer.Option("--store", help="URL or file of the store")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Since = Annotated[
    str | None,
    typer.Option("--since", help="how long ago, such as 90min or 2d, or a time as 2026-01-31T12:00Z"),
]
RulesetOption = Annotated[str | None, typer.Option("--ruleset", help="a shipped ruleset's name, or a file")]

_DEFAULT_FILE = Path("sqlwall.yaml")


def configuration(file: Path | None, flags: Mapping[str, object]) -> Config:
    """File, environment and flags together. Raises ConfigError with every problem of all three."""
    if file is None and _DEFAULT_FILE.is_file():
        file = _DEFAULT_FILE
    return load_config(file, os.environ, flags)


def moment(since: str | None) -> datetime | None:
    """What `--since` means, in UTC: a time without a zone is one of this machine. Raises BadParameter."""
    if since is None:
        return None
    for read in (_ago, datetime.fromisoformat):
        with suppress(ValueError, OverflowError):
            return read(since.strip()).astimezone(UTC)
    raise typer.BadParameter(
        f"{since}: write how long ago, such as 90min or 2d, or a time such as 2026-01-31T12:00Z",
        param_hint="--since",
    )


def _ago(text: str) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=read_duration(text))
