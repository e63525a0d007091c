"""Undo: brings back what transactions changed, all of it or nothing, and only where nobody has written since.

One transaction of the undo role: every row that the snapshot's transaction left must be there as it was left, is
locked, taken away, and the row before is put back; then everything is compared with the snapshot, and foreign keys are
checked both ways. What undo does is snapshotted before its COMMIT, so that it can be undone in turn (promise 4).

Blocking: it is for a command or a thread of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.abc import QueryNoTemplate as Query
from psycopg.pq import TransactionStatus

from sqlwall.errors import SnapshotError, UpstreamError, first_line
from sqlwall.proxy.integrity import Conflicts, Counts, Integrity, check_none, key_columns
from sqlwall.proxy.redefine import Redefinition
from sqlwall.proxy.settle import OUTCOMES
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.snapshot import queries, trash, undo
from sqlwall.snapshot.images import EXACT_SETTINGS
from sqlwall.snapshot.manifest import Change, Column, Manifest, Move, Part, swapped
from sqlwall.snapshot.undo import Conflict, ConflictKind, Restore
from sqlwall.store.index import SnapshotRecord, SnapshotState
from sqlwall.store.snapshots import SnapshotReader, Snapshots
from sqlwall.store.stamp import format_time, new_ulid, utc_now

#: How long undo waits for a row or table that somebody else holds (milliseconds).
LOCK_TIMEOUT: Final = 5000
#: Bytes of images that gather before they are written.
PAGE: Final = 1 << 20

#: Checks, domains, generated columns and indexes may call functions that name others without a schema. They run where
#: rows are written, and only there names are looked up beyond PostgreSQL's own.
WIDE_PATH: Final = "SET LOCAL search_path = pg_catalog, public"
EXACT_PATH: Final = f"SET LOCAL search_path = {EXACT_SETTINGS['search_path']}"

Connection = psycopg.Connection[tuple[Any, ...]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """What undo does to one table: rows taken away, and rows put back. An updated row is one of each."""

    snapshot: str
    relation: str
    removed: int
    put_back: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What undo did or would do. `snapshots` are those of the undo itself, empty if nothing was changed; `redefined`
    says what it does besides rows.
    """

    restored: tuple[Restored, ...]
    conflicts: tuple[Conflict, ...]
    snapshots: tuple[str, ...]
    redefined: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Step:
    """One snapshot on its way back."""

    number: int
    reader: SnapshotReader
    changes: tuple[tuple[Change, Restore], ...]

    @property
    def id(self) -> str:
        """The snapshot's id."""
        return self.reader.manifest.id


def open_undo(settings: UpstreamSettings, database: str) -> Connection:
    """A session of the undo role. Raises UpstreamError."""
    options = {
        **EXACT_SETTINGS,
        "row_security": "off",
        "lock_timeout": str(LOCK_TIMEOUT),
        "synchronous_commit": "on",
        "client_encoding": "UTF8",
    }
    try:
        return psycopg.connect(
            settings.conninfo(database),
            autocommit=True,
            application_name="sqlwall undo",
            options=" ".join(f"-c {name}={value}" for name, value in options.items()),
        )
    except psycopg.Error as error:
        raise UpstreamError(f"undo role: {_reason(error)}") from error


