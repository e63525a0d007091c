"""How commands speak: tables for people, JSON for machines, one clear line for an error, and stable exit codes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sqlwall.errors import ConfigError, SqlwallError

P = ParamSpec("P")
T = TypeVar("T")


class Exit(IntEnum):
    """What a command's exit status says."""

    OK = 0
    FINDING = 1  # it ran, and found something that a person should look at
    USAGE = 2  # a flag, a file or a name is wrong
    FAILURE = 3  # something that should be there is not: server, store, port


def fail(message: str, status: Exit = Exit.USAGE) -> typer.Exit:
    """Say on standard error what is wrong and what to do; the caller raises what this returns."""
    for line in message.splitlines() or [message]:
        typer.echo(f"sqlwall: {line}", err=True)
    return typer.Exit(int(status))


def reported(command: Callable[P, T]) -> Callable[P, T]:
    """A command whose foreseeable failures are one clear line, never a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except ConfigError as error:
            raise fail(str(error)) from None
        except SqlwallError as error:
            raise fail(str(error), Exit.FAILURE) from None
        except OSError as error:
            raise fail(error.strerror or str(error), Exit.FAILURE) from None

    return run


def show_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table for people."""
    table = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))  # a Text has no markup
    Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty()).print(table)


def show(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, as_json: bool, title: str = ""
) -> None:
    """The same rows either way."""
    if as_json:
        show_json(rows)
    else:
        show_table(columns, [[row.get(column) for column in columns] for row in rows], title)
