"""A limit that falls when it is too late: what has been committed is not told, nor recorded, as if it had not been."""

from __future__ import annotations

import asyncio

import pytest

from sqlwall.proxy.connection import Connection
from sqlwall.session.ledger import Kind
from sqlwall.wire import frontend
from tests.e2e.wire import SYNC, RawClient, run, states, tags
from tests.promises.guarded import Guarded, database_template, guarded, observer

__all__ = ["database_template", "guarded", "observer"]

COMMITS = {
    "pipeline": (run("SELECT 1"), run("COMMIT"), SYNC),
    "named": (frontend.bind(b"", b"c"), frontend.execute(b""), SYNC),
    "query": (frontend.query(b"COMMIT"),),
}


class Striking(asyncio.Transport):
    """The transport towards the server; the clock strikes when a COMMIT has gone through it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        assert connection._server is not None
        self._connection = connection
        self._transport = connection._server
        self.struck = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)
        connection = self._connection
        if data == frontend.query(b"COMMIT") or any(
            awaited.kind == Kind.EXECUTE and [one.text for one in awaited.meaning] == [b"COMMIT"]
            for awaited in connection.session.ledger.queue
        ):
            self.struck += 1
            connection.deadline = 1.0
            connection.expire(2.0, 0.0)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


@pytest.mark.parametrize("name", COMMITS)
def test_a_limit_that_falls_while_a_commit_is_under_way(guarded: Guarded, name: str) -> None:
    """The COMMIT has been sent: it may be done before the cancel is there, and may not."""
    before = guarded.bags()
    with RawClient(guarded.wall.dsn()) as client:
        if name == "named":
            client.ask(frontend.parse(b"c", b"COMMIT"), SYNC)
        client.query("BEGIN")
        client.query("UPDATE parent SET name = 'changed' WHERE id = 1")
        (connection,) = guarded.wall.wall.worker._connections
        assert isinstance(connection, Connection)
        connection._server = transport = Striking(connection)
        said = client.ask(*COMMITS[name])
        assert transport.struck
        is_committed = tags(said)[-1:] == [b"COMMIT"]
        assert is_committed or states(said) == ["57014"]
    guarded.settled()
    assert guarded.apply(before, set()) == guarded.bags()
    assert (guarded.bags() != before) == is_committed
