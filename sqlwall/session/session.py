"""One conversation: cuts the client's messages into segments, examines each, routes the server's replies.

Sans-I/O. The shell feeds frontend frames and backend events, and asks for the next segment. A segment whose steps all
FORWARD is written upstream as it came; any other is driven by the shell's slow lane (`proxy.lanes`), which uses the
same names and the same ledger. One segment is in flight at a time (DESIGN section 4).
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from sqlwall.errors import ProtocolError
from sqlwall.rules.verdict import Action, Verdict
from sqlwall.session.ledger import CopyState, Expectation, Kind, Ledger
from sqlwall.session.prepared import Names, Prepared
from sqlwall.session.refusal import RESERVED_PREFIX, Refusal
from sqlwall.session.segment import (
    Act,
    Standing,
    Step,
    asks_read_write,
    body_changes,
    commits,
    ends_block,
    is_change,
    needs_snapshot,
    opens_block,
    unparsable_refusal,
    unparsable_verdict,
)
from sqlwall.sql.statement import Operation, Statement, Transaction, Unparsable
from sqlwall.wire import frontend, sqlstate
from sqlwall.wire.frames import Chunk, Frame

_QUERY, _SYNC, _FLUSH, _TERMINATE = ord("Q"), ord("S"), ord("H"), ord("X")
_PARSE, _BIND, _DESCRIBE, _EXECUTE, _CLOSE = ord("P"), ord("B"), ord("D"), ord("E"), ord("C")
_COPY_DATA, _COPY_DONE, _COPY_FAIL, _FUNCTION_CALL = ord("d"), ord("c"), ord("f"), ord("F")
_ENDS = frozenset((_QUERY, _SYNC, _FLUSH))
_COPY = frozenset((_COPY_DATA, _COPY_DONE, _COPY_FAIL))
_STATUS_IDLE, _STATUS_FAILED = ord("I"), ord("E")
_KINDS = {
    _PARSE: Kind.PARSE, _BIND: Kind.BIND, _DESCRIBE: Kind.DESCRIBE, _EXECUTE: Kind.EXECUTE, _CLOSE: Kind.CLOSE,
    _SYNC: Kind.SYNC, _QUERY: Kind.QUERY,
}  # fmt: skip

Facts = tuple[Statement, ...] | Unparsable


class Policy(Protocol):
    """What the session asks about texts. Implemented by the shell over caches, the sandbox and the live ruleset."""

    def facts(self, text: bytes) -> Facts | None:
        """Facts of a text, or None while only the sandboxed parser may read it."""

    def judge(self, statement: Statement) -> Verdict:
        """The verdict under the ruleset, identity and search path of now."""

    def permits_writes(self) -> bool:
        """Whether any rule could permit this agent a write: whether its transactions are opened read-write."""


class Segment:
    """Examined messages, in order, ending in Query, Sync or Flush. `unread` is a text the sandbox must parse first."""

    __slots__ = ("acts", "frames", "is_refused", "steps", "unread")

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames
        self.steps: list[Step] = []
        self.acts = Act.FORWARD
        self.is_refused = False
        self.unread = b""

    @property
    def is_fast(self) -> bool:
        """Nothing has to happen around any of its messages."""
        return self.acts == Act.FORWARD and not self.unread


class Session:
    """State of one conversation. `held_bytes` is what waits for the end of its segment."""

    def __init__(self, policy: Policy, segment_limit: int) -> None:
        self.policy = policy
        self.segment_limit = segment_limit
        self.ledger = Ledger()
        self.statements = Names()
        self.portals = Names()
        self.is_writable = False  # the open transaction block may be read-write
        self.has_held_cursor = False
        self.waiting: deque[Frame] = deque()
        self.held_bytes = 0
        self.is_terminated = False
        self._ends_waiting = 0

    # -- from the client

    def receive(self, frames: list[Frame]) -> None:
        """Queue frontend messages. Raises ProtocolError for a segment over the limit."""
        for frame in frames:
            self.waiting.append(frame)
            self.held_bytes += len(frame.raw)
            if frame.type_code in _ENDS or frame.type_code == _TERMINATE:
                self._ends_waiting += 1
        if (
            not self._ends_waiting
            and self.held_bytes > self.segment_limit
            and self.ledger.copy == CopyState.NONE
        ):
            raise ProtocolError(
                f"a pipeline of over {self.segment_limit} bytes without Sync", sqlstate.PROGRAM_LIMIT_EXCEEDED
            )

    def copy_data(self) -> list[Frame]:
        """Messages of a COPY FROM STDIN under way, to be forwarded as they are.

        Sync and Flush before CopyDone are what the server swallows; they are dropped here, which is the same and keeps
        the count of ReadyForQuery certain.
        """
        forward: list[Frame] = []
        while self.waiting and self.ledger.copy == CopyState.IN:
            code = self.waiting[0].type_code
            if code == _TERMINATE:
                break
            frame = self._next()
            if code in _COPY:
                forward.append(frame)
                if code != _COPY_DATA:
                    self.ledger.copy = CopyState.DONE
            elif code not in (_SYNC, _FLUSH):
                raise ProtocolError(f"unexpected message type 0x{code:02X} during COPY from stdin")
        if self.ledger.copy == CopyState.DONE and self.waiting and self._head_is_extended():
            while self.waiting and self.waiting[0].type_code == _FLUSH:
                self._next()
            if self.waiting and self.waiting[0].type_code == _SYNC:
                forward.append(self._next())
                self.ledger.expect(Expectation(Kind.SYNC))
        return forward

    def _head_is_extended(self) -> bool:
        queue = self.ledger.queue
        return len(queue) == 1 and queue[0].kind == Kind.EXECUTE

    def _next(self) -> Frame:
        frame = self.waiting.popleft()
        self.held_bytes -= len(frame.raw)
        if frame.type_code in _ENDS or frame.type_code == _TERMINATE:
            self._ends_waiting -= 1
        return frame

    def next_segment(self) -> Segment | None:
        """The next whole segment, examined; None if there is none yet or one is still in flight."""
        if not self.ledger.is_settled or not self._ends_waiting:
            return None
        frames: list[Frame] = []
        while True:
            frame = self._next()
            code = frame.type_code
            if code == _TERMINATE:
                self.is_terminated = True
                return None
            if code in _COPY:
                continue  # outside COPY the server accepts and ignores these (PostgresMain)
            if self.ledger.skipping and code != _SYNC:
                if not self._ends_waiting:
                    return None
                continue  # the server discards everything up to Sync
            frames.append(frame)
            if code in _ENDS:
                break
        segment = Segment(frames)
        self.examine(segment)
        return segment

    # -- examination

    def examine(self, segment: Segment) -> None:
        """Say of every message how it travels. Repeated after the sandbox has read a text that was too large."""
        status = self.ledger.status
        standing = Standing(status != _STATUS_IDLE, status == _STATUS_FAILED, self.is_writable)
        segment.steps.clear()
        segment.unread = b""
        segment.acts = Act.FORWARD
        for frame in segment.frames:
            step = self._examine_frame(frame, standing, segment)
            segment.steps.append(step)
            segment.acts = max(segment.acts, step.act)
            if step.act == Act.REFUSE or segment.unread:
                return
        if segment.acts == Act.WRITE and segment.frames[-1].type_code == _FLUSH:
            self._refuse_step(segment.steps[0], _flushed_write())
            segment.acts = Act.REFUSE

    def _examine_frame(self, frame: Frame, standing: Standing, segment: Segment) -> Step:
        code = frame.type_code
        if code in (_SYNC, _FLUSH):
            return Step(frame, _KINDS.get(code, -1))
        if code == _QUERY:
            return self._examine_query(frame, standing, segment)
        if code == _PARSE:
            return self._examine_parse(frame, standing, segment)
        if code == _BIND:
            return self._examine_bind(frame, standing)
        if code == _EXECUTE:
            return self._examine_execute(frame, standing)
        if code in (_DESCRIBE, _CLOSE):
            return self._examine_named(frame)
        step = Step(frame, Kind.QUERY)
        if code == _FUNCTION_CALL:
            return self._refuse_step(step, _function_call())
        raise ProtocolError(f"invalid frontend message type {code}")

    def _examine_query(self, frame: Frame, standing: Standing, segment: Segment) -> Step:
        step = Step(frame, Kind.QUERY, text=frontend.decode_query(frame).text)
        facts = self.policy.facts(step.text)
        if facts is None:
            segment.unread = step.text
            return step
        if isinstance(facts, Unparsable):
            return self._refuse_unparsable(step, facts)
        step.statements = facts
        several = len(facts) > 1
        for statement in facts:
            self._examine_statement(step, statement, standing, several=several)
            if step.act == Act.REFUSE:
                return step
        for statement in facts:
            self._note_names(step.text, statement)
        return step

    def _examine_parse(self, frame: Frame, standing: Standing, segment: Segment) -> Step:
        message = frontend.decode_parse(frame)
        step = Step(frame, Kind.PARSE, name=message.name, text=message.text)
        if message.name.startswith(RESERVED_PREFIX.encode()):
            return self._refuse_step(step, _reserved_name())
        facts = self.policy.facts(message.text)
        if facts is None:
            segment.unread = message.text
            return step
        if isinstance(facts, Unparsable):
            return self._refuse_unparsable(step, facts)
        if len(facts) > 1:
            return self._refuse_step(step, _several_commands())
        step.statements = facts
        step.prepared = (Prepared(message.text, facts[0] if facts else None),)
        self._judge_prepared(step, standing)
        self.statements.expect(message.name, step.prepared)
        return step

    def _examine_bind(self, frame: Frame, standing: Standing) -> Step:
        message = frontend.decode_bind(frame)
        portal, name = message.portal, message.statement
        step = Step(frame, Kind.BIND, name=portal)
        if portal.startswith(RESERVED_PREFIX.encode()) or name.startswith(RESERVED_PREFIX.encode()):
            return self._refuse_step(step, _reserved_name())
        found = self.statements.find(name)
        if found is None:
            return self._refuse_step(
                step, _no_such("prepared statement", name, sqlstate.INVALID_SQL_STATEMENT_NAME)
            )
        step.prepared = found
        self._judge_prepared(step, standing)
        self.portals.expect(portal, found)
        return step

    def _examine_execute(self, frame: Frame, standing: Standing) -> Step:
        portal = frontend.decode_execute(frame).portal
        step = Step(frame, Kind.EXECUTE, name=portal)
        found = self.portals.find(portal)
        if found is None:
            return self._refuse_step(step, _no_such("portal", portal, sqlstate.INVALID_CURSOR_NAME))
        step.prepared = found
        for prepared in found:
            if prepared.statement is None:
                continue
            self._examine_statement(step, prepared.statement, standing, several=False)
            if step.act == Act.REFUSE:
                return step
            self._note_names(prepared.text, prepared.statement)
        return step

    def _examine_named(self, frame: Frame) -> Step:
        is_describe = frame.type_code == _DESCRIBE
        message = frontend.decode_describe(frame) if is_describe else frontend.decode_close(frame)
        name = message.name
        step = Step(frame, _KINDS[frame.type_code], name=bytes((message.kind.value,)) + name)
        if name.startswith(RESERVED_PREFIX.encode()):
            return self._refuse_step(step, _reserved_name())
        return step

    def _judge_prepared(self, step: Step, standing: Standing) -> None:
        """Parse and Bind: judged as if they ran, since planning runs IMMUTABLE functions; nothing else happens yet."""
        for prepared in step.prepared:
            if prepared.statement is None:
                continue
            verdict = self.policy.judge(prepared.statement)
            step.verdicts = (*step.verdicts, verdict)
            if verdict.action is not Action.ALLOW:
                step.act = Act.REFUSE
                return
            if needs_snapshot(prepared.statement, verdict):
                step.verdicts = (_no_snapshot(prepared.statement, verdict),)
                step.act = Act.REFUSE
                return
            if is_change(prepared.statement) and not standing.in_block:
                step.act = max(step.act, Act.FORWARD)

    def _examine_statement(
        self, step: Step, statement: Statement, standing: Standing, *, several: bool
    ) -> None:
        verdict = self.policy.judge(statement)
        if needs_snapshot(statement, verdict):
            verdict = _no_snapshot(statement, verdict)
        step.verdicts = (*step.verdicts, verdict)
        if verdict.action is not Action.ALLOW:
            step.act = Act.REFUSE
            return
        if any(name.startswith(RESERVED_PREFIX) for name in statement.names):
            self._refuse_step(step, _reserved_name())
            return
        changes = is_change(statement)
        first = statement.effects[0].operation
        if first is Operation.EXECUTE:
            found = self.statements.find((statement.prepared or "").encode())
            if found is None:
                self._refuse_step(
                    step, _no_such("prepared statement", (statement.prepared or "").encode(),
                                   sqlstate.INVALID_SQL_STATEMENT_NAME),
                )  # fmt: skip
                return
            for prepared in found:
                if prepared.statement is None:
                    continue
                inner = self.policy.judge(prepared.statement)
                if needs_snapshot(prepared.statement, inner):
                    inner = _no_snapshot(prepared.statement, inner)
                if inner.action is not Action.ALLOW:
                    step.verdicts = (inner,)
                    step.act = Act.REFUSE
                    return
                changes = changes or body_changes(prepared.statement)
        if statement.control is not None:
            self._examine_control(step, statement, standing, several=several)
        elif changes:
            step.act = max(step.act, Act.RECORD if standing.in_block else Act.WRITE)
            if several and standing.in_block and not standing.is_writable:
                step.act = max(step.act, Act.RECORD)

    def _examine_control(
        self, step: Step, statement: Statement, standing: Standing, *, several: bool
    ) -> None:
        wants_write = asks_read_write(statement)
        if wants_write and (several or not self.policy.permits_writes()) and not opens_block(statement):
            self._refuse_step(step, _read_only_policy())
            return
        if several and (
            wants_write or (standing.is_writable and commits(statement)) or step.act == Act.WRITE
        ):
            self._refuse_step(step, _embedded_control())
            return
        if opens_block(statement) and not standing.in_block:
            standing.in_block = True
            standing.is_failed = False
            read_only = statement.control is not None and statement.control.read_only is True
            if several:
                standing.is_writable = False
            elif not read_only and (self.policy.permits_writes() or wants_write):
                standing.is_writable = self.policy.permits_writes()
                step.act = max(step.act, Act.BEGIN)
        elif wants_write:
            standing.is_writable = True
        elif commits(statement) and standing.in_block and standing.is_writable and not standing.is_failed:
            step.act = max(step.act, Act.COMMIT)
        if ends_block(statement):
            standing.in_block = False
            standing.is_failed = False
            standing.is_writable = False
        elif statement.control is not None and statement.control.verb is Transaction.ROLLBACK_TO:
            standing.is_failed = False

    def _note_names(self, text: bytes, statement: Statement) -> None:
        first = statement.effects[0].operation
        if first is Operation.PREPARE and statement.prepared is not None:
            self.statements.add(statement.prepared.encode(), Prepared(text, statement))
        elif statement.cursor is not None and first is not Operation.CURSOR:
            self.portals.add(statement.cursor.encode(), Prepared(text, statement))
        if statement.cursor is not None:
            self.portals.add(statement.cursor.encode(), Prepared(text, statement))
            self.has_held_cursor = self.has_held_cursor or statement.hold

    def _refuse_step(self, step: Step, refusal: Refusal) -> Step:
        step.act = Act.REFUSE
        step.refusal = refusal
        return step

    def _refuse_unparsable(self, step: Step, fault: Unparsable) -> Step:
        step.verdicts = (unparsable_verdict(fault),)
        return self._refuse_step(step, unparsable_refusal(fault))

    # -- towards the server

    def expect_step(self, step: Step) -> Expectation | None:
        """Record that a client's message goes upstream; None for Flush, which has no reply."""
        code = step.frame.type_code
        if code == _FLUSH:
            return None
        expectation = Expectation(_KINDS[code], name=step.name)
        for verdict in step.verdicts:
            if verdict.limits.rows is not None and step.kind in (Kind.EXECUTE, Kind.QUERY):
                limit = verdict.limits.rows
                expectation.row_limit = (
                    limit if expectation.row_limit < 0 else min(limit, expectation.row_limit)
                )
                expectation.rule = verdict.rule
            if verdict.limits.bytes is not None and step.kind in (Kind.EXECUTE, Kind.QUERY):
                expectation.byte_limit = verdict.limits.bytes
                expectation.rule = verdict.rule
        expectation.meaning = step.prepared
        self.ledger.expect(expectation)
        return expectation

    def forward(self, segment: Segment) -> bytes:
        """The bytes of a fast segment; its replies are expected from now on."""
        for step in segment.steps:
            self.expect_step(step)
        frames = segment.frames
        return frames[0].raw if len(frames) == 1 else b"".join([frame.raw for frame in frames])

    # -- from the server

    def receive_server(self, events: list[Frame | Chunk]) -> None:
        """Route backend events and learn from them what the session's names stand for."""
        ledger = self.ledger
        ledger.receive(events)
        for done in ledger.completed:
            if done.kind == Kind.PARSE and not done.failed and done.forward:
                self.statements.confirm(done.name, done.meaning)
            elif done.kind == Kind.BIND and not done.failed and done.forward:
                self.portals.confirm(done.name, done.meaning)
            elif done.kind == Kind.CLOSE and not done.failed and done.forward:
                names = self.statements if done.name[:1] == b"S" else self.portals
                names.forget(done.name[1:])
        ledger.completed.clear()
        if ledger.is_settled:
            self.statements.settle()
            self.portals.settle()
            if ledger.status == _STATUS_IDLE:
                self.is_writable = False


