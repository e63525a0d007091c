"""What each message of a segment means, and how it therefore has to travel.

Every text is judged at Parse, at Bind and at Execute, each time under the policy of now. The last answer of every
examination is the refusal. Structure that no rule speaks of (reserved names, FunctionCall, pipelines that would commit
behind the gate) is refused here.
"""

from __future__ import annotations

from typing import Final, Protocol

from sqlwall.errors import ProtocolError
from sqlwall.rules.verdict import Action, Verdict
from sqlwall.session import refusal as words
from sqlwall.session.ledger import Kind
from sqlwall.session.prepared import Names, Prepared, control_of, kept_name
from sqlwall.session.refusal import RESERVED_PREFIX, Refusal
from sqlwall.session.segment import (
    Act,
    Segment,
    Standing,
    Step,
    asks_read_write,
    body_changes,
    commits,
    ends_block,
    ends_failed,
    is_change,
    is_executing,
    is_fetching,
    is_preparable,
    may_be_fetched,
    needs_snapshot,
    only_reads,
    opens_block,
    starts_copy,
    takes_snapshot,
    turns_unseen,
    unsettles,
    without_snapshot,
)
from sqlwall.sql.statement import Operation, Statement, Transaction, Unparsable
from sqlwall.wire import frontend
from sqlwall.wire.frames import Frame

#: Message type → what is awaited once it has been sent.
KINDS: Final = {
    frontend.PARSE: Kind.PARSE,
    frontend.BIND: Kind.BIND,
    frontend.DESCRIBE: Kind.DESCRIBE,
    frontend.EXECUTE: Kind.EXECUTE,
    frontend.CLOSE: Kind.CLOSE,
    frontend.SYNC: Kind.SYNC,
    frontend.QUERY: Kind.QUERY,
}

_IDLE: Final = ord("I")
_FAILED: Final = ord("E")

Facts = tuple[Statement, ...] | Unparsable

_RESERVED: Final = RESERVED_PREFIX.encode()


class Policy(Protocol):
    """What the session asks about texts. Implemented by the shell over caches, the sandbox and the live ruleset."""

    def facts(self, text: bytes) -> Facts | None:
        """Facts of a text, or None while only the sandboxed parser may read it."""

    def judge(self, statement: Statement) -> Verdict:
        """The verdict under the ruleset, identity and search path of now."""

    def judge_unparsable(self, fault: Unparsable) -> Verdict:
        """The verdict on a text that is no statement."""

    def permits_writes(self) -> bool:
        """Whether any rule could permit this agent a write: whether its transactions are opened read-write."""

    def can_cover(self) -> bool:
        """Whether snapshots can be taken at all."""

    def expect_setting(self, name: str, value: str | None) -> Refusal | None:
        """An allowed statement is about to set this; from here on it may hold. Or why that is too much."""


