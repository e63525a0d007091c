"""``sqlwall rules``: check a ruleset, run its cases, print its schema."""

from __future__ import annotations

from typing import Annotated

import typer

from sqlwall.cli.options import AsJson
from sqlwall.cli.output import Exit, reported, show_json, show_table
from sqlwall.cli.rulesets import find_ruleset, shipped_names
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
    """Read rulesets and say what is odd about them. Status 1 if anything is."""
    findings = [
        {
            "ruleset": name,
            "concern": finding.concern.value,
            "rule": finding.rule,
            "line": finding.line,
            "message": str(finding),
        }
        for name in names or shipped_names()
        for finding in lint(load(*find_ruleset(name)))
    ]  # fmt: skip
    if as_json:
        show_json(findings)
    else:
        for finding in findings:
            typer.echo(finding["message"])
        typer.echo(f"{len(findings)} findings" if findings else "nothing odd")
    if findings:
        raise typer.Exit(int(Exit.FINDING))


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
            show_table(columns, [[row[column] for column in columns] for row in failed])
        typer.echo(f"{len(rows) - len(failed)} of {len(rows)} cases pass")
    if failed:
        raise typer.Exit(int(Exit.FINDING))


@app.command("schema")
@reported
def schema_() -> None:
    """Print the JSON Schema of ruleset files, for editors."""
    show_json(schema())
