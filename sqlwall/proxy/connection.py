"""One client and its server session: two transports, one sans-I/O session between them.

The hot path is callbacks: client bytes become segments, a segment that only has to be forwarded is written in one go,
server bytes are relayed as they come. Everything else is a task in `proxy.lanes`. Whichever side is ahead is paused.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable
from typing import Any, Protocol

from sqlwall.errors import ProtocolError, SqlwallError
from sqlwall.proxy import slices
from sqlwall.proxy.counters import Counters
from sqlwall.proxy.guard import Keeper
from sqlwall.proxy.lanes import Lane, refuse_whole
from sqlwall.proxy.policy import SessionPolicy
from sqlwall.proxy.rate import Rate, cost, may_end_block, only_ends_block
from sqlwall.proxy.record import Recorder
from sqlwall.proxy.sides import HIGH_WATER, ClientSide, ServerSide
from sqlwall.proxy.tasks import TaskSet
from sqlwall.session import block
from sqlwall.session import refusal as words
from sqlwall.session.ledger import CopyState, Expectation, Kind
from sqlwall.session.refusal import Refusal
from sqlwall.session.segment import Segment, Step
from sqlwall.session.session import Session
from sqlwall.sql.statement import Statement, Unparsable
from sqlwall.store.chain import AuditKind
from sqlwall.store.stamp import new_ulid
from sqlwall.wire import frontend, sqlstate
from sqlwall.wire.backend import TransactionStatus, ready_for_query
from sqlwall.wire.frames import Frame, FrameReader, Scanner, Side

logger = logging.getLogger(__name__)

#: Bytes of a client's later segments that may wait while one is in flight; beyond, its socket is not read.
WAITING_LIMIT = 1024 * 1024
#: Seconds in which a client may still read what a connection that is over has for it.
LAST_WORDS = 5.0


class Shared(Protocol):
    """What the connections of a worker share."""

    counters: Counters
    ticking: set[Any]  # connections for which the worker's clock must run; an idle one leaves it

    def cancel_upstream(self, connection: Connection) -> Awaitable[None]:
        """Ask the server to cancel what the connection's session runs; done when the server has been told."""

    def analyze_large(self, text: bytes, agent: str) -> Awaitable[tuple[Statement, ...] | Unparsable]:
        """Facts from the sandboxed parser, in the agent's turn."""

    def ended(self, connection: Connection) -> None:
        """The connection is over on both sides."""


