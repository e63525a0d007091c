"""One audit record, its canonical bytes, and the hash that ties it to the one before. Pure; knows no database.

A chain belongs to one writer (one process). Record 0 is its genesis. The hash covers every field and the hash of the
record before, so none can be changed, taken out or moved without the next one showing it. It has no key: whoever may
write the store can forge a whole chain anew, which only a head that was kept elsewhere shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final

from sqlwall.store.stamp import format_time, new_ulid, utc_now

#: Field values as stored and hashed.
Value = str | int | None

#: What the hash covers, in the order in which it does. `hash` itself follows as the last column.
FIELDS: Final = (
    "writer",
    "sequence",
    "event",
    "time",
    "kind",
    "agent",
    "session",
    "client",
    "database",
    "statement",
    "statement_bytes",
    "statement_sha256",
    "parameters",
    "operation",
    "target",
    "action",
    "rule",
    "reason",
    "sqlstate",
    "outcome",
    "rows",
    "duration_us",
    "prev_hash",
)

#: What a genesis record names as the hash before it.
NO_HASH: Final = "0" * 64

#: Bytes of a statement that are kept; the rest is represented by the hash of the whole.
STATEMENT_LIMIT: Final = 16384

_VERSION: Final = "sqlwall audit 1\n"
_LENGTHS: Final = tuple([f"t{length}:" for length in range(1024)])
_TEXT_LIMIT: Final = 2048
_INTEGER_LIMIT: Final = 2**63 - 1


class AuditKind(Enum):
    """What a record is about. `GENESIS` and `RESUMED` are written by the log itself.

    `OUTCOME` says how a statement ended whose verdict was recorded before it ran; both carry the same event id.
    """

    GENESIS = "genesis"
    RESUMED = "resumed"
    STATEMENT = "statement"
    OUTCOME = "outcome"
    REFUSAL = "refusal"
    LOGIN = "login"
    LOGOUT = "logout"
    CANCEL = "cancel"
    RELOAD = "reload"
    RULESET = "ruleset"
    AGENT = "agent"
    START = "start"
    STOP = "stop"
    UNDO = "undo"


class AuditedText:
    """A statement as the record keeps it: its first bytes as text, and length and SHA-256 of all of them."""

    __slots__ = ("length", "sha256", "text")

    def __init__(self, text: str, length: int, sha256: str) -> None:
        self.text: Final = text
        self.length: Final = length
        self.sha256: Final = sha256

    @classmethod
    def of(cls, raw: bytes, limit: int = STATEMENT_LIMIT) -> AuditedText:
        """Cut after the last whole character within `limit` bytes. Bytes that are no UTF-8 show as ``\\xff``."""
        cut = min(limit, len(raw))
        while cut < len(raw) and cut > max(0, limit - 4) and raw[cut] & 0xC0 == 0x80:
            cut -= 1
        text = raw[:cut].decode("utf-8", "backslashreplace")
        return cls(_storable(text), len(raw), hashlib.sha256(raw).hexdigest())


class AuditRecord:
    """What happened, before it is chained. Any text is safe to give: what no database takes is escaped when stored.

    `event` is the id that a refusal shows to the client. `parameters` counts them; their values are never recorded.
    A plain class, since one is made of every new text that is read with.
    """

    __slots__ = (
        "action",
        "agent",
        "client",
        "database",
        "duration_us",
        "event",
        "kind",
        "operation",
        "outcome",
        "parameters",
        "reason",
        "rows",
        "rule",
        "session",
        "sqlstate",
        "statement",
        "target",
        "time",
    )

    def __init__(
        self,
        kind: AuditKind,
        *,
        agent: str | None = None,
        session: str | None = None,
        client: str | None = None,
        database: str | None = None,
        statement: AuditedText | None = None,
        parameters: int | None = None,
        operation: str | None = None,
        target: str | None = None,
        action: str | None = None,
        rule: str | None = None,
        reason: str | None = None,
        sqlstate: str | None = None,
        outcome: str | None = None,
        rows: int | None = None,
        duration_us: int | None = None,
        event: str | None = None,
        time: datetime | None = None,
    ) -> None:
        self.kind: Final = kind
        self.agent: Final = agent
        self.session: Final = session
        self.client: Final = client
        self.database: Final = database
        self.statement: Final = statement
        self.parameters: Final = parameters
        self.operation: Final = operation
        self.target: Final = target
        self.action: Final = action
        self.rule: Final = rule
        self.reason: Final = reason
        self.sqlstate: Final = sqlstate
        self.outcome: Final = outcome
        self.rows: Final = rows
        self.duration_us: Final = duration_us
        self.event: Final = new_ulid() if event is None else event
        self.time: Final = utc_now() if time is None else time


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it stands in the store, all columns in the order of `FIELDS`, then its hash."""

    writer: str
    sequence: int
    event: str
    time: str
    kind: str
    agent: str | None
    session: str | None
    client: str | None
    database: str | None
    statement: str | None
    statement_bytes: int | None
    statement_sha256: str | None
    parameters: int | None
    operation: str | None
    target: str | None
    action: str | None
    rule: str | None
    reason: str | None
    sqlstate: str | None
    outcome: str | None
    rows: int | None
    duration_us: int | None
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends. Kept outside the store it is what a cut tail is measured against."""

    writer: str
    sequence: int
    hash: str

    def __str__(self) -> str:
        return f"{self.writer}:{self.sequence}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``writer:sequence:hash``. Raises ValueError for anything else."""
        writer, sequence, digest = text.strip().split(":")
        is_hash = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
        if not (writer and sequence.isascii() and sequence.isdecimal() and is_hash):
            raise ValueError("a head is written writer:sequence:hash")
        return cls(writer, int(sequence), digest)


