"""Snapshots for the tests of the store: manifests of made-up rows, taken as the guard takes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from sqlwall.snapshot.manifest import Change, Column, Manifest, Part
from sqlwall.store.database import open_store
from sqlwall.store.snapshots import Snapshots
from sqlwall.store.stamp import format_time, new_ulid, utc_now

#: Lines of COPY text, before and after, of one table.
Images = tuple[Sequence[bytes], Sequence[bytes]]

ROWS: Images = ([b"1\tone\n", b"2\t\\N\n"], [b"1\tuno\n"])


def change(name: str, before: Part, after: Part) -> Change:
    """What happened to public.`name`; counts as if every row had been updated."""
    return Change(
        oid=16384,
        schema="public",
        name=name,
        columns=(Column("id", "integer", 1, identity="a"), Column("name", "text", 2)),
        key=("id",),
        inserted=0,
        updated=after.rows,
        deleted=before.rows - after.rows,
        before=before,
        after=after,
        proof="counted",
    )


def manifest(
    identifier: str,
    changes: Sequence[Change] = (),
    *,
    created: datetime | None = None,
    agent: str = "bot",
    xid: str = "4711",
) -> Manifest:
    """One that names everything a manifest names."""
    return Manifest(
        id=identifier,
        created=format_time(created or utc_now()),
        agent=agent,
        session="S1",
        database="shop",
        database_oid=5,
        system="7400000000000000001",
        server_version=180000,
        xid=xid,
        ruleset="r" * 64,
        statements=("UPDATE orders SET name = 'ü'", "DELETE FROM orders WHERE id = 2"),
        changes=tuple(changes),
    )


def open_snapshots(
    folder: Path, key: bytes | None = None, *, url: str | None = None, lock_seconds: float = 0.0
) -> Snapshots:
    """Snapshots of a store of their own, in a folder."""
    engine = open_store(folder / "store.sqlite")
    return Snapshots(engine, url or str(folder / "blobs"), key, lock_seconds=lock_seconds)


def take(
    snapshots: Snapshots,
    *tables: Images,
    identifier: str | None = None,
    undoes: Sequence[str] = (),
    created: datetime | None = None,
    agent: str = "bot",
    xid: str = "4711",
) -> Manifest:
    """Take a snapshot of these tables; it is prepared."""
    identifier = identifier or new_ulid()
    writer = snapshots.writer(identifier, undoes)
    changes = []
    for number, sides in enumerate(tables):
        parts = []
        for lines in sides:
            writer.begin()
            for line in lines:
                writer.write(line, 1)
            parts.append(writer.end())
        changes.append(change(f"t{number}", *parts))
    taken = manifest(identifier, changes, created=created, agent=agent, xid=xid)
    writer.finish(taken)
    return taken


def images(snapshots: Snapshots, identifier: str) -> list[tuple[list[bytes], list[bytes]]]:
    """The lines of every table of a snapshot, before and after."""
    reader = snapshots.open(identifier)
    return [
        (list(reader.lines(found.before)), list(reader.lines(found.after)))
        for found in reader.manifest.changes
    ]
