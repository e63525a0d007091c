"""The index of snapshots and their blobs: taken whole or not at all, settled once, found again, kept as long as locked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sqlwall.errors import ConfigError, SnapshotError, StoreError
from sqlwall.snapshot.manifest import Part, swapped
from sqlwall.store import snapshots as module
from sqlwall.store.blobs import Remote
from sqlwall.store.container import PIECE
from sqlwall.store.database import open_store, reading, writing
from sqlwall.store.index import STATEMENT_LENGTH, SnapshotState
from sqlwall.store.schema import SNAPSHOTS
from sqlwall.store.snapshots import Snapshots, read_key
from sqlwall.store.stamp import format_time, new_ulid, utc_now
from tests.store.samples import ROWS, Images, change, images, manifest, open_snapshots, take

KEY = bytes(range(32))
WRONG = bytes(32)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
PREPARED, COMMITTED, ABORTED, UNKNOWN = SnapshotState

LINES = st.lists(st.binary(max_size=80).map(lambda line: line.replace(b"\n", b"\\n") + b"\n"), max_size=8)
TABLES = st.lists(st.tuples(LINES, LINES), max_size=3)


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    """A store of the test's own, nothing encrypted, nothing locked."""
    return open_snapshots(tmp_path)


def blob_of(snapshots: Snapshots, identifier: str) -> Path:
    return Path(snapshots.blobs.place) / f"{identifier}.snapshot"


def ulid_of(moment: datetime) -> str:
    """An id that was made at a moment."""
    value, letters = int(moment.timestamp() * 1000), ""
    for _ in range(10):
        letters, value = module._CROCKFORD[value % 32] + letters, value // 32
    return letters + new_ulid()[10:]


# -- what goes in comes out


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@settings(deadline=None, max_examples=40)
@given(tables=TABLES)
def test_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, key: bytes | None, tables: list[Images]
) -> None:
    snapshots = open_snapshots(tmp_path_factory.mktemp("store"), key)
    taken = take(snapshots, *tables)
    assert images(snapshots, taken.id) == tables
    assert snapshots.open(taken.id).manifest == taken
    assert snapshots.verify(taken.id) == []
    snapshots.engine.dispose()


@pytest.mark.parametrize("url", ["memory:///", "file"])
def test_rows_come_back_from_a_url(tmp_path: Path, url: str) -> None:
    url = f"file://{tmp_path}/some%20where" if url == "file" else url
    snapshots = open_snapshots(tmp_path, KEY, url=url)
    taken = take(snapshots, ROWS)
    assert images(snapshots, taken.id) == [tuple(map(list, ROWS))]
    assert list(snapshots.blobs.keys()) == [taken.id]
    assert snapshots.verify(taken.id) == []


def test_a_line_may_be_longer_than_a_piece(snapshots: Snapshots) -> None:
    wide = b"1\t" + b"x" * (3 * PIECE) + b"\n"
    rows = [b"0\t\n", wide, b"2\t\n", wide]
    taken = take(snapshots, (rows, []))
    assert images(snapshots, taken.id) == [(rows, [])]


def test_the_index_says_what_the_manifest_says(snapshots: Snapshots) -> None:
    taken = take(snapshots, ROWS, ([], [b"3\n"]))
    (record,) = snapshots.list()
    assert (record.id, record.agent, record.session, record.xid) == (taken.id, "bot", "S1", "4711")
    assert (record.database, record.database_oid, record.system) == ("shop", 5, taken.system)
    assert record.state is PREPARED
    assert record.rows == 3
    assert record.relations == ("public.t0", "public.t1")
    assert record.statement == "UPDATE orders SET name = 'ü'"
    assert record.size == blob_of(snapshots, taken.id).stat().st_size
    assert (record.undoes, record.undone_by) == ((), None)


