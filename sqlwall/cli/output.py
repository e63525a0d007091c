"""How commands speak: tables for people, JSON for machines, one clear line for an error, and stable exit codes.

Much of what is shown was written by agents: nothing of it may reach a terminal as a control sequence (`printable`).
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

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
    INTERRUPTED = 130  # Ctrl-C, as shells have it


#: What a terminal may obey, or what turns text around: C0 and C1, line separators, bidirectional marks, and surrogates.
_UNSHOWN: Final = (
    *range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF,
    *range(0xD800, 0xE000),
)  # fmt: skip
_LINE: Final = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _UNSHOWN}
_TEXT: Final = {code: shown for code, shown in _LINE.items() if chr(code) not in "\n\t"}
_JSON: Final = {code: f"\\u{code:04x}" for code in _UNSHOWN if code >= 0x20}


def printable(text: str, *, is_line: bool = False) -> str:
    """The text with everything that a terminal would obey written out; of a line, newlines and tabs too."""
    return text.translate(_LINE if is_line else _TEXT)


def say(text: str, *, err: bool = False) -> None:
    """Print text that may come from anywhere."""
    typer.echo(printable(text), err=err)


def fail(message: str, status: Exit = Exit.USAGE) -> typer.Exit:
    """Say on standard error what is wrong and what to do; the caller raises what this returns."""
    for line in message.splitlines() or [message]:
        say(f"sqlwall: {line}", err=True)
    return typer.Exit(int(status))


def reported(command: Callable[P, T]) -> Callable[P, T]:
    """A command whose failures are one clear line, never a traceback. ``python -X dev`` shows the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            _leave_quietly()
        except Exception as error:  # the one place where everything becomes a line
            if sys.flags.dev_mode and not isinstance(error, SqlwallError):
                raise
            raise _translate(error) from None

    return run


def _translate(error: Exception) -> typer.Exit:
    if isinstance(error, ConfigError):
        return fail(str(error))
    if isinstance(error, SqlwallError):
        return fail(" ".join(str(error).split()), Exit.FAILURE)  # libpq's words come in several lines
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return fail(f"{name}{error.strerror or error}", Exit.FAILURE)
    name = type(error).__name__
    # Its text may hold what was being worked on, a password among it.
    return fail(f"internal error ({name}); `python -X dev -m sqlwall` shows where", Exit.FAILURE)


def _leave_quietly() -> NoReturn:
    """Whoever read us has gone: no complaint, not even from the interpreter's last flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(int(Exit.OK))


def to_json(value: Any, indent: int | None = None) -> str:
    """A JSON document that no terminal obeys."""
    return escaped_json(json.dumps(value, indent=indent, default=str, ensure_ascii=False))


def escaped_json(document: str) -> str:
    """The same document, with what a terminal would obey escaped: such characters stand only inside its strings."""
    return document.translate(_JSON)


def show_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(to_json(value, indent=2))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table for people."""
    table = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(Text("" if value is None else printable(str(value))) for value in row))  # no markup
    Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty()).print(table)


def show(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, as_json: bool, title: str = ""
) -> None:
    """The same rows either way."""
    if as_json:
        show_json(rows)
    else:
        show_table(columns, [[row.get(column) for column in columns] for row in rows], title)
