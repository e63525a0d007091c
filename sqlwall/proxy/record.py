"""What goes on the record, and into the counters, about one session: built here, written by the store.

Reads are noted in batches; refusals, verdicts on writes and the gate's outcomes are durable before their effect.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Final, Protocol

from sqlwall.errors import StoreError, first_line
from sqlwall.proxy import gate
from sqlwall.proxy.counters import Counters
from sqlwall.proxy.labels import SessionLabels
from sqlwall.rules.verdict import Action, Verdict
from sqlwall.session.refusal import RATE_RULE
from sqlwall.session.segment import Step
from sqlwall.snapshot.manifest import Manifest
from sqlwall.store.audit import Beside
from sqlwall.store.chain import AuditedText, AuditKind, AuditRecord
from sqlwall.store.index import dropping
from sqlwall.store.stamp import new_ulid, new_ulids, utc_now
from sqlwall.wire import sqlstate

#: A durable record that takes longer than this is a store that is down (seconds).
DURABLE_TIMEOUT: Final = 30.0
#: Different verdicts whose reads may gather before they are written.
READS_LIMIT: Final = 64
#: Bytes of different texts that one record of reads may hold, so that none of them is cut.
TEXTS_LIMIT: Final = 8192
#: Between two of them: each stays a statement for whoever reads the record as SQL.
BETWEEN: Final = b"\n;\n"


class Audit(Protocol):
    """What a recorder needs of the log; see `store.audit.AuditLog`."""

    @property
    def is_accepting(self) -> bool:
        """Whether a note would be taken now."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken, of whatever kind."""

    def note(self, *records: AuditRecord) -> bool:
        """Write these soon; False if none was taken."""

    def remember(self, *records: AuditRecord) -> bool:
        """The same for what has happened already."""

    def submit(self, record: AuditRecord, beside: Beside | None = None) -> Future[None]:
        """Write this now."""


class Reads:
    """Reads under one verdict since the last flush: their different texts, how many they were, and from when on."""

    __slots__ = ("bytes", "count", "since", "texts", "verdict")

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.texts: dict[bytes, None] = {}
        self.bytes = 0
        self.count = 0
        self.since = utc_now()

    def add(self, text: bytes) -> None:
        """One more."""
        if text not in self.texts:
            self.texts[text] = None
            self.bytes += len(text) + len(BETWEEN)
        self.count += 1

    def has_room(self, text: bytes, limit: int) -> bool:
        """Whether it may be one of these, whose record holds so many bytes."""
        return text in self.texts or self.bytes + len(text) <= limit

    @property
    def number(self) -> str:
        """How many they were, for the record."""
        if self.count == 1:
            return "once"
        different = len(self.texts)
        return f"{self.count} times" if different == 1 else f"{self.count} times, {different} texts"


class Throttled:
    """Refusals for too many statements since the last flush; `event` is the id of the record that they become."""

    __slots__ = ("count", "event", "since")

    def __init__(self) -> None:
        self.count = 0
        self.event = new_ulid()
        self.since = utc_now()


