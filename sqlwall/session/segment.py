"""A segment: the frontend messages up to a Query, Sync or Flush, each with what has to happen around it.

Values and questions about statements only; who asks them is `session.examine`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from sqlwall.rules.verdict import Action, SnapshotPolicy, Verdict
from sqlwall.session.ledger import Kind
from sqlwall.session.prepared import Prepared
from sqlwall.session.refusal import Refusal
from sqlwall.sql.functions import keeps_settings
from sqlwall.sql.statement import WRITE_OPERATIONS, Effect, Operation, Statement, Transaction, Unparsable
from sqlwall.wire.frames import Frame


class Act(IntEnum):
    """How a message travels, ordered by how much has to happen around it."""

    FORWARD = 0
    #: A durable record first, then forward: a write inside a transaction block.
    RECORD = 1
    #: Opens a transaction block that may be written in: our SET TRANSACTION READ WRITE goes behind it.
    BEGIN = 2
    #: A commit point of a read-write transaction: the gate stands before it.
    COMMIT = 3
    #: A permitted write outside a transaction block: needs a read-write transaction of ours around it.
    WRITE = 4
    REFUSE = 5


class Step:
    """One frontend message and what is to happen to it.

    `refusal` is None for a step that a verdict refuses: its wording needs the id of the record. A plain class, since
    one is made per message and what a dataclass makes of itself cannot be compiled.

    `control` is the transaction control that the message names by `source`, if it does: see `Session.dispatch`.
    """

    __slots__ = (
        "act",
        "control",
        "frame",
        "kind",
        "name",
        "prepared",
        "refusal",
        "source",
        "statements",
        "text",
        "verdicts",
    )

    def __init__(self, frame: Frame, kind: int, name: bytes = b"", text: bytes = b"") -> None:
        self.frame = frame
        self.kind = kind
        self.act = Act.FORWARD
        self.name = name
        self.prepared: tuple[Prepared, ...] = ()
        self.statements: tuple[Statement, ...] = ()
        self.verdicts: tuple[Verdict, ...] = ()
        self.refusal: Refusal | None = None
        self.text = text
        self.control: Prepared | None = None
        self.source = b""


class Standing:
    """Where the transaction stands while a segment is examined: what it will be if all so far succeeds.

    `has_run` says that the open implicit transaction has run or planned something: it can no longer become read-write.
    `is_ours` says that the block is one of ours around the client's implicit transaction, to be judged and committed at
    its Sync. `is_unsettled` says that code has run which may have changed settings, and no ReadyForQuery has followed:
    only with that does the server tell of those that are watched.
    """

    __slots__ = ("has_run", "in_block", "is_failed", "is_ours", "is_unsettled", "is_writable")

    def __init__(
        self,
        *,
        in_block: bool = False,
        is_failed: bool = False,
        is_writable: bool = False,
        has_run: bool = False,
        is_ours: bool = False,
        is_unsettled: bool = False,
    ) -> None:
        self.in_block = in_block
        self.is_failed = is_failed
        self.is_writable = is_writable
        self.has_run = has_run
        self.is_ours = is_ours
        self.is_unsettled = is_unsettled

    def copy(self) -> Standing:
        """The same, to be changed on its own."""
        return Standing(
            in_block=self.in_block,
            is_failed=self.is_failed,
            is_writable=self.is_writable,
            has_run=self.has_run,
            is_ours=self.is_ours,
            is_unsettled=self.is_unsettled,
        )


class Segment:
    """Examined messages, in order. `unread` is a text that only the sandboxed parser may read, and has not yet.

    `is_ours` says that it continues an implicit transaction inside a block of ours.
    `time_limit` is the shortest that a verdict gives, in seconds; 0 is none. `may_write` says that some transaction
    block in it may be read-write; `standing` is where it leaves the session.
    `is_turned` says that a transaction ends in it, and that more stands behind. Code may have changed settings in it,
    with which the next would begin: a Sync of ours has to bring them to light before.
    """

    __slots__ = (
        "acts",
        "frames",
        "has_control",
        "is_ours",
        "is_turned",
        "may_write",
        "standing",
        "steps",
        "time_limit",
        "unread",
    )

    def __init__(self, frames: list[Frame], standing: Standing) -> None:
        self.frames = frames
        self.steps: list[Step] = []
        self.acts = Act.FORWARD
        self.unread = b""
        self.time_limit = 0.0
        self.may_write = standing.is_writable
        self.has_control = False
        self.is_ours = standing.is_ours
        self.is_turned = False
        self.standing = standing

    @property
    def is_fast(self) -> bool:
        """Nothing has to happen around any of its messages."""
        return self.acts == Act.FORWARD and not self.unread and not self.is_ours and not self.is_turned


#: What alone runs no code.
_STILL: Final = frozenset(
    {Operation.SELECT, Operation.FUNCTION, Operation.SHOW, Operation.SET, Operation.RESET}
)
#: Operations that need a read-write transaction though they name no row.
_DEFINING: Final = frozenset(
    {
        Operation.CREATE,
        Operation.ALTER,
        Operation.DROP,
        Operation.GRANT,
        Operation.CALL,
        Operation.DO,
    }
)
_CHANGING: Final = WRITE_OPERATIONS | _DEFINING


def is_change(statement: Statement) -> bool:
    """Whether running the statement itself changes anything. PREPARE and DECLARE only store a text."""
    if statement.effects and statement.effects[0].operation is Operation.PREPARE:
        return False
    return body_changes(statement)


def body_changes(statement: Statement) -> bool:
    """Whether EXECUTE of this PREPARE, or this statement itself, changes anything."""
    return any(effect.operation in _CHANGING for effect in statement.effects)


def asks_read_write(statement: Statement) -> bool:
    """Whether the text asks for a writable transaction by name."""
    control = statement.control
    return control is not None and control.read_only is False


def opens_block(statement: Statement) -> bool:
    """BEGIN or START TRANSACTION."""
    return statement.control is not None and statement.control.verb is Transaction.BEGIN


def commits(statement: Statement) -> bool:
    """COMMIT or END."""
    return statement.control is not None and statement.control.verb is Transaction.COMMIT


def ends_block(statement: Statement) -> bool:
    """COMMIT, END, ROLLBACK or ABORT, unless a new block is chained to it."""
    control = statement.control
    return (
        control is not None
        and control.verb in (Transaction.COMMIT, Transaction.ROLLBACK)
        and not control.chain
    )


def ends_failed(statement: Statement) -> bool:
    """Whether PostgreSQL reads it in a failed block (IsTransactionExitStmt() in tcop/postgres.c)."""
    control = statement.control
    return control is not None and control.verb in (
        Transaction.COMMIT,
        Transaction.ROLLBACK,
        Transaction.ROLLBACK_TO,
    )


def only_rolls_back(step: Step) -> bool:
    """Whether a message does nothing but undo the whole transaction, which must be possible whatever is broken."""
    found: tuple[Statement | None, ...] = step.statements or tuple(p.statement for p in step.prepared)
    return bool(found) and all(
        statement is not None
        and statement.control is not None
        and statement.control.verb is Transaction.ROLLBACK
        and not statement.control.chain
        for statement in found
    )


def ends_transaction(step: Step) -> bool:
    """Whether it is an Execute of COMMIT, ROLLBACK or their like, with or without AND CHAIN."""
    return step.kind == Kind.EXECUTE and any(
        prepared.statement is not None and turns(prepared.statement) for prepared in step.prepared
    )


def turns(statement: Statement) -> bool:
    """Whether one transaction ends with it, so that what code has set in it lasts."""
    return ends_block(statement) or commits(statement)


def chains(step: Step) -> bool:
    """Whether one of its statements is a COMMIT AND CHAIN or the like."""
    found = step.statements or tuple([p.statement for p in step.prepared if p.statement is not None])
    return any(statement.control is not None and statement.control.chain for statement in found)


def is_still(statement: Statement) -> bool:
    """Whether it surely runs no code of a user's: it names no relation, whose view, policy or domain may run some."""
    if statement.control is not None:
        return True
    if is_executing(statement) or is_fetching(statement) or unsettles(statement):
        return False
    if any(function.schema != "pg_catalog" for function in statement.functions):
        return False  # a name of PostgreSQL's may be another's, too
    return bool(statement.effects) and all(
        effect.operation in _STILL and effect.relation is None for effect in statement.effects
    )


