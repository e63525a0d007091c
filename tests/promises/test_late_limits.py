"""A limit that falls when it is too late: what has been committed is not told, nor recorded, as if it had not been."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", COMMITS)
def test_a_limit_that_falls_while_a_commit_is_under_way(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The clock strikes when the COMMIT has been sent: it may be done before the cancel is there, and may not."""
    send = Connection.send_server
    struck: list[str] = []

    def send_and_strike(connection: Connection, data: bytes) -> None:
        send(connection, data)
        if data == frontend.query(b"COMMIT") or any(
            awaited.kind == Kind.EXECUTE and [one.text for one in awaited.meaning] == [b"COMMIT"]
            for awaited in connection.session.ledger.queue
        ):
            struck.append(name)
            connection.deadline = 1.0
            connection.expire(2.0, 0.0)

    monkeypatch.setattr(Connection, "send_server", send_and_strike)
    before = guarded.bags()
    with RawClient(guarded.wall.dsn()) as client:
        if name == "named":
            client.ask(frontend.parse(b"c", b"COMMIT"), SYNC)
        client.query("BEGIN")
        client.query("UPDATE parent SET name = 'changed' WHERE id = 1")
        struck.clear()
        said = client.ask(*COMMITS[name])
        assert struck
        is_committed = tags(said)[-1:] == [b"COMMIT"]
        assert is_committed or states(said) == ["57014"]
    guarded.settled()
    assert guarded.apply(before, set()) == guarded.bags()
    assert (guarded.bags() != before) == is_committed
