"""The command line's root: one sub-command per thing a person does."""

from __future__ import annotations

from importlib.machinery import ExtensionFileLoader

import typer

from sqlwall import __version__
from sqlwall.cli import agent, audit, rules, snapshot
from sqlwall.cli.demo import demo
from sqlwall.cli.doctor import doctor
from sqlwall.cli.explain import explain_
from sqlwall.cli.provision import provision_
from sqlwall.cli.serve import serve
from sqlwall.cli.undo import undo
from sqlwall.session import session
from sqlwall.wire import frames

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
app.add_typer(snapshot.app, name="snapshot")
app.command()(undo)
app.command("provision")(provision_)
app.command()(doctor)


def _print_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def root(
    asked: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """A statement firewall for PostgreSQL."""


@app.command()
def version() -> None:
    """Print the version, and whether the hot rooms run compiled or interpreted."""
    loaders = [module.__spec__.loader for module in (session, frames) if module.__spec__ is not None]
    is_compiled = all(isinstance(loader, ExtensionFileLoader) for loader in loaders)
    typer.echo(f"sqlwall {__version__} ({'compiled' if is_compiled else 'interpreted'})")
