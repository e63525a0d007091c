"""``sqlwall audit``: read, verify and export the record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine

from sqlwall.cli.options import AsJson, ConfigFile, Store, configuration
from sqlwall.cli.output import Exit, fail, reported, show, show_json
from sqlwall.store.chain import Head
from sqlwall.store.database import open_store
from sqlwall.store.verify import export, heads, tail, verify

app = typer.Typer(no_args_is_help=True, help="Read, verify and export the record.")

#: Seconds between two looks of ``tail --follow``.
FOLLOW_INTERVAL = 0.5
_COLUMNS = ("time", "kind", "agent", "action", "operation", "target", "rule", "statement", "event")


@contextmanager
def _store(config: Path | None, store: str | None) -> Iterator[Engine]:
    engine = open_store(configuration(config, {"store": store}).store.url, read_only=True)
    try:
        yield engine
    finally:
        engine.dispose()


@app.command("tail")
@reported
def tail_(
    lines: Annotated[int, typer.Option("-n", "--lines", help="how many of the last records")] = 20,
    agent: Annotated[str | None, typer.Option(help="of this agent only")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with new ones")] = False,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show the last records; with --follow each new one as it comes."""
    with _store(config, store) as engine:
        records = list(tail(engine, lines, agent=agent))
        show(records, _COLUMNS, as_json=as_json and not follow)
        seen = {record["event"] for record in records}
        while follow:
            time.sleep(FOLLOW_INTERVAL)
            for record in tail(engine, 200, agent=agent):
                if record["event"] not in seen:
                    seen.add(record["event"])
                    show_json(record) if as_json else typer.echo(_line(record))


def _line(record: dict[str, object]) -> str:
    return "  ".join(str(record[column]) for column in _COLUMNS if record.get(column) is not None)


@app.command("verify")
@reported
def verify_(
    head: Annotated[
        list[str] | None, typer.Option(help="a head kept elsewhere, writer:sequence:hash")
    ] = None,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Walk every chain. Status 1 if a record was altered, is missing, was moved, or the end was cut."""
    try:
        outside = [Head.parse(text) for text in head or ()]
    except ValueError as error:
        raise fail(f"--head: {error}") from None
    with _store(config, store) as engine:
        report = verify(engine, outside)
    if as_json:
        show_json({"records": report.records, "faults": [str(fault) for fault in report.faults],
                   "heads": [str(found) for found in report.heads]})  # fmt: skip
    else:
        for fault in report.faults:
            typer.echo(str(fault))
        typer.echo(f"{report.records} records, {len(report.faults)} faults")
    if report.faults:
        raise typer.Exit(int(Exit.FINDING))


@app.command("export")
@reported
def export_(config: ConfigFile = None, store: Store = None) -> None:
    """Print every record as a line of JSON, then the heads: what a later cut is measured against."""
    with _store(config, store) as engine:
        for line in export(engine):
            typer.echo(line)


@app.command("heads")
@reported
def heads_(config: ConfigFile = None, store: Store = None, as_json: AsJson = False) -> None:
    """Print where each chain ends; keep it outside the store and give it to `verify --head`."""
    with _store(config, store) as engine:
        found = [str(head) for head in heads(engine)]
    if as_json:
        show_json(found)
    else:
        for text in found:
            typer.echo(text)
