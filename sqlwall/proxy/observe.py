"""Modes observe and warn: everything passes as it came, judged for the record only.

It carries no promise but transparency (DESIGN, decision 11): nothing is held, nothing waits for a verdict, a text that
does not parse passes too. `warn` adds a notice of what enforcement would have said, between two messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlwall.errors import ProtocolError, SqlwallError
from sqlwall.proxy.policy import SessionPolicy
from sqlwall.proxy.record import Recorder
from sqlwall.proxy.sides import HIGH_WATER, ClientSide, ServerSide
from sqlwall.proxy.tasks import TaskSet
from sqlwall.rules.judge import strictest
from sqlwall.rules.ruleset import Mode, Ruleset
from sqlwall.rules.verdict import Verdict
from sqlwall.session import refusal as words
from sqlwall.session.segment import Step
from sqlwall.sql.statement import Unparsable
from sqlwall.store.chain import AuditKind
from sqlwall.wire import frontend, sqlstate
from sqlwall.wire.frames import Chunk, Frame, Scanner, Side

if TYPE_CHECKING:
    from sqlwall.proxy.worker import Worker

logger = logging.getLogger(__name__)

_QUERY, _PARSE = ord("Q"), ord("P")


class Relay:
    """Two transports and a listener between them."""

    def __init__(
        self, worker: Worker, policy: SessionPolicy | None, recorder: Recorder, ruleset: Callable[[], Ruleset]
    ) -> None:
        self.agent = recorder.agent
        self.is_closing = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._worker = worker
        self._policy = policy
        self._recorder = recorder
        self._ruleset = ruleset
        self._frontend: Scanner | None = Scanner(Side.FRONTEND)
        self._backend: Scanner | None = Scanner(Side.BACKEND)
        self._notices: list[bytes] = []
        self._tasks = TaskSet()
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None

    def start(self, client: asyncio.Transport, server: asyncio.Transport) -> tuple[ClientSide, ServerSide]:
        """Take over both transports; returns the protocols that they are to be given."""
        self._client, self._server = client, server
        for transport in (client, server):
            transport.set_write_buffer_limits(high=HIGH_WATER)
        return ClientSide(self), ServerSide(self)

    def receive_client(self, data: bytes) -> None:
        """Bytes of the client: upstream first, then the record."""
        assert self._server is not None
        self._server.write(data)
        self._worker.counters.bytes_from_client += len(data)
        self._worker.counters.bytes_to_server += len(data)
        if self._frontend is None:
            return
        try:
            for event in self._frontend.feed(data):
                if isinstance(event, Frame) and event.type_code in (_QUERY, _PARSE):
                    self._judge(event)
        except ProtocolError as error:
            # The server will say so itself; what follows cannot be read any more.
            logger.info("client %s is not recorded any more: %s", self.agent, error)
            self._frontend = None

    def receive_server(self, data: bytes) -> None:
        """Bytes of the server; a notice of ours goes between two of its messages."""
        assert self._client is not None
        self._worker.counters.bytes_from_server += len(data)
        self._worker.counters.bytes_to_client += len(data)
        if self._ruleset().mode is not Mode.WARN or self._backend is None:
            self._client.write(data)
            self._backend = None
            return
        try:
            for event in self._backend.feed(data):
                if self._notices and not (isinstance(event, Chunk) and event.head):
                    self._client.writelines(self._notices)
                    self._notices.clear()
                self._client.write(event.raw)
        except ProtocolError:
            logger.warning("the server's messages cannot be read: no more warnings for %s", self.agent)
            self._backend = None

    def _judge(self, frame: Frame) -> None:
        """The verdict that enforcement would have given, for the record."""
        if frame.type_code == _QUERY:
            text = frontend.decode_query(frame).text
        else:
            text = frontend.decode_parse(frame).query
        try:
            verdict = self._verdict(text)
        except SqlwallError as error:
            logger.warning("not judged: %s", error)
            return
        if verdict is None:
            return
        step = Step(frame, -1, text=text)
        step.verdicts = (verdict,)
        self._recorder.read(step)
        if verdict.warning and self._backend is not None:
            self._notices.append(words.warning(verdict))

    def _verdict(self, text: bytes) -> Verdict | None:
        policy = self._policy
        if policy is None:
            return None
        policy.refresh()
        facts = policy.facts(text)
        if facts is None or facts == ():
            return None
        if isinstance(facts, Unparsable):
            return policy.judge_unparsable(facts)
        return strictest([policy.judge(statement) for statement in facts])

    def expire(self, now: float, idle_in_transaction: float) -> bool:
        """Nothing is limited here; the reads that have gathered go on the record. Its clock always runs."""
        self._recorder.flush()
        if self._ruleset().mode is Mode.ENFORCE:
            message = "sqlwall ends the session: its ruleset is enforced now"
            self.end(words.ending(sqlstate.ADMIN_SHUTDOWN, message), "enforced")
        return True

    def drain(self) -> None:
        """End at once: where the transaction stands is not known."""
        self.end(words.ending(sqlstate.ADMIN_SHUTDOWN, "sqlwall is shutting down"), "drained")

    def end(self, refusal: words.Refusal, reason: str) -> None:
        """Say why, then close both sides."""
        if not self.is_closing and self._client is not None and not self._client.is_closing():
            self._client.write(refusal.as_fatal().to_bytes())
        self.close(reason)

    def close(self, reason: str) -> None:
        """Close both sides, what has been written included."""
        if self.is_closing:
            return
        self.is_closing = True
        self._worker.counters.session_ended(reason)
        self._recorder.note(AuditKind.LOGOUT, reason=reason)
        for transport in (self._client, self._server):
            if transport is not None and not transport.is_closing():
                transport.close()
        self._worker.ended(self)
        if not self.ended.done():
            self.ended.set_result(None)

    def lose_client(self) -> None:
        """The client is gone."""
        self.close("client-gone")

    def lose_server(self) -> None:
        """The server is gone, as the client sees for itself."""
        self.close("server-gone")

    def pause_server(self) -> None:
        """The client does not read."""
        if self._server is not None and not self._server.is_closing():
            self._server.pause_reading()

    def resume_server(self) -> None:
        """The client reads again."""
        if self._server is not None and not self._server.is_closing():
            self._server.resume_reading()

    def pause_client(self) -> None:
        """The server does not read."""
        if self._client is not None and not self._client.is_closing():
            self._client.pause_reading()

    def resume_client(self) -> None:
        """The server reads again."""
        if self._client is not None and not self._client.is_closing():
            self._client.resume_reading()
