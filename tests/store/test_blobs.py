"""Blobs are there whole or not at all, durable when they are said to be, and readable by their owner only."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import ConfigError, SnapshotError, StoreError
from sqlwall.store.blobs import Blobs, Spool, open_blobs, partial_files

ID = "01JD0000000000000000000000"
OTHER = "01JD0000000000000000000001"

Make = Callable[[Path], str]
PLACES: dict[str, Make] = {
    "folder": lambda path: str(path / "blobs"),
    "file": lambda path: f"file://{path}/blobs%20here",
    "memory": lambda _: "memory:///",
}


@pytest.fixture(params=PLACES)
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """Each kind of place; what is being written for a remote one lies in a folder of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return open_blobs(PLACES[request.param](tmp_path))


def keep(blobs: Blobs, key: str, data: bytes) -> None:
    spool = Spool(blobs, key)
    spool.write(data)
    assert spool.size == len(data)
    spool.keep()


# -- what every place does


def test_an_object_is_what_was_written(blobs: Blobs) -> None:
    data = bytes(range(256)) * 50
    keep(blobs, ID, data)
    assert blobs.size(ID) == len(data)
    assert blobs.read(ID, 0, len(data)) == data
    assert blobs.read(ID, 255, 3) == data[255:258]
    assert blobs.read(ID, 100, 0) == b""
    assert blobs.read(ID, len(data) - 1, 100) == data[-1:]


def test_objects_are_listed_by_their_keys(blobs: Blobs) -> None:
    assert list(blobs.keys()) == []
    keep(blobs, OTHER, b"2")
    keep(blobs, ID, b"1")
    assert sorted(blobs.keys()) == [ID, OTHER]
    blobs.delete(ID)
    assert list(blobs.keys()) == [OTHER]


def test_what_is_gone_may_be_deleted_again(blobs: Blobs) -> None:
    keep(blobs, ID, b"1")
    blobs.delete(ID)
    blobs.delete(ID)
    assert list(blobs.keys()) == []


def test_a_missing_object_is_a_missing_snapshot(blobs: Blobs) -> None:
    keep(blobs, OTHER, b"2")
    with pytest.raises(SnapshotError, match=f"snapshot {ID} is missing: there is no such (file|object) in "):
        blobs.size(ID)
    with pytest.raises(StoreError):
        blobs.read(ID, 0, 1)


def test_what_is_still_being_written_is_no_object(blobs: Blobs) -> None:
    spool = Spool(blobs, ID)
    spool.write(b"half")
    assert list(blobs.keys()) == []
    assert [key for key, _ in partial_files(blobs)] == [ID]
    spool.discard()
    assert list(partial_files(blobs)) == []
    spool.discard()


def test_what_was_kept_leaves_no_partial_file(blobs: Blobs) -> None:
    keep(blobs, ID, b"whole")
    assert list(partial_files(blobs)) == []
    assert list(blobs.spool().glob("*.partial")) == []


def test_two_writers_of_one_key_are_stopped(blobs: Blobs) -> None:
    one, other = Spool(blobs, ID), Spool(blobs, ID)
    one.write(b"one")
    with pytest.raises(StoreError, match="File exists"):
        other.write(b"other")
    other.discard()
    one.keep()
    assert blobs.read(ID, 0, 10) == b"one"


@given(
    pieces=st.lists(st.binary(max_size=500), min_size=1, max_size=10),
    start=st.integers(0, 5000),
    length=st.integers(0, 5000),
)
def test_a_range_is_a_range(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], start: int, length: int
) -> None:
    blobs = open_blobs(str(tmp_path_factory.mktemp("blobs")))
    spool = Spool(blobs, ID)
    for piece in pieces:
        spool.write(piece)
    spool.keep()
    assert blobs.read(ID, start, length) == b"".join(pieces)[start : start + length]


# -- a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the blobs of a test shall be; it is not there yet, nor is the one above."""
    return tmp_path / "state" / "blobs"


def test_a_folder_and_its_files_are_their_owners(folder: Path) -> None:
    keep(open_blobs(str(folder)), ID, b"1")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / f"{ID}.snapshot").stat().st_mode & 0o777 == 0o600


def test_a_partial_file_is_its_owners(folder: Path) -> None:
    spool = Spool(open_blobs(str(folder)), ID)
    spool.write(b"1")
    assert (folder / f"{ID}.partial").stat().st_mode & 0o777 == 0o600
    spool.discard()


def test_other_files_are_no_objects(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "README").write_text("")
    (folder / f"{ID}.snapshot.bak").write_text("")
    assert list(open_blobs(str(folder)).keys()) == []


