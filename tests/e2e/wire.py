"""A client that says whatever bytes it is told to: libpq logs in, then its socket is taken over."""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType
from typing import Self

import psycopg

from sqlwall.wire import frontend
from sqlwall.wire.backend import decode_data_row
from sqlwall.wire.frames import Frame, FrameReader, Side

SYNC, FLUSH = frontend.sync(), frontend.flush()


def run(text: str, name: bytes = b"", portal: bytes = b"") -> bytes:
    """Parse, Bind, Execute."""
    return frontend.parse(name, text.encode()) + frontend.bind(portal, name) + frontend.execute(portal)


class RawClient:
    """Sends bytes, reads messages. Each read is bounded by `timeout` seconds."""

    def __init__(self, dsn: str, timeout: float = 10.0) -> None:
        self._login = psycopg.connect(dsn, autocommit=True, connect_timeout=10)
        self._socket = socket.socket(fileno=os.dup(self._login.fileno()))
        self._socket.setblocking(True)
        self._socket.settimeout(timeout)
        self._reader = FrameReader(Side.BACKEND)
        self._frames: list[Frame] = []
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._login.close()

    def send(self, *data: bytes) -> None:
        """Write bytes as they are."""
        self._socket.sendall(b"".join(data))

    def read(self) -> Frame | None:
        """The next message; None once the connection is closed."""
        while not self._frames:
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                self.is_closed = True
                return None
            self._frames.extend(self._reader.feed(data))
        return self._frames.pop(0)

    def until(self, code: str = "Z") -> list[Frame]:
        """Messages up to and with the first of this type, or to the end of the connection."""
        found: list[Frame] = []
        while (frame := self.read()) is not None:
            found.append(frame)
            if frame.type_code == ord(code):
                break
        return found

    def ask(self, *data: bytes) -> list[Frame]:
        """Send, and read up to ReadyForQuery."""
        self.send(*data)
        return self.until()

    def query(self, text: str) -> list[Frame]:
        """One simple Query."""
        return self.ask(frontend.query(text.encode()))

    def silence(self, seconds: float = 0.3) -> bool:
        """Whether the other side says nothing for so long."""
        self._socket.settimeout(seconds)
        try:
            frame = self.read()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(10)
        if frame is not None:
            self._frames.insert(0, frame)
        return False

    def drain(self, seconds: float = 0.5) -> list[Frame]:
        """Everything that comes within so many seconds."""
        found: list[Frame] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.is_closed:
            self._socket.settimeout(left)
            try:
                frame = self.read()
            except TimeoutError:
                break
            if frame is not None:
                found.append(frame)
        self._socket.settimeout(10)
        return found


def codes(frames: list[Frame]) -> str:
    """The message types, as a word."""
    return "".join(chr(frame.type_code) for frame in frames)


def states(frames: list[Frame]) -> list[str]:
    """The SQLSTATEs of the errors, in order."""
    return [error.sqlstate for error in errors(frames)]


def errors(frames: list[Frame]) -> list[ServerError]:
    """The errors, in order."""
    return [ServerError(frame) for frame in frames if frame.type_code == ord("E")]


def rows(frames: list[Frame]) -> list[tuple[bytes | None, ...]]:
    """The rows, in order."""
    return [decode_data_row(frame) for frame in frames if frame.type_code == ord("D")]


def tags(frames: list[Frame]) -> list[bytes]:
    """The command tags, in order."""
    return [frame.raw[5:-1] for frame in frames if frame.type_code == ord("C")]


def status(frames: list[Frame]) -> str:
    """The transaction status of the last ReadyForQuery."""
    return next(chr(frame.raw[5]) for frame in reversed(frames) if frame.type_code == ord("Z"))


class ServerError:
    """An ErrorResponse's fields by their names."""

    def __init__(self, frame: Frame) -> None:
        fields = {chr(part[0]): part[1:].decode() for part in frame.raw[5:-1].split(b"\0") if part}
        self.severity = fields.get("V", "")
        self.sqlstate = fields.get("C", "")
        self.message = fields.get("M", "")
        self.detail = fields.get("D", "")
        self.hint = fields.get("H", "")
        self.constraint = fields.get("n", "")


__all__ = ["FLUSH", "SYNC", "RawClient", "codes", "errors", "rows", "run", "states", "status", "tags"]
