"""The guarded lane's first half: before an UPDATE or DELETE runs, the rows that it will touch are locked, listed and
counted against the limits of the rule.

What is listed here proves nothing: it spares the guard a look at the whole table. So a statement of which no such list
can be made runs all the same, and an error that the statement would meet itself is left to it (DESIGN section 4).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from sqlwall.proxy.definitions import Definitions
from sqlwall.proxy.gate import Permission
from sqlwall.proxy.guard import CaptureTexts, Guard
from sqlwall.proxy.keeping import DECISIVE, TooMany, Uncovered, denied
from sqlwall.rules.verdict import Verdict
from sqlwall.session.internal import Answer, Internal, TypesOfStatement
from sqlwall.session.ledger import Kind
from sqlwall.session.prepared import Prepared
from sqlwall.session.segment import Step, needs_snapshot
from sqlwall.snapshot.images import Tid, read_tid
from sqlwall.sql.capture import CaptureText, NotCapturable
from sqlwall.sql.removals import read_removal
from sqlwall.sql.statement import Operation, Statement
from sqlwall.wire import frontend
from sqlwall.wire.backend import decode_diagnostics
from sqlwall.wire.frames import Frame

#: Rows that are listed at most; for more than these a look at the whole table is no dearer.
CAPTURE_LIMIT = 20_000
#: Portals and statements of a session of which something is remembered.
NAMES_LIMIT = 1_000

_SAVEPOINT = b"SAVEPOINT _sqlwall_capture"
_RELEASE = b"RELEASE SAVEPOINT _sqlwall_capture"
_ROLL_BACK = b"ROLLBACK TO SAVEPOINT _sqlwall_capture"


class Asking(Protocol):
    """What a capture needs of its lane. All of it runs inside a transaction block."""

    def new_internal(
        self, sql: bytes, types: Sequence[int] = (), bound: frontend.Bind | None = None
    ) -> Internal:
        """A statement of ours under a name of its own."""

    def ask_all(self, internals: Sequence[Internal]) -> Awaitable[list[Answer]]:
        """Run them as one pipeline."""

    def ask_types(self, statement: TypesOfStatement) -> Awaitable[tuple[int, ...] | Frame]:
        """What types its parameters have."""


class Capture:
    """The captures of one connection."""

    def __init__(self, asking: Asking, guard: Guard, texts: CaptureTexts, definitions: Definitions) -> None:
        self._asking = asking
        self._guard = guard
        self._definitions = definitions
        self._texts = texts
        self._bound: dict[bytes, Frame] = {}
        self._types: dict[int, tuple[Prepared, tuple[int, ...]]] = {}

    def note_bind(self, step: Step) -> None:
        """A Bind of a statement that writes: its values will be needed at Execute."""
        if not any(needs_snapshot(verdict) for verdict in step.verdicts):
            self._bound.pop(step.name, None)
            return
        if len(self._bound) >= NAMES_LIMIT:
            self._bound.clear()
        self._bound[step.name] = step.frame

    async def before(self, step: Step, permission: Permission) -> Verdict | TooMany | Frame | None:
        """List what the step's statement is about to touch, or keep what it is about to remove.

        A Frame is an error that is the client's answer, a Verdict the refusal of what cannot be brought back. Raises
        SqlwallError where what is removed cannot be kept.
        """
        verdict = next((found for found in step.verdicts if needs_snapshot(found)), None)
        if verdict is None:
            return None
        self._guard.note_statement(step.text or b"; ".join(prepared.text for prepared in step.prepared))
        if removes(step):
            self._guard.note_removal()
            return await self._before_removal(step, verdict, permission)
        found = self._text_of(step)
        if found is None:
            return None
        text, capture = found
        bound: frontend.Bind | None = None
        types: tuple[int, ...] = ()
        if step.kind == Kind.EXECUTE:
            frame = self._bound.get(step.name)
            if frame is None:
                return None
            bound = frontend.decode_bind(frame)
            if capture.parameters:
                described = await self._types_of(text, bound)
                if isinstance(described, Frame):
                    return described
                types = described
            else:
                bound = None
        return await self._list(capture, verdict, types, bound)

    async def _before_removal(
        self, step: Step, verdict: Verdict, permission: Permission
    ) -> Verdict | TooMany | Frame | None:
        """A TRUNCATE or DROP is looked at by itself: what another statement changed would be taken for its doing."""
        statements = _statements(step)
        if len(statements) != 1 or step.kind not in (Kind.QUERY, Kind.EXECUTE):
            what = "it is irreversible among other statements in one text"
            return denied(verdict, Uncovered(what, verdict.target, "irreversible"), "Send it by itself.")
        text = step.text if step.kind == Kind.QUERY else step.prepared[0].text
        wanted = read_removal(text, statements[0])
        if wanted is None:
            return denied(verdict, Uncovered("it is irreversible", verdict.target, "irreversible"))
        return await self._definitions.before(wanted, verdict, permission)

    def _text_of(self, step: Step) -> tuple[Prepared | None, CaptureText] | None:
        """What is captured, if it is one statement by itself."""
        prepared: Prepared | None = None
        if step.kind == Kind.EXECUTE:
            if len(step.prepared) != 1 or step.prepared[0].is_body:
                return None
            prepared = step.prepared[0]
            text, statement = prepared.text, prepared.statement
        elif len(step.statements) == 1:
            text, statement = step.text, step.statements[0]
        else:
            return None
        if statement is None or statement.effects[0].operation not in (Operation.UPDATE, Operation.DELETE):
            return None
        capture = self._texts.find(text, statement)
        return None if isinstance(capture, NotCapturable) else (prepared, capture)

    async def _types_of(self, prepared: Prepared | None, bound: frontend.Bind) -> tuple[int, ...] | Frame:
        known = self._types.get(id(prepared))
        if known is not None and known[0] is prepared:
            return known[1]
        found = await self._asking.ask_types(TypesOfStatement(bound.statement))
        if isinstance(found, tuple) and prepared is not None:
            if len(self._types) >= NAMES_LIMIT:
                self._types.clear()
            self._types[id(prepared)] = (prepared, found)
        return found

    async def _list(
        self, capture: CaptureText, verdict: Verdict, types: tuple[int, ...], bound: frontend.Bind | None
    ) -> TooMany | Frame | None:
        limit = verdict.limits.rows
        most = CAPTURE_LIMIT if limit is None else min(limit, CAPTURE_LIMIT)
        new = self._asking.new_internal
        answers = await self._asking.ask_all(
            (new(_SAVEPOINT), new(capture.with_limit(most + 1), types, bound), new(_RELEASE))
        )
        for answer in answers:
            if answer.error is None:
                continue
            if decode_diagnostics(answer.error).sqlstate in DECISIVE:
                return answer.error
            undone = await self._asking.ask_all((new(_ROLL_BACK), new(_RELEASE)))
            return next((one.error for one in undone if one.error is not None), None)
        found: dict[str, list[Tid]] = {}
        for table, tid in answers[1].rows:
            found.setdefault((table or b"").decode(), []).append(read_tid(tid or b""))
        rows = sum(len(set(tids)) for tids in found.values())
        if rows > most:
            return TooMany(most) if limit is not None and most == limit else None
        if verdict.limits.share is not None:
            counts = {oid: len(set(tids)) for oid, tids in found.items()}
            allowed = await self._guard.exceeded(counts, verdict.limits.share)
            if allowed is not None:
                return TooMany(allowed)
        for oid, tids in found.items():
            self._guard.note_candidates(oid, tids)
        return None


def removes(step: Step) -> bool:
    """Whether a message runs a TRUNCATE or a DROP."""
    return any(
        effect.operation in (Operation.TRUNCATE, Operation.DROP)
        for statement in _statements(step)
        for effect in statement.effects
    )


def _statements(step: Step) -> tuple[Statement, ...]:
    if step.kind == Kind.EXECUTE:
        return tuple(one.statement for one in step.prepared if one.statement is not None)
    return step.statements
