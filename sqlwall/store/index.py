"""The index of snapshots: a row of the store for each, and what became of its transaction.

It repeats what is asked for most of a manifest; blobs are the business of `store.snapshots`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from sqlwall.errors import SnapshotError, StoreError
from sqlwall.snapshot.manifest import Manifest
from sqlwall.store.schema import SNAPSHOTS
from sqlwall.store.stamp import format_time, parse_time, utc_now

logger = logging.getLogger(__name__)

#: Characters of a statement in the index.
STATEMENT_LENGTH: Final = 200


class SnapshotState(Enum):
    """What became of the transaction that a snapshot covers."""

    PREPARED = "prepared"
    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


#: The states of those whose transaction nobody has seen the end of.
OPEN_STATES: Final = (SnapshotState.PREPARED.value, SnapshotState.UNKNOWN.value)
#: `undoes` of a snapshot that is no undo's.
_NOTHING: Final = "[]"
_ENTER: Final = sa.insert(SNAPSHOTS)
_STATE: Final = (
    sa.select(SNAPSHOTS.c.state, SNAPSHOTS.c.undoes)
    .where(SNAPSHOTS.c.id == sa.bindparam("of_id"))
    .with_for_update()
)
_DROP: Final = sa.delete(SNAPSHOTS).where(
    SNAPSHOTS.c.id == sa.bindparam("of_id"),
    SNAPSHOTS.c.state.in_(OPEN_STATES),
    SNAPSHOTS.c.locked_until <= sa.bindparam("now"),
)
_GIVE_UP: Final = (
    sa.update(SNAPSHOTS)
    .where(SNAPSHOTS.c.id == sa.bindparam("of_id"), SNAPSHOTS.c.state.in_(OPEN_STATES))
    .values(state=SnapshotState.ABORTED.value)
)
_SETTLE: Final = (
    sa.update(SNAPSHOTS)
    .where(SNAPSHOTS.c.id == sa.bindparam("of_id"))
    .values(state=sa.bindparam("new_state"))
)


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A row of the index. `size` is that of the blob in bytes, `relations` are the server's names of tables.

    `undoes` are the snapshots that this one's transaction has undone, `undone_by` the one that has undone this.
    """

    id: str
    created: datetime
    agent: str
    session: str
    database: str
    database_oid: int
    system: str
    xid: str
    state: SnapshotState
    rows: int
    size: int
    relations: tuple[str, ...]
    statement: str
    digest: str
    undoes: tuple[str, ...]
    undone_by: str | None
    locked_until: datetime


def _indexed(manifest: Manifest) -> dict[str, Any]:
    """What the index repeats of a manifest."""
    first = manifest.statements[0] if manifest.statements else ""
    return {
        "id": manifest.id,
        "created": manifest.created,
        "agent": manifest.agent,
        "session": manifest.session,
        "database": manifest.database,
        "database_oid": manifest.database_oid,
        "system": manifest.system,
        "xid": manifest.xid,
        "rows": manifest.rows,
        "relations": json.dumps(manifest.relations),
        "statement": first[:STATEMENT_LENGTH],
    }


def differences(record: SnapshotRecord, manifest: Manifest) -> Sequence[str]:
    """Columns of the index that do not repeat the manifest."""
    found = {
        name: getattr(record, name)
        for name in (
            "id",
            "agent",
            "session",
            "database",
            "database_oid",
            "system",
            "xid",
            "rows",
            "statement",
        )
    }
    found["created"] = format_time(record.created)
    found["relations"] = json.dumps(list(record.relations))
    return [name for name, value in _indexed(manifest).items() if found[name] != value]


def enter(
    connection: Connection,
    manifest: Manifest,
    *,
    size: int,
    digest: str,
    undoes: Sequence[str],
    locked_until: datetime,
) -> None:
    """Put a snapshot whose blob is durable into the index, as prepared.

    Raises SnapshotError for an undo of what somebody else has undone meanwhile, or is about to.
    """
    if undoes:
        _check_free(connection, undoes)
    values = {
        **_indexed(manifest),
        "state": SnapshotState.PREPARED.value,
        "size": size,
        "digest": digest,
        "undoes": json.dumps(list(undoes)),
        "locked_until": format_time(locked_until),
    }
    connection.execute(_ENTER, values)


def settling(snapshot_id: str, state: SnapshotState) -> Callable[[Connection], None]:
    """The same as `settle`, as part of a transaction of the store, where nobody waits for it."""

    def note(connection: Connection) -> None:
        if not settle(connection, snapshot_id, state):
            logger.warning("snapshot %s is settled otherwise, or was never entered", snapshot_id)

    return note


