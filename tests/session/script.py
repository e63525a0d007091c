"""A policy for playbooks that is told every text it will be asked about."""

from __future__ import annotations

from collections.abc import Mapping

from sqlwall.rules.verdict import Action, Verdict
from sqlwall.session.examine import Facts
from sqlwall.session.refusal import Refusal
from sqlwall.session.segment import Segment
from sqlwall.session.session import Session
from sqlwall.sql.statement import (
    Effect,
    FunctionName,
    Operation,
    Relation,
    Statement,
    Transaction,
    TransactionControl,
    Unparsable,
)
from sqlwall.wire.frames import BackendScanner, FrameReader, Side

ALLOW = Verdict(Action.ALLOW, "reads", "")
DENY = Verdict(Action.DENY, "no", "it is forbidden", operation="DELETE", target="public.t")
LIMIT = 1024 * 1024


def statement(operation: Operation, tag: str = "", **facts: object) -> Statement:
    """Facts about one statement with one effect on public.t."""
    relation = None if operation is Operation.TRANSACTION else Relation("public", "t")
    return Statement(tag or operation.name, (Effect(operation, relation),), 0, 0, **facts)  # type: ignore[arg-type]


def control(verb: Transaction, **options: object) -> Statement:
    """Facts about transaction control."""
    return statement(
        Operation.TRANSACTION,
        verb.name,
        control=TransactionControl(verb, **options),  # type: ignore[arg-type]
    )


SELECT = statement(Operation.SELECT)
DELETE = statement(Operation.DELETE)
INSERT = statement(Operation.INSERT)
BEGIN = control(Transaction.BEGIN)
COMMIT = control(Transaction.COMMIT)
CALLS = statement(
    Operation.SELECT, "CALLS", volatile=True, functions=(FunctionName(None, "somebodys", "function", 0),)
)

TEXTS: Mapping[bytes, Facts] = {
    b"select": (SELECT,),
    b"delete": (DELETE,),
    b"insert": (INSERT,),
    b"begin": (BEGIN,),
    b"begin read only": (control(Transaction.BEGIN, read_only=True),),
    b"begin read write": (control(Transaction.BEGIN, read_only=False),),
    b"set transaction read write": (control(Transaction.SET_TRANSACTION, read_only=False),),
    b"commit": (COMMIT,),
    b"commit and chain": (control(Transaction.COMMIT, chain=True),),
    b"calls": (CALLS,),
    b"insert; commit": (INSERT, COMMIT),
    b"select; select": (SELECT, SELECT),
    b"calls; select": (CALLS, SELECT),
    b"begin; insert": (BEGIN, INSERT),
    b"insert; begin": (INSERT, BEGIN),
    b"nonsense": Unparsable("42601", "syntax error", 1),
    b"": (),
}


class Script:
    """Allows everything but DELETE."""

    def __init__(self, *, writes: bool = True, large: tuple[bytes, ...] = ()) -> None:
        self.writes = writes
        self.large = large
        self.settings: list[tuple[str, str | None]] = []

    def facts(self, text: bytes) -> Facts | None:
        return None if text in self.large else TEXTS[text]

    def judge(self, statement: Statement) -> Verdict:
        return DENY if statement is DELETE else ALLOW

    def judge_unparsable(self, fault: Unparsable) -> Verdict:
        return Verdict(Action.DENY, "unparsable", fault.message)

    def permits_writes(self) -> bool:
        return self.writes

    def can_cover(self) -> bool:
        return False

    def expect_setting(self, name: str, value: str | None) -> Refusal | None:
        self.settings.append((name, value))
        return None


class Playbook:
    """One session, driven from both sides."""

    def __init__(self, policy: Script | None = None) -> None:
        self.session = Session(policy or Script(), LIMIT, lambda: "EVENT")
        self._reader = FrameReader(Side.FRONTEND)
        self._scanner = BackendScanner()

    def client(self, *messages: bytes) -> Segment | None:
        """The client sends messages; the segment that they complete, examined but not forwarded."""
        self.session.receive(self._reader.feed(b"".join(messages)))
        return self.next()

    def next(self) -> Segment | None:
        """The next segment, examined but not forwarded."""
        frames = self.session.next_frames()
        return None if frames is None else self.session.examine(frames)

    def server(self, *messages: bytes) -> bytes:
        """The server answers; what the client is sent."""
        self.session.receive_server(self._scanner.feed(b"".join(messages)))
        return self.session.ledger.take()
