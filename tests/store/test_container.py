"""The form of a snapshot: what goes in comes out, and no byte of it can change, move or go missing unseen."""

from __future__ import annotations

import hashlib
import os
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlwall.errors import SnapshotError
from sqlwall.snapshot.manifest import Manifest, Part
from sqlwall.store.container import FRAME, PIECE, SectionWriter, open_container, read_part, write_end
from tests.store.samples import change, manifest

ID = "01JD0000000000000000000000"
OTHER = "01JD0000000000000000000001"
KEY = bytes(range(32))
WRONG = bytes(32)
KEYS = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])

PAGES = st.lists(st.lists(st.binary(max_size=200), max_size=5), min_size=2, max_size=6)


@dataclass(frozen=True, slots=True)
class Container:
    """A whole one, and what its manifest says."""

    blob: bytes
    manifest: Manifest
    digest: str


def pack(sections: Sequence[Sequence[bytes]], key: bytes | None = None, identifier: str = ID) -> Container:
    """Pieces of COPY text, section by section: before and after of one table after the other."""
    blob = bytearray()
    parts = []
    for pieces in sections:
        offset = len(blob)
        section = SectionWriter(identifier, offset, key, blob.extend)
        for piece in pieces:
            section.add(piece)
        digest = section.end()
        parts.append(Part(len(pieces), offset, section.stored, section.size, digest))
    if len(parts) % 2:
        parts.append(Part())
    changes = [
        change(f"t{at}", before, after)
        for at, (before, after) in enumerate(zip(*[iter(parts)] * 2, strict=True))
    ]
    made = manifest(identifier, changes, created=datetime(2026, 1, 31, tzinfo=UTC))
    size, digest = write_end(made, len(blob), key, blob.extend)
    assert size == len(blob) - sum(part.stored for part in parts)
    return Container(bytes(blob), made, digest)


def pieces_of(blob: bytes, part: Part, key: bytes | None, identifier: str = ID) -> Iterator[bytes]:
    return read_part(identifier, part, lambda start, length: blob[start : start + length], key)


def unpack(blob: bytes, key: bytes | None = None, identifier: str = ID) -> list[bytes]:
    """The COPY text of every section. Whoever opens a container uses the key only where it is encrypted."""
    opened = open_container(identifier, len(blob), lambda start, length: blob[start : start + length], key)
    return [
        b"".join(pieces_of(blob, part, key if opened.is_encrypted else None, identifier))
        for found in opened.manifest.changes
        for part in (found.before, found.after)
    ]


def noise(size: int) -> bytes:
    """Bytes that nothing compresses, always the same."""
    return random.Random(size).randbytes(size)


# -- round trip


@KEYS
@given(PAGES)
def test_random_pages_come_back_as_they_were(key: bytes | None, pages: list[list[bytes]]) -> None:
    container = pack(pages, key)
    opened = open_container(ID, len(container.blob), lambda at, length: container.blob[at : at + length], key)
    assert opened.manifest == container.manifest
    assert opened.digest == container.digest
    assert opened.is_encrypted == (key is not None)
    expected = [b"".join(pieces) for pieces in pages]
    assert unpack(container.blob, key)[: len(expected)] == expected


@KEYS
@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, PIECE, PIECE + 1])
def test_pages_as_large_as_a_frame_or_a_piece_come_back(key: bytes | None, size: int) -> None:
    assert unpack(pack([[noise(size)], [noise(size), b"end"]], key).blob, key) == [
        noise(size),
        noise(size) + b"end",
    ]


def test_no_row_can_be_read_from_a_sealed_container() -> None:
    secret = b"IBAN DE02370"
    assert secret in pack([[secret]]).blob
    sealed = pack([[secret]], KEY).blob
    assert secret not in sealed
    assert b"public" not in sealed


