"""The gate: at a commit point of a read-write transaction, what the server's own witnesses say was written must be
permitted by the ruleset under the server's own names, and waived or covered (DESIGN section 4, promise 3).

Plain code that reads top to bottom; the lane hands in the one primitive it needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlwall.proxy.guard import NO_FINDINGS, Guard, Taken
from sqlwall.proxy.keeping import Findings, ServerError, Uncovered
from sqlwall.rules.context import Context
from sqlwall.rules.judge import judge_witness, tightest
from sqlwall.rules.ruleset import Ruleset
from sqlwall.rules.verdict import NO_LIMITS, Action, Limits, SnapshotPolicy
from sqlwall.session.internal import Answer
from sqlwall.snapshot import witness
from sqlwall.sql.statement import Operation
from sqlwall.wire.frames import Frame

#: How often deferred constraints may set others off before we call it endless.
CONSTRAINT_ROUNDS = 8

Ask = Callable[[Sequence[bytes]], Awaitable[list[Answer]]]

_ROUND = (b"SET CONSTRAINTS ALL IMMEDIATE", witness.WITNESS_QUERY)


@dataclass(frozen=True, slots=True)
class Passed:
    """The transaction may commit. `xid` is None if it wrote nothing; `snapshot` covers what no rule waives.

    `notice` says that a rule wants the client to be told of the snapshot.
    """

    xid: str | None
    snapshot: Taken | None = None
    notice: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The transaction may not commit: why, by which rule, on what, and whether the same may pass another time."""

    reason: str
    rule: str
    target: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The server itself failed what a COMMIT would have done, such as a deferred constraint: its own error."""

    error: Frame


Outcome = Passed | Refused | Failed


async def examine_commit(
    ask: Ask,
    baseline: witness.Witnesses | None,
    ruleset: Ruleset,
    contexts: tuple[Context, ...],
    *,
    holds: bool,
    rolled_back: bool,
    outlives_lock: bool = False,
    has_written: bool = False,
    guard: Guard | None = None,
    find: Callable[[], Awaitable[Findings]] | None = None,
) -> Outcome:
    """Ask the server what the open transaction has written, and the ruleset whether it may stay; `guard` snapshots it.

    `holds` says that a WITH HOLD cursor was declared in it, which runs only at COMMIT; `outlives_lock` that it cannot
    be made read-only for its COMMIT; `rolled_back` that a permitted write in it was undone by ROLLBACK TO.
    `has_written` is no more than an expectation: then all is asked at once.
    `find` tells what statements that change definitions have left.
    """
    try:
        answers = await _run(ask, (witness.XID_QUERY, *(_ROUND if has_written and not holds else ())))
        xid = _text(answers[0].rows[0][0])
        if xid is None:
            return await _commit_nothing(ask, outlives_lock=outlives_lock)
        if holds:
            return Refused("a WITH HOLD cursor runs at COMMIT, behind the gate", "with-hold", "")
        state = await _settle_constraints(ask, answers[2] if len(answers) > 1 else None)
        if isinstance(state, Refused):
            return state
        permission = Permission(ruleset, contexts, can_cover=guard is not None)
        findings = await find() if find is not None else NO_FINDINGS
        decision = witness.decide(
            baseline, state, permission.decide, rolled_back=rolled_back, explained=findings.explained
        )
        if isinstance(decision, witness.Refused):
            return Refused(decision.reason, "gate", decision.relation)
        if guard is None or not (decision.uncovered or findings.is_something):
            return Passed(xid)
        found = await guard.cover(
            int(xid), state.moment, decision.uncovered, permission.limits, ruleset.digest, findings
        )
    except ServerError as error:
        return Failed(error.frame)
    if isinstance(found, Uncovered):
        return Refused(found.reason, f"snapshot-{found.kind}", found.target, found.retryable)
    if found is None:
        return Passed(xid)
    return Passed(xid, found, permission.notice)


async def _run(ask: Ask, texts: Sequence[bytes]) -> list[Answer]:
    """The answers. Raises ServerError; what stands behind an error was not run."""
    answers = await ask(texts)
    for answer in answers:
        if answer.error is not None:
            raise ServerError(answer.error)
    return answers


async def _commit_nothing(ask: Ask, *, outlives_lock: bool) -> Outcome:
    """Nothing was written. A WITH HOLD cursor, which code that no text names may have declared, could still write at
    COMMIT: it must not be able to.

    Behind a SAVEPOINT it would be: the COMMIT releases that first, and what was set behind it is as it was before
    (CommitSubTransaction() in access/transam/xact.c). And COMMIT AND CHAIN would begin the next block read-only.
    """
    if not outlives_lock:
        await _run(ask, (b"SET TRANSACTION READ ONLY",))
        return Passed(None)
    (answer,) = await _run(ask, (witness.HELD_QUERY,))
    if answer.rows[0][0] == b"0":
        return Passed(None)
    return Refused(
        "a WITH HOLD cursor behind a SAVEPOINT, or before AND CHAIN, runs at COMMIT, behind the gate",
        "with-hold",
        "",
    )


async def _settle_constraints(ask: Ask, asked: Answer | None) -> witness.Witnesses | Refused:
    """Fire deferred constraints until nothing more changes: a trigger may defer others anew (MECHANICS 14).

    `asked` is what the witnesses said behind the first round, if there was one. It may be the last where nothing that
    was written can defer anything, and where the witnesses see the triggers of now: under a snapshot of the whole
    transaction, somebody may have made one since.
    """
    last: witness.Witnesses | None = None
    for _ in range(CONSTRAINT_ROUNDS):
        if asked is None:
            _, asked = await _run(ask, _ROUND)
        now = witness.decode_witnesses(asked.rows)
        if now == last or (now.moment.is_fresh and not now.can_defer):
            return now
        last, asked = now, None
    return Refused(f"deferred constraints still change rows after {CONSTRAINT_ROUNDS} rounds", "gate", "")


async def read_baseline(ask: Ask, first: Sequence[bytes] = ()) -> witness.Witnesses | Frame | None:
    """The counters before the first write of a transaction; None if it has written already, an error if one came.

    `first` are statements that run before. Counters carry over from earlier transactions of the session, so only the
    difference speaks of this one.
    """
    try:
        *_, xid, counters = await _run(ask, (*first, witness.XID_QUERY, witness.BASELINE_QUERY))
    except ServerError as error:
        return error.frame
    return witness.decode_witnesses(counters.rows) if xid.rows[0][0] is None else None


class Permission:
    """What the ruleset says of measured writes, under every search_path of the session.

    `limits` and `notice` are those met so far.
    """

    def __init__(self, ruleset: Ruleset, contexts: tuple[Context, ...], *, can_cover: bool) -> None:
        self._ruleset = ruleset
        self._contexts = contexts
        self._can_cover = can_cover
        self.limits = NO_LIMITS
        self.notice = False

    def tighten(self, limits: Limits) -> None:
        """These limits hold too."""
        self.limits = tightest((self.limits, limits))

    def decide(self, operation: Operation, schema: str, name: str) -> witness.Decision:
        """Whether the agent may do this to that relation, and whether only with a snapshot."""
        must_cover = False
        for context in self._contexts:
            verdict = judge_witness(operation, schema, name, context, self._ruleset)
            if verdict.action is not Action.ALLOW:
                return witness.Decision(False, f"{verdict.reason} [{verdict.rule}]")
            must_cover = must_cover or verdict.snapshot is not SnapshotPolicy.NONE
            if must_cover and not self._can_cover:
                return witness.Decision(False, f"no snapshot covers it [{verdict.rule}]")
            self.limits = tightest((self.limits, verdict.limits))
            self.notice = self.notice or verdict.notice
        return witness.Decision(bool(self._contexts), "nobody was there to ask for", must_cover)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
