"""The observer: sessions of a role of its own that see committed rows while an agent's transaction is still open.

It reads everything and writes nothing, whatever the agent may read (DESIGN section 4). Where row security would hide a
row from it, it fails instead (`row_security = off`).
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.abc import QueryNoTemplate as Query
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from sqlwall.errors import UpstreamError, first_line
from sqlwall.snapshot import queries
from sqlwall.snapshot.images import EXACT_SETTINGS
from sqlwall.snapshot.manifest import Column

#: Sessions of one worker with one database; more guarded commits wait for each other.
SESSIONS = 4
#: Seconds in which there must be an answer, or so many more lines of one: a server that hangs must not hold an agent's
#: commit for ever.
ANSWER_TIMEOUT = 60.0
LINES = 1000
#: Bytes of lines that are handed on together.
PAGE = 1 << 18
#: An agent's transaction may hold what we want to read: TRUNCATE and ALTER do (milliseconds).
LOCK_TIMEOUT = 5000


@dataclass(frozen=True, slots=True)
class Identity:
    """Which cluster and database an observer looks at, and whether our functions are there (`snapshot.provision`)."""

    system: str
    database_oid: int
    server_version: int
    has_helpers: bool


@dataclass(frozen=True, slots=True)
class Table:
    """What must be known of a table before its rows are read.

    `size` is in bytes, without indexes and TOAST; `rows` is the server's estimate, -1 if it has none. `is_readable`
    says that the observer may read every row of it.
    """

    oid: int
    schema: str
    name: str
    kind: str
    size: int
    rows: float
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    is_readable: bool

    @property
    def names(self) -> tuple[str, str]:
        """Schema and name."""
        return self.schema, self.name


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A reference between two tables. `pairs`: the child's column, the parent's, the operator's schema and name."""

    child: int
    parent: int
    pairs: tuple[tuple[str, ...], ...]


class BlockedError(UpstreamError):
    """The observer would have had to wait too long for a lock: somebody holds it, or stands in the queue before."""