class Undoer:
    """Undoes on one session. Nothing else may use it meanwhile."""

    def __init__(self, connection: Connection, snapshots: Snapshots, progress: Progress) -> None:
        self._connection = connection
        self._snapshots = snapshots
        self._progress = progress

    def undo(self, records: Sequence[SnapshotRecord], *, actor: str, dry_run: bool) -> Outcome:
        """Undo these snapshots, the latest first. With conflicts, or in a dry run, nothing is changed.

        Raises SnapshotError for a snapshot that cannot be undone here at all, UpstreamError if the server fails.
        """
        wanted = sorted({record.id for record in records}, reverse=True)
        self._settle_undos(wanted)
        readers = [self._open(self._snapshots.find(one)) for one in wanted]
        with self._failures(), self._connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            try:
                outcome = self._in_transaction(readers, actor=actor, dry_run=dry_run)
            except Conflicts as found:
                outcome = Outcome((), found.conflicts, ())
            finally:
                self._leave(cursor)
        return outcome

    def rehearse(self, snapshot_id: str) -> Sequence[str]:
        """Read a snapshot into temporary tables of its tables' types, and out again; what differs, in words."""
        reader = self._reader(snapshot_id)
        faults: list[str] = []
        with self._failures(), self._connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            try:
                (step,) = self._steps([reader])
                self._load(step)
                for change, restore in step.changes:
                    for kind, part in (("after", change.after), ("before", change.before)):
                        digest = hashlib.sha256()
                        if change.columns and part.rows:
                            with cursor.copy(
                                restore.unload(kind, step.number, change.columns).encode()
                            ) as rows:
                                for data in rows:
                                    digest.update(data)
                            if digest.hexdigest() != part.digest:
                                faults.append(f"{change.label}: rows {kind} come back otherwise")
            except Conflicts as found:
                faults += [str(conflict) for conflict in found.conflicts]
            finally:
                self._leave(cursor)
        return faults

    def discard(self, move: Move) -> bool:
        """Drop a table in the trash for good; False if it is not there any more. Raises UpstreamError."""
        with self._failures():
            found = self._rows(trash.found_at([move.oid]).decode())
            if [tuple(row[1:]) for row in found] != [(trash.SCHEMA, move.trash)]:
                return False
            self._do(trash.discard(move))
        return True

    def _leave(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        """End a transaction that was not committed."""
        if self._connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            cursor.execute("ROLLBACK")

    # -- what is to be undone

    def _settle_undos(self, wanted: Sequence[str]) -> None:
        """What became of earlier undos of these whose end nobody has written down."""
        for record in self._snapshots.unsettled():
            for undone in set(wanted).intersection(record.undoes):
                with self._failures():
                    ((system, _, _),) = self._rows(queries.IDENTITY)
                    ((status,),) = self._rows(queries.STATUS, [record.xid])
                state = OUTCOMES.get(status or "") if system == record.system else None
                if state is None:
                    raise SnapshotError(
                        f"snapshot {undone} is being undone by {record.id}, whose end is not known yet"
                    )
                self._snapshots.settle(record.id, state)

    def _open(self, record: SnapshotRecord) -> SnapshotReader:
        if record.state is not SnapshotState.COMMITTED:
            raise SnapshotError(
                f"snapshot {record.id} is {record.state.value}: its transaction changed nothing that is known of"
                if record.state is SnapshotState.ABORTED
                else f"snapshot {record.id} is {record.state.value}: whether its transaction was committed is not known"
            )
        if record.undone_by is not None:
            raise SnapshotError(f"snapshot {record.id} was undone already, by {record.undone_by}")
        return self._reader(record.id)

    def _reader(self, snapshot_id: str) -> SnapshotReader:
        reader = self._snapshots.open(snapshot_id)
        with self._failures():
            ((system, database, _),) = self._rows(queries.IDENTITY)
        manifest = reader.manifest
        if (system, database) != (manifest.system, manifest.database_oid):
            raise SnapshotError(
                f"snapshot {manifest.id} is of another database: {manifest.database} of system {manifest.system},"
                f" this is {self._connection.info.dbname} of system {system}"
            )
        return reader

    def _in_transaction(self, readers: Sequence[SnapshotReader], *, actor: str, dry_run: bool) -> Outcome:
        integrity = Integrity(self._do, self._rows)
        manifests = [reader.manifest for reader in readers]
        redefinition = Redefinition(self._do, self._rows)
        check_none(redefinition.begin(manifests))
        steps = self._steps(readers)
        restores = list({restore.oid: restore for step in steps for _, restore in step.changes}.values())
        self._enter_mode(restores, integrity)
        for step in steps:
            self._load(step)
        references = integrity.references(restores)
        restored: list[Restored] = []
        for step in steps:
            self._progress(f"undoing {step.id}")
            restored += self._take_back(step)
        integrity.check(steps[0].id if len(steps) == 1 else "", restores, references)
        check_none(redefinition.end(manifests))
        integrity.check_written({restore.oid: restore.label for restore in restores}, _written(steps))
        taken = () if dry_run else self._commit(steps, actor, redefinition)
        return Outcome(tuple(restored), (), taken, redefinition.plan)

    def _steps(self, readers: Sequence[SnapshotReader]) -> list[_Step]:
        """What each snapshot changed, on the tables as they are now."""
        oids = sorted({change.oid for reader in readers for change in reader.manifest.changes})
        tables = {row[0]: row for row in self._rows(queries.RELATIONS, [oids])}
        indexes = self._rows(undo.KEYS, [oids])
        keys = {row[0]: row for row in indexes if row[2] and row[4]}
        late = {row[0] for row in indexes if not row[3]}
        rules = {row[0] for row in self._rows("SELECT ev_class::int8 FROM pg_rewrite WHERE ev_class = ANY (%s::oid[])",
                                              [oids])}  # fmt: skip
        row_types = self._rows(undo.ROW_TYPES, [oids])
        restores: dict[int, Restore] = {}
        conflicts: list[Conflict] = []
        steps: list[_Step] = []
        for number, reader in enumerate(readers):
            manifest = reader.manifest
            conflicts += self._retyped(manifest, row_types)
            changes: list[tuple[Change, Restore]] = []
            for change in manifest.changes:
                row = tables.get(change.oid)
                if row is None:
                    conflicts.append(Conflict(manifest.id, change.label, ConflictKind.MISSING))
                    continue
                columns = tuple(Column(c, t, int(n), *more) for c, t, n, *more in row[6] or ())
                if differing := undo.differences(change, columns):
                    conflicts.append(Conflict(manifest.id, change.label, ConflictKind.ALTERED, "", differing))
                    continue
                if change.oid not in restores:
                    key = key_columns(keys[change.oid][6]) if change.oid in keys else ()
                    restores[change.oid] = Restore(
                        len(restores), change.oid, row[1], row[2], columns, key,
                        takes_on_conflict=change.oid not in rules and change.oid not in late,
                    )  # fmt: skip
                    for sql in restores[change.oid].prepare():
                        self._do(sql)
                changes.append((change, restores[change.oid]))
            steps.append(_Step(number, reader, tuple(changes)))
        if conflicts:
            raise Conflicts(conflicts)
        return steps

    def _retyped(self, manifest: Manifest, row_types: Sequence[Sequence[Any]]) -> Iterator[Conflict]:
        """Row types that were altered since: a value would come back in whatever stands at its place now."""
        if not row_types:
            return
        labels = {change.oid: change.label for change in manifest.changes}
        ((age,),) = self._rows(undo.AGE, [manifest.xid])
        for oid, column, name, altered in row_types:
            if oid in labels and altered < age:
                what = f"row type {name} of column {column} was altered"
                yield Conflict(manifest.id, labels[oid], ConflictKind.ALTERED, "", what)

    def _enter_mode(self, restores: Sequence[Restore], integrity: Integrity) -> None:
        """Switch triggers and foreign keys off; without the right to, only what has none can be done exactly."""
        oids = [restore.oid for restore in restores]
        ((may_replicate,),) = self._rows(undo.MAY_REPLICATE)
        if may_replicate:
            self._do("SET LOCAL session_replication_role = replica")
        labels = {restore.oid: restore.label for restore in restores}
        conflicts = [
            Conflict("", labels[oid], ConflictKind.UNSUPPORTED, "", f"{name} acts {why}")
            for oid, name, acts_in_replica, acts_else in self._rows(undo.ACTORS, [oids, oids])
            for why in (
                ("even where undo switches triggers off",) if acts_in_replica and may_replicate
                else ("on each row, and the undo role may not switch it off: see sqlwall provision",)
                if acts_else and not may_replicate
                else ()
            )
        ]  # fmt: skip
        if not may_replicate:
            conflicts += [
                Conflict("", labels[oid], ConflictKind.UNSUPPORTED, "",
                         f"foreign key {reference.name} refers to it, and the undo role may not switch it off:"
                         " see sqlwall provision")
                for reference in integrity.references(restores) for oid in reference.parents
            ]  # fmt: skip
        if conflicts:
            raise Conflicts(conflicts)

    # -- doing it

    def _load(self, step: _Step) -> None:
        """Bring the images into the database."""
        self._progress(f"reading {step.id}")
        self._do(WIDE_PATH)
        for change, restore in step.changes:
            for kind, part in (("after", change.after), ("before", change.before)):
                self._do(restore.begin_step(kind, step.number))
                if not part.rows:
                    continue
                if not change.columns:
                    self._do(restore.load_empty(kind, part.rows))
                    continue
                with self._connection.cursor() as cursor, cursor.copy(restore.load(kind).encode()) as rows:
                    for data in step.reader.copy(part):
                        rows.write(data)
                self._do(restore.analyze(kind))
        self._do(EXACT_PATH)

    def _take_back(self, step: _Step) -> list[Restored]:
        """The rows of one snapshot: compare all, then take away, then put back, then compare again."""
        conflicts: list[Conflict] = []
        for change, restore in step.changes:
            if change.after.rows:
                conflicts += self._find(step, change, restore)
        if conflicts:
            raise Conflicts(conflicts)
        for change, restore in step.changes:
            if change.after.rows and self._do(restore.remove(step.number)) != change.after.rows:
                raise Conflicts([Conflict(step.id, change.label, ConflictKind.MOVING)])
        self._do(WIDE_PATH)
        for change, restore in step.changes:
            if change.before.rows:
                self._do(restore.put_back(step.number))
        self._do(EXACT_PATH)
        for change, restore in step.changes:
            conflicts += [
                Conflict(
                    step.id,
                    change.label,
                    ConflictKind.KEY_REUSED if is_taken else ConflictKind.UNIQUE_TAKEN,
                    row,
                )
                for row, is_taken in (self._rows(restore.missing(step.number)) if change.before.rows else ())
            ]
        if conflicts:
            raise Conflicts(conflicts)
        return [
            Restored(step.id, change.label, change.after.rows, change.before.rows)
            for change, _ in step.changes
        ]

    def _find(self, step: _Step, change: Change, restore: Restore) -> Iterator[Conflict]:
        """Find and lock the rows that the transaction left; what is not as it was left."""
        self._do(restore.match(step.number, 1))
        self._do(restore.lock(step.number))
        self._do(restore.match(step.number, 2))
        for row, is_there, differing in self._rows(restore.mismatches(step.number)):
            kind = ConflictKind.CHANGED if is_there else ConflictKind.GONE
            yield Conflict(step.id, change.label, kind, row, differing)
        for (row,) in self._rows(restore.unlocked(step.number)):
            yield Conflict(step.id, change.label, ConflictKind.MOVING, row)

    # -- keeping it

    def _commit(self, steps: Sequence[_Step], actor: str, redefinition: Redefinition) -> tuple[str, ...]:
        """Snapshot the undo itself, then commit."""
        ((xid,),) = self._rows(undo.TRANSACTION)
        self._flush()
        taken: list[str] = []
        try:
            for step in steps:
                taken.append(_next_id(taken))
                self._keep(step, taken[-1], xid, actor, redefinition.values(step.id))
            self._progress("committing")
            redefinition.apply()
            self._do("COMMIT")
        except BaseException:
            # Without an answer to COMMIT its outcome is not known; `pg_xact_status` tells later.
            if not self._connection.closed:
                self._settle(taken, SnapshotState.ABORTED)
            raise
        self._settle(taken, SnapshotState.COMMITTED)
        return tuple(taken)

    def _flush(self) -> None:
        """From here on nobody else is ever given our transaction's id: see `queries.FLUSH`."""
        info = self._connection.info
        with psycopg.connect(info.dsn, password=info.password, autocommit=True) as other:
            other.execute(queries.FLUSH.encode())

    def _settle(self, taken: Sequence[str], state: SnapshotState) -> None:
        known = {record.id for record in self._snapshots.unsettled()}
        for identifier in taken:
            if identifier in known:
                self._snapshots.settle(identifier, state)

    def _keep(self, step: _Step, identifier: str, xid: str, actor: str, redefined: Mapping[str, Any]) -> None:
        old = step.reader.manifest
        writer = self._snapshots.writer(identifier, [old.id])

        def copied(part: Part) -> Part:
            writer.begin()
            for lines, rows in _pages(step.reader, part):
                writer.write(lines, rows)
            return writer.end()

        try:
            new: Manifest = swapped(
                old, id=identifier, created=format_time(utc_now()), agent=actor, session="", ruleset="",
                xid=xid, statements=(f"undo of {old.id}",), **redefined,
            )  # fmt: skip
            writer.finish(new.with_parts(copied))
        except BaseException:
            writer.abort()
            raise

    # -- talking

    def _do(self, sql: str) -> int:
        return self._connection.execute(sql.encode()).rowcount

    def _rows(self, sql: Query, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        query = sql.encode() if isinstance(sql, str) else sql
        return self._connection.execute(query, parameters).fetchall()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except psycopg.errors.LockNotAvailable as error:
            raise UpstreamError(
                f"undo waited {LOCK_TIMEOUT // 1000} s for what somebody else holds; nothing was changed, try again"
            ) from error
        except psycopg.IntegrityError as error:
            raise SnapshotError(f"undo breaks a constraint, nothing was changed: {_reason(error)}") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise UpstreamError(
                f"the undo role may not, nothing was changed: {_reason(error)}; see sqlwall provision"
            ) from error
        except psycopg.Error as error:
            is_lost = self._connection.closed
            then = "its outcome is not known yet" if is_lost else "nothing was changed"
            raise UpstreamError(f"undo failed, {then}: {_reason(error)}") from error


def _written(steps: Sequence[_Step]) -> Mapping[int, Counts]:
    """The rows that these put back and take away, by the object id of their table."""
    written: dict[int, Counts] = {}
    for change in (change for step in steps for change, _ in step.changes):
        put_back, removed = written.get(change.oid, (0, 0))
        written[change.oid] = (put_back + change.before.rows, removed + change.after.rows)
    return written


def _next_id(taken: Sequence[str]) -> str:
    """An id that sorts behind these: the order of undoing them again."""
    while True:
        identifier = new_ulid()
        if not taken or identifier > taken[-1]:
            return identifier


def _pages(reader: SnapshotReader, part: Part) -> Iterator[tuple[bytes, int]]:
    """The lines of a part, many at a time, and how many."""
    lines: list[bytes] = []
    size = 0
    for line in reader.lines(part):
        lines.append(line)
        size += len(line)
        if size >= PAGE:
            yield b"".join(lines), len(lines)
            lines, size = [], 0
    if lines:
        yield b"".join(lines), len(lines)


def _reason(error: psycopg.Error) -> str:
    detail = error.diag.message_detail
    return f"{first_line(error)} ({detail})" if detail else first_line(error)
