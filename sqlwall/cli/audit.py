"""``sqlwall audit``: read, verify and export the record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Engine

from sqlwall.cli.options import AsJson, ConfigFile, Store, configuration
from sqlwall.cli.output import Exit, escaped_json, fail, printable, reported, say, show, show_json, to_json
from sqlwall.store.chain import Head
from sqlwall.store.database import open_store
from sqlwall.store.verify import export, heads, tail, verify

app = typer.Typer(no_args_is_help=True, help="Read, verify and export the record.")

Record = Mapping[str, Any]

#: Seconds between two looks of ``tail --follow``.
FOLLOW_INTERVAL = 0.5
#: Records of a first look, and the most that are read to catch up.
FOLLOW_BATCH = 256
FOLLOW_LIMIT = 256 * 4**5
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
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="how many of the last records")] = 20,
    agent: Annotated[str | None, typer.Option(help="of this agent only")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with new ones")] = False,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show the last records; with --follow each new one as it comes."""
    with _store(config, store) as engine:
        if not follow:
            show(tail(engine, lines, agent=agent), _COLUMNS, as_json=as_json)
            return
        known = tail(engine, max(lines, FOLLOW_BATCH), agent=agent)
        for record in chain(known[-lines:], _follow(engine, agent, known)):
            typer.echo(to_json(record) if as_json else _line(record))


def _follow(engine: Engine, agent: str | None, known: Sequence[Record]) -> Iterator[Record]:
    """Each record that comes after these. Looks back as far as it must to meet one that it knows."""
    seen = {record["event"] for record in known}
    while True:
        time.sleep(FOLLOW_INTERVAL)
        limit = FOLLOW_BATCH
        found = tail(engine, limit, agent=agent)
        while len(found) == limit and limit < FOLLOW_LIMIT and not any(r["event"] in seen for r in found):
            limit *= 4
            found = tail(engine, limit, agent=agent)
        yield from _after(found, seen)
        if found:
            seen = {record["event"] for record in found}


def _after(found: Sequence[Record], seen: set[str]) -> Iterator[Record]:
    """Those that are new: neither seen, nor older than all that was seen.

    Another wall's record may become visible late, in front of one that was seen: it is new all the same.
    """
    oldest = next((index for index, record in enumerate(found) if record["event"] in seen), 0)
    return (record for record in found[oldest:] if record["event"] not in seen)


def _line(record: Record) -> str:
    return "  ".join(
        printable(str(record[column]), is_line=True) for column in _COLUMNS if record.get(column) is not None
    )


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
    outside = [_head(text) for text in head or ()]
    with _store(config, store) as engine:
        report = verify(engine, outside)
    if as_json:
        show_json({"records": report.records, "faults": [str(fault) for fault in report.faults],
                   "heads": [str(found) for found in report.heads]})  # fmt: skip
    else:
        for fault in report.faults:
            say(str(fault))
        say(f"{report.records} records, {len(report.faults)} faults")
    if report.faults:
        raise typer.Exit(int(Exit.FINDING))


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError:
        raise fail(f"--head {text}: write writer:sequence:hash, as `sqlwall audit heads` prints it") from None


@app.command("export")
@reported
def export_(
    config: ConfigFile = None,
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="as it is without: lines of JSON")] = True,
) -> None:
    """Print every record as a line of JSON, then the heads: what a later cut is measured against."""
    with _store(config, store) as engine:
        for line in export(engine):
            typer.echo(escaped_json(line))


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
            say(text)
