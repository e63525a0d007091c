"""The command line's root: one sub-command per room a person works in."""

from __future__ import annotations

import typer

from sqlwall import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, help="A statement firewall for PostgreSQL.")


@app.callback()
def root() -> None:
    """A statement firewall for PostgreSQL."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"sqlwall {__version__}")
