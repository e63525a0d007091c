"""How commands speak: nothing an agent wrote reaches the terminal as a control sequence, and errors are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import typer

from sqlwall.cli.output import Exit, escaped_json, printable, reported, to_json
from sqlwall.errors import ConfigError, SqlwallError, StoreError

HOSTILE = [
    "\x1b[2J",
    "\x9b31m",
    "\x07",
    "\r",
    "\x00",
    "\u202eabc",
    "\u2066",
    "\u2028",
    "\ud800",
    "\x7f",
    "\ufeff",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_would_obey_is_written_out(text: str) -> None:
    shown = printable(f"a{text}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    shown.encode()


def test_ordinary_text_stays_as_it_is() -> None:
    text = "SELECT 'ünï — 日本', '🐘'\n\tFROM t"
    assert printable(text) == text
    assert printable(text, is_line=True) == text.replace("\n", "\\x0a").replace("\t", "\\x09")


@pytest.mark.parametrize("text", HOSTILE)
def test_json_keeps_the_value_and_obeys_nothing(text: str) -> None:
    document = to_json({"statement": text})
    assert document.isprintable()
    assert json.loads(document) == {"statement": text}
    assert json.loads(escaped_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("one", "two"), Exit.USAGE, "sqlwall: one\nsqlwall: two\n"),
        (StoreError("gone\n\tfor good"), Exit.FAILURE, "sqlwall: gone for good\n"),
        (SqlwallError("\x1b[2Jx"), Exit.FAILURE, "sqlwall: \\x1b[2Jx\n"),
        (FileNotFoundError(2, "No such file", "a.yaml"), Exit.FAILURE, "sqlwall: a.yaml: No such file\n"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, ""),
    ],
)
def test_an_error_is_a_line_and_a_status(
    error: BaseException, status: Exit, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @reported
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == status
    assert capsys.readouterr().err == line


def test_a_defect_of_ours_names_its_kind_and_nothing_that_it_held(capsys: pytest.CaptureFixture[str]) -> None:
    @reported
    def command() -> None:
        raise ValueError("password=s3cret")

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == Exit.FAILURE
    shown = capsys.readouterr().err
    assert "ValueError" in shown
    assert "s3cret" not in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("answer", [typer.Exit(1), typer.BadParameter("x"), typer.Abort()])
def test_what_typer_says_is_left_to_typer(answer: Exception) -> None:
    @reported
    def command() -> None:
        raise answer

    with pytest.raises(type(answer)):
        command()


def test_a_reader_that_goes_away_is_no_error() -> None:
    arguments: list[Any] = [sys.executable, "-m", "sqlwall", "rules", "schema"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