def _no_snapshot(statement: Statement, verdict: Verdict) -> Verdict:
    effect = next((e for e in statement.effects if e.relation is not None), statement.effects[0])
    return Verdict(
        Action.DENY,
        verdict.rule,
        "no snapshot can be taken, and the rule requires one",
        "A rule with `snapshot: none` waives the snapshot for relations that need none.",
        verdict.operation or effect.operation.value,
        verdict.target or (str(effect.relation) if effect.relation else ""),
    )


def _structural(state: str, rule: str, what: str, hint: str = "") -> Refusal:
    return Refusal(
        state,
        f"sqlwall denied {what}. Nothing was executed. Do not retry unchanged.",
        f"rule={rule} retryable=false",
        hint,
        rule,
    )


def _reserved_name() -> Refusal:
    return _structural(
        sqlstate.RESERVED_NAME, "reserved-name", f"a name that starts with {RESERVED_PREFIX} [reserved-name]",
        "Choose another name.",
    )  # fmt: skip


def _function_call() -> Refusal:
    return _structural(
        sqlstate.INSUFFICIENT_PRIVILEGE, "function-call",
        "the FunctionCall message [function-call]: it carries no SQL to judge",
        "Use SELECT function(...) instead.",
    )  # fmt: skip


def _several_commands() -> Refusal:
    return Refusal(sqlstate.SYNTAX_ERROR, "cannot insert multiple commands into a prepared statement")


def _read_only_policy() -> Refusal:
    return _structural(
        sqlstate.INSUFFICIENT_PRIVILEGE, "read-only", "READ WRITE [read-only]: it may not be set here",
        "Ask for it in BEGIN READ WRITE, where the ruleset permits writes.",
    )  # fmt: skip


def _embedded_control() -> Refusal:
    return _structural(
        sqlstate.INSUFFICIENT_PRIVILEGE, "embedded-transaction-control",
        "transaction control inside a string of several statements [embedded-transaction-control]",
        "Send BEGIN, the statements and COMMIT one by one.",
    )  # fmt: skip


def _flushed_write() -> Refusal:
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED, "flushed-write",
        "a write outside a transaction block in a pipeline that ends in Flush [flushed-write]",
        "End the pipeline with Sync, or open a transaction block first.",
    )  # fmt: skip


def _no_such(what: str, name: bytes, state: str) -> Refusal:
    shown = name.decode("utf-8", "replace")
    if not name and what == "prepared statement":
        return Refusal(state, "unnamed prepared statement does not exist")
    return Refusal(state, f'{what} "{shown}" does not exist')
