"""The form of one snapshot: sections of compressed rows, the manifest, and a trailer that finds and checks both.

    rows of a part (zstd) ... | manifest (zstd) | trailer

With a key, each section is cut into frames of AES-256-GCM, bound to the snapshot, their section and their place, the
last one marked: none can be altered, moved, left out or cut off. Without one, each section ends with the SHA-256 of its
stored bytes: the checksum of the rows alone would miss bits that the compressor does not use.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sqlwall.errors import SnapshotError
from sqlwall.snapshot.manifest import Manifest, Part, read_manifest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Compressed bytes of one encrypted frame.
FRAME: Final = 64 * 1024
#: Bytes read at a time.
CHUNK: Final = 256 * 1024
#: Bytes of rows that come out at a time, however well they were compressed.
PIECE: Final = 256 * 1024
#: More than the rows of any honest snapshot compress to (bytes of one manifest).
MANIFEST_LIMIT: Final = 256 * 1024**2

_MAGIC: Final = b"sqlwall snapshot"
_VERSION: Final = 1
_ENCRYPTED: Final = 1
#: Version, flags, offset and length of the manifest, SHA-256 of its stored bytes, magic.
_TRAILER: Final = struct.Struct(">HHQQ32s16s")
_FRAME_HEAD: Final = struct.Struct(">I12s")
_MANIFEST_SECTION: Final = -1
_LEVEL: Final = 3
_SUM: Final = hashlib.sha256().digest_size

Read = Callable[[int, int], bytes]


class PartsWriter:
    """Writes images part by part, each a section of its own. `append` adds to them, `end_of` says how many bytes there
    are already.
    """

    def __init__(
        self,
        identifier: str,
        key: bytes | None,
        append: Callable[[bytes], None],
        end_of: Callable[[], int],
    ) -> None:
        self._identifier = identifier
        self._key = key
        self._append = append
        self._end_of = end_of
        self._section: SectionWriter | None = None
        self._offset = 0
        self._rows = 0

    def begin(self) -> None:
        """The next part."""
        assert self._section is None
        self._offset, self._rows = self._end_of(), 0

    def write(self, lines: bytes, rows: int) -> None:
        """So many whole lines of COPY text. Raises StoreError."""
        if self._section is None:
            self._section = SectionWriter(self._identifier, self._offset, self._key, self._append)
        self._section.add(lines)
        self._rows += rows

    def end(self) -> Part:
        """The part is whole. Raises StoreError."""
        section, self._section = self._section, None
        if section is None:
            return Part()
        digest = section.end()
        return Part(self._rows, self._offset, section.stored, section.size, digest)


class SectionWriter:
    """One section on its way out. `section` is where it begins, which binds its frames to their place; `stored` counts
    bytes written, `size` those that went in.
    """

    def __init__(
        self, identifier: str, section: int, key: bytes | None, write: Callable[[bytes], None]
    ) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self._write = write
        self._cipher = AESGCM(key) if key is not None else None
        self._identifier = identifier
        self._section = section
        self._frames = 0
        self._waiting = bytearray()
        self._digest = hashlib.sha256()
        self._sum = hashlib.sha256()
        self.stored = 0
        self.size = 0

    def add(self, data: bytes) -> None:
        """More of its content."""
        self.size += len(data)
        self._digest.update(data)
        self._emit(self._compressor.compress(data), is_last=False)

    def end(self) -> str:
        """The end; returns the SHA-256 of the content."""
        self._emit(self._compressor.flush(), is_last=True)
        return self._digest.hexdigest()

    def _emit(self, data: bytes, *, is_last: bool) -> None:
        if self._cipher is None:
            self._sum.update(data)
            self._put(data + self._sum.digest() if is_last else data)
            return
        self._waiting += data
        while len(self._waiting) >= FRAME:
            self._seal(bytes(self._waiting[:FRAME]), is_last=False)
            del self._waiting[:FRAME]
        if is_last:
            self._seal(bytes(self._waiting), is_last=True)

    def _seal(self, data: bytes, *, is_last: bool) -> None:
        assert self._cipher is not None
        nonce = os.urandom(12)
        sealed = self._cipher.encrypt(
            nonce, data, _bound(self._identifier, self._section, self._frames, is_last)
        )
        self._frames += 1
        self._put(_FRAME_HEAD.pack(len(sealed), nonce) + sealed)

    def _put(self, data: bytes) -> None:
        if data:
            self._write(data)
        self.stored += len(data)


def write_end(
    manifest: Manifest, offset: int, key: bytes | None, write: Callable[[bytes], None]
) -> tuple[int, str]:
    """The manifest and the trailer; returns their bytes, and the SHA-256 of the trailer, which names the whole."""
    stored: list[bytes] = []
    section = SectionWriter(manifest.id, _MANIFEST_SECTION, key, stored.append)
    section.add(manifest.to_json())
    section.end()
    data = b"".join(stored)
    flags = _ENCRYPTED if key is not None else 0
    trailer = _TRAILER.pack(_VERSION, flags, offset, len(data), hashlib.sha256(data).digest(), _MAGIC)
    write(data + trailer)
    return len(data) + len(trailer), hashlib.sha256(trailer).hexdigest()


@dataclass(frozen=True, slots=True)
class Opened:
    """A snapshot whose manifest has been read and checked. `digest` is that of its trailer."""

    manifest: Manifest
    digest: str
    is_encrypted: bool


def open_container(identifier: str, size: int, read: Read, key: bytes | None) -> Opened:
    """Read and check trailer and manifest. Raises SnapshotError for a blob that is damaged, foreign or sealed."""
    if size < _TRAILER.size:
        raise SnapshotError(f"snapshot {identifier} is damaged: it is too short")
    trailer = read(size - _TRAILER.size, _TRAILER.size)
    if len(trailer) != _TRAILER.size:
        raise SnapshotError(f"snapshot {identifier} is damaged: its end cannot be read")
    version, flags, offset, length, digest, magic = _TRAILER.unpack(trailer)
    if magic != _MAGIC:
        raise SnapshotError(f"snapshot {identifier} is damaged: its end is not that of a snapshot")
    if version != _VERSION or flags & ~_ENCRYPTED:
        raise SnapshotError(f"snapshot {identifier} was written by a newer version of sqlwall")
    is_encrypted = bool(flags & _ENCRYPTED)
    if is_encrypted and key is None:
        raise SnapshotError(f"snapshot {identifier} is encrypted: set SQLWALL_SNAPSHOTS_KEY")
    if offset + length + _TRAILER.size != size or length > MANIFEST_LIMIT:
        raise SnapshotError(f"snapshot {identifier} is damaged: its parts do not fill it")
    data = read(offset, length)
    if hashlib.sha256(data).digest() != digest:
        raise SnapshotError(f"snapshot {identifier} is damaged: its manifest has another checksum")
    sealed = key if is_encrypted else None
    content = b"".join(_content(identifier, _MANIFEST_SECTION, iter((data,)), sealed))
    manifest = read_manifest(content)
    if manifest.id != identifier:
        raise SnapshotError(f"snapshot {identifier} is another one: {manifest.id}")
    return Opened(manifest, hashlib.sha256(trailer).hexdigest(), is_encrypted)


def read_part(identifier: str, part: Part, read: Read, key: bytes | None) -> Iterator[bytes]:
    """The COPY text of a part in pieces; its checksum is compared at the end. Raises SnapshotError."""
    if not part.stored:
        if part.rows or part.size:
            raise SnapshotError(f"snapshot {identifier} is damaged: rows are not in it")
        return
    digest = hashlib.sha256()
    size = 0
    stored = (
        read(part.offset + start, min(CHUNK, part.stored - start)) for start in range(0, part.stored, CHUNK)
    )
    for data in _content(identifier, part.offset, stored, key):
        digest.update(data)
        size += len(data)
        if size > part.size:
            break
        yield data
    if size != part.size or digest.hexdigest() != part.digest:
        raise SnapshotError(f"snapshot {identifier} is damaged: rows have another checksum")


def _content(identifier: str, section: int, stored: Iterator[bytes], key: bytes | None) -> Iterator[bytes]:
    """Decrypted and decompressed, in pieces of a bounded size."""
    pieces = _summed(identifier, stored) if key is None else _unseal(identifier, section, stored, AESGCM(key))
    source = BufferedReader(_Source(pieces), CHUNK)
    with zstandard.ZstdDecompressor().stream_reader(source, read_size=CHUNK, closefd=False) as reader:
        try:
            while data := reader.read(PIECE):
                yield data
        except zstandard.ZstdError as error:
            raise SnapshotError(f"snapshot {identifier} is damaged: {error}") from error
    # What checks the stored bytes speaks at their end, which the decompressor need not have asked for.
    if source.read(1):
        raise SnapshotError(f"snapshot {identifier} is damaged: there is more behind the rows")


class _Source(RawIOBase):
    """Pieces of bytes as the file that a decompressor reads: it takes no more than it can put out."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer with what there is; 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        target = memoryview(buffer).cast("B")
        length = min(len(target), len(self._rest))
        target[:length], self._rest = self._rest[:length], self._rest[length:]
        return length


