"""Writes the audit record: a chain of its own per process, and a thread that groups what many sessions submit.

A record is durable when its future is done. A batch that failed was never chained: the next one takes its place, so an
outage leaves no gap, only a `RESUMED` record that says it happened. While the store fails nothing is accepted for
later but what has happened already: `submit` fails and `note` says no, and the statement that asked is refused.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from sqlwall.errors import StoreError
from sqlwall.store.chain import (
    FIELDS,
    NO_HASH,
    STATEMENT_LIMIT,
    AuditedText,
    AuditKind,
    AuditRecord,
    Head,
    StoredRecord,
    Value,
    chained,
)
from sqlwall.store.database import describe, writing
from sqlwall.store.queue import FairQueue
from sqlwall.store.schema import AUDIT, HEADS
from sqlwall.store.stamp import new_ulid

__all__ = [
    "STATEMENT_LIMIT",
    "AuditKind",
    "AuditLog",
    "AuditRecord",
    "AuditState",
    "AuditWriter",
    "AuditedText",
    "Head",
    "StoredRecord",
]

_COLUMNS: Final = (*FIELDS, "hash")
_INSERT_HEAD: Final = sa.insert(HEADS)
_READ_HEAD: Final = sa.select(HEADS.c.sequence, HEADS.c.hash).where(
    HEADS.c.writer == sa.bindparam("of_writer")
)
_MOVE_HEAD: Final = (
    sa.update(HEADS)
    .where(HEADS.c.writer == sa.bindparam("of_writer"), HEADS.c.hash == sa.bindparam("old_hash"))
    .values(sequence=sa.bindparam("new_sequence"), hash=sa.bindparam("new_hash"))
)

#: Something else that is written in the transaction of a record. It runs in the log's thread, raises only where the
#: store itself fails, and does no harm if it runs twice.
Beside = Callable[[Connection], None]

#: Seconds that what is written beside no record of its own waits for one: somebody may look for it.
BESIDE_LINGER: Final = 0.01

#: Commits whose answer never came that are remembered until the store says what became of them.
_DOUBTS: Final = 16


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Records that are durable if a commit that failed was made all the same, and where the chain ends then."""

    records: Sequence[AuditRecord]
    head: Head