def test_an_object_is_never_overwritten(folder: Path) -> None:
    blobs = open_blobs(str(folder))
    keep(blobs, ID, b"first")
    with pytest.raises(StoreError, match=f"{ID} is there already"):
        keep(blobs, ID, b"second")
    assert blobs.read(ID, 0, 10) == b"first"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, tuple[str, ...]]]]:
    """What is synced, and which names are beside it or in it at that moment. The real fsync runs."""
    seen: list[tuple[str, tuple[str, ...]]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        around = path if path.is_dir() else path.parent
        seen.append((path.name, tuple(sorted(entry.name for entry in around.iterdir()))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    yield seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell what a descriptor is")
def test_file_and_folder_are_synced_in_the_order_that_makes_them_durable(
    folder: Path, synced: list[tuple[str, tuple[str, ...]]]
) -> None:
    """The folders above when they are made, the bytes before they get their name, the name behind it."""
    keep(open_blobs(str(folder)), ID, b"1")
    above = folder.parent.parent.name
    assert [name for name, _ in synced] == [above, "state", f"{ID}.partial", "blobs"]
    assert synced[0][1] == ("state",)
    assert synced[1][1] == ("blobs",)
    assert synced[2][1] == (f"{ID}.partial",)
    assert synced[3][1] == (f"{ID}.snapshot",)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell what a descriptor is")
def test_a_delete_is_synced(folder: Path, synced: list[tuple[str, tuple[str, ...]]]) -> None:
    blobs = open_blobs(str(folder))
    keep(blobs, ID, b"1")
    synced.clear()
    blobs.delete(ID)
    assert synced == [("blobs", ())]


def test_what_cannot_be_synced_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs(str(folder))
    spool = Spool(blobs, ID)
    spool.write(b"1")

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        spool.keep()
    spool.discard()
    assert list(folder.iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file of this process may grow beyond so many bytes: the write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield 10_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Path, small_files: int) -> None:
    spool = Spool(open_blobs(str(folder)), ID)
    with pytest.raises(StoreError, match=f"^snapshots in {folder}: File too large$"):
        for _ in range(20):
            spool.write(bytes(small_files // 2))
    spool.discard()
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_no_obstacle_to_giving_up(folder: Path, small_files: int) -> None:
    """What waits in the buffer cannot be written when the file is closed, and need not be."""
    spool = Spool(open_blobs(str(folder)), ID)
    spool.write(bytes(small_files - 1))
    spool.write(b"12")
    spool.discard()
    assert list(folder.iterdir()) == []


def test_a_full_disk_that_shows_at_the_end_keeps_nothing(folder: Path, small_files: int) -> None:
    """The last bytes wait in a buffer until the file is closed."""
    spool = Spool(open_blobs(str(folder)), ID)
    spool.write(bytes(small_files - 1))
    spool.write(b"12")
    with pytest.raises(StoreError, match="File too large"):
        spool.keep()
    spool.discard()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["size", "read", "keep", "keys", "delete", "spool"])
def test_a_file_in_place_of_the_folder_is_out_of_reach(folder: Path, what: str) -> None:
    folder.parent.mkdir()
    folder.write_text("")
    blobs = open_blobs(str(folder))
    calls: dict[str, Callable[[], object]] = {
        "size": lambda: blobs.size(ID),
        "read": lambda: blobs.read(ID, 0, 1),
        "keep": lambda: blobs.keep(ID, folder / "x"),
        "keys": lambda: list(blobs.keys()),
        "delete": lambda: blobs.delete(ID),
        "spool": blobs.spool,
    }
    with pytest.raises(StoreError, match=f"^snapshots in {folder}: (Not a directory|File exists)$"):
        calls[what]()


def test_a_folder_that_is_away_is_out_of_reach_and_no_snapshot_is_called_missing(folder: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        open_blobs(str(folder)).size(ID)


CRASH = """
import os, signal, sys
from sqlwall.store.blobs import Spool, open_blobs
spool = Spool(open_blobs(sys.argv[1]), sys.argv[2])
for _ in range(100):
    spool.write(bytes(1000))
if sys.argv[3] == "unsynced":
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    spool.keep()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["writing", "unsynced"])
def test_a_crash_leaves_a_partial_file_only(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "blobs"
    folder.mkdir()
    ended = subprocess.run([sys.executable, "-c", CRASH, str(folder), ID, moment], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == [f"{ID}.partial"]
    blobs = open_blobs(str(folder))
    assert list(blobs.keys()) == []
    assert list(partial_files(blobs)) == [(ID, folder / f"{ID}.partial")]
    keep(blobs, OTHER, b"next")
    assert list(blobs.keys()) == [OTHER]


# -- URLs


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_blobs(f"file://{tmp_path}/a%20b").place == f"{tmp_path}/a b"


def test_a_bucket_is_named_without_secrets() -> None:
    blobs = open_blobs("https://user:hunter2@example.com/bucket/walls?token=hunter2")
    assert blobs.place == "https://example.com/bucket/walls"
    assert "hunter2" not in blobs.place


@pytest.mark.parametrize("url", ["ftp://example.com/x", "sqlite:///x", "c://x"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"snapshots\.url: .*:// is none of a folder, file, s3"):
        open_blobs(url)


def test_a_url_that_makes_no_sense_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^snapshots\.url cannot be used: ") as caught:
        open_blobs("az://")
    assert "\n" not in str(caught.value)
