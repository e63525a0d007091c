"""Where snapshots lie: a folder, or an object store behind a URL. One object each, written whole or not at all.

A folder is the default; its files are synced to disk, and so is the folder. S3, GCS and Azure go through obstore.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

from sqlwall.errors import ConfigError, SnapshotError, StoreError, first_line

SUFFIX: Final = ".snapshot"
_PARTIAL: Final = ".partial"
_REMOTE: Final = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "https", "http", "memory")


class Blobs(Protocol):
    """What keeps snapshots, by id. Every failure is a StoreError of one line."""

    @property
    def place(self) -> str:
        """Where they are, for messages; without secrets."""

    def spool(self) -> Path:
        """A folder for what is still being written."""

    def keep(self, key: str, path: Path) -> None:
        """Take over a file as the object `key`; it is durable when this returns, and the file is gone."""

    def size(self, key: str) -> int:
        """Bytes of an object. Raises SnapshotError if it is not there."""

    def read(self, key: str, start: int, length: int) -> bytes:
        """A range of an object."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    def keys(self) -> Iterator[str]:
        """All objects."""


def open_blobs(url: str) -> Blobs:
    """The blobs at a URL or in a folder. Raises ConfigError for a URL that makes no sense."""
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme in ("", "file"):
        return Folder(Path(unquote(urlsplit(url).path)) if scheme else Path(url))
    if scheme not in _REMOTE:
        raise ConfigError(f"snapshots.url: {scheme}:// is none of a folder, file, {', '.join(_REMOTE[:6])}")
    try:
        return Remote(from_url(url), f"{scheme}://{urlsplit(url).hostname or ''}{urlsplit(url).path}")
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(f"snapshots.url cannot be used: {first_line(error)}") from error


class Folder:
    """Files of a local folder, readable by their owner only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def place(self) -> str:
        """See `Blobs`."""
        return str(self._folder)

    def spool(self) -> Path:
        """See `Blobs`: the same folder, so that a rename suffices."""
        with self._failures():
            _make(self._folder)
        return self._folder

    def keep(self, key: str, path: Path) -> None:
        """See `Blobs`."""
        with self._failures():
            if self._path(key).exists():
                raise FileExistsError(errno.EEXIST, f"{key} is there already")
            _sync(path)
            path.rename(self._path(key))
            _sync(self._folder)

    def size(self, key: str) -> int:
        """See `Blobs`."""
        with self._failures():
            if self._folder.is_dir() and not self._path(key).exists():
                raise SnapshotError(f"snapshot {key} is missing: there is no such file in {self._folder}")
            return self._path(key).stat().st_size

    def read(self, key: str, start: int, length: int) -> bytes:
        """See `Blobs`."""
        with self._failures(), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        with self._failures():
            self._path(key).unlink(missing_ok=True)
            _sync(self._folder)

    def keys(self) -> Iterator[str]:
        """See `Blobs`."""
        with self._failures():
            names = sorted(path.name for path in self._folder.iterdir()) if self._folder.exists() else []
        for name in names:
            if name.endswith(SUFFIX):
                yield name.removesuffix(SUFFIX)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"snapshots in {self._folder}: {error.strerror or error}") from error


class Remote:
    """Objects of a bucket."""

    def __init__(self, store: ObjectStore, place: str) -> None:
        self._store = store
        self._place = place

    @property
    def place(self) -> str:
        """See `Blobs`."""
        return self._place

    def spool(self) -> Path:
        """See `Blobs`: an upload begins when all is there, so that a half one never is."""
        return Path(tempfile.gettempdir())

    def keep(self, key: str, path: Path) -> None:
        """See `Blobs`: the service acknowledges what is durable."""
        with self._failures():
            obstore.put(self._store, f"{key}{SUFFIX}", path)
        path.unlink(missing_ok=True)

    def size(self, key: str) -> int:
        """See `Blobs`."""
        with self._failures():
            try:
                return int(obstore.head(self._store, f"{key}{SUFFIX}")["size"])
            except (FileNotFoundError, NotFoundError):
                raise SnapshotError(
                    f"snapshot {key} is missing: there is no such object in {self.place}"
                ) from None

    def read(self, key: str, start: int, length: int) -> bytes:
        """See `Blobs`."""
        if not length:
            return b""
        with self._failures():
            return bytes(obstore.get_range(self._store, f"{key}{SUFFIX}", start=start, length=length))

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        with self._failures():
            obstore.delete(self._store, f"{key}{SUFFIX}")

    def keys(self) -> Iterator[str]:
        """See `Blobs`."""
        with self._failures():
            for listed in obstore.list(self._store):
                for entry in listed:
                    name = entry["path"]
                    if name.endswith(SUFFIX):
                        yield name.removesuffix(SUFFIX)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise StoreError(f"snapshots in {self._place}: {first_line(error)}") from error


class Spool:
    """A file that is being written; `keep` or `discard` ends it."""

    def __init__(self, blobs: Blobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self._path = blobs.spool() / f"{key}{_PARTIAL}"
        self._file: BinaryIO | None = None
        self._is_ours = False
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append."""
        try:
            if self._file is None:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                self._file = os.fdopen(descriptor, "wb")
                self._is_ours = True
            self._file.write(data)
        except OSError as error:
            raise StoreError(f"snapshots in {self._blobs.place}: {error.strerror or error}") from error
        self.size += len(data)

    def keep(self) -> None:
        """All is written: make it the object."""
        try:
            self._close()
        except OSError as error:
            raise StoreError(f"snapshots in {self._blobs.place}: {error.strerror or error}") from error
        self._blobs.keep(self._key, self._path)

    def discard(self) -> None:
        """Nothing of it stays. A file that was there already is not ours to remove."""
        # What could not be written on closing was to be thrown away.
        with suppress(OSError):
            self._close()
        if self._is_ours:
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def partial_files(blobs: Blobs) -> Sequence[tuple[str, Path]]:
    """What is being written, or was when its writer died: keys and files."""
    try:
        return [(path.stem, path) for path in sorted(blobs.spool().glob(f"*{_PARTIAL}"))]
    except OSError as error:
        raise StoreError(f"snapshots in {blobs.place}: {error.strerror or error}") from error


def _make(folder: Path) -> None:
    """A folder, and those above it. Its name is in the folder above, which is synced for it."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        _make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
