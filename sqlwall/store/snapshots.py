"""The snapshots: one blob each, and their index in the store.

A snapshot is *prepared* once its blob and its row in the index are durable; only then may COMMIT be sent. Its end is
noted after, or found out later, and never changes again.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from sqlwall.config.settings import Snapshots as Settings
from sqlwall.errors import ConfigError, SnapshotError, StoreError
from sqlwall.snapshot.manifest import Manifest, Part
from sqlwall.store import index
from sqlwall.store.blobs import Blobs, Spool, open_blobs, partial_files
from sqlwall.store.container import PartsWriter, open_container, read_part, write_end
from sqlwall.store.database import reading, writing
from sqlwall.store.index import SnapshotRecord, SnapshotState
from sqlwall.store.schema import SNAPSHOTS
from sqlwall.store.stamp import format_time, parse_time, utc_now

logger = logging.getLogger(__name__)

#: A blob that no row of the index names is removed when it is older than this: its transaction was never committed.
ORPHAN_AGE: Final = timedelta(days=1)


class SnapshotWriter(PartsWriter):
    """Writes one snapshot, part by part. Blocking; not for two threads at once."""

    def __init__(self, snapshots: Snapshots, identifier: str, undoes: Sequence[str]) -> None:
        self._spool = spool = Spool(snapshots.blobs, identifier)
        super().__init__(identifier, snapshots.key, spool.write, lambda: spool.size)
        self._snapshots = snapshots
        self._undoes = tuple(undoes)
        self._size = 0
        self._digest = ""

    def finish(self, manifest: Manifest) -> None:
        """Make the snapshot durable, blob first, and enter it as prepared. Raises StoreError."""
        self.finish_writing(manifest)
        self.keep()
        with writing(self._snapshots.engine) as connection:
            self.enter(manifest, connection)

    def finish_writing(self, manifest: Manifest) -> None:
        """No more parts. Raises StoreError."""
        _, self._digest = write_end(manifest, self._spool.size, self._snapshots.key, self._spool.write)
        self._size = self._spool.size

    def keep(self) -> None:
        """Make the blob durable. Raises StoreError."""
        self._spool.keep()

    def enter(self, manifest: Manifest, connection: Connection) -> None:
        """Enter what is written as prepared, as part of a transaction of the store."""
        self._snapshots.enter(manifest, self._size, self._digest, self._undoes, connection)

    def abort(self) -> None:
        """Nothing of it stays; harmless after `finish`."""
        try:
            self._spool.discard()
        except OSError as error:
            logger.warning("snapshot %s leaves a partial file: %s", self._identifier, error)


class SnapshotReader:
    """Reads one snapshot. `manifest` has been checked."""

    def __init__(self, manifest: Manifest, blobs: Blobs, key: bytes | None) -> None:
        self.manifest = manifest
        self._blobs = blobs
        self._key = key

    def copy(self, part: Part) -> Iterator[bytes]:
        """The COPY text of a part in pieces. Raises SnapshotError for damage, at the latest behind the last piece."""

        def read(start: int, length: int) -> bytes:
            return self._blobs.read(self.manifest.id, start, length)

        return read_part(self.manifest.id, part, read, self._key)

    def lines(self, part: Part) -> Iterator[bytes]:
        """The same, line by line, with their ends."""
        return cut_lines(self.copy(part))


def cut_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """COPY text that comes in pieces, line by line, with their ends."""
    begun: list[bytes] = []
    for data in pieces:
        first, *lines = data.split(b"\n")
        begun.append(first)
        for line in lines:
            yield b"".join(begun) + b"\n"
            begun = [line]


class Snapshots:
    """All snapshots of a store. Thread-safe; every method blocks. `lock_seconds` protects those that are taken."""

    def __init__(
        self, engine: Engine, url: str, key: bytes | None = None, *, lock_seconds: float = 0.0
    ) -> None:
        self.blobs = open_blobs(url)
        self.key = key
        self.engine = engine
        self._lock = timedelta(seconds=lock_seconds)

    @classmethod
    def of(cls, kept: Settings, engine: Engine) -> Snapshots:
        """As configured. Raises ConfigError for a key or a URL that makes no sense."""
        return cls(engine, kept.url, read_key(kept.key.reveal()), lock_seconds=kept.lock)

    # -- taking them

    def writer(self, snapshot_id: str, undoes: Sequence[str] = ()) -> SnapshotWriter:
        """A new snapshot; `undoes` are those that its transaction undoes."""
        return SnapshotWriter(self, snapshot_id, undoes)

    def enter(
        self, manifest: Manifest, size: int, digest: str, undoes: Sequence[str], connection: Connection
    ) -> None:
        """Put a snapshot whose blob is durable into the index. Raises SnapshotError as `index.enter` does."""
        locked_until = parse_time(manifest.created) + self._lock
        index.enter(connection, manifest, size=size, digest=digest, undoes=undoes, locked_until=locked_until)

    def settle(self, snapshot_id: str, state: SnapshotState) -> None:
        """Note what became of the transaction. A known outcome never changes. Raises StoreError.

        With the commit of an undo, what it has undone is marked; what that had undone is as it was before.
        """
        with writing(self.engine) as connection:
            if not index.settle(connection, snapshot_id, state):
                raise StoreError(f"snapshot {snapshot_id} is settled otherwise, or gone")

    def forget(self, snapshot_id: str) -> None:
        """Take out of the index what has no blob, and whose transaction did not commit. Raises StoreError."""
        with writing(self.engine) as connection:
            index.dropping(snapshot_id)(connection)

    # -- finding them

    def list(
        self,
        *,
        agent: str | None = None,
        since: datetime | None = None,
        transaction: str | None = None,
        state: SnapshotState | None = None,
        limit: int | None = None,
    ) -> Sequence[SnapshotRecord]:
        """The snapshots of which all this holds, newest first."""
        query = sa.select(SNAPSHOTS).order_by(SNAPSHOTS.c.id.desc())
        if agent is not None:
            query = query.where(SNAPSHOTS.c.agent == agent)
        if since is not None:
            query = query.where(SNAPSHOTS.c.created >= format_time(since))
        if transaction is not None:
            query = query.where(SNAPSHOTS.c.xid == transaction)
        if state is not None:
            query = query.where(SNAPSHOTS.c.state == state.value)
        if limit is not None:
            query = query.limit(limit)
        with reading(self.engine) as connection:
            return [index.record_of(row) for row in connection.execute(query)]

    def unsettled(self) -> Sequence[SnapshotRecord]:
        """Those of whose transactions nobody has seen the end."""
        query = sa.select(SNAPSHOTS).where(SNAPSHOTS.c.state.in_(index.OPEN_STATES)).order_by(SNAPSHOTS.c.id)
        with reading(self.engine) as connection:
            return [index.record_of(row) for row in connection.execute(query)]

    def find(self, snapshot_id: str) -> SnapshotRecord:
        """The snapshot of this id, or of the only one that begins so. Raises SnapshotError."""
        wanted = snapshot_id.strip().upper()
        query = sa.select(SNAPSHOTS).where(SNAPSHOTS.c.id.startswith(wanted, autoescape=True)).limit(3)
        with reading(self.engine) as connection:
            found = [index.record_of(row) for row in connection.execute(query)] if wanted else []
        if len(found) == 1:
            return found[0]
        if found:
            raise SnapshotError(f"{snapshot_id} begins the ids of several snapshots: write more of it")
        raise SnapshotError(f"there is no snapshot {snapshot_id}: see `sqlwall snapshot list`")

    def has_blob(self, record: SnapshotRecord) -> bool:
        """Whether its rows are there. Raises StoreError if that cannot be known."""
        try:
            return self.blobs.size(record.id) == record.size
        except SnapshotError:
            return False

    def open(self, snapshot_id: str) -> SnapshotReader:
        """Read a snapshot. Raises SnapshotError if it is missing, damaged or sealed, StoreError if out of reach."""
        record = self.find(snapshot_id)

        def read(start: int, length: int) -> bytes:
            return self.blobs.read(record.id, start, length)

        opened = open_container(record.id, self.blobs.size(record.id), read, self.key)
        if opened.digest != record.digest:
            raise SnapshotError(f"snapshot {record.id} is not the one that was taken: its blob was replaced")
        altered = index.differences(record, opened.manifest)
        if altered:
            raise SnapshotError(f"snapshot {record.id} was altered in the index: {', '.join(altered)}")
        key = self.key if opened.is_encrypted else None
        return SnapshotReader(opened.manifest, self.blobs, key)

    def verify(self, snapshot_id: str) -> Sequence[str]:
        """Read all of a snapshot again; what is wrong with it, in words."""
        try:
            reader = self.open(snapshot_id)
            for change in reader.manifest.changes:
                for part in (change.before, change.after):
                    rows = sum(data.count(b"\n") for data in reader.copy(part))
                    if rows != part.rows:
                        return [f"{change.label}: {rows} rows instead of {part.rows}"]
        except (SnapshotError, StoreError) as error:
            return [str(error)]
        return []

    # -- getting rid of them

    def prune(
        self, *, before: datetime | None = None, max_bytes: int | None = None, dry_run: bool = False
    ) -> Sequence[SnapshotRecord]:
        """Remove the oldest: all from before a moment, and more until the rest is no larger than `max_bytes`.

        What is under a retention lock or not settled stays. The index forgets a snapshot first; a blob that is then
        left over, by a crash, goes with the next call.
        """
        records = sorted(self.list(), key=lambda record: record.id)
        total = sum(record.size for record in records)
        now = utc_now()
        removed: list[SnapshotRecord] = []
        for record in records:
            is_due = before is not None and record.created < before
            is_over = bool(max_bytes) and total > (max_bytes or 0)
            if (
                record.state.value in index.OPEN_STATES
                or record.locked_until > now
                or not (is_due or is_over)
            ):
                continue
            total -= record.size
            removed.append(record)
            if not dry_run:
                self._remove(record.id)
        if not dry_run:
            self._remove_orphans(now)
        return removed

    def _remove(self, snapshot_id: str) -> None:
        with writing(self.engine) as connection:
            connection.execute(SNAPSHOTS.delete().where(SNAPSHOTS.c.id == snapshot_id))
        self.blobs.delete(snapshot_id)

    def _remove_orphans(self, now: datetime) -> None:
        known = {record.id for record in self.list()}
        for key in list(self.blobs.keys()):
            moment = _moment_of(key)
            if key not in known and moment is not None and now - moment > ORPHAN_AGE:
                logger.info("snapshot %s was never entered: removed", key)
                self.blobs.delete(key)
        for key, path in partial_files(self.blobs):
            moment = _moment_of(key)
            if moment is not None and now - moment > ORPHAN_AGE:
                logger.info("snapshot %s was never finished: removed", key)
                path.unlink(missing_ok=True)

    def export(self, snapshot_id: str, folder: Path) -> Sequence[Path]:
        """Write a snapshot as files that `COPY ... FROM` reads, and its manifest. Raises SnapshotError, OSError."""
        reader = self.open(snapshot_id)
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for number, change in enumerate(reader.manifest.changes, 1):
            for side, part in (("before", change.before), ("after", change.after)):
                path = folder / f"{number:03}-{side}.copy"
                with path.open("xb") as file:
                    for data in reader.copy(part):
                        file.write(data)
                written.append(path)
        path = folder / "manifest.json"
        with path.open("xb") as file:
            file.write(reader.manifest.to_json())
        return [*written, path]


def read_key(text: str) -> bytes | None:
    """The key that a setting holds in base64; None if it is empty. Raises ConfigError for anything but 32 bytes."""
    if not text:
        return None
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(
            "snapshots.key must be 32 bytes in base64, as `openssl rand -base64 32` prints them"
        )
    return key


_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _moment_of(identifier: str) -> datetime | None:
    """When a ULID was made; None for what is none."""
    if len(identifier) != 26 or any(letter not in _CROCKFORD for letter in identifier):
        return None
    value = 0
    for letter in identifier[:10]:
        value = value * 32 + _CROCKFORD.index(letter)
    try:
        return parse_time("1970-01-01T00:00:00.000000Z") + timedelta(milliseconds=value)
    except OverflowError:
        return None