def _summed(identifier: str, stored: Iterator[bytes]) -> Iterator[bytes]:
    """What stands before the checksum at the end, which is compared behind the last piece."""
    found = hashlib.sha256()
    waiting = b""
    for piece in stored:
        waiting += piece
        data, waiting = waiting[:-_SUM], waiting[-_SUM:]
        found.update(data)
        yield data
    if waiting != found.digest():
        raise SnapshotError(f"snapshot {identifier} is damaged: stored bytes have another checksum")


def _unseal(identifier: str, section: int, stored: Iterator[bytes], cipher: AESGCM) -> Iterator[bytes]:
    waiting = bytearray()
    frame = 0
    is_over = False
    for piece in stored:
        waiting += piece
        while len(waiting) >= _FRAME_HEAD.size:
            length, nonce = _FRAME_HEAD.unpack_from(waiting)
            if length > FRAME + 16 or is_over:
                raise SnapshotError(f"snapshot {identifier} is damaged: a sealed part is too long")
            if len(waiting) < _FRAME_HEAD.size + length:
                break
            sealed = bytes(waiting[_FRAME_HEAD.size : _FRAME_HEAD.size + length])
            del waiting[: _FRAME_HEAD.size + length]
            data, is_over = _open_frame(identifier, section, frame, nonce, sealed, cipher)
            frame += 1
            yield data
    if not is_over or waiting:
        raise SnapshotError(f"snapshot {identifier} is damaged: a sealed part was cut off")


def _open_frame(
    identifier: str, section: int, frame: int, nonce: bytes, sealed: bytes, cipher: AESGCM
) -> tuple[bytes, bool]:
    for is_last in (False, True):
        try:
            return cipher.decrypt(nonce, sealed, _bound(identifier, section, frame, is_last)), is_last
        except InvalidTag:
            continue
    raise SnapshotError(f"snapshot {identifier} cannot be decrypted: another key, or it is damaged")


def _bound(identifier: str, section: int, frame: int, is_last: bool) -> bytes:
    return f"{identifier} {section} {frame} {'last' if is_last else 'more'}".encode()