class Observer:
    """One session. Its errors are UpstreamError: without it nothing is proven."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], identity: Identity) -> None:
        self._connection = connection
        self._is_cancelled = False
        self.identity = identity

    @property
    def has_helpers(self) -> bool:
        """Whether the agent's session can be asked past row security."""
        return self.identity.has_helpers

    @property
    def is_usable(self) -> bool:
        """Whether it can be used again.

        One that has something to say unasked has been ended meanwhile, and a cancel may be late: it would hit the next.
        """
        if self._connection.closed or self._is_cancelled:
            return False
        poll = select.poll()
        poll.register(self._connection.pgconn.socket, select.POLLIN)
        return not poll.poll(0)

    async def close(self) -> None:
        """End it."""
        await self._connection.close()

    async def tables(self, oids: Sequence[int]) -> dict[int, Table]:
        """What there is to know of these tables, by object id."""
        found: dict[int, Table] = {}
        for oid, schema, name, kind, size, rows, columns, key, is_readable in await self.fetch(
            queries.RELATIONS, (list(oids),)
        ):
            listed = tuple(
                Column(column, kind_of, int(number), *more)
                for column, kind_of, number, *more in columns or ()
            )
            found[oid] = Table(oid, schema, name, kind, size, rows, listed, tuple(key or ()), is_readable)
        return found

    async def foreign_keys(self, oids: Sequence[int]) -> list[ForeignKey]:
        """The foreign keys between these tables."""
        rows = await self.fetch(queries.FOREIGN_KEYS, (list(oids), list(oids)))
        return [
            ForeignKey(child, parent, tuple(tuple(pair) for pair in pairs)) for child, parent, pairs in rows
        ]

    async def fetch(self, sql: Query, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        async with self._answering():
            cursor = await self._connection.execute(sql, parameters)
            return await cursor.fetchall()

    async def run(self, sql: str) -> bytes | None:
        """The first value of the first row of one query in its text form, None without a row.

        Half the cost of `fetch`: libpq is asked directly.
        """
        async with self._answering():
            await self._send(sql)
            result = await self._result()
            value = result.get_value(0, 0) if result is not None and result.ntuples else None
            await self._drain(result)
            return value

    async def pages(self, sql: str) -> AsyncIterator[list[bytes]]:
        """The lines of a COPY TO STDOUT without their ends, as many at a time as came together.

        A fraction of the cost of `copy`. To be read to its end: what is left early leaves the session of no use.
        """
        pgconn = self._connection.pgconn
        async with self._answering() as timeout:
            await self._send(sql)
            result = await self._result()
            if result is None or result.status != ExecStatus.COPY_OUT:
                await self._drain(result)
                raise UpstreamError("observer: the server sent no rows")
            lines, size = list[bytes](), 0
            while True:
                length, data = pgconn.get_copy_data(1)
                if length > 0:
                    lines.append(bytes(data[: length - 1]))
                    size += length
                    if size < PAGE:
                        continue
                if lines:
                    yield lines
                    lines, size = [], 0
                    timeout.reschedule(asyncio.get_running_loop().time() + ANSWER_TIMEOUT)
                if length < 0:
                    break
                if length == 0:
                    await self._ready(reading=True)
                    pgconn.consume_input()
            await self._drain(await self._result())

    async def cancel(self) -> None:
        """End what it runs now, if anything, with an error. It is of no use afterwards."""
        self._is_cancelled = True
        try:
            await self._connection.cancel_safe(timeout=ANSWER_TIMEOUT)
        except psycopg.Error as error:
            raise UpstreamError(f"observer: {first_line(error)}") from error

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT) as timeout:
                yield timeout
        except psycopg.errors.LockNotAvailable as error:
            raise BlockedError(f"observer: {first_line(error)}") from error
        except psycopg.Error as error:
            raise UpstreamError(f"observer: {first_line(error)}") from error
        except TimeoutError as error:
            raise UpstreamError(f"observer: no answer within {ANSWER_TIMEOUT:.0f} s") from error

    async def _send(self, sql: str) -> None:
        pgconn = self._connection.pgconn
        pgconn.send_query_params(sql.encode(), None)
        while pgconn.flush():
            await self._ready(reading=False)

    async def _result(self) -> PGresult | None:
        pgconn = self._connection.pgconn
        while pgconn.is_busy():
            await self._ready(reading=True)
            pgconn.consume_input()
        return pgconn.get_result()

    async def _drain(self, result: PGresult | None) -> None:
        """Read what is left of an answer. Raises UpstreamError if an error is in it."""
        failure: psycopg.Error | None = None
        while result is not None:
            if result.status == ExecStatus.FATAL_ERROR:
                failure = psycopg.errors.error_from_result(result)
            result = await self._result()
        if failure is not None:
            raise failure

    async def _ready(self, *, reading: bool) -> None:
        """Wait until the socket can be read or written."""
        loop = asyncio.get_running_loop()
        descriptor = self._connection.pgconn.socket
        waiter: asyncio.Future[None] = loop.create_future()
        add, remove = (
            (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
        )
        add(descriptor, _wake, waiter)
        try:
            await waiter
        finally:
            remove(descriptor)

    async def copy(self, sql: str) -> AsyncIterator[bytes]:
        """The lines of a COPY TO STDOUT. It may be left early."""
        async with (
            self._answering() as timeout,
            self._connection.cursor() as cursor,
            cursor.copy(sql.encode()) as rows,
        ):
            loop, number = asyncio.get_running_loop(), 0
            async for line in rows:
                yield bytes(line)
                number += 1
                if number % LINES == 0:
                    timeout.reschedule(loop.time() + ANSWER_TIMEOUT)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Observers:
    """The sessions of one worker, by database. `conninfo` makes a connection string of a database's name."""

    def __init__(self, conninfo: Callable[[str], str]) -> None:
        self._conninfo = conninfo
        self._idle: dict[str, list[Observer]] = {}
        self._room: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def borrow(self, database: str) -> AsyncIterator[Observer]:
        """A session for as long as the block runs. Raises UpstreamError if there is none to be had."""
        room = self._room.setdefault(database, asyncio.Semaphore(SESSIONS))
        async with room:
            observer = await self._take(database)
            try:
                yield observer
            except BaseException:
                await observer.close()
                raise
            self._idle.setdefault(database, []).append(observer)

    async def _take(self, database: str) -> Observer:
        idle = self._idle.get(database, [])
        while idle:
            observer = idle.pop()
            if observer.is_usable:
                return observer
            await observer.close()
        try:
            return await self._connect(database)
        except psycopg.Error as error:
            raise UpstreamError(f"observer of {database}: {first_line(error)}") from error

    async def _connect(self, database: str) -> Observer:
        settings = {
            **EXACT_SETTINGS,
            "default_transaction_read_only": "on",
            "row_security": "off",
            "synchronous_commit": "on",
            "lock_timeout": str(LOCK_TIMEOUT),
            "client_encoding": "UTF8",
        }
        connection = await psycopg.AsyncConnection.connect(
            self._conninfo(database),
            autocommit=True,
            application_name="sqlwall observer",
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        )
        try:
            cursor = await connection.execute(queries.IDENTITY)
            row = await cursor.fetchone()
            helpers = await (await connection.execute(queries.HELPERS)).fetchone()
        except BaseException:
            await connection.close()
            raise
        assert row is not None and helpers is not None
        return Observer(connection, Identity(row[0], row[1], row[2], helpers[0] == queries.HELPER_COUNT))

    async def close(self) -> None:
        """End all that is idle."""
        for observers in self._idle.values():
            while observers:
                await observers.pop().close()