def test_the_index_holds_the_beginning_of_a_long_statement(snapshots: Snapshots) -> None:
    identifier = new_ulid()
    long = swapped(manifest(identifier), statements=("é" * 1000,))
    writer = snapshots.writer(identifier)
    writer.finish(long)
    assert snapshots.find(identifier).statement == "é" * STATEMENT_LENGTH
    assert snapshots.verify(identifier) == []


def test_a_swapped_manifest_restores_what_the_other_took_away() -> None:
    one, other = Part(2, 0, 10, 20, "a"), Part(1, 10, 5, 7, "b")
    (back,) = swapped(manifest("X", [change("t", one, other)]), xid="5").changes
    assert (back.before, back.after) == (other, one)
    assert (back.inserted, back.deleted) == (1, 0)


# -- keys


def test_keys_that_do_not_fit_are_said(tmp_path: Path) -> None:
    sealed = open_snapshots(tmp_path, KEY)
    taken = take(sealed, ROWS)
    url = sealed.blobs.place
    with pytest.raises(SnapshotError, match="is encrypted: set SQLWALL_SNAPSHOTS_KEY"):
        Snapshots(sealed.engine, url).open(taken.id)
    with pytest.raises(SnapshotError, match="cannot be decrypted: another key, or it is damaged"):
        Snapshots(sealed.engine, url, WRONG).open(taken.id)
    assert Snapshots(sealed.engine, url, WRONG).verify(taken.id) != []


def test_a_key_that_is_set_later_opens_what_was_taken_before(tmp_path: Path) -> None:
    plain = open_snapshots(tmp_path)
    old = take(plain, ROWS)
    sealed = Snapshots(plain.engine, plain.blobs.place, KEY)
    new = take(sealed, ROWS)
    assert images(sealed, old.id) == images(sealed, new.id)
    with pytest.raises(SnapshotError, match="is encrypted"):
        plain.open(new.id)


