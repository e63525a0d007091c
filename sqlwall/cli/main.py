"""The command line's root: one sub-command per thing a person does. A command is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from sqlwall import __version__

#: Name, and where it is: a function, or an app of several commands. In the order of the help.
COMMANDS: Final = {
    "demo": ("sqlwall.cli.demo", "demo"),
    "serve": ("sqlwall.cli.serve", "serve"),
    "agent": ("sqlwall.cli.agent", "app"),
    "explain": ("sqlwall.cli.explain", "explain_"),
    "rules": ("sqlwall.cli.rules", "app"),
    "audit": ("sqlwall.cli.audit", "app"),
    "snapshot": ("sqlwall.cli.snapshot", "app"),
    "undo": ("sqlwall.cli.undo", "undo"),
    "provision": ("sqlwall.cli.provision", "provision_"),
    "doctor": ("sqlwall.cli.doctor", "doctor"),
}
#: The rooms that are compiled where there is a C compiler; a module of each.
HOT: Final = ("sqlwall.session.session", "sqlwall.wire.frames")


class _Commands(TyperGroup):
    """Knows the names of all commands, and imports one when somebody asks for it: `serve` has to start soon."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute = COMMANDS[cmd_name]
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            alone.command(cmd_name)(found)
            found = alone
        command = get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    help="A statement firewall for PostgreSQL.",
    pretty_exceptions_enable=False,  # they show local variables, a password among them
)


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
    specs = [find_spec(module) for module in HOT]
    is_compiled = all(spec is not None and isinstance(spec.loader, ExtensionFileLoader) for spec in specs)
    typer.echo(f"sqlwall {__version__} ({'compiled' if is_compiled else 'interpreted'})")
