"""``sqlwall snapshot``: what was kept of agents' writes, whether it is whole, and how long it stays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import psycopg
import typer

from sqlwall.cli.options import AsJson, ConfigFile, Since, Store, configuration, moment
from sqlwall.cli.output import Exit, fail, printable, reported, say, show, show_json
from sqlwall.config import Config
from sqlwall.config.values import read_duration, size
from sqlwall.errors import SqlwallError, UpstreamError
from sqlwall.proxy.observer import Observers
from sqlwall.proxy.settle import settle_all
from sqlwall.proxy.undo import Progress, Undoer, open_undo
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.snapshot.images import read_copy_line
from sqlwall.snapshot.manifest import Change, Move
from sqlwall.store.database import open_store
from sqlwall.store.index import SnapshotRecord, SnapshotState
from sqlwall.store.snapshots import SnapshotReader, Snapshots
from sqlwall.store.stamp import format_time, utc_now

app = typer.Typer(no_args_is_help=True, help="What was kept of agents' writes.")

SnapshotId = Annotated[str, typer.Argument(help="a snapshot's id, or how it begins")]

COLUMNS: Final = (
    "id",
    "created",
    "agent",
    "state",
    "rows",
    "relations",
    "transaction",
    "statement",
    "undone by",
)
#: Characters of a value in a difference; of a statement in a list.
VALUE_LENGTH: Final = 60
STATEMENT_LENGTH: Final = 60


# -- shared with `sqlwall undo`


@contextmanager
def opened(config: Path | None, store: str | None) -> Iterator[tuple[Config, Snapshots]]:
    """The configuration, and the snapshots that it names."""
    found = configuration(config, {"store": store})
    if not found.snapshots.url:
        raise fail("snapshots.url is empty: the wall keeps none")
    engine = open_store(found.store.url)
    try:
        yield found, Snapshots.of(found.snapshots, engine)
    finally:
        engine.dispose()


def settle(config: Config, snapshots: Snapshots) -> None:
    """Ask the server what became of transactions whose end nobody saw."""
    if config.observing.host and snapshots.unsettled():
        settings = UpstreamSettings.of(config.observing, config.timeouts.upstream_connect)
        asyncio.run(_settle(snapshots, Observers(settings.conninfo)))


async def _settle(snapshots: Snapshots, observers: Observers) -> None:
    try:
        await settle_all(snapshots, observers)
    finally:
        await observers.close()


@contextmanager
def undoer(config: Config, snapshots: Snapshots, database: str, progress: Progress) -> Iterator[Undoer]:
    """A session of the undo role with one database. Raises UpstreamError."""
    if not config.undo.host:
        raise UpstreamError(
            "there is no undo role: set SQLWALL_UNDO to its DSN, or the section undo of sqlwall.yaml;"
            " `sqlwall provision` makes the role"
        )
    settings = UpstreamSettings.of(config.undo, config.timeouts.upstream_connect)
    connection: psycopg.Connection[Any] = open_undo(settings, database)
    try:
        yield Undoer(connection, snapshots, progress)
    finally:
        connection.close()


def say_aside(text: str) -> None:
    """Progress, which is no output."""
    say(text, err=True)


def row_of(record: SnapshotRecord) -> dict[str, object]:
    """A snapshot as lists show it."""
    statement = record.statement if len(record.statement) <= STATEMENT_LENGTH else (
        record.statement[: STATEMENT_LENGTH - 1] + "…"
    )  # fmt: skip
    return {
        "id": record.id,
        "created": format_time(record.created),
        "agent": record.agent,
        "state": record.state.value,
        "rows": record.rows,
        "relations": ", ".join(record.relations),
        "transaction": record.xid,
        "statement": " ".join(statement.split()),
        "undone by": record.undone_by,
    }


def document_of(record: SnapshotRecord) -> dict[str, object]:
    """A snapshot as machines read it: nothing is cut."""
    return {
        **asdict(record),
        "created": format_time(record.created),
        "locked_until": format_time(record.locked_until),
        "state": record.state.value,
        "relations": list(record.relations),
        "undoes": list(record.undoes),
    }


# -- commands


@app.command("list")
@reported
def list_(
    agent: Annotated[str | None, typer.Option(help="of this agent only")] = None,
    since: Since = None,
    transaction: Annotated[str | None, typer.Option(help="of this transaction id")] = None,
    state: Annotated[SnapshotState | None, typer.Option(help="in this state only")] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="how many of the last")] = 50,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show the last snapshots, the newest first."""
    after = moment(since)
    with opened(config, store) as (_, snapshots):
        found = snapshots.list(agent=agent, since=after, transaction=transaction, state=state, limit=lines)
    if as_json:
        show_json([document_of(record) for record in found])
    else:
        show([row_of(record) for record in found], COLUMNS, as_json=False)