def test_the_same_rows_never_look_the_same_when_sealed() -> None:
    one, other = pack([[b"row\n"], [b"row\n"]], KEY), pack([[b"row\n"], [b"row\n"]], KEY)
    before, after = one.manifest.changes[0].before, one.manifest.changes[0].after
    cuts = {bytes(part) for blob in (one.blob, other.blob) for part in _cut(blob, before, after)}
    assert len(cuts) == 4


def _cut(blob: bytes, *parts: Part) -> list[bytes]:
    return [blob[part.offset : part.offset + part.stored] for part in parts]


# -- keys


def test_a_missing_key_is_said() -> None:
    with pytest.raises(SnapshotError, match=f"snapshot {ID} is encrypted: set SQLWALL_SNAPSHOTS_KEY"):
        unpack(pack([[b"row\n"]], KEY).blob)


def test_a_wrong_key_is_said() -> None:
    with pytest.raises(SnapshotError, match="cannot be decrypted: another key, or it is damaged"):
        unpack(pack([[b"row\n"]], KEY).blob, WRONG)


def test_a_key_opens_what_was_written_before_there_was_one() -> None:
    assert unpack(pack([[b"row\n"]]).blob, KEY) == [b"row\n", b""]


def test_a_key_for_rows_that_are_not_encrypted_is_said() -> None:
    container = pack([[noise(500)]])
    with pytest.raises(SnapshotError, match=r"is damaged|cannot be decrypted"):
        list(pieces_of(container.blob, container.manifest.changes[0].before, KEY))


def test_no_key_for_rows_that_are_encrypted_is_said() -> None:
    container = pack([[noise(500)]], KEY)
    with pytest.raises(SnapshotError, match="is damaged"):
        list(pieces_of(container.blob, container.manifest.changes[0].before, None))


# -- damage


SMALL: Sequence[Sequence[bytes]] = ([b"1\tone\n", b"2\ttwo\n"], [b"1\tuno\n"], [], [b"", noise(90)])


@KEYS
def test_every_flipped_bit_is_found(key: bytes | None) -> None:
    blob = pack(SMALL, key).blob
    for position in range(len(blob)):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[position] ^= 1 << bit
            with pytest.raises(SnapshotError):
                unpack(bytes(damaged), key)


@KEYS
def test_every_truncation_is_found(key: bytes | None) -> None:
    blob = pack(SMALL, key).blob
    for length in range(len(blob)):
        for cut in (blob[:length], blob[len(blob) - length :]):
            with pytest.raises(SnapshotError):
                unpack(cut, key)


@KEYS
@settings(deadline=None)
@given(PAGES, st.data())
def test_no_damage_goes_unseen(key: bytes | None, pages: list[list[bytes]], data: st.DataObject) -> None:
    blob = pack(pages, key).blob
    start = data.draw(st.integers(0, len(blob)), label="from")
    stop = data.draw(st.integers(start, len(blob)), label="to")
    damaged = blob[:start] + data.draw(st.binary(max_size=20), label="instead") + blob[stop:]
    if damaged != blob:
        with pytest.raises(SnapshotError):
            unpack(damaged, key)


@KEYS
@given(blob=st.binary(max_size=300))
def test_bytes_that_are_no_container_are_refused(key: bytes | None, blob: bytes) -> None:
    with pytest.raises(SnapshotError):
        unpack(blob, key)


@KEYS
def test_a_store_that_returns_less_than_asked_is_found(key: bytes | None) -> None:
    container = pack([[noise(3000)]], key)
    blob = container.blob
    with pytest.raises(SnapshotError, match="its end cannot be read"):
        open_container(ID, len(blob), lambda start, length: blob[start : start + length - 1], key)
    short = read_part(
        ID, container.manifest.changes[0].before, lambda start, length: blob[start : start + length - 1], key
    )
    with pytest.raises(SnapshotError):
        list(short)


@KEYS
def test_a_blob_of_another_id_is_refused(key: bytes | None) -> None:
    blob = pack([[b"row\n"]], key, OTHER).blob
    with pytest.raises(SnapshotError, match=f"snapshot {ID} (is another one: {OTHER}|cannot be decrypted)"):
        unpack(blob, key)