def turns_unseen(statements: tuple[Statement, ...], *, may_have_set: bool) -> bool:
    """Whether code may run in a transaction of a string that begins behind a COMMIT in it.

    What ran before that, or a WITH HOLD cursor in it, may have made transactions begin read-write, and the server
    tells of settings behind the whole string only. What could hide them until then is as bad, behind a BEGIN.
    `may_have_set` says that code may have run before the string, in the transaction that is open.
    """
    has_committed = has_begun = False
    for statement in statements:
        if has_committed and (not is_still(statement) or (has_begun and _sets(statement))):
            return True
        has_begun = has_begun or (has_committed and opens_block(statement))
        has_committed = has_committed or (may_have_set and commits(statement))
        may_have_set = may_have_set or not is_still(statement)
    return False


def _sets(statement: Statement) -> bool:
    """SET or RESET."""
    return any(effect.operation in (Operation.SET, Operation.RESET) for effect in statement.effects)


def makes_savepoint(statement: Statement) -> bool:
    """SAVEPOINT."""
    return statement.control is not None and statement.control.verb is Transaction.SAVEPOINT


def rolls_back_to(statement: Statement) -> bool:
    """ROLLBACK TO SAVEPOINT."""
    return statement.control is not None and statement.control.verb is Transaction.ROLLBACK_TO