def chained(record: AuditRecord, writer: str, sequence: int, prev_hash: str) -> tuple[Value, ...]:
    """The values of all columns, the hash last."""
    text = record.statement
    values: tuple[Value, ...] = (
        writer,
        sequence,
        _text(record.event),
        format_time(record.time),
        record.kind.value,
        _text(record.agent),
        _text(record.session),
        _text(record.client),
        _text(record.database),
        None if text is None else _storable(text.text),
        None if text is None else _integer(text.length),
        None if text is None else text.sha256,
        _integer(record.parameters),
        _text(record.operation),
        _text(record.target),
        _text(record.action),
        _text(record.rule),
        _text(record.reason),
        _text(record.sqlstate),
        _text(record.outcome),
        _integer(record.rows),
        _integer(record.duration_us),
        prev_hash,
    )
    return (*values, digest(values))


def digest(values: Sequence[object]) -> str:
    """SHA-256 over the values of `FIELDS`, each with its type and length in front, so that no two lists share bytes.

    Raises ValueError for what the store cannot have written: another type, or text that is not Unicode.
    """
    parts = [_VERSION]
    for value in values:
        if value is None:
            parts.append("n")
        elif type(value) is str:
            # The length is that of the bytes. Those of most texts are known, and written, already.
            length = len(value) if value.isascii() else len(value.encode("utf-8"))
            parts.append(_LENGTHS[length] if length < len(_LENGTHS) else f"t{length}:")
            parts.append(value)
        elif type(value) is int:
            parts.append(f"i{value};")
        else:
            raise ValueError(f"a {type(value).__name__} is nothing that an audit record holds")
    return hashlib.sha256("".join(parts).encode("utf-8")).hexdigest()


def _text(value: str | None) -> str | None:
    if value is None:
        return None
    return _storable(value if len(value) <= _TEXT_LIMIT else value[:_TEXT_LIMIT] + "…")


def _storable(text: str) -> str:
    """Escape what SQLite or PostgreSQL would reject, so that no client can make its own record impossible to write."""
    if text.isascii():
        return text.replace("\0", "\\x00") if "\0" in text else text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _integer(value: int | None) -> int | None:
    return None if value is None else max(-_INTEGER_LIMIT, min(int(value), _INTEGER_LIMIT))