class AuditWriter:
    """Appends to one chain. Not thread-safe, and of no use in a forked child: two processes would share a chain."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = new_ulid()
        self._pid = os.getpid()
        self._head: Head | None = None
        self._doubts: deque[_Doubt] = deque(maxlen=_DOUBTS)
        self._insert = _insert_text(engine)

    @property
    def writer(self) -> str:
        """The id of this chain."""
        return self._writer

    @property
    def head(self) -> Head | None:
        """The last record known to be durable; None before the first."""
        return self._head

    def append(self, records: Sequence[AuditRecord], beside: Sequence[Beside] = ()) -> None:
        """Chain `records` and make them durable in one transaction, with what is written `beside` them.

        The first record of all is the genesis, which the first call puts before its own.

        Raises StoreError if that failed; then none of them is in the chain, unless the store lost only the answer to
        COMMIT. If so, the next call finds them, and skips those that it is given again.
        """
        if os.getpid() != self._pid:
            raise StoreError("an audit chain belongs to the process that began it")
        with writing(self._engine) as connection:
            for write in beside:
                write(connection)
            if beside and not records:
                return
            base, missing = self._settle(connection, records)
            rows, head = self._chain(base, missing)
            if rows:
                # Straight to the driver, which takes 5 us a row where SQLAlchemy's executemany takes 13.
                connection.exec_driver_sql(self._insert, rows)
                self._move_head(connection, base, head)
                # Only from here on can the transaction have become durable without our knowing.
                # All of `records` are durable then: those that are not missing were so in an earlier doubt.
                self._doubts.append(_Doubt(tuple(records), head))
        self._head = head
        self._doubts.clear()

    def _settle(
        self, connection: Connection, records: Sequence[AuditRecord]
    ) -> tuple[Head | None, Sequence[AuditRecord]]:
        """Where the chain ends, and which of `records` are not in it yet."""
        if not self._doubts:
            return self._head, records
        row = connection.execute(_READ_HEAD, {"of_writer": self._writer}).one_or_none()
        stored = None if row is None else Head(self._writer, row.sequence, row.hash)
        if stored == self._head:
            return stored, records
        for doubt in self._doubts:
            if doubt.head == stored:
                durable = {id(record) for record in doubt.records}
                return stored, [record for record in records if id(record) not in durable]
        raise self._broken()

    def _chain(
        self, base: Head | None, records: Sequence[AuditRecord]
    ) -> tuple[list[tuple[Value, ...]], Head]:
        if base is None:
            sequence, prev_hash = 0, NO_HASH
            records = (AuditRecord(AuditKind.GENESIS), *records)
        else:
            sequence, prev_hash = base.sequence + 1, base.hash
        rows: list[tuple[Value, ...]] = []
        for number, record in enumerate(records, sequence):
            values = chained(record, self._writer, number, prev_hash)
            rows.append(values)
            prev_hash = str(values[-1])
        return rows, Head(self._writer, sequence + len(rows) - 1, prev_hash)

    def _move_head(self, connection: Connection, base: Head | None, head: Head) -> None:
        if base is None:
            connection.execute(
                _INSERT_HEAD, {"writer": head.writer, "sequence": head.sequence, "hash": head.hash}
            )
            return
        moved = connection.execute(
            _MOVE_HEAD,
            {
                "of_writer": self._writer,
                "old_hash": base.hash,
                "new_sequence": head.sequence,
                "new_hash": head.hash,
            },
        )
        if moved.rowcount != 1:
            raise self._broken()

    def _broken(self) -> StoreError:
        return StoreError(
            f"store {describe(self._engine)}: someone changed the audit chain {self._writer} that this process writes"
        )


def _insert_text(engine: Engine) -> str:
    """An INSERT of one record, its values by position."""
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    marks = ", ".join([mark] * len(_COLUMNS))
    return f"INSERT INTO {AUDIT.name} ({', '.join(_COLUMNS)}) VALUES ({marks})"  # noqa: S608


class AuditState(Enum):
    """Whether records are accepted."""

    HEALTHY = "healthy"
    FAILED = "failed"
    CLOSED = "closed"


class _Entry:
    """A record that waits, what is written with it, and who waits for it; no future for a note."""

    __slots__ = ("beside", "future", "record", "since")

    def __init__(
        self,
        record: AuditRecord | None,
        future: Future[None] | None,
        since: float,
        beside: Beside | None = None,
    ) -> None:
        self.record: Final = record
        self.future: Final = future
        self.since: Final = since
        self.beside: Final = beside


class AuditLog:
    """The front of an `AuditWriter`: any thread hands records in, one thread writes them in order.

    `capacity` bounds the notes that wait; submits have as much again. No agent may have more waiting than there is room
    left for others, which is half if it is alone: whoever has nothing waiting is not refused for what another one has.
    Batches take from all agents in turn. `batch` and `linger` (seconds) say how many notes, or for how long, may wait
    for company; a submit is written at once with all that came before it. An agent's records are written in the order
    in which they came: when one is durable, so are those before it. A failed log tries again every `retry` seconds, and
    whenever something is submitted.
    """

    def __init__(
        self,
        writer: AuditWriter,
        *,
        capacity: int = 8192,
        batch: int = 2048,
        linger: float = 0.05,
        retry: float = 1.0,
    ) -> None:
        self._writer = writer
        self._capacity = capacity
        self._batch = batch
        self._linger = linger
        self._retry = retry
        self._queue: FairQueue[_Entry] = FairQueue()
        self._wake = threading.Condition()
        self._urgent = 0
        self._state = AuditState.HEALTHY
        self._is_closing = False
        self._error = ""
        self._retry_at = 0.0
        self._current: list[tuple[str, _Entry]] = []
        self._failures = 0
        self._outage = 0
        self._written = 0
        self._writing = threading.Thread(target=self._run, name="sqlwall-audit", daemon=True)
        self._writing.start()

    def submit(self, record: AuditRecord, beside: Beside | None = None) -> Future[None]:
        """Write `record` now, and with it what is `beside` it.

        The future is done when both are durable; its exception is the StoreError if they are not.

        It cannot be cancelled: a client that has gone away has not undone what it asked for.
        """
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        with self._wake:
            refusal = self._refusal(record.agent or "")
            if refusal is None:
                self._queue.append(record.agent or "", _Entry(record, future, time.monotonic(), beside))
                self._urgent += 1
                if self._urgent == 1:
                    self._wake.notify()
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def note(self, *records: AuditRecord) -> bool:
        """Write `records` soon. False means that none was taken, and the statement must wait or be refused.

        They are few: the last ones may stand beyond the capacity.
        """
        now = time.monotonic()
        return self._note([_Entry(record, None, now) for record in records])

    def remember(self, *records: AuditRecord) -> bool:
        """Write what has happened already soon, or when the store works again. False means that there is no room."""
        now = time.monotonic()
        return self._note([_Entry(record, None, now) for record in records], has_happened=True)

    def note_beside(self, beside: Beside) -> bool:
        """Write this sooner than a note, with records or without. False means that it was not taken."""
        return self._note([_Entry(None, None, time.monotonic(), beside)])

    def _note(self, entries: list[_Entry], *, has_happened: bool = False) -> bool:
        with self._wake:
            waiting = len(self._queue)
            first = entries[0].record
            agent = (first.agent or "") if first is not None else ""
            is_failed = self._state is AuditState.FAILED
            if self._is_closing or self._state is AuditState.CLOSED or (is_failed and not has_happened):
                return False
            if self._queue.waiting(agent) >= self._capacity - waiting:
                return False
            for entry in entries:
                self._queue.append(agent, entry)
            if waiting == 0 or first is None or waiting < self._batch <= len(self._queue):
                self._wake.notify()
            return True

    @property
    def is_accepting(self) -> bool:
        """Whether a note would be taken now, of an agent that has none waiting."""
        return (
            self._state is AuditState.HEALTHY and not self._is_closing and len(self._queue) < self._capacity
        )

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken, of whatever kind."""
        return self._is_closing or len(self._queue) >= self._capacity

    @property
    def state(self) -> AuditState:
        """Whether the last write succeeded."""
        return self._state

    @property
    def error(self) -> str:
        """Why the last write failed; empty when it did not."""
        return self._error

    @property
    def failures(self) -> int:
        """Failed writes so far."""
        return self._failures

    @property
    def written(self) -> int:
        """Records made durable so far."""
        return self._written

    @property
    def waiting(self) -> int:
        """Records that wait for the next write."""
        return len(self._queue)

    @property
    def head(self) -> Head | None:
        """The last durable record of this process."""
        return self._writer.head

    def lag(self) -> float:
        """Seconds that the oldest record that is not durable has waited; 0 if there is none."""
        with self._wake:
            now = time.monotonic()
            return now - min((entry.since for entry in self._oldest()), default=now)

    def _oldest(self) -> Iterator[_Entry]:
        """One of these has waited longest."""
        yield from (entry for _, entry in self._current)
        yield from self._queue.heads()

    def close(self, timeout: float | None = None) -> None:
        """Write what waits and end the thread. Raises StoreError if records were left unwritten."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._writing.join(timeout)
        if self._writing.is_alive():
            raise StoreError(f"the audit log did not close within {timeout} s")
        if self._queue:
            raise StoreError(f"{len(self._queue)} audit records could not be written: {self._error}")

    def _refusal(self, agent: str) -> StoreError | None:
        if self._state is AuditState.CLOSED or self._is_closing:
            return StoreError("the audit log is closed")
        if self._queue.waiting(agent) >= 2 * self._capacity - len(self._queue):
            return StoreError("the audit log is full: the store is too slow")
        return None

    def _run(self) -> None:
        try:
            while self._write_next():
                pass
        finally:
            self._end()

    def _write_next(self) -> bool:
        """Wait for a batch, append it and answer those who wait; False after the last one."""
        batch = self._next_batch()
        records = [entry.record for _, entry in batch if entry.record is not None]
        beside = [entry.beside for _, entry in batch if entry.beside is not None]
        if self._state is AuditState.FAILED:
            records.insert(0, self._resumed())
        try:
            if records or beside:
                self._writer.append(records, beside)
        except StoreError as error:
            self._fail(batch, str(error))
            return not self._is_closing
        self._succeed(batch, len(records))
        return not self._is_closing or bool(self._queue)

    def _next_batch(self) -> list[tuple[str, _Entry]]:
        with self._wake:
            while (pause := self._pause()) > 0:
                self._wake.wait(pause)
            batch = self._queue.take(self._batch)
            self._urgent -= sum(entry.future is not None for _, entry in batch)
            self._current = batch
            return batch

    def _pause(self) -> float:
        """Seconds to wait before writing what there is."""
        if self._is_closing or self._urgent:
            return 0.0
        if self._state is AuditState.FAILED:
            return self._retry_at - time.monotonic()
        if not self._queue:
            return threading.TIMEOUT_MAX
        if len(self._queue) >= self._batch:
            return 0.0
        lingers = self._linger, min(self._linger, BESIDE_LINGER)
        due = min(entry.since + lingers[entry.record is None] for entry in self._queue.heads())
        return due - time.monotonic()

    def _resumed(self) -> AuditRecord:
        return AuditRecord(AuditKind.RESUMED, reason=f"after {self._outage} failed writes: {self._error}")

    def _succeed(self, batch: list[tuple[str, _Entry]], count: int) -> None:
        with self._wake:
            self._state, self._error, self._outage = AuditState.HEALTHY, "", 0
            self._written += count
            self._current = []
        for _, entry in batch:
            if entry.future is not None:
                entry.future.set_result(None)

    def _fail(self, batch: list[tuple[str, _Entry]], error: str) -> None:
        """Notes go back to where they were, for their statements have run. Submits are told, and theirs refused."""
        with self._wake:
            self._state, self._error = AuditState.FAILED, error
            self._failures += 1
            self._outage += 1
            self._retry_at = time.monotonic() + self._retry
            self._queue.put_back(waiting for waiting in batch if waiting[1].future is None)
            self._current = []
        for _, entry in batch:
            if entry.future is not None:
                entry.future.set_exception(StoreError(error))

    def _end(self) -> None:
        """No one waits for a thread that is gone, whatever ended it."""
        with self._wake:
            self._state = AuditState.CLOSED
            stranded = [*self._current, *self._queue.take(len(self._queue))]
            self._current = []
            self._queue.put_back(waiting for waiting in stranded if waiting[1].future is None)
        for _, entry in stranded:
            if entry.future is not None and not entry.future.done():
                entry.future.set_exception(
                    StoreError(f"the audit log has ended: {self._error or 'no reason'}")
                )