def starts_copy(facts: tuple[Statement, ...] | Unparsable | None) -> bool:
    """Whether a text is a COPY FROM STDIN, as far as it has been read."""
    if not isinstance(facts, tuple) or len(facts) != 1:
        return False
    return any(effect.operation is Operation.COPY_IN for effect in facts[0].effects)


def only_reads(statement: Statement) -> bool:
    """Whether it does nothing but SELECT: it changes nothing, stores no text, and controls no transaction."""
    if statement.control is not None or not statement.effects:
        return False
    return all(effect.operation is Operation.SELECT for effect in statement.effects)


def unsettles(statement: Statement) -> bool:
    """Whether it runs code that may change settings, so that nothing behind it in the pipeline is sure to mean what it
    meant: functions that are not PostgreSQL's own, and those of its own that set a setting or run a text.
    """
    if not statement.volatile:
        return False
    if any(effect.operation in (Operation.CALL, Operation.DO) for effect in statement.effects):
        return True
    return not all(
        function.kind != "function"
        or (function.schema in (None, "pg_catalog") and keeps_settings(function.name))
        for function in statement.functions
    )


def is_executing(statement: Statement) -> bool:
    """EXECUTE of a prepared statement, by itself or inside EXPLAIN or CREATE TABLE AS."""
    return any(effect.operation is Operation.EXECUTE for effect in statement.effects)


def is_fetching(statement: Statement) -> bool:
    """FETCH or MOVE, of which `cursor` says what from."""
    return statement.tag in ("FETCH", "MOVE")


#: What PREPARE takes (PreparableStmt in parser/gram.y).
_PREPARABLE: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"})


def is_preparable(prepared: Prepared) -> bool:
    """Whether it is what a PREPARE could hold. A Parse takes any other command, too, and EXECUTE would commit with it,
    change settings or declare cursors, where its own text says nothing of that.
    """
    return prepared.is_body or prepared.statement is None or prepared.statement.tag in _PREPARABLE


#: Beside what PREPARE takes (analyze_requires_snapshot() in parser/analyze.c).
_ANALYZED: Final = _PREPARABLE | {"SELECT INTO", "EXPLAIN", "DECLARE CURSOR", "CREATE TABLE AS", "CALL"}


def takes_snapshot(statement: Statement) -> bool:
    """Whether its Parse and Bind take the transaction's snapshot, behind which that cannot become read-write."""
    return statement.tag in _ANALYZED


def may_be_fetched(prepared: Prepared) -> bool:
    """Whether FETCH and MOVE may run it: a cursor, or the portal of a query. They run whatever a Bind has made a portal
    of, where it has rows to give, such as an UPDATE with RETURNING or an EXECUTE.
    """
    if prepared.is_body or prepared.statement is None:
        return True
    return prepared.statement.tag == "SELECT" and not is_change(prepared.statement)


#: Operations whose every change the guard can cover, or that come to such ones.
_COVERABLE: Final = frozenset(
    {
        Operation.INSERT,
        Operation.UPDATE,
        Operation.DELETE,
        Operation.MERGE,
        Operation.COPY_IN,
        Operation.TRUNCATE,
        Operation.CALL,
        Operation.DO,
    }
)


def needs_snapshot(verdict: Verdict) -> bool:
    """Whether an allowed statement may commit only with a snapshot."""
    return verdict.action is Action.ALLOW and verdict.snapshot is SnapshotPolicy.REQUIRED


def _is_coverable(effect: Effect) -> bool:
    """DROP TABLE can be: it moves the table away. Whether this one can shows when it is about to run."""
    if effect.operation is Operation.DROP:
        return effect.subject == "table" and effect.relation is not None
    return effect.operation in _COVERABLE


def without_snapshot(statement: Statement, verdict: Verdict, *, can_cover: bool) -> Verdict:
    """The verdict on a write that needs a snapshot, where none can be taken: no snapshot, no write."""
    changing = [effect for effect in statement.effects if effect.operation in _CHANGING]
    if can_cover:
        changing = [effect for effect in changing if not _is_coverable(effect)]
    if not changing:
        return verdict
    effect = changing[0]
    lasts = "it is irreversible: " if effect.operation in _DEFINING else ""
    return Verdict(
        Action.DENY,
        verdict.rule,
        f"{lasts}no snapshot can be taken, and the rule requires one",
        "A rule with `snapshot: none` waives the snapshot for relations that need none.",
        effect.operation.value.upper().replace("_", " "),
        str(effect.relation) if effect.relation else verdict.target,
        judged=Action.DENY,
    )
