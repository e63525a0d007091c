"""A real connection, with its lanes, gate and session, between a scripted client and the model server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

from sqlwall.proxy.connection import Connection
from sqlwall.proxy.counters import Counters
from sqlwall.proxy.labels import SessionLabels
from sqlwall.proxy.policy import FactsCache, Identity, SessionPolicy, VerdictCaches
from sqlwall.proxy.record import Recorder
from sqlwall.rules.context import StaticCatalog
from sqlwall.rules.ruleset import Ruleset
from sqlwall.rules.verdict import Action
from sqlwall.session.ledger import CopyState
from sqlwall.sql.statement import Unparsable
from sqlwall.store.audit import AuditLog
from sqlwall.store.chain import AuditKind, AuditRecord
from sqlwall.wire import frontend
from tests.fuzz.model import ModelServer

LIMIT = 1024 * 1024
#: Turns of the event loop without any byte after which nothing more will come.
QUIET_TURNS = 80


class World:
    """What conversations share: the ruleset and the caches."""

    def __init__(self, ruleset: Ruleset) -> None:
        counters = Counters()
        self.ruleset = ruleset
        self.facts = FactsCache(counters.parsing, counters.judging)
        self.verdicts = VerdictCaches()
        self.catalog = Catalog()

    def __repr__(self) -> str:
        return "world"

    def policy(self) -> SessionPolicy:
        """The policy of a new session."""
        policy = SessionPolicy(
            Identity("bot", "app", "shop", "", 18),
            ("public",),
            self.facts,
            self.verdicts,
            lambda: self.ruleset,
            self.catalog,
        )
        policy.refresh()
        return policy

    def allows(self, text: str) -> bool:
        """Whether every statement of a text is allowed."""
        policy = self.policy()
        facts = policy.facts(text.encode())
        return isinstance(facts, tuple) and all(policy.judge(fact).action is Action.ALLOW for fact in facts)


class Catalog:
    """A database with the tables that the texts name."""

    generation = 1

    def bind(self, search_path: tuple[str, ...], user: str) -> StaticCatalog:
        return StaticCatalog(search_path)


class Record:
    """An audit log that takes everything, and writes it in order."""

    is_accepting = True
    is_full = False

    def __init__(self) -> None:
        self.durable: list[AuditRecord] = []
        self._noted: list[AuditRecord] = []

    def note(self, *records: AuditRecord) -> bool:
        self._noted += records
        return True

    def remember(self, *records: AuditRecord) -> bool:
        return self.note(*records)

    def submit(self, record: AuditRecord, beside: object = None) -> Future[None]:
        self.durable += (*self._noted, record)
        self._noted.clear()
        future: Future[None] = Future()
        future.set_result(None)
        return future


class Pipe:
    """A transport whose other end is a callback on the next turn of the loop."""

    def __init__(self, conversation: Conversation, *, to_server: bool) -> None:
        self._conversation = conversation
        self._to_server = to_server
        self.is_closed = False

    def write(self, data: bytes) -> None:
        if not self.is_closed:
            asyncio.get_running_loop().call_soon(self._conversation.arrive, bytes(data), self._to_server)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def pause_reading(self) -> None:
        self._conversation.is_paused = not self._to_server

    def resume_reading(self) -> None:
        self._conversation.is_paused = False


class Conversation:
    """What a worker shares with its connections, for one of them."""

    def __init__(self, world: World, chunk: int) -> None:
        self.counters = Counters()
        self.ticking: set[Any] = set()
        self.server = ModelServer(read_only=True)
        self.record = Record()
        self.received = bytearray()
        self.turns_quiet = 0
        self.is_paused = False
        self._chunk = chunk
        recorder = Recorder(
            cast(AuditLog, self.record), self.counters, SessionLabels("bot", "1", "", "shop"), 1024
        )
        self.server.on_commit = self.check_record
        self.connection = Connection(cast(Any, self), world.policy(), recorder, LIMIT, 0.0)
        self.client_pipe, self.server_pipe = Pipe(self, to_server=False), Pipe(self, to_server=True)
        self.connection.start(cast(Any, self.client_pipe), cast(Any, self.server_pipe))

    def arrive(self, data: bytes, to_server: bool) -> None:
        self.turns_quiet = 0
        if not to_server:
            self.received += data
            return
        answer = self.server.feed(data)
        size = self._chunk or len(answer) or 1
        for start in range(0, len(answer), size):
            self.connection.receive_server(answer[start : start + size])

    def check_record(self) -> None:
        """Each write is on the record before it is committed."""
        # A record of reads says how many they were.
        recorded = sum(
            record.kind is AuditKind.STATEMENT and record.outcome is None for record in self.record.durable
        )
        assert recorded >= self.server.committed_messages, "a write was committed that is not on the record"

    async def cancel_upstream(self, connection: Connection) -> None:
        return

    async def analyze_large(self, text: bytes, agent: str) -> Unparsable:
        return Unparsable("54001", "too large")

    def ended(self, connection: Connection) -> None:
        return

    async def settle(self) -> None:
        """Until nothing more happens."""
        self.turns_quiet = 0
        while self.turns_quiet < QUIET_TURNS:
            self.turns_quiet += 1
            await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a conversation came to."""

    received: bytes
    committed: list[str]
    seen: list[str]
    is_closed: bool
    is_copying: bool


async def converse(world: World, script: Sequence[bytes], *, waits: bool, chunk: int) -> Outcome:
    """Send the script through a connection; `waits` for the answers to each item before the next."""
    conversation = Conversation(world, chunk)
    for item in script:
        conversation.connection.receive_client(item)
        if waits:
            await conversation.settle()
    await conversation.settle()
    connection = conversation.connection
    is_copying = connection.session.ledger.copy != CopyState.NONE
    outcome = Outcome(
        bytes(conversation.received),
        conversation.server.committed,
        conversation.server.seen,
        connection.is_closing,
        is_copying,
    )
    connection.receive_client(frontend.terminate())
    await conversation.settle()
    return outcome


def direct(script: Sequence[bytes]) -> tuple[bytes, list[str]]:
    """The same conversation with the server itself: its bytes, and what was committed."""
    server = ModelServer(read_only=False)
    return b"".join([server.feed(item) for item in script]), server.committed
