"""The command line's root: one sub-command per thing a person does."""

from __future__ import annotations

import typer

from sqlwall import __version__
from sqlwall.cli import agent, audit, rules
from sqlwall.cli.demo import demo
from sqlwall.cli.doctor import doctor
from sqlwall.cli.explain import explain_
from sqlwall.cli.serve import serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="A statement firewall for PostgreSQL.",
    pretty_exceptions_enable=False,  # they show local variables, a password among them
)
app.command()(demo)
app.command()(serve)
app.add_typer(agent.app, name="agent")
app.command("explain")(explain_)
app.add_typer(rules.app, name="rules")
app.add_typer(audit.app, name="audit")
app.command()(doctor)


@app.callback()
def root() -> None:
    """A statement firewall for PostgreSQL."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"sqlwall {__version__}")
