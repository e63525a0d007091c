"""The snapshot store (first version, for trying the guard; being replaced)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sqlalchemy import Engine

from sqlwall.errors import ConfigError
from sqlwall.snapshot.manifest import Manifest, Part, read_manifest


class SnapshotState(Enum):
    """What became of the transaction."""

    PREPARED = "prepared"
    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """One snapshot in the index."""

    id: str
    database: str
    system: str
    xid: str
    state: SnapshotState


class SnapshotWriter:
    """Writes one snapshot."""

    def __init__(self, folder: Path, identifier: str) -> None:
        self._folder = folder
        self._id = identifier
        self._data = bytearray()
        self._start = 0
        self._rows = 0

    def begin(self) -> None:
        """The next part."""
        self._start, self._rows = len(self._data), 0

    def write(self, lines: bytes, rows: int) -> None:
        """Whole lines of it."""
        self._data += lines
        self._rows += rows

    def end(self) -> Part:
        """Its end."""
        size = len(self._data) - self._start
        digest = hashlib.sha256(self._data[self._start :]).hexdigest()
        return Part(self._rows, self._start, size, size, digest)

    def finish(self, manifest: Manifest) -> None:
        """Durable."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self._id}.data").write_bytes(self._data)
        (self._folder / f"{self._id}.json").write_bytes(manifest.to_json())
        (self._folder / f"{self._id}.state").write_text("prepared")

    def abort(self) -> None:
        """Nothing stays."""


class SnapshotReader:
    """Reads one."""

    def __init__(self, folder: Path, identifier: str) -> None:
        self.manifest = read_manifest((folder / f"{identifier}.json").read_bytes())
        self._data = (folder / f"{identifier}.data").read_bytes()

    def lines(self, part: Part) -> Iterator[bytes]:
        """Its lines."""
        yield from self._data[part.offset : part.offset + part.stored].splitlines(keepends=True)


class Snapshots:
    """The store."""

    def __init__(
        self, engine: Engine, url: str, key: bytes | None = None, *, lock_seconds: float = 0.0
    ) -> None:
        self._folder = Path(url)

    def writer(self, snapshot_id: str) -> SnapshotWriter:
        """A writer."""
        return SnapshotWriter(self._folder, snapshot_id)

    def settle(self, snapshot_id: str, state: SnapshotState) -> None:
        """The outcome is known."""
        path = self._folder / f"{snapshot_id}.state"
        path.with_suffix(".new").write_text(state.value)
        path.with_suffix(".new").replace(path)

    def list(self, *, state: SnapshotState | None = None) -> Sequence[SnapshotRecord]:
        """All of them."""
        found = []
        for path in sorted(self._folder.glob("*.state")) if self._folder.exists() else []:
            record = json.loads(path.with_suffix(".json").read_text())
            value = SnapshotState(path.read_text())
            if state in (None, value):
                found.append(
                    SnapshotRecord(record["id"], record["database"], record["system"], record["xid"], value)
                )
        return found

    def unsettled(self) -> Sequence[SnapshotRecord]:
        """Prepared or unknown."""
        return [one for one in self.list() if one.state in (SnapshotState.PREPARED, SnapshotState.UNKNOWN)]

    def open(self, snapshot_id: str) -> SnapshotReader:
        """A reader."""
        return SnapshotReader(self._folder, snapshot_id)


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