@app.command("show")
@reported
def show_(
    snapshot: SnapshotId, config: ConfigFile = None, store: Store = None, as_json: AsJson = False
) -> None:
    """Show what one snapshot holds, table by table, and how its completeness was proven."""
    with opened(config, store) as (_, snapshots):
        record = snapshots.find(snapshot)
        manifest = snapshots.open(record.id).manifest
    if as_json:
        show_json({**document_of(record), "manifest": asdict(manifest)})
        return
    for name, value in row_of(record).items():
        if value not in (None, "", ()) and name not in ("relations", "statement"):
            say(f"{name + ':':<13} {value}")
    say(f"{'database:':<13} {manifest.database} (oid {manifest.database_oid}) of system {manifest.system}")
    say(f"{'locked until:':<13} {format_time(record.locked_until)}")
    if record.undoes:
        say(f"{'undoes:':<13} {', '.join(record.undoes)}")
    show(
        [
            {"relation": change.label, "inserted": change.inserted, "updated": change.updated,
             "deleted": change.deleted, "rows before": change.before.rows, "rows after": change.after.rows,
             "bytes": change.before.stored + change.after.stored, "key": ", ".join(change.key),
             "proof": change.proof}
            for change in manifest.changes
        ],
        ("relation", "inserted", "updated", "deleted", "rows before", "rows after", "bytes", "key", "proof"),
        as_json=False,
    )  # fmt: skip
    for statement in manifest.statements:
        say(statement)


@app.command()
@reported
def diff(
    snapshot: SnapshotId,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="how many of each table")] = 20,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show what one snapshot's transaction changed, row by row: what was there before, and what it left."""
    with opened(config, store) as (_, snapshots):
        reader = snapshots.open(snapshots.find(snapshot).id)
        if not as_json:
            for line in described(reader, rows):
                say(line)
            return
        show_json(
            [
                {
                    "relation": change.label,
                    "rows": max(change.before.rows, change.after.rows),
                    "shown": [asdict(row) for row in islice(differences(reader, change), rows)],
                }
                for change in reader.manifest.changes
            ]
        )


@app.command("verify")
@reported
def verify_(
    snapshot: Annotated[
        list[str] | None, typer.Argument(help="ids, or how they begin; all without any")
    ] = None,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="read them into temporary tables of the database, and out again"),
    ] = False,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Read snapshots again, checksums and all. Status 1 if one is damaged or missing."""
    with opened(config, store) as (found, snapshots):
        records = [snapshots.find(text) for text in snapshot] if snapshot else snapshots.list()
        faults: dict[str, list[str]] = {}
        for number, record in enumerate(records, 1):
            problems = list(snapshots.verify(record.id))
            if rehearse and not problems:
                with undoer(found, snapshots, record.database, say_aside) as session:
                    problems = _rehearse(session, record)
            faults[record.id] = problems
            if number % 100 == 0:
                say(f"{number} of {len(records)}", err=True)
    damaged = {name: problems for name, problems in faults.items() if problems}
    if as_json:
        show_json({"snapshots": len(faults), "faults": damaged})
    else:
        for name, problems in damaged.items():
            for problem in problems:
                say(problem if name in problem else f"snapshot {name}: {problem}")
        say(f"{len(faults)} snapshots, {len(damaged)} with faults")
    if damaged:
        raise typer.Exit(int(Exit.FINDING))


def _rehearse(session: Undoer, record: SnapshotRecord) -> list[str]:
    try:
        return list(session.rehearse(record.id))
    except SqlwallError as error:
        return [str(error)]


@app.command()
@reported
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="such as 30d; by default snapshots.keep of the configuration")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="such as 10GB; by default snapshots.max_bytes of the configuration")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would go")] = False,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots, the oldest first. What is under a retention lock, or not settled, stays in any case."""
    age, bound = (
        _number("--older-than", older_than, read_duration),
        _number("--max-bytes", max_bytes, size(1, 1024**5)),
    )
    with opened(config, store) as (found, snapshots):
        keep = found.snapshots.keep if age is None else age
        before = utc_now() - timedelta(seconds=keep) if keep or age is not None else None
        most = int(found.snapshots.max_bytes if bound is None else bound)
        removed = snapshots.prune(before=before, max_bytes=most, dry_run=True)
        if not dry_run:
            for line in empty_trash(found, snapshots, removed):
                say_aside(line)
            removed = snapshots.prune(before=before, max_bytes=most)
    if as_json:
        show_json([document_of(record) for record in removed])
        return
    what = "would be removed" if dry_run else "removed"
    say(f"{len(removed)} snapshots of {sum(record.size for record in removed)} bytes {what}")


