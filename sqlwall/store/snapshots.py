"""The snapshot store (first version: its surface)."""

from __future__ import annotations

from enum import Enum

from sqlalchemy import Engine

from sqlwall.errors import StoreError
from sqlwall.snapshot.manifest import Manifest, Part


class SnapshotState(Enum):
    """What became of the transaction."""

    PREPARED = "prepared"
    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


class SnapshotWriter:
    """Writes one snapshot."""

    def begin(self) -> None:
        """The next part."""

    def write(self, lines: bytes, rows: int) -> None:
        """Whole lines of it."""

    def end(self) -> Part:
        """Its end."""
        raise StoreError("no snapshot store")

    def finish(self, manifest: Manifest) -> None:
        """Durable."""
        raise StoreError("no snapshot store")

    def abort(self) -> None:
        """Nothing stays."""


class Snapshots:
    """The store."""

    def __init__(self, engine: Engine, url: str, key: bytes | None = None, *, lock_seconds: float = 0.0) -> None:
        raise StoreError("no snapshot store")

    def writer(self, snapshot_id: str) -> SnapshotWriter:
        """A writer."""
        raise StoreError("no snapshot store")

    def settle(self, snapshot_id: str, state: SnapshotState) -> None:
        """The outcome is known."""