@KEYS
def test_rows_of_another_section_are_refused(key: bytes | None) -> None:
    container = pack([[noise(200)], [noise(200)[::-1]]], key)
    before, after = container.manifest.changes[0].before, container.manifest.changes[0].after
    assert before.stored == after.stored
    one, other = _cut(container.blob, before, after)
    swapped = other + one + container.blob[before.stored + after.stored :]
    with pytest.raises(SnapshotError):
        unpack(swapped, key)


def _frames(section: bytes) -> list[bytes]:
    """The sealed frames of a section: length, nonce, sealed bytes."""
    frames = []
    while section:
        end = 16 + int.from_bytes(section[:4], "big")
        frames.append(section[:end])
        section = section[end:]
    return frames


@pytest.mark.parametrize(
    "order",
    [(1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3), (0, 1, 2), (0, 0, 1, 2, 3), (0, 1, 2, 3, 3), (3,), ()],
    ids=str,
)
def test_frames_cannot_be_moved_left_out_repeated_or_cut_off(order: tuple[int, ...]) -> None:
    """With the manifest's own numbers changed to fit: AES-GCM alone finds it."""
    container = pack([[noise(3 * FRAME + 100)]], KEY)
    part = container.manifest.changes[0].before
    frames = _frames(container.blob[: part.stored])
    assert len(frames) == 4
    blob = b"".join(frames[at] for at in order)
    fitting = Part(part.rows, 0, len(blob), part.size, part.digest)
    assert b"".join(pieces_of(container.blob, part, KEY)) == noise(3 * FRAME + 100)
    with pytest.raises(SnapshotError, match=r"cannot be decrypted|cut off|too long|not in it"):
        list(pieces_of(blob, fitting, KEY))


def test_a_frame_of_another_snapshot_is_refused() -> None:
    mine, other = pack([[noise(100)]], KEY), pack([[noise(100)]], KEY, OTHER)
    part = mine.manifest.changes[0].before
    with pytest.raises(SnapshotError, match="cannot be decrypted"):
        list(pieces_of(other.blob, part, KEY))


def test_a_newer_version_is_said() -> None:
    blob = bytearray(pack([[b"row\n"]]).blob)
    blob[-68 + 1] += 1
    with pytest.raises(SnapshotError, match="was written by a newer version of sqlwall"):
        unpack(bytes(blob))


def test_a_manifest_that_claims_gigabytes_is_not_read() -> None:
    """Before anything is read of it: the length stands in the trailer."""
    blob = bytearray(pack([[b"row\n"]]).blob)
    trailer = len(blob) - 68
    blob[trailer + 12 : trailer + 20] = (2**40).to_bytes(8, "big")
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return bytes(blob[start : start + length])

    with pytest.raises(SnapshotError, match="its parts do not fill it"):
        open_container(ID, len(blob), read, None)
    assert asked == [68]


# -- memory


@KEYS
def test_rows_that_compress_a_thousandfold_come_out_in_small_pieces(key: bytes | None) -> None:
    page = (b"7\t" + b"x" * 97 + b"\n") * 1000
    blob = bytearray()
    section = SectionWriter(ID, 0, key, blob.extend)
    for _ in range(400):
        section.add(page)
    digest = section.end()
    part = Part(400_000, 0, section.stored, section.size, digest)
    assert part.size > 1000 * part.stored
    found = hashlib.sha256()
    tracemalloc.start()
    try:
        for piece in pieces_of(bytes(blob), part, key):
            assert len(piece) <= PIECE
            found.update(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.hexdigest() == digest
    assert peak < 4 * 1024**2


@KEYS
def test_rows_that_do_not_compress_are_written_and_read_in_flat_memory(key: bytes | None) -> None:
    written = hashlib.sha256()
    tracemalloc.start()
    try:
        section = SectionWriter(ID, 0, key, written.update)
        for _ in range(40):
            section.add(os.urandom(1 << 20))
        section.end()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert section.stored > 40 << 20
    assert peak < 8 << 20
