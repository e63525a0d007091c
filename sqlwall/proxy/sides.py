"""The two transports of a conversation, and what it hears from them."""

from __future__ import annotations

import asyncio
from typing import Protocol

#: The kernel and the event loop may hold this much for a peer that does not read before the other side is paused.
HIGH_WATER = 256 * 1024


class Conversation(Protocol):
    """What the two transports tell: bytes, ends, and who does not read."""

    def receive_client(self, data: bytes) -> None: ...
    def receive_server(self, data: bytes) -> None: ...
    def lose_client(self) -> None: ...
    def lose_server(self) -> None: ...
    def pause_client(self) -> None: ...
    def resume_client(self) -> None: ...
    def pause_server(self) -> None: ...
    def resume_server(self) -> None: ...


class ClientSide(asyncio.Protocol):
    """The transport towards the agent."""

    def __init__(self, connection: Conversation) -> None:
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        self._connection.receive_client(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lose_client()

    def pause_writing(self) -> None:
        self._connection.pause_server()

    def resume_writing(self) -> None:
        self._connection.resume_server()


class ServerSide(asyncio.Protocol):
    """The transport towards PostgreSQL."""

    def __init__(self, connection: Conversation) -> None:
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        self._connection.receive_server(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lose_server()

    def pause_writing(self) -> None:
        self._connection.pause_client()

    def resume_writing(self) -> None:
        self._connection.resume_client()
