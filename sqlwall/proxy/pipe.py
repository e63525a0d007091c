"""One connection during its login: bytes by `await`, before a protocol of callbacks takes the transport over.

Works on the transports of asyncio and uvloop alike, in plain text and after an upgrade to TLS. Knows no messages.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

#: Unread bytes beyond which the transport is paused. A login is a few kilobytes; nobody has a reason to send more.
HIGH_WATER = 64 * 1024
#: Seconds for a peer to answer our close_notify before the connection is cut.
TLS_SHUTDOWN_TIMEOUT = 5.0


class Pipe(asyncio.Protocol):
    """Bytes of one connection, for one reader. Waiting is bounded by the caller's timeouts, not here."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)  # from connection_made on
        self._unread = bytearray()
        self._is_ended = False
        self._is_lost = False
        self._failure: Exception | None = None
        self._is_upgrading = False
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._is_full = False

    @property
    def is_tls(self) -> bool:
        """Whether the bytes are encrypted on the wire."""
        return self.ssl_object is not None

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone for good."""
        return self._is_lost

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """What asyncio tells of the TLS connection, None in plain text."""
        found: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
        return found

    async def receive(self) -> bytes:
        """All bytes that are there, at least one; ``b""`` once the peer has ended. ConnectionError if it broke off."""
        while not self._unread and not self._is_ended:
            await self._wait_for_bytes()
        if not self._unread and self._failure is not None:
            raise ConnectionResetError(str(self._failure)) from self._failure
        return self.take_rest()

    async def read_exactly(self, count: int) -> bytes:
        """`count` bytes; the rest stays unread. ConnectionError if the peer ends before."""
        assert count >= 0
        while len(self._unread) < count and not self._is_ended:
            self._resume()  # a message longer than the high-water mark still has to come in whole
            await self._wait_for_bytes()
        if len(self._unread) < count:
            raise ConnectionResetError("the peer closed the connection in the middle of its login")
        taken = bytes(self._unread[:count])
        del self._unread[:count]
        if len(self._unread) <= HIGH_WATER:
            self._resume()
        return taken

    def push_back(self, data: bytes) -> None:
        """Put bytes back in front of the unread ones."""
        self._unread[:0] = data

    def take_rest(self) -> bytes:
        """The unread bytes, without waiting; the caller owns them now."""
        rest = bytes(self._unread)
        self._unread.clear()
        self._resume()
        return rest

    def write(self, data: bytes) -> None:
        """Send, or queue to be sent. Nothing happens on a closed connection."""
        if not self.transport.is_closing():
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was written. ConnectionError if it is gone."""
        while self._is_full and not self._is_lost:
            waiter = asyncio.get_running_loop().create_future()
            self._writers.append(waiter)
            try:
                await waiter
            finally:
                self._writers.remove(waiter)
        if self._is_lost:
            raise ConnectionResetError("the connection is closed")

    async def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        """Encrypt from here on. Unread bytes count as the peer's part of the handshake; where none may be, ask before.

        Raises ConnectionError if there is no handshake (the cause is an ssl.SSLError where TLS has one).
        """
        if self._is_ended:
            raise ConnectionResetError("the peer closed the connection before TLS began")
        loop = asyncio.get_running_loop()
        plain = self.transport
        early = bytes(self._unread)
        self._unread.clear()
        self._is_upgrading = True
        if early:
            # Runs before the connection_made that start_tls schedules, so the handshake finds the bytes in place.
            loop.call_soon(_feed_early, plain, early)
        try:
            upgraded = await loop.start_tls(
                plain,
                self,
                context,
                server_side=server_side,
                server_hostname=server_hostname,
                ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT,
            )
        except BaseException as error:
            # Until the handshake is done the TLS protocol tells nobody of the end: this pipe has to hear it here.
            plain.abort()
            self.connection_lost(error if isinstance(error, Exception) else None)
            if isinstance(error, OSError):
                raise ConnectionAbortedError(f"TLS handshake failed: {_tls_reason(error)}") from error
            raise
        finally:
            self._is_upgrading = False
        if upgraded is None:
            self.connection_lost(None)
            raise ConnectionAbortedError("the connection was closed during the TLS handshake")
        self.transport = upgraded
        if len(self._unread) > HIGH_WATER:
            self.transport.pause_reading()

    def hand_over(self, protocol: asyncio.BaseProtocol) -> bytes:
        """Give the transport to `protocol`, reading, and return the bytes that nobody read.

        Its connection_made isn't called. If the connection has ended already, its connection_lost is, soon; if its
        buffer is full, so is pause_writing.
        """
        loop = asyncio.get_running_loop()
        rest = bytes(self._unread)
        self._unread.clear()
        if self._is_lost:
            loop.call_soon(protocol.connection_lost, self._failure)
            return rest
        self.transport.set_protocol(protocol)
        if self._is_full:
            loop.call_soon(protocol.pause_writing)
        self._resume()
        return rest

    def close(self) -> None:
        """Send what is written, then close."""
        self.transport.close()

    def abort(self) -> None:
        """Close at once; what is written but not sent is lost."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop. Also where a connection begins that TLS was spoken on from its first byte."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._unread += data
        if len(self._unread) > HIGH_WATER and not self._is_upgrading:
            self.transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> None:
        """Called by the loop, which then closes the transport: a login needs both directions."""
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._is_lost = True
        self._end(exc)
        self._wake_writers()

    def pause_writing(self) -> None:
        """Called by the loop."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._is_full = False
        self._wake_writers()

    async def _wait_for_bytes(self) -> None:
        assert self._reader is None, "two readers on one pipe"
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _resume(self) -> None:
        if not self._is_ended and not self._is_upgrading and not self.transport.is_closing():
            self.transport.resume_reading()

    def _end(self, failure: Exception | None) -> None:
        self._is_ended = True
        self._failure = self._failure or failure
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writers(self) -> None:
        for waiter in self._writers:
            if not waiter.done():
                waiter.set_result(None)


def _feed_early(transport: asyncio.Transport, data: bytes) -> None:
    """Give the TLS protocol, which start_tls has just put on the transport, what was read before it was there.

    Neither loop has a call for it, but the TLS protocols of both are BufferedProtocols, and before connection_made
    they only store.
    """
    receiver: Any = transport.get_protocol()
    while data:
        room = receiver.get_buffer(len(data))
        count = min(len(room), len(data))
        room[:count] = data[:count]
        receiver.buffer_updated(count)
        data = data[count:]


def _tls_reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message or str(error)
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(error) or type(error).__name__
