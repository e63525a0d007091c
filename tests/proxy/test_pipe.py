"""The pipe on both loops: who reads gets every byte once, in order, and knows when there will be no more."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sqlwall.config import Tls
from sqlwall.proxy.pipe import HIGH_WATER, Pipe
from sqlwall.proxy.tls import client_side_context, upstream_context
from tests.proxy.certificates import issue
from tests.proxy.logins import listening

Story = Callable[[Pipe, Pipe], Awaitable[None]]
Run = Callable[[Story], None]


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Pipe, Pipe]]:
    """Both ends of a TCP connection."""
    accepted: asyncio.Queue[Pipe] = asyncio.Queue()
    async with listening(accepted.put) as port:
        _, near = await asyncio.get_running_loop().create_connection(Pipe, "127.0.0.1", port)
        far = await accepted.get()
        try:
            yield near, far
        finally:
            near.abort()
            await asyncio.sleep(0.01)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Play a story on one of the two loops."""

    def play(story: Story) -> None:
        async def main() -> None:
            async with asyncio.timeout(20), pair() as (near, far):
                await story(near, far)

        started: Coroutine[Any, Any, None] = main()
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(started)

    return play


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For the server and for its client."""
    own = issue(tmp_path, "server")
    server = client_side_context(Tls(certificate=own.certificate_file, key=own.key_file))
    client = upstream_context("verify-full", root_certificates=own.certificate_file)
    assert server is not None
    assert client is not None
    return server, client


def test_bytes_arrive_and_the_end_is_empty(run: Run) -> None:
    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"hello")
        assert await far.receive() == b"hello"
        near.close()
        assert await far.receive() == b""
        assert await far.receive() == b""

    run(story)


def test_bytes_ahead_of_the_end_are_not_lost(run: Run) -> None:
    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"last words")
        near.close()
        await asyncio.sleep(0.05)
        assert await far.read_exactly(4) == b"last"
        with pytest.raises(ConnectionError):
            await far.read_exactly(100)
        assert await far.receive() == b" words"
        assert await far.receive() == b""

    run(story)


def test_what_is_pushed_back_comes_first(run: Run) -> None:
    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"world")
        await asyncio.sleep(0.05)
        far.push_back(b"hello ")
        assert await far.read_exactly(7) == b"hello w"
        assert far.take_rest() == b"orld"
        assert far.take_rest() == b""

    run(story)


def test_a_flood_stops_at_the_high_water_mark_and_goes_on_when_read(run: Run) -> None:
    size = 8 * 1024 * 1024

    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"x" * size)
        await asyncio.sleep(0.2)
        first = await far.receive()
        assert HIGH_WATER < len(first) < HIGH_WATER + 1024 * 1024
        total = len(first)
        while total < size:
            total += len(await far.receive())
        await near.drain()
        assert total == size

    run(story)


def test_a_message_longer_than_the_high_water_mark_comes_in_whole(run: Run) -> None:
    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"x" * HIGH_WATER * 5 + b"rest")
        assert len(await far.read_exactly(HIGH_WATER * 5)) == HIGH_WATER * 5
        assert await far.read_exactly(4) == b"rest"

    run(story)


def test_drain_waits_for_a_slow_reader_and_fails_when_it_is_gone(run: Run) -> None:
    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"x" * 16 * 1024 * 1024)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(near.drain(), 0.1)
        far.abort()
        with pytest.raises(ConnectionError):
            await near.drain()

    run(story)


class Heir(asyncio.Protocol):
    """What takes a connection over."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.is_made = False
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_made = True

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@pytest.mark.parametrize("flood", [0, HIGH_WATER * 2])
def test_the_heir_gets_the_rest_and_all_that_follows(run: Run, flood: int) -> None:
    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"a" * (flood + 10))
        await asyncio.sleep(0.05)
        heir = Heir()
        heir.heard += far.hand_over(heir)
        near.write(b"tail")
        near.close()
        await heir.lost.wait()
        assert bytes(heir.heard) == b"a" * (flood + 10) + b"tail"
        assert not heir.is_made

    run(story)


def test_an_heir_of_a_lost_connection_is_told(run: Run) -> None:
    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"bye")
        near.close()
        await asyncio.sleep(0.05)
        assert far.is_lost
        heir = Heir()
        assert far.hand_over(heir) == b"bye"
        await heir.lost.wait()

    run(story)


def test_tls_begins_in_the_middle_of_a_connection(
    run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, client = contexts

    async def story(near: Pipe, far: Pipe) -> None:
        near.write(b"please")
        assert await far.receive() == b"please"
        await asyncio.gather(
            far.start_tls(server, server_side=True),
            near.start_tls(client, server_side=False, server_hostname="127.0.0.1"),
        )
        assert near.is_tls
        assert far.is_tls
        near.write(b"secret" * 100_000)
        assert await far.read_exactly(600_000) == b"secret" * 100_000
        heir = Heir()
        near.write(b"!")
        heir.heard += far.hand_over(heir)
        near.close()
        await heir.lost.wait()
        assert bytes(heir.heard) == b"!"

    run(story)


def test_a_handshake_that_was_read_as_text_still_counts(
    run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, client = contexts

    async def story(near: Pipe, far: Pipe) -> None:
        handshake = asyncio.ensure_future(
            near.start_tls(client, server_side=False, server_hostname="127.0.0.1")
        )
        hello = await far.receive()
        assert hello[0] == 0x16
        far.push_back(hello)
        await far.start_tls(server, server_side=True)
        await handshake
        near.write(b"in private")
        assert await far.receive() == b"in private"

    run(story)


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x00\x05hello", b"x" * HIGH_WATER * 3, b""])
def test_a_failed_handshake_ends_the_pipe(
    run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext], garbage: bytes
) -> None:
    server, _ = contexts

    async def story(near: Pipe, far: Pipe) -> None:
        near.write(garbage)
        if not garbage:
            near.close()
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionError):
            await far.start_tls(server, server_side=True)
        assert far.is_lost
        with pytest.raises(ConnectionError):
            await far.drain()

    run(story)


def test_a_handshake_given_up_closes_the_connection(
    run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, _ = contexts

    async def story(near: Pipe, far: Pipe) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await far.start_tls(server, server_side=True)
        assert far.is_lost
        with pytest.raises(ConnectionError):
            while await near.receive():
                pass
            raise ConnectionResetError("an orderly end is an end as well")

    run(story)
