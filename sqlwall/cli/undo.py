"""``sqlwall undo``: brings back what agents changed, whole or not at all."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from sqlwall.cli.options import AsJson, ConfigFile, Since, Store, moment
from sqlwall.cli.output import Exit, fail, reported, say, show_json, show_table
from sqlwall.cli.snapshot import COLUMNS, document_of, opened, row_of, say_aside, settle, undoer
from sqlwall.errors import SqlwallError
from sqlwall.proxy.undo import Outcome, Undoer
from sqlwall.store.audit import AuditKind, AuditRecord, AuditWriter
from sqlwall.store.index import SnapshotRecord, SnapshotState
from sqlwall.store.snapshots import Snapshots
from sqlwall.store.stamp import new_ulid


@reported
def undo(
    snapshot: Annotated[list[str] | None, typer.Argument(help="ids, or how they begin")] = None,
    transaction: Annotated[str | None, typer.Option(help="all of this transaction id")] = None,
    agent: Annotated[str | None, typer.Option(help="all of this agent; with --since")] = None,
    since: Since = None,
    database: Annotated[str | None, typer.Option(help="of this database only")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be brought back and what stands against it")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask, where several go back")] = False,
    config: ConfigFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Bring back what snapshots hold, in one transaction or not at all. Status 1 if anything stands against it.

    Rows that somebody has changed since are never overwritten: they are named, and nothing is changed. What undo does
    is snapshotted too, and can be undone.
    """
    _check(snapshot, transaction, agent, since)
    after = moment(since)
    with opened(config, store) as (found, snapshots):
        settle(found, snapshots)
        if snapshot:
            records = list({record.id: record for record in map(snapshots.find, snapshot)}.values())
        else:
            records = [
                record
                for record in snapshots.list(
                    agent=agent, since=after, transaction=transaction, state=SnapshotState.COMMITTED
                )
                if record.undone_by is None and not record.undoes
            ]
        records = [record for record in records if database is None or record.database == database]
        records.sort(key=lambda record: record.id, reverse=True)
        _check_found(records)
        if not as_json and (len(records) > 1 or not snapshot):
            rows = [list(row_of(record).values()) for record in records]
            show_table(COLUMNS, rows, "goes back, in this order")
        if not dry_run and not yes and len(records) > 1:
            _ask(len(records), as_json=as_json)
        with undoer(found, snapshots, records[0].database, say_aside) as session:
            outcome = _undo(session, snapshots, records, dry_run=dry_run)
    _report(records, outcome, dry_run=dry_run, as_json=as_json)
    if outcome.conflicts:
        raise typer.Exit(int(Exit.FINDING))


def _undo(
    session: Undoer, snapshots: Snapshots, records: Sequence[SnapshotRecord], *, dry_run: bool
) -> Outcome:
    """Do it, on the record."""
    actor = f"undo by {_user()}"
    if dry_run:
        return session.undo(records, actor=actor, dry_run=True)
    trail = _Trail(snapshots, records, actor)
    trail.note("begun")
    try:
        outcome = session.undo(records, actor=actor, dry_run=False)
    except SqlwallError as error:
        trail.note("failed", str(error))
        raise
    if outcome.conflicts:
        trail.note("refused", f"{len(outcome.conflicts)} conflicts")
    else:
        trail.note("done", " ".join(outcome.snapshots))
    return outcome


def _check(
    snapshot: Sequence[str] | None, transaction: str | None, agent: str | None, since: str | None
) -> None:
    ways = sum((bool(snapshot), transaction is not None, agent is not None))
    if ways != 1:
        raise fail("say what to undo: ids of snapshots, or --transaction, or --agent with --since")
    if (agent is None) is not (since is None):
        raise fail("--agent and --since go together: whose writes, and from when on")


def _check_found(records: Sequence[SnapshotRecord]) -> None:
    if not records:
        raise fail("no snapshot that could be undone: see `sqlwall snapshot list`", Exit.FINDING)
    databases = sorted({record.database for record in records})
    if len(databases) > 1:
        raise fail(f"they are of several databases, {', '.join(databases)}: choose with --database")


def _ask(count: int, *, as_json: bool) -> None:
    if as_json or not typer.get_text_stream("stdin").isatty():
        raise fail(f"{count} snapshots would go back: look at them with --dry-run, then write --yes")
    if not typer.confirm(f"Undo these {count}?", err=True):
        raise typer.Exit(int(Exit.FINDING))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a process of a user that the machine has no name for
        return "an unnamed user"


class _Trail:
    """Puts on the record that a person undoes something: durable before the effect, and what came of it."""

    def __init__(self, snapshots: Snapshots, records: Sequence[SnapshotRecord], actor: str) -> None:
        self._writer = AuditWriter(snapshots.engine)
        self._records = records
        self._actor = actor
        self._event = new_ulid()

    def note(self, outcome: str, reason: str | None = None) -> None:
        """Raises StoreError."""
        self._writer.append(
            [
                AuditRecord(
                    AuditKind.UNDO,
                    agent=self._actor,
                    database=record.database,
                    operation="undo",
                    target=record.id,
                    outcome=outcome,
                    reason=reason,
                    rows=record.rows,
                    event=self._event,
                )
                for record in self._records
            ]
        )


def _report(records: Sequence[SnapshotRecord], outcome: Outcome, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "undoes": [document_of(record) for record in records],
                "dry_run": dry_run,
                "restored": [asdict(restored) for restored in outcome.restored],
                "redefined": list(outcome.redefined),
                "conflicts": [
                    {**asdict(conflict), "kind": conflict.kind.name.lower(), "message": str(conflict)}
                    for conflict in outcome.conflicts
                ],
                "snapshots": list(outcome.snapshots),
            }
        )
        return
    for conflict in outcome.conflicts:
        say(str(conflict))
    if outcome.conflicts:
        say(f"{len(outcome.conflicts)} conflicts: nothing was changed")
        return
    verb = "would be" if dry_run else "were"
    for restored in outcome.restored:
        say(
            f"{restored.relation}: {restored.put_back} rows {verb} put back, {restored.removed} taken away"
            f" ({restored.snapshot})"
        )
    for line in outcome.redefined:
        say(line)
    if not dry_run:
        say(f"undone; to undo this again: sqlwall undo {' '.join(outcome.snapshots)}")