class Examination:
    """The examination of one segment: what stands before it, and what it has asked for so far."""

    __slots__ = (
        "_freed",
        "_frees_all",
        "_has_ended",
        "_has_write",
        "_policy",
        "_portals",
        "_renewed",
        "_segment",
        "_standing",
        "_statements",
        "_was_open",
    )

    def __init__(
        self,
        policy: Policy,
        statements: Names,
        portals: Names,
        segment: Segment,
    ) -> None:
        self._policy = policy
        self._statements = statements
        self._portals = portals
        self._segment = segment
        self._standing = segment.standing
        self._was_open = segment.standing.has_run
        self._has_write = False
        self._renewed: set[bytes] = set()  # names that this segment has parsed
        self._freed: set[bytes] = set()  # and that it has given up
        self._frees_all = False
        self._has_ended = False  # a transaction has ended in this segment

    def run(self) -> None:
        """Fill in the segment's steps, up to the first that is refused or unread."""
        while not self.advance():
            pass

    def advance(self) -> bool:
        """Examine one more message. True once there is nothing left to examine, or one is refused or unread."""
        segment = self._segment
        step = self._frame(segment.frames[len(segment.steps)])
        segment.steps.append(step)
        if step.act != Act.FORWARD:
            segment.acts = max(segment.acts, step.act)
        if segment.unread:
            return True
        if step.act != Act.REFUSE:
            segment.may_write = segment.may_write or self._standing.is_writable
            if len(segment.steps) < len(segment.frames):
                return False
        self._refuse_mixed()
        return True

    def go_back(self) -> None:
        """The text that was unread has been read: examine its message again."""
        self._segment.unread = b""
        self._segment.steps.pop()

    @property
    def segment(self) -> Segment:
        """What has been found so far."""
        return self._segment

    def _refuse_mixed(self) -> None:
        """A write of its own needs one commit point of its own, and the segment must have no other, refused or not."""
        segment = self._segment
        ends_otherwise = (
            segment.frames[-1].type_code in (frontend.QUERY, frontend.FUNCTION_CALL)
            and len(segment.frames) > 1
        )
        if self._has_write and (segment.has_control or ends_otherwise):
            blamed = next(step for step in segment.steps if step.act >= Act.WRITE)
        elif segment.is_ours and ends_otherwise:
            blamed = segment.steps[0]
        else:
            return
        if blamed.act != Act.REFUSE:
            self._refuse(blamed, words.mixed_write())
        segment.acts = Act.REFUSE

    def _frame(self, frame: Frame) -> Step:
        code = frame.type_code
        if self._has_ended and code != frontend.SYNC:
            self._segment.is_turned = True
        if code == frontend.QUERY:
            return self._query(frame)
        if code == frontend.BIND:
            return self._bind(frame)
        if code == frontend.EXECUTE:
            return self._execute(frame)
        if code == frontend.SYNC:
            return Step(frame, Kind.SYNC)
        if code == frontend.PARSE:
            return self._parse(frame)
        if code in (frontend.DESCRIBE, frontend.CLOSE):
            return self._named(frame)
        if code == frontend.FLUSH:
            return Step(frame, -1)
        if code == frontend.FUNCTION_CALL:
            frontend.decode_function_call(frame)
            return self._refuse(Step(frame, Kind.QUERY), words.function_call())
        raise ProtocolError(f"invalid frontend message type {code}")

    def _query(self, frame: Frame) -> Step:
        step = Step(frame, Kind.QUERY, text=frontend.decode_query(frame).text)
        facts = self._facts(step)
        if facts is None:
            return step
        step.statements = facts
        if len(self._segment.frames) > 1 and any(s.control is not None or is_change(s) for s in facts):
            return self._refuse(step, words.mixed_write())
        several = len(facts) > 1
        may_have_set = self._standing.in_block or self._standing.has_run
        if several and turns_unseen(facts, may_have_set=may_have_set):
            return self._refuse(step, words.turned_string())
        for statement in facts:
            self._run(step, statement, several=several)
            if step.act == Act.REFUSE or not self._may_name(step, statement, several=several):
                return step
            self._note_names(step.text, statement)
        is_mixed = step.act == Act.WRITE and any(statement.control is not None for statement in facts)
        # A block that such a string opens is read-only: our word about it is clearer than the server's.
        is_locked = step.act == Act.RECORD and any(opens_block(statement) for statement in facts)
        if several and (is_mixed or is_locked):
            return self._refuse(step, words.embedded_control())
        return step

    def _parse(self, frame: Frame) -> Step:
        message = frontend.decode_parse(frame)
        name = kept_name(message.name)
        step = Step(frame, Kind.PARSE, name=name, text=message.query)
        if message.name.startswith(_RESERVED):
            return self._refuse(step, words.reserved_name())
        facts = self._facts(step)
        if facts is None:
            return step
        if len(facts) > 1:
            return self._refuse(step, words.several_commands())
        step.statements = facts
        step.prepared = (Prepared(message.query, facts[0] if facts else None),)
        self._plan(step)
        if name and step.act != Act.REFUSE:
            # In a failed block the server first says that: it reads nothing but what ends the block.
            is_read = not self._standing.is_failed or (bool(facts) and ends_failed(facts[0]))
            if is_read and self._parked(name) is not None:
                return self._refuse(step, words.statement_exists(message.name))
            step.control, step.source = control_of(step.prepared), name
            self._renewed.add(name)
            self._freed.discard(name)
        self._statements.expect(name, step.prepared)
        return step

    def _parked(self, name: bytes) -> Prepared | None:
        """The transaction control that a name stands for, which the server is not left with: see `Session.dispatch`."""
        if name in self._freed or (self._frees_all and name not in self._renewed):
            return None
        return control_of(self._statements.find(name))

    def _bind(self, frame: Frame) -> Step:
        portal, name = map(kept_name, frontend.bind_names(frame))
        step = Step(frame, Kind.BIND, name=portal)
        if portal.startswith(_RESERVED) or name.startswith(_RESERVED):
            return self._refuse(step, words.reserved_name())
        found = self._statements.find(name)
        if found is None:
            return self._refuse(step, words.no_such_statement(name))
        step.prepared = found
        if control_of(found) is not None:
            if frontend.decode_bind(frame).parameters:
                return self._refuse(step, words.bound_control())
            if name:
                step.control, step.source = self._parked(name), name
                if step.control is None:
                    return self._refuse(step, words.no_such_statement(name))
        self._plan(step)
        self._portals.expect(portal, found)
        return step

    def _execute(self, frame: Frame) -> Step:
        portal = kept_name(frontend.execute_portal(frame))
        step = Step(frame, Kind.EXECUTE, name=portal)
        found = self._portals.find(portal)
        if found is None:
            return self._refuse(step, words.no_such_portal(portal))
        step.prepared = found
        if control_of(found) is not None and not self._portals.is_pending(portal):
            return self._refuse(step, words.stale_control())
        for prepared in found:
            if prepared.statement is None:
                continue
            self._run(step, prepared.statement, several=False, is_body=prepared.is_body)
            if step.act == Act.REFUSE:
                return step
            if not prepared.is_body:
                if not self._may_name(step, prepared.statement, several=len(found) > 1):
                    return step
                self._note_names(prepared.text, prepared.statement)
        self._standing.has_run = True
        return step

    def _named(self, frame: Frame) -> Step:
        kind, name = frontend.kind_and_name(frame)
        name = kept_name(name)
        step = Step(frame, KINDS[frame.type_code], name=kind + name)
        if name.startswith(_RESERVED):
            return self._refuse(step, words.reserved_name())
        if kind == b"S" and name:
            if frame.type_code == frontend.CLOSE:
                self._freed.add(name)
            else:
                step.control, step.source = self._parked(name), name
        return step

    def _facts(self, step: Step) -> tuple[Statement, ...] | None:
        facts = self._policy.facts(step.text)
        if facts is None:
            self._segment.unread = step.text
            return None
        if isinstance(facts, Unparsable):
            step.verdicts = (self._policy.judge_unparsable(facts),)
            self._refuse(step, words.unparsable(facts))
            return None
        return facts

    def _plan(self, step: Step) -> None:
        """Parse and Bind: judged as if they ran, since planning runs IMMUTABLE functions."""
        if self._standing.is_unsettled:
            self._refuse(step, words.unsettled())
            return
        for prepared in step.prepared:
            if prepared.statement is None:
                continue
            if not self._allows(step, prepared.statement):
                return
            self._standing.has_run = self._standing.has_run or takes_snapshot(prepared.statement)

    def _allows(self, step: Step, statement: Statement) -> bool:
        verdict = self._policy.judge(statement)
        if needs_snapshot(verdict):
            verdict = without_snapshot(statement, verdict, can_cover=self._policy.can_cover())
        step.verdicts = (*step.verdicts, verdict) if step.verdicts else (verdict,)
        if verdict.action is Action.ALLOW:
            limit = verdict.limits.time
            if limit is not None and not 0 < self._segment.time_limit <= limit:
                self._segment.time_limit = limit
            return True
        step.verdicts = (verdict,)
        step.act = Act.REFUSE
        return False

    def _run(self, step: Step, statement: Statement, *, several: bool, is_body: bool = False) -> None:
        """One statement that this message runs, or what was prepared in it."""
        if self._standing.is_unsettled:
            self._refuse(step, words.unsettled())
            return
        if not self._allows(step, statement):
            return
        if only_reads(statement):
            self._standing.is_unsettled = unsettles(statement)
            return
        changes = body_changes(statement) if is_body else is_change(statement)
        runs_code = unsettles(statement)
        if is_executing(statement):
            found = self._statements.find((statement.prepared or "").encode())
            if found is None:
                self._refuse(step, words.no_such_statement((statement.prepared or "").encode()))
                return
            for prepared in found:
                if not is_preparable(prepared):
                    self._refuse(step, words.executed_command())
                    return
                if prepared.statement is None:
                    continue
                if not self._allows(step, prepared.statement):
                    return
                changes = changes or body_changes(prepared.statement)
                runs_code = runs_code or unsettles(prepared.statement)
        if is_fetching(statement):
            found = self._portals.find((statement.cursor or "").encode())
            if not all(may_be_fetched(prepared) for prepared in found or ()):
                self._refuse(step, words.fetched_command())
                return
            bodies = [prepared.statement for prepared in found or () if prepared.statement is not None]
            runs_code = runs_code or not bodies or any(unsettles(body) for body in bodies)
        for effect in statement.effects:
            if effect.operation is Operation.SET and effect.subject is not None:
                refusal = self._policy.expect_setting(effect.subject, effect.value)
                if refusal is not None:
                    self._refuse(step, refusal)
                    return
        if statement.control is not None:
            self._segment.has_control = True
            if self._segment.is_ours:
                self._refuse(step, words.mixed_write())
                return
            self._control(step, statement, several=several)
        elif changes:
            self._change(step)
            if step.kind == Kind.EXECUTE and starts_copy((statement,)) and not self._is_last(step):
                self._refuse(step, words.pipelined_copy())
        self._standing.is_unsettled = self._standing.is_unsettled or runs_code

    def _is_last(self, step: Step) -> bool:
        """Whether nothing but a Sync or Flush stands behind it."""
        frames = self._segment.frames
        return frames[-1].type_code in (frontend.SYNC, frontend.FLUSH) and step.frame is frames[-2]

    def _change(self, step: Step) -> None:
        standing = self._standing
        if standing.in_block:
            step.act = max(step.act, Act.RECORD)
        elif self._was_open:
            self._refuse(step, words.flushed_write())
        else:
            self._has_write = True
            step.act = max(step.act, Act.WRITE)

    def _control(self, step: Step, statement: Statement, *, several: bool) -> None:
        standing = self._standing
        wants_write = asks_read_write(statement)
        if several and (wants_write or (standing.is_writable and commits(statement))):
            self._refuse(step, words.embedded_control())
        elif opens_block(statement):
            self._open(step, statement, several=several)
        elif wants_write:
            self._refuse(step, words.read_write())
        elif commits(statement):
            if standing.in_block and standing.is_writable and not standing.is_failed:
                step.act = max(step.act, Act.COMMIT)
        elif statement.control is not None and statement.control.verb is Transaction.ROLLBACK_TO:
            standing.is_failed = False
        if ends_block(statement):
            self._has_ended = True
            standing.in_block = standing.is_failed = standing.is_writable = False
            standing.has_run = True
        elif statement.control is not None and statement.control.chain:
            self._has_ended = self._has_ended or commits(statement)
            standing.is_failed = False

    def _open(self, step: Step, statement: Statement, *, several: bool) -> None:
        standing = self._standing
        control = statement.control
        says_nothing = control is None or control.read_only is None
        writes = self._policy.permits_writes()
        if standing.in_block:
            # A second BEGIN is only warned about, but its options take hold.
            standing.is_writable = standing.is_writable or asks_read_write(statement)
            return
        standing.in_block = True
        standing.is_failed = False
        standing.is_writable = asks_read_write(statement)
        if writes and says_nothing and not several and not standing.has_run:
            standing.is_writable = True
            step.act = max(step.act, Act.BEGIN)

    def _may_name(self, step: Step, statement: Statement, *, several: bool) -> bool:
        """What SQL says of the name of a statement that may be parked: a PREPARE finds it taken."""
        name = (statement.prepared or "").encode()
        if statement.tag.startswith(("DEALLOCATE", "DISCARD")):
            if name and not several:
                step.control, step.source = self._parked(name), name
            self._freed.add(name)
            if not name:
                self._frees_all = True
                self._renewed.clear()
        elif (
            statement.effects[0].operation is Operation.PREPARE
            and name
            and not self._standing.is_failed
            and self._parked(name) is not None
        ):
            self._refuse(step, words.embedded_prepare(name) if several else words.statement_exists(name))
            return False
        return True

    def _note_names(self, text: bytes, statement: Statement) -> None:
        first = statement.effects[0].operation
        if first is Operation.PREPARE and statement.prepared is not None:
            self._statements.add(statement.prepared.encode(), Prepared(text, statement, is_body=True))
        if statement.cursor is not None and first is not Operation.EXECUTE:
            self._portals.add(statement.cursor.encode(), Prepared(text, statement, is_body=True))

    def _refuse(self, step: Step, refusal: Refusal) -> Step:
        step.act = Act.REFUSE
        step.refusal = refusal
        return step


def standing_of(status: int, *, is_writable: bool) -> Standing:
    """Where the transaction stands at a ReadyForQuery."""
    return Standing(
        in_block=status != _IDLE, is_failed=status == _FAILED, is_writable=is_writable and status != _IDLE
    )
