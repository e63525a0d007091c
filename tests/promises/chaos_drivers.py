"""The drivers that chaos speaks through, made alike: a text goes in, its outcome comes out as a `Failed` or as nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pg8000.native
import psycopg

T = TypeVar("T")

#: Seconds in which any single call must be over, whatever was killed, stalled or cancelled.
PATIENCE = 25.0


class FailedError(Exception):
    """A statement that did not succeed. Without `sqlstate` the line was lost, and nobody knows what became of it."""

    def __init__(self, sqlstate: str | None, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.detail = detail


class Driver(Protocol):
    """One session."""

    @property
    def is_closed(self) -> bool:
        """Whether it is known to be over."""

    def run(self, text: str) -> None:
        """One statement outside a block. Raises FailedError."""

    def run_block(self, texts: Sequence[str]) -> None:
        """All of them in one transaction block. Raises FailedError; the block has been rolled back."""

    def cancel(self) -> None:
        """Ask the wall to cancel what the session does; from another thread."""

    def close(self) -> None:
        """End it; never raises."""


class Psycopg:
    """psycopg by simple Query, by the extended protocol, or in pipelines."""

    def __init__(self, dsn: str, way: str) -> None:
        self._way = way
        try:
            self._connection = psycopg.connect(dsn, autocommit=True, connect_timeout=int(PATIENCE))
        except psycopg.Error as error:
            raise self._failure(error) from error
        self._connection.prepare_threshold = 2

    @property
    def is_closed(self) -> bool:
        return self._connection.closed

    def run(self, text: str) -> None:
        with self._translated():
            if self._way == "simple":
                psycopg.ClientCursor(self._connection).execute(text.encode())
            elif self._way == "pipeline":
                with self._connection.pipeline():
                    self._connection.execute("SELECT 1")
                    self._connection.execute(text.encode())
            else:
                self._connection.execute(text.encode(), binary=True)

    def run_block(self, texts: Sequence[str]) -> None:
        with self._translated():
            if self._way == "pipeline":
                with self._connection.pipeline(), self._connection.transaction():
                    for text in texts:
                        self._connection.execute(text.encode())
                return
            with self._connection.transaction():
                for text in texts:
                    self._connection.execute(text.encode(), binary=self._way == "extended")

    def cancel(self) -> None:
        with contextlib.suppress(psycopg.Error, OSError):
            self._connection.cancel_safe(timeout=PATIENCE)

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except psycopg.Error as error:
            if self._connection.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF:
                # libpq cannot take an error in the place of a Sync, where a commit fails; nor from the server itself.
                self._connection.close()
            elif not self._connection.closed:
                with contextlib.suppress(psycopg.Error):
                    self._connection.rollback()
            raise self._failure(error) from error

    @staticmethod
    def _failure(error: psycopg.Error) -> FailedError:
        return FailedError(error.sqlstate, str(error), error.diag.message_detail or "")


class Asyncpg:
    """asyncpg: the extended protocol, prepared by name, binary results."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        try:
            self._connection: Any = self._await(asyncpg.connect(dsn, timeout=PATIENCE, ssl=False))
        except BaseException:
            self._runner.close()
            raise

    @property
    def is_closed(self) -> bool:
        return bool(self._connection.is_closed())

    def run(self, text: str) -> None:
        self._await(self._connection.fetch(text))

    def run_block(self, texts: Sequence[str]) -> None:
        async def block() -> None:
            async with self._connection.transaction():
                for text in texts:
                    await self._connection.execute(text)

        self._await(block())

    def cancel(self) -> None:
        """Its own way to cancel belongs to its loop; nobody else may use it."""

    def close(self) -> None:
        with contextlib.suppress(FailedError):
            self._await(self._connection.close(timeout=PATIENCE))
        self._runner.close()

    def _await(self, answer: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(answer)
        except asyncpg.PostgresError as error:
            raise FailedError(error.sqlstate, str(error), getattr(error, "detail", None) or "") from error
        except TimeoutError as error:
            raise FailedError("hangs", "asyncpg waited in vain") from error
        except (asyncpg.InterfaceError, OSError, asyncio.IncompleteReadError) as error:
            raise FailedError(None, repr(error)) from error


class Pg8000:
    """pg8000: pure Python, simple Query outside parameters."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._is_closed = False
        with self._translated():
            self._connection: Any = pg8000.native.Connection(
                parts.username, parts.hostname, parts.path[1:], parts.port, parts.password, timeout=PATIENCE
            )

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def run(self, text: str) -> None:
        with self._translated():
            self._connection.run(text)

    def run_block(self, texts: Sequence[str]) -> None:
        with self._translated():
            try:
                for text in ("BEGIN", *texts):
                    self._connection.run(text)
                self._connection.run("COMMIT")
            except pg8000.native.DatabaseError:
                self._connection.run("ROLLBACK")
                raise

    def cancel(self) -> None:
        """A CancelRequest by hand: the driver has none."""
        process_id, secret = self._connection._backend_key_data[:4], self._connection._backend_key_data[4:]
        request = struct.pack("!II", 12 + len(secret), 80877102) + process_id + secret
        address = self._connection._usock.getpeername()
        with contextlib.suppress(OSError), socket.create_connection(address, PATIENCE) as line:
            line.sendall(request)
            line.recv(1)

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(pg8000.native.Error, OSError, struct.error):
            self._connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except pg8000.native.DatabaseError as error:
            fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
            self._is_closed = fields.get("S") == "FATAL" or not fields
            raise FailedError(fields.get("C"), fields.get("M", str(error)), fields.get("D", "")) from error
        except TimeoutError as error:
            self._is_closed = True
            raise FailedError("hangs", "pg8000 waited in vain") from error
        except (pg8000.native.Error, OSError, struct.error, AttributeError) as error:
            self._is_closed = True
            raise FailedError(None, repr(error)) from error


class Rude:
    """A session whose bytes are our own, and whose end is a reset."""

    def __init__(self, dsn: str) -> None:
        try:
            login = psycopg.connect(dsn, autocommit=True, connect_timeout=int(PATIENCE))
        except psycopg.Error as error:
            raise FailedError(error.sqlstate, str(error)) from error
        self._socket = socket.socket(fileno=os.dup(login.fileno()))
        self._socket.setblocking(True)
        self._socket.settimeout(PATIENCE)
        # libpq says goodbye to nobody: the last that our side says is what a test has sent.
        with Path(os.devnull).open("r+b", buffering=0) as nothing:
            os.dup2(nothing.fileno(), login.fileno())
        login.close()

    def send(self, data: bytes) -> None:
        """Raises FailedError once the line is gone."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise FailedError(None, repr(error)) from error

    def read_until_ready(self) -> bytes:
        """Everything up to ReadyForQuery, which must be the last. Raises FailedError once the line is gone."""
        found = b""
        while found[-6:-1] != b"Z\0\0\0\5":
            found += self.read(65536)
        return found

    def read(self, size: int) -> bytes:
        """Some bytes. Raises FailedError once the line is gone."""
        try:
            data = self._socket.recv(size)
        except TimeoutError as error:
            raise FailedError("hangs", "nothing came") from error
        except OSError as error:
            raise FailedError(None, repr(error)) from error
        if not data:
            raise FailedError(None, "closed")
        return data

    def reset(self) -> None:
        """End the line with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
