"""``sqlwall rules``: check a ruleset, run its cases, print its schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from sqlwall.cli.options import AsJson
from sqlwall.cli.output import Exit, reported, say, show_json, show_table
from sqlwall.cli.rulesets import find_ruleset, shipped_names
from sqlwall.errors import ConfigError, Problem
from sqlwall.rules.cases import run_cases
from sqlwall.rules.lint import lint
from sqlwall.rules.loader import load, schema

app = typer.Typer(no_args_is_help=True, help="Check and test rulesets.")

Names = Annotated[
    list[str] | None, typer.Argument(help="files, or names of shipped rulesets; none: all shipped ones")
]


@app.command()
@reported
def check(names: Names = None, as_json: AsJson = False) -> None:
    """Read rulesets and say what is odd about them. Status 1 if anything is, 2 if one cannot be used at all."""
    findings: list[dict[str, object]] = []
    is_usable = True
    for name in names or shipped_names():
        try:
            findings.extend(_look(name))
        except ConfigError as error:
            is_usable = False
            findings.extend(_complain(name, problem) for problem in error.problems)
    if as_json:
        show_json(findings)
    else:
        _print(findings)
    if findings:
        raise typer.Exit(int(Exit.FINDING if is_usable else Exit.USAGE))


def _print(findings: list[dict[str, object]]) -> None:
    odd = [finding for finding in findings if finding["concern"] != "error"]
    for finding in findings:
        if finding["concern"] == "error":
            say(f"sqlwall: {finding['message']}", err=True)
    for finding in odd:
        say(str(finding["message"]))
    if odd or not findings:
        say(f"{len(odd)} findings" if odd else "nothing odd")


def _look(name: str) -> Iterator[dict[str, object]]:
    for finding in lint(load(*find_ruleset(name))):
        yield {
            "ruleset": name,
            "concern": finding.concern.value,
            "rule": finding.rule,
            "line": finding.line,
            "message": str(finding),
        }


def _complain(name: str, problem: Problem) -> dict[str, object]:
    return {
        "ruleset": name, "concern": "error", "rule": "", "line": problem.line, "message": str(problem),
    }  # fmt: skip


@app.command()
@reported
def test(names: Names = None, as_json: AsJson = False) -> None:
    """Run the cases in rulesets. Status 1 if one does not come out as it says."""
    rows: list[dict[str, object]] = []
    for name in names or shipped_names():
        for result in run_cases(load(*find_ruleset(name))):
            rows.append(
                {
                    "ruleset": name,
                    "line": result.case.line,
                    "sql": result.case.sql,
                    "passed": result.passed,
                    "failures": list(result.failures),
                }
            )
    failed = [row for row in rows if not row["passed"]]
    if as_json:
        show_json(rows)
    else:
        if failed:
            columns = ("ruleset", "line", "sql", "failures")
            show_table(columns, [_cells(row, columns) for row in failed])
        say(f"{len(rows) - len(failed)} of {len(rows)} cases pass")
    if failed:
        raise typer.Exit(int(Exit.FINDING))


def _cells(row: Mapping[str, object], columns: tuple[str, ...]) -> list[object]:
    cells = [row[column] for column in columns]
    return ["; ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells]


@app.command("schema")
@reported
def schema_() -> None:
    """Print the JSON Schema of ruleset files, for editors."""
    show_json(schema())
