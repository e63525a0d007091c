"""Whatever is killed, and whenever: no agent's write is committed without its snapshot, no client waits for ever, and
every snapshot ends as its transaction did.

``SQLWALL_CRASHES`` says how many kills there are, ``SQLWALL_CRASH_SEED`` which ones.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from sqlwall.config import Secret, Upstream
from sqlwall.errors import UpstreamError
from sqlwall.proxy.guard import Keeper
from sqlwall.proxy.settle import settle_all
from sqlwall.proxy.undo import Undoer, open_undo
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.snapshot.manifest import Manifest
from sqlwall.store.database import writing
from sqlwall.store.index import SnapshotRecord, SnapshotState
from sqlwall.store.snapshots import Snapshots
from sqlwall.store.stamp import new_ulid
from tests.e2e.wall import APP, RunningWall, running_wall
from tests.promises.crash import (
    OBSERVER,
    OBSERVER_PASSWORD,
    Cluster,
    Victim,
    mortal_cluster,
    scene,
)

#: Few enough for every run of the tests; by hand there may be hundreds.
CRASHES = int(os.environ.get("SQLWALL_CRASHES", "10"))
#: Seconds at most from the moment when all write until the blow.
DELAY = 0.2
#: Kills between two looks at everything.
STRETCH = 50


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with mortal_cluster() as found:
        yield found


@pytest.mark.timeout(120 + 15 * CRASHES)
def test_no_crash_parts_a_committed_write_from_its_snapshot(tmp_path: Path) -> None:
    seed = os.environ.get("SQLWALL_CRASH_SEED") or secrets.token_hex(4)
    print(f"seed {seed}")
    chance = random.Random(seed)
    struck = 0
    while struck < CRASHES:
        folder = tmp_path / str(struck)
        folder.mkdir()
        with mortal_cluster() as cluster, scene(cluster, folder) as found:
            found.start_writers()
            found.await_progress()
            for victim in victims(min(STRETCH, CRASHES - struck), chance):
                time.sleep(chance.uniform(0, DELAY))  # the blow falls anywhere
                found.strike(victim, chance)
                found.await_progress()
                struck += 1
                print(f"{struck}: {victim.value}", flush=True)
            assert found.stop_writers() == []
            assert found.settle() == []
            assert found.findings() == []
            print(found.summary(), flush=True)


def victims(count: int, chance: random.Random) -> list[Victim]:
    """So many, each kind about as often as the others."""
    kinds = list(Victim)
    chosen = [kinds[number % len(kinds)] for number in range(count)]
    chance.shuffle(chosen)
    return chosen


@dataclass(frozen=True, slots=True)
class Keeping:
    """A wall before the cluster that keeps snapshots."""

    wall: RunningWall
    keeper: Keeper

    @property
    def snapshots(self) -> Snapshots:
        return self.keeper.snapshots

    def settle(self) -> int:
        """How many snapshots are open still."""
        return self.wall.run(settle_all(self.keeper.snapshots, self.keeper.observers))

    def write(self, token: str) -> SnapshotRecord:
        """The only snapshot, of an agent's write."""
        with self.wall.connect() as agent:
            agent.execute(f"UPDATE account SET token = '{token}' WHERE id = 1".encode())
        self.settle()
        (record,) = self.snapshots.list()
        return record