def dropping(snapshot_id: str) -> Callable[[Connection], None]:
    """Takes a snapshot that has no blob out of the index, as part of a transaction of the store, if it is there.

    Under a retention lock it stays, as one whose transaction did not commit.
    """

    def drop(connection: Connection) -> None:
        connection.execute(_DROP, {"of_id": snapshot_id, "now": format_time(utc_now())})
        connection.execute(_GIVE_UP, {"of_id": snapshot_id})

    return drop


def settle(connection: Connection, snapshot_id: str, state: SnapshotState) -> bool:
    """Note what became of its transaction; False if it is settled otherwise, or gone.

    With the commit of an undo, what it has undone is marked; what that had undone is as it was before.
    """
    row = connection.execute(_STATE, {"of_id": snapshot_id}).one_or_none()
    if row is not None and row.state == state.value:
        return True
    if row is None or row.state not in OPEN_STATES:
        return False
    connection.execute(_SETTLE, {"of_id": snapshot_id, "new_state": state.value})
    if state is SnapshotState.COMMITTED and row.undoes != _NOTHING:
        _mark(connection, snapshot_id)
    return True


def _check_free(connection: Connection, undoes: Sequence[str]) -> None:
    """Two undos of one snapshot would take away twice what it added: of equal rows, somebody else's."""
    query = (
        sa.select(SNAPSHOTS.c.id, SNAPSHOTS.c.undone_by).where(SNAPSHOTS.c.id.in_(undoes)).with_for_update()
    )
    for row in connection.execute(query):
        if row.undone_by is not None:
            raise SnapshotError(f"snapshot {row.id} was undone already, by {row.undone_by}")
    others = sa.select(SNAPSHOTS.c.id, SNAPSHOTS.c.undoes).where(
        SNAPSHOTS.c.state.in_(OPEN_STATES), SNAPSHOTS.c.undoes != _NOTHING
    )
    for row in connection.execute(others):
        for undone in set(undoes).intersection(json.loads(row.undoes)):
            raise SnapshotError(f"snapshot {undone} is being undone by {row.id}, whose end is not known yet")


def _mark(connection: Connection, undo: str) -> None:
    """Write down what is undone now that this snapshot's transaction is committed, of all that it bears on."""
    query = sa.select(SNAPSHOTS.c.id, SNAPSHOTS.c.undoes).where(
        SNAPSHOTS.c.state == SnapshotState.COMMITTED.value, SNAPSHOTS.c.undoes != _NOTHING
    )
    undoes = {row.id: tuple(json.loads(row.undoes)) for row in connection.execute(query)}
    takers = _takers(undoes)
    reached, layer = set[str](), [undo]
    while layer:
        layer = [other for one in layer for other in undoes.get(one, ()) if other not in reached]
        reached.update(layer)
    for other in reached:
        connection.execute(
            SNAPSHOTS.update().where(SNAPSHOTS.c.id == other).values(undone_by=takers.get(other))
        )


def _takers(undoes: Mapping[str, Sequence[str]]) -> Mapping[str, str]:
    """Who took each snapshot away, given what each undo was of: an undo that is undone takes nothing away."""
    undos_of: dict[str, list[str]] = {}
    for undo, others in undoes.items():
        for other in others:
            undos_of.setdefault(other, []).append(undo)
    in_force: dict[str, bool] = {}
    pending = sorted(undoes, reverse=True)
    while pending:
        known = [undo for undo in pending if all(later in in_force for later in undos_of.get(undo, ()))]
        if not known:
            raise StoreError("the index of snapshots is damaged: undos of each other")
        for undo in known:
            in_force[undo] = not any(in_force[later] for later in undos_of.get(undo, ()))
        pending = [undo for undo in pending if undo not in in_force]
    return {other: undo for undo in sorted(in_force) if in_force[undo] for other in undoes[undo]}


def record_of(row: sa.Row[Any]) -> SnapshotRecord:
    """A row of the index."""
    return SnapshotRecord(
        row.id,
        parse_time(row.created),
        row.agent,
        row.session,
        row.database,
        row.database_oid,
        row.system,
        row.xid,
        SnapshotState(row.state),
        row.rows,
        row.size,
        tuple(json.loads(row.relations)),
        row.statement,
        row.digest,
        tuple(json.loads(row.undoes)),
        row.undone_by,
        parse_time(row.locked_until),
    )