def empty_trash(config: Config, snapshots: Snapshots, removed: Sequence[SnapshotRecord]) -> Iterator[str]:
    """Drop for good the tables that only these snapshots could bring back; what is left of them, in words."""
    going = {record.id for record in removed}
    staying = [record for record in snapshots.list() if record.id not in going]
    for record in removed:
        for move in _in_trash(snapshots, record):
            kept = [one for one in staying if move.label in one.relations and one.database == record.database]
            if any(other.oid == move.oid for one in kept for other in _in_trash(snapshots, one)):
                continue
            try:
                with undoer(config, snapshots, record.database, say_aside) as session:
                    session.discard(move)
            except SqlwallError as error:
                yield f"{move.label} stays in the trash as {move.trash}: {error}"


def _in_trash(snapshots: Snapshots, record: SnapshotRecord) -> Sequence[Move]:
    """The tables that a snapshot could bring back from there; none if it cannot be read."""
    if record.state is SnapshotState.ABORTED or record.undone_by is not None:
        return ()
    try:
        manifest = snapshots.open(record.id).manifest
    except SqlwallError as error:
        say_aside(str(error))
        return ()
    return [move for move in manifest.moves if move.is_removed]


def _number(flag: str, text: str | None, read: Any) -> float | None:
    if text is None:
        return None
    try:
        return float(read(text))
    except ValueError as error:
        raise fail(f"{flag} {text}: {error}") from None


@app.command("export")
@reported
def export_(
    snapshot: SnapshotId,
    folder: Annotated[Path, typer.Argument(help="a folder to make; what it holds already is not touched")],
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Write one snapshot as files that COPY ... FROM reads, with its manifest."""
    with opened(config, store) as (_, snapshots):
        written = snapshots.export(snapshots.find(snapshot).id, folder)
    if as_json:
        show_json([str(path) for path in written])
    else:
        for path in written:
            say(str(path))


# -- what a transaction changed


@dataclass(frozen=True, slots=True)
class Difference:
    """One row, by column: as it was, None for an added one, and as it was left, None for a removed one."""

    before: Mapping[str, str | None] | None
    after: Mapping[str, str | None] | None


def differences(reader: SnapshotReader, change: Change) -> Iterator[Difference]:
    """Row by row: by the primary key, where there is one, the two images of a row are one difference.

    Keeps the images of `after` that have a partner in memory, not those of `before`.
    """
    before = _rows(reader.lines(change.before), change)
    if not change.key or not change.after.rows or not change.before.rows:
        yield from (Difference(row, None) for row in before)
        yield from (Difference(None, row) for row in _rows(reader.lines(change.after), change))
        return
    left = {_key(row, change): row for row in _rows(reader.lines(change.after), change)}
    for row in before:
        yield Difference(row, left.pop(_key(row, change), None))
    yield from (Difference(None, row) for row in left.values())


def described(reader: SnapshotReader, rows: int) -> Iterator[str]:
    """The same in lines for people, at most so many rows of each table."""
    for move in reader.manifest.moves:
        yield f"{move.label}: {'dropped' if move.is_removed else 'brought back'}"
    for number in reader.manifest.sequences:
        yield f"{number.label}: at {number.before.last} → {number.after.last}"
    for change in reader.manifest.changes:
        yield f"{change.label}: {change.inserted} inserted, {change.updated} updated, {change.deleted} deleted"
        shown = 0
        for row in islice(differences(reader, change), rows):
            yield f"  {_sentence(row, change.key)}"
            shown += 1
        more = max(change.before.rows, change.after.rows) - shown
        if more > 0:
            yield f"  and {more} more"


def _rows(lines: Iterable[bytes], change: Change) -> Iterator[dict[str, str | None]]:
    names = [column.name for column in change.columns]
    for line in lines:
        yield dict(zip(names, read_copy_line(line), strict=True)) if names else {}


def _key(row: Mapping[str, str | None], change: Change) -> tuple[str | None, ...]:
    return tuple(row[name] for name in change.key)


def _sentence(found: Difference, key: Sequence[str]) -> str:
    if found.before is not None and found.after is not None:
        changed = [
            f"{name}: {_value(old)} → {_value(found.after[name])}"
            for name, old in found.before.items()
            if old != found.after[name]
        ]
        named = ", ".join(f"{name}={_value(found.before[name])}" for name in key)
        return f"~ {named}  " + (", ".join(changed) or "written, and the same as before")
    row = found.before if found.after is None else found.after
    sign = "-" if found.after is None else "+"
    return f"{sign} " + ", ".join(f"{name}={_value(value)}" for name, value in (row or {}).items())


def _value(value: str | None) -> str:
    if value is None:
        return "NULL"
    cut = value if len(value) <= VALUE_LENGTH else value[: VALUE_LENGTH - 1] + "…"
    return printable(cut, is_line=True)
