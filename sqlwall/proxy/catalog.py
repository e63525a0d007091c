"""What the database knows, as far as verdicts depend on it: relations, and code that a built-in name could reach.

Read over a side connection of the wall's own, never the agent's session, and read anew when it has changed. Between a
change and the next look (`INTERVAL`) verdicts rest on the old picture; what a statement then does is still behind the
two locks, the read-only session and the gate.
"""

from __future__ import annotations

import asyncio
import logging
import string
import time
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg

from sqlwall.errors import StoreError, first_line
from sqlwall.proxy import catalog_queries as queries
from sqlwall.proxy.picture import BoundCatalog, DatabaseCatalog, Path
from sqlwall.proxy.pictures import Rows, draw
from sqlwall.proxy.tasks import TaskSet

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether anything has changed.
INTERVAL: Final = 2.0
#: Without a look for so many seconds nothing is judged any more: fail closed.
STALE_AFTER: Final = 60.0

#: Longer names are cut, quoted or not (NAMEDATALEN - 1, pg_config_manual.h).
NAME_BYTES: Final = 63
_SPACE: Final = " \t\n\r\f\v"
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def parse_search_path(text: str) -> Path:
    """A value of search_path as schema names, as SplitIdentifierString reads it (utils/adt/varlena.c).

    Quoted names are as they are, others in lower case, of ASCII letters only. A value that the server would refuse
    gives what can be made of it.
    """
    names: list[str] = []
    name, quoted, was_quoted, index = "", False, False, 0
    while index < len(text):
        character = text[index]
        if quoted:
            if character == '"' and text[index + 1 : index + 2] == '"':
                name += '"'
                index += 1
            elif character == '"':
                quoted = False
            else:
                name += character
        elif character == '"':
            quoted = was_quoted = True
        elif character == ",":
            names.append(name)
            name, was_quoted = "", False
        elif character not in _SPACE:
            name += character if was_quoted else character.translate(_LOWER)
        index += 1
    names.append(name)
    return tuple(_cut(found) for found in names if found)


def _cut(name: str) -> str:
    return name.encode()[:NAME_BYTES].decode(errors="ignore")


@dataclass(slots=True)
class _State:
    picture: DatabaseCatalog
    fingerprint: tuple[Any, ...]
    generation: int
    looked_at: float
    bound: dict[tuple[Path, str], BoundCatalog] = field(default_factory=dict)


class CatalogCache:
    """The catalog of one database, kept up to date by a side connection."""

    def __init__(
        self, conninfo: str, database: str, *, interval: float = INTERVAL, stale_after: float = STALE_AFTER
    ) -> None:
        self._conninfo = conninfo
        self._database = database
        self._interval = interval
        self._stale_after = stale_after
        self._state: _State | None = None
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._lock = asyncio.Lock()
        self._tasks = TaskSet()
        self._is_watched = False
        self._users = 0

    @property
    def generation(self) -> int:
        """Grows with every change. Raises StoreError if nothing has been heard of the database for too long."""
        state = self._state
        # Asked for every segment: the loop's own clock, which is the same one, costs a system call to find.
        if state is None or time.monotonic() - state.looked_at >= self._stale_after:
            raise StoreError(f"the catalog of {self._database} is not known")
        return state.generation

    @property
    def is_fresh(self) -> bool:
        """Whether the picture was compared with the database a short time ago."""
        state = self._state
        return state is not None and time.monotonic() - state.looked_at < self._stale_after

    @property
    def is_stale(self) -> bool:
        """Whether somebody uses it and it is not fresh."""
        return self._users > 0 and not self.is_fresh

    def bind(self, search_path: Path, user: str) -> BoundCatalog:
        """The picture under one search_path. Raises StoreError."""
        state = self._state
        if state is None:
            raise StoreError(f"the catalog of {self._database} is not known")
        found = state.bound.get((search_path, user))
        if found is None:
            if len(state.bound) > 1000:
                state.bound.clear()
            found = state.picture.bind(search_path, user)
            state.bound[search_path, user] = found
        return found

    async def acquire(self) -> DatabaseCatalog:
        """The picture as of now, kept up to date until `release`. Raises StoreError."""
        state = self._state
        if state is None or time.monotonic() - state.looked_at > self._interval:
            await self.refresh()
        self._users += 1
        if not self._is_watched:
            self._is_watched = True
            self._tasks.spawn(self._watch(), f"catalog of {self._database}")
        assert self._state is not None
        return self._state.picture

    async def release(self) -> None:
        """One user less; with the last the side connection is closed, so that nothing of ours holds the database."""
        self._users -= 1
        if self._users == 0:
            async with self._lock:
                if self._users == 0:
                    await self._drop_connection()

    async def refresh(self) -> None:
        """Look whether anything has changed, and load it anew if so. Raises StoreError."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._stale_after / 2):
                    await self._refresh()
            except (psycopg.Error, OSError) as error:  # a TimeoutError is an OSError
                await self._drop_connection()
                raise StoreError(
                    f"the catalog of {self._database} cannot be read: {first_line(error)}"
                ) from error

    async def close(self) -> None:
        """Stop watching."""
        await self._tasks.close()
        await self._drop_connection()

    async def _refresh(self) -> None:
        connection = await self._connect()
        now = time.monotonic()
        fingerprint = (await (await connection.execute(queries.FINGERPRINT)).fetchall())[0]
        state = self._state
        if state is not None and state.fingerprint == fingerprint:
            state.looked_at = now
            return
        picture = await _load(connection)
        generation = state.generation + 1 if state is not None else 1
        self._state = _State(picture, fingerprint, generation, now)

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo,
                autocommit=True,
                application_name="sqlwall catalog",
                # Behind a pooler in transaction mode a prepared statement may not be there the next time.
                prepare_threshold=None,
                options="-c default_transaction_read_only=on -c search_path=pg_catalog -c statement_timeout=30s",
            )
        return self._connection

    async def _drop_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            if not self._users:
                continue
            try:
                await self.refresh()
            except StoreError as error:
                logger.warning("%s", error)


async def _load(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> DatabaseCatalog:
    """Everything in one read-only snapshot, so that its parts fit each other."""

    async def ask(query: LiteralString) -> list[tuple[Any, ...]]:
        return await (await connection.execute(query)).fetchall()

    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        user, barred = (await ask(queries.SCHEMAS))[0]
        rows = Rows(
            user=user,
            barred=barred,
            relations=await ask(queries.RELATIONS),
            readers=await ask(queries.READERS),
            children=await ask(queries.CHILDREN),
            view_calls=await ask(queries.VIEW_CALLS),
            functions=await ask(queries.FUNCTIONS),
            operators=await ask(queries.OPERATORS),
            types=await ask(queries.TYPES),
            type_calls=await ask(queries.TYPE_CALLS),
            column_types=await ask(queries.COLUMN_TYPES),
        )
    return await asyncio.to_thread(draw, rows, connection.info.server_version // 10_000)