class Connection:
    """One agent's conversation with the server, from the end of both logins to the end of both connections."""

    def __init__(
        self,
        shared: Shared,
        policy: SessionPolicy,
        recorder: Recorder,
        segment_limit: int,
        statement_timeout: float,
        keeper: Keeper | None = None,
        cancel_grace: float = 0.0,
    ) -> None:
        self.shared = shared
        self._counters = shared.counters
        self._ticking = shared.ticking
        self.policy = policy
        self.recorder = recorder
        self.keeper = keeper
        self.session = Session(policy, segment_limit, new_ulid)
        self.agent = policy.identity.agent
        self.deadline = 0.0
        self.idle_since = 0.0
        self.is_closing = False
        self.watched: dict[bytes, bytes] = {}
        self.rate: Rate | None = None  # where the agent's statements per second are limited
        self._statement_timeout = statement_timeout
        self._cancel_grace = cancel_grace
        self._cut_off: tuple[float, Expectation] | None = (
            None  # when, if that statement has not ended by then
        )
        self._client_reader = FrameReader(Side.FRONTEND, segment_limit)
        self._server_reader = Scanner(Side.BACKEND)
        self._lane = Lane(self)
        self._tasks = TaskSet()
        self._loop = asyncio.get_running_loop()
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._cancelling: asyncio.Task[None] | None = None
        self._is_in_lane = False
        self._question: block.XidQuestion | None = None  # until the server has answered it
        self._is_draining = False
        self._is_stalled = (
            False  # refusals that the client does not read hold up what it has sent behind them
        )
        self._client_paused: set[str] = set()
        self.ended = self._loop.create_future()

    def start(self, client: asyncio.Transport, server: asyncio.Transport) -> tuple[ClientSide, ServerSide]:
        """Take over both transports; returns the protocols that they are to be given."""
        self._client, self._server = client, server
        for transport in (client, server):
            transport.set_write_buffer_limits(high=HIGH_WATER)
        self.idle_since = self._loop.time()
        return ClientSide(self), ServerSide(self)

    # -- from the client

    def receive_client(self, data: bytes) -> None:
        """Bytes of the client."""
        if self.is_closing:
            return
        self._counters.bytes_from_client += len(data)
        try:
            self.session.receive(self._client_reader.feed(data))
            self._pump()
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """A conversation whose client broke the protocol, or in which something of ours broke, is over."""
        if isinstance(error, ProtocolError):
            self.end(words.ending(error.sqlstate, str(error)), "protocol")
            return
        logger.error("connection of %s closed", self.agent, exc_info=error)
        self.end(words.internal_failure("").as_fatal(), "internal")

    def _pump(self) -> None:
        """Forward what may go now."""
        session = self.session
        ledger = session.ledger
        while not self.is_closing:
            if ledger.copy == CopyState.IN and session.waiting:
                frames = session.copy_data()
                if frames:
                    self.send_server(b"".join([frame.raw for frame in frames]))
            if self._is_in_lane or self._cancelling is not None or ledger.queue:
                break
            if ledger.is_owed_failure:
                self._fail_block()
                break
            frames_or_none = session.next_frames()
            if frames_or_none is None:
                if session.is_terminated:
                    self.close("terminated")
                break
            self._start_segment(frames_or_none)
        self._throttle()

    def _start_segment(self, frames: list[Frame]) -> None:
        self._ticking.add(self)
        if self.rate is not None and self._is_throttled(frames, self.rate):
            return
        if len(frames) > slices.LONG_SEGMENT:
            self._is_in_lane = True
            self._tasks.spawn(self._run_long(frames), f"long segment of {self.agent}")
            return
        session = self.session
        try:
            self.policy.refresh()
            segment = session.examine(frames)
        except ProtocolError:
            raise
        except SqlwallError as error:
            segment = self.refuse_closed(frames, error)
        if self.rate is not None and len(frames) == 1 and segment.steps:
            self.rate.charge(max(0, len(segment.steps[0].statements) - 1))
        self._set_deadline(segment)
        if segment.is_fast:
            if self.note_reads(segment.steps):
                self.send_server(session.forward(segment))
                return
        elif block.only_opens(segment) and self.note_reads(segment.steps):
            self._lane.begin()
            self.send_server(block.opening(session, segment, words.poison(self.new_nonce())))
            return
        self._is_in_lane = True
        if self._lane.may_pass(segment):
            self._question = question = block.XidQuestion(segment)
            self.send_server(question.message(session.ledger))
        else:
            self._tasks.spawn(self._run_lane(segment), f"lane of {self.agent}")

    def _commit(self, asked: block.XidQuestion) -> None:
        """The server has said whether a block that no write was permitted in has written. Most have not."""
        self._question = None
        segment = asked.segment
        try:
            if asked.has_none and self._cancelling is None and self.note_reads(segment.steps):
                self.recorder.nothing_written()
                self._is_in_lane = False
                self.send_server(block.committing(self.session, segment, words.poison(self.new_nonce())))
                return
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._tasks.spawn(self._run_lane(segment, asked.error), f"lane of {self.agent}")

    def refuse_closed(self, frames: list[Frame], error: SqlwallError) -> Segment:
        """A segment that is refused because something of ours is broken."""
        logger.error("segment refused, closed: %s", error)
        segment = Segment(frames, self.session.standing())
        refuse_whole(segment, words.internal_failure(new_ulid()))
        return segment

    def _set_deadline(self, segment: Segment) -> None:
        limit = segment.time_limit
        if self._statement_timeout and not 0 < limit <= self._statement_timeout:
            limit = self._statement_timeout
        self.deadline = self._loop.time() + limit if limit else 0.0

    async def _run_long(self, frames: list[Frame]) -> None:
        """A segment of many messages: what would keep everybody else waiting is done in slices."""
        try:
            segment = await slices.examine(self, frames)
            self._set_deadline(segment)
            if segment.is_fast and await slices.forward(self, segment):
                await self.settled()
                self._is_in_lane = False
                self._finish_batch()
                return
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        await self._run_lane(segment)

    def _is_throttled(self, frames: list[Frame], rate: Rate) -> bool:
        """Whether the agent has sent too many statements; then this segment has been refused, unread.

        What only ends a transaction goes through: a refusal must not keep locks.
        """
        count = cost(frames)
        wait = rate.take(count, self._loop.time()) if count else 0.0
        if not wait:
            return False
        session = self.session
        is_idle = session.ledger.status == ord("I")
        if not is_idle and may_end_block(frames) and only_ends_block(session.examine(frames).steps):
            return False
        event = self.recorder.throttled()
        refusal = words.over_rate(self.agent, rate.limit, rate.burst, wait, event)
        self._is_in_lane = True
        if is_idle and session.is_quiet and (len(frames) == 1 or frames[-1].type_code == ord("S")):
            self.send_client(refusal.to_bytes() + ready_for_query(TransactionStatus.IDLE))
            self._loop.call_soon(self._go_on)
            return True
        segment = Segment(frames, session.standing())
        refuse_whole(segment, refusal)
        self._tasks.spawn(self._run_lane(segment), f"lane of {self.agent}")
        return True

    def _go_on(self) -> None:
        """One refusal a turn of the loop, and none that the client would not read: its flood is not our work."""
        if self.is_closing:
            return
        assert self._client is not None
        self._is_stalled = self._client.get_write_buffer_size() > HIGH_WATER
        if not self._is_stalled:
            self._is_in_lane = False
            self._finish_batch()

    def note_reads(self, steps: list[Step]) -> bool:
        """Note the reads of a fast segment; False if the store cannot take them, and the segment has to wait."""
        for step in steps:
            if step.verdicts and step.kind in (Kind.EXECUTE, Kind.QUERY) and not self.recorder.read(step):
                return False
        return True

    async def cancel_lane(self) -> None:
        """The client cancels: what goes on beside its session for its commit ends, too. Raises UpstreamError."""
        if self._is_in_lane:
            await self._lane.cancel()

    async def _run_lane(self, segment: Segment, failure: Frame | None = None) -> None:
        try:
            if self._cancelling is not None:
                await self._cancelling  # it must not hit what is asked next
            await self._lane.run(segment, failure)
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._is_in_lane = False
        self._finish_batch()

    def _throttle(self) -> None:
        """Read no further from a client that is far ahead."""
        if self.session.held_bytes > WAITING_LIMIT and (self._is_in_lane or self.session.ledger.queue):
            self.pause_client("ahead")
        else:
            self.resume_client("ahead")

    # -- from the server

    def receive_server(self, data: bytes) -> None:
        """Bytes of the server."""
        if self.is_closing:
            return
        self._counters.bytes_from_server += len(data)
        try:
            self.session.receive_server(self._server_reader.feed(data))
        except ProtocolError as error:
            logger.error("the server broke the protocol: %s", error)
            self.end(
                words.ending(sqlstate.PROTOCOL_VIOLATION, "the server broke the protocol"), "server-protocol"
            )
            return
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        ledger = self.session.ledger
        out = ledger.take()
        if out:
            self._counters.bytes_to_client += len(out)
            self._write_client(out)
        if ledger.limit_hit is not None:
            self._stop_statement()
        if ledger.parameters:
            self._check_parameters()
        if ledger.is_fatal:
            self.close("server-fatal")
        elif self.is_closing:
            return
        elif not ledger.queue:
            if self._waiter is not None:
                if not self._waiter.done():
                    self._waiter.set_result(None)
            elif self._question is not None:
                self._commit(self._question)
            elif not self._is_in_lane:
                self._finish_batch()
        elif ledger.copy == CopyState.IN:
            self._pump_safely()

    def _finish_batch(self) -> None:
        """Nothing is in flight: the client's turn."""
        self.deadline = 0.0
        self.idle_since = self._loop.time()
        if self._is_draining and self.session.ledger.status == ord("I"):
            self.end(words.ending(sqlstate.ADMIN_SHUTDOWN, "sqlwall is shutting down"), "drained")
            return
        if self.session.waiting or self.session.ledger.is_owed_failure:
            self._pump_safely()

    def _pump_safely(self) -> None:
        """Pump from a server's callback, where an error of the client ends the connection all the same."""
        self.receive_client(b"")

    def _check_parameters(self) -> None:
        """A watched setting must stay as it was: texts would lex differently, or the read-only lock be open."""
        for frame in self.session.ledger.parameters:
            name, _, value = frame.body[:-1].partition(b"\0")
            known = self.watched.get(name)
            if known is not None and known != value:
                self.end(
                    words.ending(
                        sqlstate.INSUFFICIENT_PRIVILEGE,
                        f"sqlwall ends the session: {name.decode('ascii', 'replace')} was changed",
                    ),
                    "watched-setting",
                )
                return
        self.session.ledger.parameters.clear()

    def _fail_block(self) -> None:
        """A limit was hit too late to cancel: the transaction the client was told has failed must really fail."""
        ledger = self.session.ledger
        ledger.is_owed_failure = False
        text = words.poison(self.new_nonce())
        ledger.expect(Expectation(Kind.PARSE, forward=False))
        ledger.expect(Expectation(Kind.SYNC))
        self.send_server(frontend.parse(text, text) + frontend.sync())

    # -- limits

    def expire(self, now: float, idle_in_transaction: float) -> bool:
        """Called by the worker's clock: end what has taken too long. False once an idle session needs no clock."""
        if self.is_closing:
            return False
        is_written = self.recorder.flush()
        ledger = self.session.ledger
        if self.deadline and now >= self.deadline:
            self.deadline = 0.0
            # The server keeps the replies to a pipeline back: what runs is at the earliest the first Execute in it.
            runs = next((e for e in ledger.queue if e.forward and e.kind in (Kind.EXECUTE, Kind.QUERY)), None)
            if runs is not None and not runs.cut and not runs.commits:
                ledger.cut(runs, "it took longer than the ruleset allows")
            self._stop_statement()
        elif self._cut_off is not None and now >= self._cut_off[0]:
            self._cut_off_session(self._cut_off[1])
        elif (
            idle_in_transaction
            and not self._is_in_lane
            and not ledger.queue
            and ledger.status != ord("I")
            and now - self.idle_since > idle_in_transaction
        ):
            message = "terminating connection due to idle-in-transaction timeout"
            self.end(
                words.ending(sqlstate.IDLE_IN_TRANSACTION_SESSION_TIMEOUT, message), "idle-in-transaction"
            )
        return not is_written or self._is_in_lane or bool(ledger.queue) or ledger.status != ord("I")

    def _stop_statement(self) -> None:
        """Cancel the statement that hit a limit, and let nothing else start until the server has been told."""
        head = self.session.ledger.limit_hit
        self.session.ledger.limit_hit = None
        if head is not None and head.over_limit is not None:
            self._counters.limit(head.rule)
            self.recorder.note(
                AuditKind.OUTCOME, reason=head.over_limit.message, event=head.event, rule=head.rule
            )
        queue = self.session.ledger.queue
        if not queue:
            return
        if self._cancel_grace:
            self._cut_off = (self._loop.time() + self._cancel_grace, head or queue[0])
        if self._cancelling is None:
            self._cancelling = self._tasks.spawn(self._cancel(), f"cancel for {self.agent}")

    def _cut_off_session(self, head: Expectation) -> None:
        """The cancel did not end it: its client does not read, or the server does not hear."""
        self._cut_off = None
        if head in self.session.ledger.queue:
            message = "terminating connection: a statement over its limit did not end when it was cancelled"
            self.end(head.over_limit or words.ending(sqlstate.ADMIN_SHUTDOWN, message), "limit")

    async def _cancel(self) -> None:
        await self.shared.cancel_upstream(self)
        self._cancelling = None
        if not self.session.ledger.queue and not self._is_in_lane:
            self._finish_batch()

    # -- what lanes need

    def send_server(self, data: bytes) -> None:
        """See `aside.Line`."""
        assert self._server is not None
        if self.is_closing:
            raise ConnectionAbortedError("the connection is over")
        self._counters.bytes_to_server += len(data)
        if not self._server.is_closing():  # `lose_server` is about to be called
            self._server.write(data)

    def send_client(self, data: bytes) -> None:
        """See `aside.Line`."""
        self._write_client(self.session.ledger.take() + data)

    def _write_client(self, data: bytes) -> None:
        """A client that has just been lost is told nothing more: `lose_client` is about to be called."""
        assert self._client is not None
        if not self._client.is_closing():
            self._client.write(data)

    async def settled(self) -> None:
        """See `aside.Line`."""
        if self.is_closing:
            raise ConnectionError("the connection is over")
        if not self.session.ledger.queue:
            return
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._cancelling is not None and self._is_in_lane:
            # A cancel that is still under way must not hit the next statement.
            await self._cancelling

    async def analyze_large(self, text: bytes) -> tuple[Statement, ...] | Unparsable:
        """See `aside.Line`."""
        found = await self.shared.analyze_large(text, self.agent)
        if self.is_closing:
            raise ConnectionAbortedError("the connection is over")
        return found

    def new_nonce(self) -> str:
        """See `aside.Line`."""
        return secrets.token_hex(12)

    # -- backpressure

    def pause_server(self) -> None:
        """The client does not read: stop reading the server."""
        if self._server is not None and not self._server.is_closing():
            self._server.pause_reading()

    def resume_server(self) -> None:
        """The client reads again."""
        if self._server is not None and not self._server.is_closing():
            self._server.resume_reading()
        if self._is_stalled:
            self._go_on()

    def pause_client(self, why: str = "server") -> None:
        """Stop reading the client, for one more reason."""
        if not self._client_paused and self._client is not None and not self._client.is_closing():
            self._client.pause_reading()
        self._client_paused.add(why)

    def resume_client(self, why: str = "server") -> None:
        """One reason less; without any the client is read again."""
        if why not in self._client_paused:
            return
        self._client_paused.discard(why)
        if not self._client_paused and self._client is not None and not self._client.is_closing():
            self._client.resume_reading()

    # -- the end

    def drain(self) -> None:
        """End as soon as no transaction is open."""
        self._is_draining = True
        if not self._is_in_lane and not self.session.ledger.queue:
            self._finish_batch()

    def end(self, refusal: Refusal, reason: str) -> None:
        """Say why, then close both sides."""
        if self.is_closing:
            return
        client = self._client
        if client is not None and not client.is_closing() and not self._server_reader.is_inside_message:
            client.write(self.session.ledger.take() + refusal.as_fatal().to_bytes())
        self.close(reason)

    def close(self, reason: str) -> None:
        """Close both sides. An open transaction is rolled back by the server, for no COMMIT follows."""
        if self.is_closing:
            return
        self.is_closing = True
        self._counters.session_ended(reason)
        self.recorder.note(AuditKind.LOGOUT, reason=reason)
        in_flight = bool(self.session.ledger.queue)
        self._tasks.spawn(self._close(in_flight=in_flight), f"end of {self.agent}")

    async def _close(self, *, in_flight: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionAbortedError("the connection is over"))
        if in_flight:
            await self.shared.cancel_upstream(self)
        server, client = self._server, self._client
        if server is not None and not server.is_closing():
            if in_flight:
                server.abort()
            else:
                server.write(frontend.terminate())
                server.close()
        if client is not None and not client.is_closing():
            if client.get_write_buffer_size():  # one that does not read would keep its socket for ever
                self._loop.call_later(LAST_WORDS, client.abort)
            client.close()
        self.shared.ended(self)
        if not self.ended.done():
            self.ended.set_result(None)

    def lose_client(self) -> None:
        """The client is gone."""
        self.close("client-gone")

    def lose_server(self) -> None:
        """The server is gone: the client has to know that nothing more will come."""
        self.end(
            words.ending(sqlstate.ADMIN_SHUTDOWN, "the server closed the connection unexpectedly"),
            "server-gone",
        )
