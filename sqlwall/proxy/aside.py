"""Statements of ours on the agent's session, between the client's messages, with answers that the client never sees."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from sqlwall.errors import SqlwallError
from sqlwall.proxy.guard import Keeper
from sqlwall.proxy.policy import SessionPolicy
from sqlwall.proxy.record import Recorder
from sqlwall.session import refusal as words
from sqlwall.session.internal import Answer, Internal, TypesOfStatement
from sqlwall.session.ledger import Expectation, Kind
from sqlwall.session.session import Session
from sqlwall.sql.statement import Statement, Unparsable
from sqlwall.wire import frontend
from sqlwall.wire.frames import Frame

_IDLE = ord("I")
#: A client may send cancels as fast as it likes; each can hit one attempt.
ROLLBACK_ATTEMPTS = 20


class Line(Protocol):
    """What a lane needs of its connection."""

    session: Session
    policy: SessionPolicy
    recorder: Recorder
    keeper: Keeper | None

    def send_server(self, data: bytes) -> None:
        """Write upstream."""

    def send_client(self, data: bytes) -> None:
        """Write to the client, behind everything that the ledger has for it."""

    def settled(self) -> Awaitable[None]:
        """Wait until every reply is in. Raises ConnectionError once either side is gone."""

    def analyze_large(self, text: bytes) -> Awaitable[tuple[Statement, ...] | Unparsable]:
        """Facts from the sandboxed parser."""

    def new_nonce(self) -> str:
        """Random hex digits that no agent can guess."""


class Aside:
    """Those of one connection. They run on an idle line or inside an explicit transaction, where a Sync is harmless."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._ledger = line.session.ledger

    async def ask(self, sql: bytes) -> Answer:
        """Run one statement."""
        (answer,) = await self.ask_all((self.new_internal(sql),))
        return answer

    async def ask_texts(self, texts: Sequence[bytes]) -> list[Answer]:
        """Run several as one pipeline. The server skips those behind one that fails."""
        return await self.ask_all([self.new_internal(sql) for sql in texts])

    def new_internal(
        self, sql: bytes, types: Sequence[int] = (), bound: frontend.Bind | None = None
    ) -> Internal:
        """See `capture.Asking`."""
        return Internal(self.new_name(), sql, types, bound)

    async def ask_all(self, internals: Sequence[Internal]) -> list[Answer]:
        """See `capture.Asking`. The server skips those behind one that fails."""
        last = len(internals) - 1
        self._line.send_server(
            b"".join(one.messages(self._ledger, sync=place == last) for place, one in enumerate(internals))
        )
        await self._line.settled()
        return [internal.answer() for internal in internals]

    async def ask_types(self, statement: TypesOfStatement) -> tuple[int, ...] | Frame:
        """See `capture.Asking`."""
        self._line.send_server(statement.messages(self._ledger))
        await self._line.settled()
        return statement.answer()

    def new_name(self) -> bytes:
        """A name that nobody else can know."""
        return words.poison(self._line.new_nonce())

    async def roll_back(self) -> None:
        """Roll back, whatever cancels reach the server meanwhile. Raises SqlwallError if it stays impossible."""
        for _ in range(ROLLBACK_ATTEMPTS):
            await self.ask(b"ROLLBACK")
            if self._ledger.status == _IDLE:
                return
        raise SqlwallError("a transaction could not be rolled back")

    async def end_skipping(self) -> None:
        """End the server's skipping with a Sync of our own."""
        self._ledger.expect(Expectation(Kind.SYNC, forward=False))
        self._line.send_server(frontend.sync())
        await self._line.settled()
