"""Options that several commands share, and the configuration they come to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sqlwall.config import Config, load_config

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="sqlwall.yaml; by default the one in this folder", envvar="SQLWALL_CONFIG"),
]
Store = Annotated[str | None, typer.Option("--store", help="URL or file of the store")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
RulesetOption = Annotated[str | None, typer.Option("--ruleset", help="a shipped ruleset's name, or a file")]

_DEFAULT_FILE = Path("sqlwall.yaml")


def configuration(file: Path | None, flags: Mapping[str, object]) -> Config:
    """File, environment and flags together. Raises ConfigError with every problem of all three."""
    if file is None and _DEFAULT_FILE.is_file():
        file = _DEFAULT_FILE
    return load_config(file, os.environ, flags)