def test_a_key_is_32_bytes_in_base64() -> None:
    assert read_key("") is None
    assert read_key("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == KEY
    for text in ("AAEC", "A" * 43, "*" * 44, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= ", "é"):
        with pytest.raises(ConfigError, match="must be 32 bytes in base64"):
            read_key(text)


# -- what may be wrong


def test_a_missing_blob_is_said(snapshots: Snapshots) -> None:
    taken = take(snapshots, ROWS)
    blob_of(snapshots, taken.id).unlink()
    with pytest.raises(SnapshotError, match=f"snapshot {taken.id} is missing"):
        snapshots.open(taken.id)
    assert [f"snapshot {taken.id} is missing" in fault for fault in snapshots.verify(taken.id)] == [True]


def test_a_blob_of_another_id_is_said(snapshots: Snapshots) -> None:
    one, other = take(snapshots, ROWS), take(snapshots, ROWS)
    blob_of(snapshots, one.id).write_bytes(blob_of(snapshots, other.id).read_bytes())
    with pytest.raises(SnapshotError, match=f"snapshot {one.id} is another one: {other.id}"):
        snapshots.open(one.id)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_a_blob_that_was_written_anew_under_its_id_is_said(tmp_path: Path, key: bytes | None) -> None:
    """Whole and well-formed, but not the one that was taken: only the index tells."""
    (tmp_path / "one").mkdir()
    (tmp_path / "forger").mkdir()
    snapshots, forger = open_snapshots(tmp_path / "one", key), open_snapshots(tmp_path / "forger")
    taken = take(snapshots, ROWS)
    take(forger, ([b"9\tnine\n"], []), identifier=taken.id)
    blob_of(snapshots, taken.id).write_bytes(blob_of(forger, taken.id).read_bytes())
    with pytest.raises(SnapshotError, match="is not the one that was taken: its blob was replaced"):
        snapshots.open(taken.id)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_blob_is_found_by_verify(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    snapshots = open_snapshots(tmp_path_factory.mktemp("store"))
    taken = take(snapshots, ROWS, created=NOON)
    blob = bytearray(blob_of(snapshots, taken.id).read_bytes())
    position = data.draw(st.integers(0, 10**6)) % len(blob)
    if data.draw(st.booleans(), label="cut"):
        del blob[position:]
    else:
        blob[position] ^= data.draw(st.integers(1, 255))
    blob_of(snapshots, taken.id).write_bytes(blob)
    (fault,) = snapshots.verify(taken.id)
    assert fault.startswith(f"snapshot {taken.id} ")
    assert "\n" not in fault
    snapshots.engine.dispose()


def test_a_remote_blob_that_is_cut_off_is_found(tmp_path: Path) -> None:
    snapshots = open_snapshots(tmp_path, url="memory:///")
    taken = take(snapshots, ROWS)
    assert isinstance(snapshots.blobs, Remote)
    whole = snapshots.blobs.read(taken.id, 0, snapshots.blobs.size(taken.id))
    for length in (0, 1, 67, 68, len(whole) - 1):
        obstore.put(snapshots.blobs._store, f"{taken.id}.snapshot", whole[:length])
        assert len(snapshots.verify(taken.id)) == 1


ALTERED: dict[str, object] = {
    "created": "2026-01-31T12:00:00.000000Z",
    "agent": "somebody",
    "session": "S2",
    "database": "other",
    "database_oid": 6,
    "system": "1",
    "xid": "1",
    "rows": 1000,
    "relations": "[]",
    "statement": "SELECT 1",
}


@pytest.mark.parametrize("column", ALTERED)
def test_a_row_of_the_index_that_was_altered_is_said(snapshots: Snapshots, column: str) -> None:
    """What the settling and the undo go by stands in the blob as well."""
    taken = take(snapshots, ROWS)
    with writing(snapshots.engine) as connection:
        connection.execute(SNAPSHOTS.update().values({column: ALTERED[column]}))
    with pytest.raises(SnapshotError, match=f"snapshot {taken.id} was altered in the index: {column}$"):
        snapshots.open(taken.id)


@pytest.mark.parametrize("column", ["id", "digest"])
def test_id_and_digest_of_a_row_cannot_be_altered(snapshots: Snapshots, column: str) -> None:
    take(snapshots, ROWS)
    with pytest.raises(StoreError, match="under a retention lock"):
        with writing(snapshots.engine) as connection:
            connection.execute(SNAPSHOTS.update().values({column: "0"}))


def test_a_manifest_that_counts_otherwise_is_found_by_verify(snapshots: Snapshots) -> None:
    identifier = new_ulid()
    writer = snapshots.writer(identifier)
    writer.begin()
    writer.write(b"1\n2\n3\n", 2)
    part = writer.end()
    writer.finish(manifest(identifier, [change("t", part, Part())]))
    assert snapshots.verify(identifier) == ["public.t: 3 rows instead of 2"]


# -- whole or not at all


def test_a_snapshot_that_is_given_up_leaves_nothing(snapshots: Snapshots) -> None:
    writer = snapshots.writer(new_ulid())
    writer.begin()
    writer.write(b"1\n", 1)
    writer.abort()
    assert list(Path(snapshots.blobs.place).iterdir()) == []
    assert snapshots.list() == []


def test_giving_up_after_the_end_is_harmless(snapshots: Snapshots) -> None:
    identifier = new_ulid()
    writer = snapshots.writer(identifier)
    writer.finish(manifest(identifier))
    writer.abort()
    assert snapshots.verify(identifier) == []


def test_an_id_is_taken_once(snapshots: Snapshots) -> None:
    taken = take(snapshots, ROWS)
    with pytest.raises(StoreError, match="is there already"):
        take(snapshots, ([b"9\n"], []), identifier=taken.id)
    assert images(snapshots, taken.id) == [tuple(map(list, ROWS))]


def test_a_blob_whose_row_cannot_be_written_is_no_snapshot(tmp_path: Path) -> None:
    snapshots = open_snapshots(tmp_path)
    with writing(snapshots.engine) as connection:
        connection.exec_driver_sql("DROP TABLE sqlwall_snapshots")
    with pytest.raises(StoreError, match="no such table"):
        take(snapshots, ROWS)


CRASH = """
import os, signal, sys
from pathlib import Path
from sqlwall.store.snapshots import Snapshots
from tests.store.samples import manifest, open_snapshots
snapshots = open_snapshots(Path(sys.argv[1]))
writer = snapshots.writer(sys.argv[2])
writer.begin()
for number in range(1000):
    writer.write(os.urandom(500).replace(b"\\n", b" ") + b"\\n", 1)
if sys.argv[3] == "entering":
    Snapshots.enter = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    writer.end()
    writer.finish(manifest(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "left"), [("writing", "partial"), ("entering", "snapshot")])
def test_a_crash_leaves_no_snapshot_and_what_it_leaves_is_pruned_later(
    tmp_path: Path, moment: str, left: str
) -> None:
    old = ulid_of(utc_now() - timedelta(days=2))
    ended = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), old, moment], check=False)
    assert ended.returncode == -signal.SIGKILL
    snapshots = open_snapshots(tmp_path)
    folder = Path(snapshots.blobs.place)
    assert [path.name for path in folder.iterdir()] == [f"{old}.{left}"]
    assert snapshots.list() == []
    (folder / f"{new_ulid()}.{left}").write_bytes(b"somebody is writing it")
    (folder / f"notes.{left}").write_bytes(b"not ours")
    assert snapshots.prune(dry_run=True) == []
    assert (folder / f"{old}.{left}").exists()
    assert snapshots.prune() == []
    assert not (folder / f"{old}.{left}").exists()
    assert len(list(folder.iterdir())) == 2


def test_many_threads_may_take_snapshots(snapshots: Snapshots) -> None:
    rows: list[Images] = [([b"%d\t%d\n" % (number, at) for at in range(200)], []) for number in range(8)]
    taken: dict[str, Images] = {}

    def work(number: int) -> None:
        for _ in range(5):
            taken[take(snapshots, rows[number]).id] = rows[number]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40
    assert {record.id for record in snapshots.list()} == set(taken)
    for identifier, expected in taken.items():
        assert images(snapshots, identifier) == [expected]


def test_a_million_rows_stream_in_flat_memory(tmp_path: Path) -> None:
    """About 100 MB of rows that are much alike, in and out and counted."""
    snapshots = open_snapshots(tmp_path, KEY)
    pages = 1000
    tracemalloc.start()
    try:
        identifier = new_ulid()
        writer = snapshots.writer(identifier)
        writer.begin()
        for page in range(pages):
            lines = b"".join(b"%08d\t%s\n" % (page * 1000 + at, b"x" * 90) for at in range(1000))
            writer.write(lines, 1000)
        part = writer.end()
        writer.finish(manifest(identifier, [change("t", part, Part())]))
        assert part.rows == 1_000_000
        assert part.size == 100_000_000
        assert snapshots.verify(identifier) == []
        lines_read = sum(1 for _ in snapshots.open(identifier).lines(part))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines_read == 1_000_000
    assert peak < 8 << 20


# -- settling


def states(snapshots: Snapshots) -> dict[str, SnapshotState]:
    return {record.id: record.state for record in snapshots.list()}


def test_what_is_prepared_or_unknown_is_unsettled(snapshots: Snapshots) -> None:
    one, two, three, four = (take(snapshots, ROWS).id for _ in range(4))
    snapshots.settle(one, COMMITTED)
    snapshots.settle(two, ABORTED)
    snapshots.settle(three, UNKNOWN)
    assert states(snapshots) == {one: COMMITTED, two: ABORTED, three: UNKNOWN, four: PREPARED}
    assert [record.id for record in snapshots.unsettled()] == [three, four]
    snapshots.settle(three, COMMITTED)
    snapshots.settle(four, ABORTED)
    assert snapshots.unsettled() == []


@pytest.mark.parametrize("known", [COMMITTED, ABORTED])
@pytest.mark.parametrize("later", list(SnapshotState))
def test_a_known_outcome_never_changes(
    snapshots: Snapshots, known: SnapshotState, later: SnapshotState
) -> None:
    taken = take(snapshots, ROWS)
    snapshots.settle(taken.id, known)
    if later is known:
        snapshots.settle(taken.id, later)
    else:
        with pytest.raises(StoreError, match=f"snapshot {taken.id} is settled otherwise, or gone"):
            snapshots.settle(taken.id, later)
    assert states(snapshots) == {taken.id: known}


def test_what_is_not_there_cannot_be_settled(snapshots: Snapshots) -> None:
    with pytest.raises(StoreError, match="is settled otherwise, or gone"):
        snapshots.settle(new_ulid(), COMMITTED)


def undo(snapshots: Snapshots, *undone: str) -> str:
    """Take the snapshot of an undo, and commit it."""
    taken = take(snapshots, ROWS, undoes=undone)
    snapshots.settle(taken.id, COMMITTED)
    return taken.id


def undone_by(snapshots: Snapshots) -> dict[str, str | None]:
    return {record.id: record.undone_by for record in snapshots.list()}


def test_an_undo_marks_what_it_undid_when_it_is_committed(snapshots: Snapshots) -> None:
    one, two, three = (take(snapshots, ROWS).id for _ in range(3))
    marker = take(snapshots, ROWS, undoes=(one, two))
    assert snapshots.find(marker.id).undoes == (one, two)
    assert undone_by(snapshots) == {one: None, two: None, three: None, marker.id: None}
    snapshots.settle(marker.id, COMMITTED)
    assert undone_by(snapshots) == {one: marker.id, two: marker.id, three: None, marker.id: None}


@pytest.mark.parametrize("outcome", [ABORTED, UNKNOWN])
def test_an_undo_that_is_not_committed_marks_nothing(snapshots: Snapshots, outcome: SnapshotState) -> None:
    one = take(snapshots, ROWS).id
    marker = take(snapshots, ROWS, undoes=(one,)).id
    snapshots.settle(marker, outcome)
    assert undone_by(snapshots)[one] is None


def test_an_undo_that_is_undone_and_done_again_takes_its_marks_along(snapshots: Snapshots) -> None:
    write = undo(snapshots)
    first = undo(snapshots, write)
    assert undone_by(snapshots) == {write: first, first: None}
    second = undo(snapshots, first)
    assert undone_by(snapshots) == {write: None, first: second, second: None}
    third = undo(snapshots, second)
    assert undone_by(snapshots) == {write: first, first: None, second: third, third: None}
    undo(snapshots, third)
    assert undone_by(snapshots)[write] is None


def test_an_undo_counts_again_when_all_that_took_it_back_is_undone_at_once(snapshots: Snapshots) -> None:
    write = undo(snapshots)
    first = undo(snapshots, write)
    second = undo(snapshots, first)
    third = undo(snapshots, write)
    assert undone_by(snapshots)[write] == third
    fourth = undo(snapshots, second, third)
    assert undone_by(snapshots) == {write: first, first: None, second: fourth, third: fourth, fourth: None}


def test_undos_of_each_other_are_damage(snapshots: Snapshots) -> None:
    one, other = new_ulid(), new_ulid()
    take(snapshots, ROWS, identifier=one, undoes=(other,))
    take(snapshots, ROWS, identifier=other, undoes=(one,))
    snapshots.settle(one, COMMITTED)
    with pytest.raises(StoreError, match="the index of snapshots is damaged: undos of each other"):
        snapshots.settle(other, COMMITTED)


def test_an_undo_that_is_settled_twice_marks_once(snapshots: Snapshots) -> None:
    """Two walls may find the same outcome, the second one late."""
    write = undo(snapshots)
    first = undo(snapshots, write)
    second = undo(snapshots, first)
    snapshots.settle(first, COMMITTED)
    assert undone_by(snapshots) == {write: None, first: second, second: None}


class Undoing(RuleBasedStateMachine):
    """Whatever is written and undone, in whatever order: a snapshot is marked if a snapshot that is in force undid it."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = open_store(self.folder / f"{new_ulid()}.sqlite")
        self.snapshots = Snapshots(self.engine, "memory:///")
        self.undoes: dict[str, tuple[str, ...]] = {}

    folder: Path

    def in_force(self) -> list[str]:
        """From the newest to the oldest: in force is what nothing in force has undone."""
        gone: set[str] = set()
        for identifier in reversed(self.undoes):
            if identifier not in gone:
                gone.update(self.undoes[identifier])
        return [identifier for identifier in self.undoes if identifier not in gone]

    @rule()
    def write(self) -> None:
        """A transaction writes."""
        self.undoes[undo(self.snapshots)] = ()

    @precondition(lambda self: self.undoes)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        """One transaction undoes some of what is in force."""
        chosen = data.draw(st.lists(st.sampled_from(self.in_force()), min_size=1, max_size=3, unique=True))
        self.undoes[undo(self.snapshots, *chosen)] = tuple(chosen)

    @precondition(lambda self: self.undoes)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        """Somebody else finds the outcome too."""
        self.snapshots.settle(data.draw(st.sampled_from(list(self.undoes))), COMMITTED)

    @invariant()
    def what_is_marked_is_what_is_undone(self) -> None:
        """By the one that is in force."""
        in_force = self.in_force()
        expected: dict[str, str | None] = dict.fromkeys(self.undoes)
        for identifier in in_force:
            expected.update(dict.fromkeys(self.undoes[identifier], identifier))
        assert undone_by(self.snapshots) == expected

    def teardown(self) -> None:
        """Let the store go."""
        self.engine.dispose()


def test_what_is_undone_is_marked_in_any_order(tmp_path: Path) -> None:
    Undoing.folder = tmp_path
    run_state_machine_as_test(
        Undoing, settings=settings(max_examples=20, stateful_step_count=12, deadline=None)
    )


# -- finding


def test_snapshots_are_listed_newest_first_by_what_is_asked(snapshots: Snapshots) -> None:
    old = take(snapshots, ROWS, identifier=ulid_of(NOON), created=NOON, agent="ada", xid="7").id
    new = take(snapshots, ROWS).id
    snapshots.settle(old, COMMITTED)

    def found(**wanted: object) -> list[str]:
        return [record.id for record in snapshots.list(**wanted)]  # type: ignore[arg-type]

    assert found() == [new, old]
    assert found(limit=1) == [new]
    assert found(agent="ada") == [old]
    assert found(agent="nobody") == []
    assert found(transaction="4711") == [new]
    assert found(state=COMMITTED) == [old]
    assert found(since=NOON) == [new, old]
    assert found(since=NOON + timedelta(microseconds=1)) == [new]
    assert found(since=NOON.astimezone(), agent="ada") == [old]


def test_a_snapshot_is_found_by_the_beginning_of_its_id(snapshots: Snapshots) -> None:
    one = take(snapshots, ROWS, identifier="01AAAAAAAAAAAAAAAAAAAAAAA1").id
    other = take(snapshots, ROWS, identifier="01AAAAAAAAAAAAAAAAAAAAAAA2").id
    third = take(snapshots, ROWS, identifier="01B_AAAAAAAAAAAAAAAAAAAAAA").id
    assert snapshots.find(one).id == one
    assert snapshots.find(f" {other.lower()}\n").id == other
    assert snapshots.find("01b").id == third
    with pytest.raises(SnapshotError, match="begins the ids of several snapshots"):
        snapshots.find("01A")
    for absent in ("", " ", "02", "%", "01_", "01A%", f"{one}0"):
        with pytest.raises(SnapshotError, match="there is no snapshot"):
            snapshots.find(absent)


# -- retention


def test_prune_removes_by_age(snapshots: Snapshots) -> None:
    ids = [undo_at(snapshots, NOON + timedelta(hours=hours)) for hours in range(4)]
    due = snapshots.prune(before=NOON + timedelta(hours=2), dry_run=True)
    assert [record.id for record in due] == ids[:2]
    assert len(snapshots.list()) == 4
    assert [record.id for record in snapshots.prune(before=NOON + timedelta(hours=2))] == ids[:2]
    assert sorted(states(snapshots)) == ids[2:]
    assert sorted(snapshots.blobs.keys()) == ids[2:]


def undo_at(snapshots: Snapshots, moment: datetime, state: SnapshotState = COMMITTED) -> str:
    """A settled snapshot of a moment."""
    identifier = take(snapshots, ROWS, identifier=ulid_of(moment), created=moment).id
    if state is not PREPARED:
        snapshots.settle(identifier, state)
    return identifier


def test_prune_removes_the_oldest_until_the_rest_is_small_enough(snapshots: Snapshots) -> None:
    ids = [undo_at(snapshots, NOON + timedelta(hours=hours)) for hours in range(4)]
    sizes = [record.size for record in reversed(snapshots.list())]
    assert snapshots.prune(max_bytes=sum(sizes)) == []
    assert [record.id for record in snapshots.prune(max_bytes=sum(sizes) - 1)] == ids[:1]
    assert [record.id for record in snapshots.prune(max_bytes=sizes[3])] == ids[1:3]
    assert [record.id for record in snapshots.list()] == ids[3:]


def test_prune_without_a_bound_removes_nothing(snapshots: Snapshots) -> None:
    undo_at(snapshots, NOON)
    assert snapshots.prune() == []
    assert snapshots.prune(max_bytes=0) == []
    assert len(snapshots.list()) == 1


@pytest.mark.parametrize("state", [PREPARED, UNKNOWN])
def test_prune_leaves_what_is_not_settled(snapshots: Snapshots, state: SnapshotState) -> None:
    undo_at(snapshots, NOON, state)
    assert snapshots.prune(before=utc_now(), max_bytes=1) == []


def test_prune_leaves_what_is_locked(tmp_path: Path) -> None:
    snapshots = open_snapshots(tmp_path, lock_seconds=3600)
    long_ago = undo_at(snapshots, utc_now() - timedelta(hours=2))
    locked = undo_at(snapshots, utc_now() - timedelta(minutes=30))
    assert [record.id for record in snapshots.prune(before=utc_now(), max_bytes=1)] == [long_ago]
    assert [record.id for record in snapshots.list()] == [locked]
    assert snapshots.verify(locked) == []


def test_prune_is_not_disturbed_by_foreign_names(snapshots: Snapshots) -> None:
    """Not even by one that would be a moment beyond the calendar."""
    undo_at(snapshots, NOON)
    names = ("Z" * 26, "7" + "Z" * 25, "notes", "01jd0000000000000000000000", "01JD000000000000000000000U")
    for name in names:
        (Path(snapshots.blobs.place) / f"{name}.snapshot").write_bytes(b"")
    snapshots.prune()
    assert set(names) <= set(snapshots.blobs.keys())


# -- the lock


@pytest.fixture
def locked(tmp_path: Path) -> Snapshots:
    """With one snapshot that is locked for an hour."""
    snapshots = open_snapshots(tmp_path, lock_seconds=3600)
    undo_at(snapshots, utc_now())
    return snapshots


SHORTER: dict[str, str] = {
    "delete": "DELETE FROM sqlwall_snapshots",
    "update": "UPDATE sqlwall_snapshots SET locked_until = '2000-01-01T00:00:00.000000Z'",
    "update or replace": "UPDATE OR REPLACE sqlwall_snapshots SET locked_until = ''",
    "replace": "REPLACE INTO sqlwall_snapshots SELECT * FROM sqlwall_snapshots",
    "upsert": (
        "INSERT INTO sqlwall_snapshots SELECT * FROM sqlwall_snapshots WHERE true"
        " ON CONFLICT (id) DO UPDATE SET locked_until = ''"
    ),
    "rename": "UPDATE sqlwall_snapshots SET id = 'x'",
}


@pytest.mark.parametrize("how", SHORTER)
def test_a_lock_cannot_be_shortened(locked: Snapshots, how: str) -> None:
    (before,) = locked.list()
    with pytest.raises(StoreError, match=r"under a retention lock|is there already"):
        with writing(locked.engine) as connection:
            connection.exec_driver_sql(SHORTER[how])
    assert locked.list() == [before]


def test_a_lock_can_be_made_longer(locked: Snapshots) -> None:
    (before,) = locked.list()
    later = before.locked_until + timedelta(days=1)
    with writing(locked.engine) as connection:
        connection.execute(SNAPSHOTS.update().values(locked_until=format_time(later)))
    assert [record.locked_until for record in locked.list()] == [later]


def test_a_shorter_lock_in_the_configuration_leaves_those_that_are(locked: Snapshots) -> None:
    again = Snapshots(locked.engine, locked.blobs.place, lock_seconds=0)
    assert again.prune(before=utc_now() + timedelta(days=1)) == []
    with pytest.raises(StoreError, match="under a retention lock"):
        again._remove(again.list()[0].id)
    assert again.verify(again.list()[0].id) == []


def test_what_is_settled_or_undone_stays_locked(locked: Snapshots) -> None:
    (record,) = locked.list()
    undo(locked, record.id)
    assert undone_by(locked)[record.id] is not None
    assert locked.prune(before=utc_now() + timedelta(days=1)) == []


# -- export


def test_an_export_is_what_copy_reads_and_a_manifest(tmp_path: Path) -> None:
    snapshots = open_snapshots(tmp_path, KEY)
    taken = take(snapshots, ROWS, ([b"5\n"], []))
    folder = tmp_path / "out" / "here"
    written = snapshots.export(taken.id, folder)
    assert [path.name for path in written] == [
        "001-before.copy", "001-after.copy", "002-before.copy", "002-after.copy", "manifest.json",
    ]  # fmt: skip
    assert [path.read_bytes() for path in written[:4]] == [
        b"".join(ROWS[0]), b"".join(ROWS[1]), b"5\n", b"",
    ]  # fmt: skip
    assert json.loads(written[4].read_bytes())["id"] == taken.id
    assert sorted(folder.iterdir()) == sorted(written)


def test_an_export_overwrites_nothing(snapshots: Snapshots, tmp_path: Path) -> None:
    taken = take(snapshots, ROWS)
    snapshots.export(taken.id, tmp_path / "out")
    with pytest.raises(FileExistsError):
        snapshots.export(taken.id, tmp_path / "out")


def test_a_damaged_snapshot_is_not_exported_as_if_it_were_whole(snapshots: Snapshots, tmp_path: Path) -> None:
    taken = take(snapshots, ROWS)
    blob = bytearray(blob_of(snapshots, taken.id).read_bytes())
    blob[10] ^= 1
    blob_of(snapshots, taken.id).write_bytes(blob)
    with pytest.raises(SnapshotError, match="is damaged"):
        snapshots.export(taken.id, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def columns(snapshots: Snapshots) -> Sequence[str]:
    with reading(snapshots.engine) as connection:
        return [column["name"] for column in sa.inspect(connection).get_columns("sqlwall_snapshots")]


def test_the_schema_is_what_the_migrations_make(snapshots: Snapshots) -> None:
    assert columns(snapshots) == [column.name for column in SNAPSHOTS.columns]