class Recorder:
    """The record of one session.

    Reads under one verdict that follow each other closely are one record, with all their texts, that says how many they
    were: `flush` writes what has gathered. The worker's clock calls it, whatever else goes on the record, and the end.
    """

    __slots__ = ("_audit", "_counters", "_labels", "_reads", "_statement_bytes", "_texts_limit", "_throttled")

    def __init__(self, audit: Audit, counters: Counters, labels: SessionLabels, statement_bytes: int) -> None:
        self._audit = audit
        self._counters = counters
        self._labels = labels
        self._statement_bytes = statement_bytes
        self._texts_limit = min(TEXTS_LIMIT, statement_bytes)
        self._reads: dict[int, Reads] = {}
        self._throttled: Throttled | None = None

    @property
    def guarded(self) -> SessionLabels:
        """Whose transactions these are."""
        return self._labels

    @property
    def agent(self) -> str:
        """Whose session it is."""
        return self._labels.agent

    def new_event(self) -> str:
        """The id of a record, which a refusal shows to the client."""
        return new_ulid()

    def read(self, step: Step) -> bool:
        """Note an allowed message that runs something; False if the store cannot take it."""
        if not step.verdicts:
            return True
        if not self._audit.is_accepting or (len(self._reads) >= READS_LIMIT and not self.flush()):
            return False
        verdict = step.verdicts[-1]
        text = step.text or (step.prepared[0].text if step.prepared else b"")
        # The verdict is kept in the value, so that its id stays its own.
        reads = self._reads.get(id(verdict))
        if reads is not None and not reads.has_room(text, self._texts_limit):
            if not self.flush():
                return False
            reads = None
        if reads is None:
            reads = self._reads[id(verdict)] = Reads(verdict)
        reads.add(text)
        self._counters.statement(self._labels.agent, verdict.operation, "allow")
        return True

    def throttled(self) -> str:
        """Note a segment that was refused unread, because its agent sends too many; returns the id of its record.

        A flood is cheap to send: what gathers of it until the next flush is one record, and nobody waits for it.
        """
        found = self._throttled
        if found is None:
            found = self._throttled = Throttled()
        found.count += 1
        self._counters.statement_throttled(self._labels.agent)
        self._counters.statement(self._labels.agent, "", "deny")
        self._counters.refusal(RATE_RULE)
        return found.event

    def _flush_throttled(self, found: Throttled) -> None:
        labels = self._labels
        record = AuditRecord(
            AuditKind.REFUSAL,
            agent=labels.agent,
            session=labels.session,
            client=labels.client,
            database=labels.database,
            action="deny",
            rule=RATE_RULE,
            sqlstate=sqlstate.CONFIGURATION_LIMIT_EXCEEDED,
            reason="more statements per second than the agent may send",
            outcome="once" if found.count == 1 else f"{found.count} times",
            event=found.event,
            time=found.since,
        )
        if self._audit.remember(record):
            self._throttled = None

    def flush(self) -> bool:
        """Write the reads that have gathered; False if the store does not take them all."""
        if self._throttled is not None:
            self._flush_throttled(self._throttled)
        if not self._reads:
            return self._throttled is None
        if self._audit.is_full:
            return False
        gathered = self._reads.values()
        events = new_ulids(len(gathered))
        records = [self._read_record(reads, event) for reads, event in zip(gathered, events, strict=True)]
        if not self._audit.remember(*records):
            return False
        self._reads = {}
        return self._throttled is None

    def _read_record(self, reads: Reads, event: str) -> AuditRecord:
        labels, verdict = self._labels, reads.verdict
        return AuditRecord(
            AuditKind.STATEMENT,
            agent=labels.agent,
            session=labels.session,
            client=labels.client,
            database=labels.database,
            statement=AuditedText.of(BETWEEN.join(reads.texts), self._statement_bytes),
            operation=verdict.operation or None,
            target=verdict.target or None,
            action=verdict.judged.name.lower(),
            rule=verdict.rule,
            reason=verdict.reason or None,
            outcome=reads.number,
            event=event,
            time=reads.since,
        )

    async def change(self, step: Step, event: str, *, is_gated: bool) -> None:
        """Put a verdict on the record before its effect. Raises StoreError if that cannot be.

        The effect of what is gated is its commit: it is enough that what the gate puts on the record comes behind it.
        """
        if not step.verdicts:
            return
        verdict = step.verdicts[-1]
        self._counters.statement(self._labels.agent, verdict.operation, "allow")
        record = self._record(AuditKind.STATEMENT, step, verdict, event)
        self.flush()
        if not (is_gated and self._audit.note(record)):
            await self._submit(record)

    async def refusal(self, step: Step, event: str) -> None:
        """Put a refusal on the record. Raises StoreError if that cannot be."""
        if step.refusal is not None and step.refusal.rule == RATE_RULE:
            return  # noted by `throttled`
        verdict = step.verdicts[-1] if step.verdicts else None
        rule = verdict.rule if verdict is not None and verdict.action is not Action.ALLOW else ""
        if not rule and step.refusal is not None:
            rule = step.refusal.rule or "protocol"
        operation = verdict.operation if verdict is not None else ""
        self._counters.statement(self._labels.agent, operation, "deny")
        self._counters.refusal(rule)
        await self._submit(self._record(AuditKind.REFUSAL, step, verdict, event, rule))

    async def gate(self, outcome: gate.Outcome, event: str) -> None:
        """Put what the gate found on the record, before the commit, and its snapshot into the index.

        Raises StoreError if that cannot be.
        """
        if isinstance(outcome, gate.Passed):
            if outcome.xid is None:
                self.nothing_written()
                return
            self._counters.gate("passed")
        elif isinstance(outcome, gate.Failed):
            self._counters.gate("failed")
            return
        else:
            self._counters.gate("refused")
            self._counters.refusal(outcome.rule)
        taken = outcome.snapshot if isinstance(outcome, gate.Passed) else None
        kept = taken.manifest if taken is not None else None
        if isinstance(outcome, gate.Refused):
            record = self._outcome(
                event, "deny", outcome.target, "rolled back", rule=outcome.rule, reason=outcome.reason
            )
        else:
            record = self._outcome(
                event, "allow", kept.id if kept else None, "committing", rows=kept.rows if kept else None
            )
        await self._submit(record, taken.enter if taken is not None else None)

    def nothing_written(self) -> None:
        """A commit of a block that wrote nothing: counted, and on the record with its reads."""
        self._counters.gate("nothing-written")

    async def lost(self, snapshot: Manifest, error: Exception, event: str) -> None:
        """The blob of a snapshot could not be kept, so that its commit is called off: its row in the index goes.

        Raises StoreError if that cannot be written now.
        """
        record = self._outcome(
            event, "deny", snapshot.id, "rolled back", rule="closed", reason=first_line(error)
        )
        await self._submit(record, dropping(snapshot.id))

    def _outcome(
        self,
        event: str,
        action: str,
        target: str | None,
        outcome: str,
        *,
        rule: str | None = None,
        reason: str | None = None,
        rows: int | None = None,
    ) -> AuditRecord:
        labels = self._labels
        return AuditRecord(
            AuditKind.OUTCOME,
            agent=labels.agent,
            session=labels.session,
            client=labels.client,
            database=labels.database,
            operation="COMMIT",
            target=target,
            action=action,
            rule=rule,
            reason=reason,
            outcome=outcome,
            rows=rows,
            event=event,
        )

    def note(
        self, kind: AuditKind, reason: str = "", event: str | None = None, rule: str | None = None
    ) -> None:
        """Something about the session that has no verdict: login, logout, cancel, a limit."""
        self.flush()
        labels = self._labels
        self._audit.remember(
            AuditRecord(
                kind,
                agent=labels.agent,
                session=labels.session,
                client=labels.client,
                database=labels.database,
                reason=reason or None,
                rule=rule,
                event=event or new_ulid(),
            )
        )

    def count_closed(self) -> None:
        """A segment was refused because something of ours is broken."""
        self._counters.refusal("closed")

    async def _submit(self, record: AuditRecord, beside: Beside | None = None) -> None:
        self.flush()
        future = asyncio.wrap_future(self._audit.submit(record, beside))
        try:
            await asyncio.wait_for(future, DURABLE_TIMEOUT)
        except TimeoutError as error:
            raise StoreError(f"the audit log did not answer within {DURABLE_TIMEOUT:.0f} s") from error

    def _record(
        self, kind: AuditKind, step: Step, verdict: Verdict | None, event: str, rule: str = ""
    ) -> AuditRecord:
        labels = self._labels
        text = step.text or (step.prepared[0].text if step.prepared else b"")
        refusal = step.refusal
        return AuditRecord(
            kind,
            agent=labels.agent,
            session=labels.session,
            client=labels.client,
            database=labels.database,
            statement=AuditedText.of(text, self._statement_bytes),
            operation=(verdict.operation or None) if verdict is not None else None,
            target=(verdict.target or None) if verdict is not None else None,
            action=verdict.judged.name.lower()
            if verdict is not None and not rule
            else "deny"
            if rule
            else None,
            rule=rule or (verdict.rule if verdict is not None else None),
            reason=(verdict.reason or None) if verdict is not None else refusal.message if refusal else None,
            sqlstate=refusal.sqlstate if refusal is not None else None,
            event=event,
        )
