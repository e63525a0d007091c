"""A block's BEGIN and COMMIT where nothing but one message of ours stands around them. Sans-I/O: the shell sends.

The lane (`proxy.lanes`) knows every case and costs a task; most blocks of most agents only read, and these two say all
that has to be said of them.
"""

from __future__ import annotations

from typing import Final

from sqlwall.session import refusal as words
from sqlwall.session.internal import Internal
from sqlwall.session.ledger import Expectation, Kind, Ledger
from sqlwall.session.segment import Act, Segment, Step, commits, ends_block
from sqlwall.session.session import Session
from sqlwall.sql.statement import Statement
from sqlwall.wire import backend, frontend
from sqlwall.wire.frames import Frame

_READ_WRITE: Final = b"SET TRANSACTION READ WRITE"
_READ_WRITE_QUERY: Final = frontend.query(_READ_WRITE)
_READ_ONLY: Final = b"SET TRANSACTION READ ONLY"
_READ_ONLY_QUERY: Final = frontend.query(_READ_ONLY)

#: pg_current_xact_id_if_assigned() in every version since 13 (pg_proc.dat). Called by its object id it needs no text to
#: be read and planned, and no name that could be another's.
XID_FUNCTION: Final = 5060
_XID_CALL: Final = frontend.function_call(XID_FUNCTION)
_NULL: Final = b"\xff\xff\xff\xff"


def only_opens(segment: Segment) -> bool:
    """Whether nothing but our switch to read-write has to happen around its messages."""
    if segment.acts != Act.BEGIN or segment.unread or segment.is_ours or segment.is_turned:
        return False
    if any(step.act not in (Act.FORWARD, Act.BEGIN) for step in segment.steps):
        return False
    return len(segment.frames) == 1 or segment.frames[-1].type_code == frontend.SYNC


def opening(session: Session, segment: Segment, name: bytes) -> bytes:
    """The bytes of such a segment, our switch behind its BEGIN; their replies are expected from now on."""
    parts = [session.start(segment)]
    for step in segment.steps:
        expectation, raw = session.dispatch(step)
        parts.append(raw)
        if step.act != Act.BEGIN:
            continue
        if step.kind == Kind.QUERY and expectation is not None:
            expectation.holds_ready = True
            parts.append(switch_query(session.ledger))
        elif step.kind == Kind.EXECUTE:
            parts.append(switch(session.ledger, name))
    return b"".join(parts)


def switch_query(ledger: Ledger) -> bytes:
    """Our switch behind a BEGIN that came as a Query, whose ReadyForQuery it gives to the client.

    As the client's own it drops the unnamed statement; nothing else of the session changes.
    """
    expectation = Expectation(Kind.QUERY, forward=False)
    expectation.refusal = words.rolled_back("")
    expectation.gives_ready = True
    ledger.expect(expectation)
    return _READ_WRITE_QUERY


def switch(ledger: Ledger, name: bytes) -> bytes:
    """Our switch behind an Execute of BEGIN. `name` is one that nobody else can know."""
    return Internal(name, _READ_WRITE).messages(ledger, sync=False, on_error=words.rolled_back(""))


def only_commits(segment: Segment) -> bool:
    """Whether nothing in it makes the server read, plan or run anything but one COMMIT."""
    if segment.acts != Act.COMMIT or segment.unread or segment.is_ours or segment.is_turned:
        return False
    portal: bytes | None = None
    for step in segment.steps:
        kind = step.kind
        if kind in (Kind.QUERY, Kind.PARSE, Kind.BIND, Kind.EXECUTE):
            statement = _only_statement(step)
            if statement is None or not commits(statement) or not ends_block(statement):
                return False
            if kind == Kind.BIND:
                portal = step.name
        elif kind == Kind.DESCRIBE:
            # That of a statement has its text analyzed anew, which may run code.
            if portal is None or step.name != b"P" + portal:
                return False
        elif kind != Kind.SYNC:
            return False
    return len(segment.frames) == 1 or segment.frames[-1].type_code == frontend.SYNC


def committing(session: Session, segment: Segment, name: bytes) -> bytes:
    """The bytes of such a segment where nothing has been written; their replies are expected from now on.

    Code that no text names may have declared a WITH HOLD cursor, which runs at COMMIT: it finds the block read-only. As
    a Query of ours would, a client's own drops the unnamed statement, which a pipeline may be about to bind.
    """
    if segment.frames[0].type_code == frontend.QUERY:
        session.ledger.expect(Expectation(Kind.QUERY, forward=False))
        return _READ_ONLY_QUERY + session.forward(segment)
    lock = Internal(name, _READ_ONLY).messages(session.ledger, sync=False, on_error=words.rolled_back(""))
    return lock + session.forward(segment)


def _only_statement(step: Step) -> Statement | None:
    """The one that a message is about; None if it is about none or several."""
    if step.statements:
        return step.statements[0] if len(step.statements) == 1 else None
    return step.prepared[0].statement if len(step.prepared) == 1 else None


class XidQuestion:
    """Whether the open transaction has an id, that is, whether it can have written anything, asked for a COMMIT.

    To be asked on an idle line inside a transaction block.
    """

    __slots__ = ("_expectation", "segment")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._expectation = Expectation(Kind.QUERY, forward=False)

    def message(self, ledger: Ledger) -> bytes:
        """The message, whose replies are expected from now on."""
        ledger.expect(self._expectation)
        return _XID_CALL

    @property
    def error(self) -> Frame | None:
        """The server's error, if it was one; to be asked once the ledger is settled."""
        if not self._expectation.failed:
            return None
        return next(reply for reply in self._expectation.replies if reply.type_code == backend.ERROR_RESPONSE)

    @property
    def has_none(self) -> bool:
        """Whether the server has said that there is none. Anything else it may have said is not that."""
        if self._expectation.failed:
            return False
        said = [
            reply for reply in self._expectation.replies if reply.type_code == backend.FUNCTION_CALL_RESPONSE
        ]
        return len(said) == 1 and said[0].body == _NULL
