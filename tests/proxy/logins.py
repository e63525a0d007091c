"""A small server made of `accept_client`: it lets agents log in, answers every query with its text, and keeps count."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from sqlwall.errors import SqlwallError
from sqlwall.proxy.authenticate import Accepted, AcceptSettings, AgentCredentials, CancelAsked, accept_client
from sqlwall.proxy.pipe import Pipe
from sqlwall.proxy.tasks import TaskSet
from sqlwall.store.scram import Verifier
from sqlwall.wire import authentication as auth
from sqlwall.wire import backend
from sqlwall.wire.frames import FrameReader, Side

AGENT = "reporter"
PASSWORD = "correct horse"
VERIFIER = Verifier.of_password(PASSWORD)
SECRET = b"s" * 32


@dataclass
class Seen:
    """What came of each connection, in order."""

    accepted: list[Accepted] = field(default_factory=list)
    cancels: list[CancelAsked] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


Handler = Callable[[Pipe], Awaitable[None]]


async def find_agent(name: str) -> AgentCredentials | None:
    return AgentCredentials(AGENT, VERIFIER) if name == AGENT else None


class _Incoming(Pipe):
    def __init__(self, tasks: TaskSet, handle: Handler, pipes: list[_Incoming]) -> None:
        super().__init__()
        self._tasks = tasks
        self._handle = handle
        self.gone = asyncio.Event()
        pipes.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._tasks.spawn(self._handle(self), "connection")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


@asynccontextmanager
async def listening(handle: Handler) -> AsyncIterator[int]:
    """Serve every connection with `handle` on a port of its own, which is yielded."""
    tasks = TaskSet()
    pipes: list[_Incoming] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Incoming(tasks, handle, pipes), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await tasks.close()
        for pipe in pipes:
            is_ours = pipe.transport.get_protocol() is pipe  # and not an heir's
            pipe.abort()
            if is_ours:
                await pipe.gone.wait()
        await server.wait_closed()


def login_handler(settings: AcceptSettings, seen: Seen, timeout: float = 10) -> Handler:
    """`accept_client`, and a session that echoes queries."""

    async def handle(pipe: Pipe) -> None:
        try:
            async with asyncio.timeout(timeout):
                outcome = await accept_client(pipe, settings, find_agent)
            if isinstance(outcome, CancelAsked):
                seen.cancels.append(outcome)
            else:
                seen.accepted.append(outcome)
                await _echo(outcome)
        except (SqlwallError, OSError, TimeoutError) as error:
            seen.failures.append(error)
        pipe.close()

    return handle


async def _echo(accepted: Accepted) -> None:
    pipe = accepted.pipe
    key = b"k" * (32 if accepted.protocol >= (3, 2) else 4)
    pipe.write(
        auth.authentication_ok()
        + backend.parameter_status(b"server_version", b"18.0")
        + backend.parameter_status(b"client_encoding", b"UTF8")
        + backend.parameter_status(b"standard_conforming_strings", b"on")
        + backend.parameter_status(b"integer_datetimes", b"on")
        + backend.parameter_status(b"TimeZone", b"UTC")
        + backend.parameter_status(b"DateStyle", b"ISO, MDY")
        + backend.backend_key_data(4711, key)
        + backend.ready_for_query(backend.TransactionStatus.IDLE)
    )
    reader = FrameReader(Side.FRONTEND)
    with contextlib.suppress(ConnectionError):
        while data := await pipe.receive():
            for frame in reader.feed(data):
                if frame.type_code == ord("X"):
                    return
                pipe.write(_answer(frame.type_code, frame.body))
            await pipe.drain()


_TEXT = backend.FieldDescription(b"echo", 0, 0, 25, -1, -1, 0)


def _answer(code: int, body: bytes) -> bytes:
    ready = backend.ready_for_query(backend.TransactionStatus.IDLE)
    if code == ord("Q"):
        return (
            backend.row_description([_TEXT])
            + backend.data_row([body.rstrip(b"\0")])
            + backend.command_complete(b"SELECT 1")
            + ready
        )
    return ready if code == ord("S") else b""


@contextmanager
def serving(
    settings: AcceptSettings, *, is_uvloop: bool = True, timeout: float = 10
) -> Iterator[tuple[int, Seen]]:
    """The server on a thread of its own, for clients that block."""
    seen = Seen()
    started: Any = threading.Event()
    state: dict[str, Any] = {}

    async def run() -> None:
        state["stop"] = asyncio.Event()
        state["loop"] = asyncio.get_running_loop()
        async with listening(login_handler(settings, seen, timeout)) as port:
            state["port"] = port
            started.set()
            await state["stop"].wait()

    factory = uvloop.new_event_loop if is_uvloop else asyncio.new_event_loop

    def main() -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run())

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield state["port"], seen
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(10)