@pytest.fixture
def keeping(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeping]:
    settings = {"observer__dsn": cluster.database.dsn(OBSERVER, OBSERVER_PASSWORD), "snapshots__url": "kept"}
    monkeypatch.chdir(tmp_path)
    with running_wall(cluster.database, tmp_path, **settings) as wall:
        keeper = wall.wall.worker.keeper
        assert keeper is not None
        yield Keeping(wall, keeper)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_id_that_a_crash_gives_out_again_settles_no_snapshot_wrongly(
    cluster: Cluster, keeping: Keeping, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What a killed server had not flushed it forgets, ids of transactions too: it gives them to the next."""
    snapshots = keeping.snapshots
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "enter", killing(cluster, moment, snapshots.enter))
        with keeping.wall.connect() as agent, pytest.raises(psycopg.Error):
            agent.execute("UPDATE account SET token = 'lost' WHERE id = 1")
    with cluster.connect() as direct:
        others = [
            direct.execute(
                "INSERT INTO ledger VALUES (%s) RETURNING pg_current_xact_id()::text", (str(n),)
            ).fetchone()
            for n in range(10)
        ]
    still_open = keeping.settle()
    # Where the crash came before the blob could be kept, the index has forgotten the snapshot.
    for record in snapshots.list():
        assert (record.xid,) not in others
        assert record.state is SnapshotState.ABORTED
        assert snapshots.verify(record.id) == []
    assert still_open == 0


def test_a_snapshot_without_a_blob_is_never_taken_for_committed(keeping: Keeping) -> None:
    """Wall and server died between the row in the index and the blob; the id has become another transaction's."""
    snapshots = keeping.snapshots
    kept = keeping.write("kept")
    manifest = replace(snapshots.open(kept.id).manifest, id=new_ulid())
    writer = snapshots.writer(manifest.id)
    writer.finish_writing(manifest)
    with writing(snapshots.engine) as connection:
        writer.enter(manifest, connection)
    writer.abort()
    assert keeping.settle() == 1
    assert {record.id: record.state for record in snapshots.list()} == {
        kept.id: SnapshotState.COMMITTED,
        manifest.id: SnapshotState.UNKNOWN,
    }


def test_a_snapshot_without_a_blob_of_a_write_that_never_was_is_forgotten_unless_it_is_locked(
    cluster: Cluster, keeping: Keeping
) -> None:
    """The wall died between the row in the index and the blob, and the server rolled back."""
    snapshots = keeping.snapshots
    kept = keeping.write("kept")
    locked = Snapshots(snapshots.engine, "kept", lock_seconds=86400)
    ids = []
    for store in (snapshots, locked):
        with cluster.connect() as direct, direct.transaction(force_rollback=True):
            row = direct.execute("SELECT pg_current_xact_id()::text").fetchone()
            assert row is not None
        manifest = replace(snapshots.open(kept.id).manifest, id=new_ulid(), xid=row[0])
        writer = store.writer(manifest.id)
        writer.finish_writing(manifest)
        with writing(snapshots.engine) as connection:
            writer.enter(manifest, connection)
        writer.abort()
        ids.append(manifest.id)
    assert keeping.settle() == 0
    assert {record.id: record.state for record in snapshots.list()} == {
        kept.id: SnapshotState.COMMITTED,
        ids[1]: SnapshotState.ABORTED,
    }


@contextmanager
def undoing(cluster: Cluster, snapshots: Snapshots) -> Iterator[Undoer]:
    """A session that undoes, of a role of its own."""
    with cluster.connect() as direct:
        direct.execute("CREATE ROLE undoing LOGIN SUPERUSER PASSWORD 'undoing'")
    server = cluster.database.server
    settings = UpstreamSettings.of(
        Upstream(host=server.host, port=server.port, user="undoing", password=Secret("undoing"))
    )
    with open_undo(settings, cluster.database.name) as connection:
        yield Undoer(connection, snapshots, lambda _: None)


def test_an_id_that_a_crash_gives_out_again_is_no_end_of_an_undo(
    cluster: Cluster, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = keeping.snapshots
    record = keeping.write("written")
    with undoing(cluster, snapshots) as undoer, monkeypatch.context() as patched:
        patched.setattr(snapshots, "enter", killing(cluster, "after", snapshots.enter, "undoing"))
        with pytest.raises(UpstreamError):
            undoer.undo([record], actor="test", dry_run=False)
    with cluster.connect() as direct:
        for number in range(10):
            direct.execute("INSERT INTO ledger VALUES (%s)", (str(number),))
        assert direct.execute("SELECT token FROM account WHERE id = 1").fetchone() == ("written",)
    assert keeping.settle() == 0
    assert snapshots.find(record.id).undone_by is None
    assert [found.state for found in snapshots.list() if found.undoes] == [SnapshotState.ABORTED]


def killing(
    cluster: Cluster, moment: str, enter: Callable[..., None], role: str = APP
) -> Callable[..., None]:
    """An `enter` during which a backend of the role dies."""

    def killed(manifest: Manifest, *arguments: object) -> None:
        if moment == "before":
            cluster.kill_backend(role)
        enter(manifest, *arguments)
        if moment == "after":
            cluster.kill_backend(role)

    return killed
