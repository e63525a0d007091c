"""Manifests as they stand in blobs, those of the first format too."""

from __future__ import annotations

import json

import pytest

from sqlwall.errors import SnapshotError
from sqlwall.snapshot.manifest import (
    Change,
    Column,
    KeptKey,
    Manifest,
    Move,
    MovedPart,
    Part,
    SequenceChange,
    SequenceState,
    read_manifest,
    swapped,
)

COLUMNS = (Column("id", "integer", 1, "", "a"),)
CHANGE = Change(
    5, "public", "t", COLUMNS, ("id",), 1, 0, 2, Part(2, 0, 9, 9, "a"), Part(1, 9, 9, 9, "b"), "scanned"
)
MANIFEST = Manifest(
    "01", "2026-01-01T00:00:00.000000Z", "bot", "s", "shop", 5, "7", 180000, "99", "digest", ("TRUNCATE t",),
    (CHANGE,), (SequenceChange(6, "public", "t_id_seq", SequenceState(9, True), SequenceState(1, False)),),
    (Move(7, "public", "d", "d_7", COLUMNS, (MovedPart(8, "i", "d_pkey", "d_pkey_8"),),
          (KeptKey("k", "FOREIGN KEY (id) REFERENCES public.t(id)", "why"),)),),
)  # fmt: skip


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert read_manifest(MANIFEST.to_json()) == MANIFEST
    assert MANIFEST.relations == ["public.t", "public.t_id_seq", "public.d"]


def test_a_manifest_of_the_first_format_knows_rows_only() -> None:
    old = json.loads(MANIFEST.to_json())
    del old["sequences"], old["moves"]
    found = read_manifest(json.dumps(old | {"format": 1}).encode())
    assert (found.changes, found.sequences, found.moves) == (MANIFEST.changes, (), ())
    with pytest.raises(SnapshotError, match="another version"):
        read_manifest(json.dumps(old | {"format": 4}).encode())


def test_an_undo_goes_the_other_way() -> None:
    there = swapped(MANIFEST, id="02")
    assert (there.changes[0].before, there.changes[0].after) == (CHANGE.after, CHANGE.before)
    assert there.sequences[0].before == SequenceState(1, False)
    assert not there.moves[0].is_removed
    assert swapped(there, id="01") == MANIFEST
