"""A small PostgreSQL: the message flow, transactions and read-only rules of the real one, over a handful of texts.

Follows tcop/postgres.c and access/transam/xact.c as far as conversations in the tests go: replies are kept back until
Sync, Flush or an error; an error skips to Sync; messages outside a block share an implicit transaction up to Sync; a
COPY FROM STDIN swallows Sync and Flush. `committed` is what became durable, `seen` every text that arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlwall.proxy import lanes
from sqlwall.session import block
from sqlwall.snapshot.witness import BASELINE_QUERY, HELD_QUERY, WITNESS_QUERY, XID_QUERY
from sqlwall.wire import frontend
from sqlwall.wire.backend import (
    FUNCTION_CALL_RESPONSE,
    CopyResponse,
    TransactionStatus,
    command_complete,
    copy_response,
    data_row,
    error_response,
    ready_for_query,
)
from sqlwall.wire.body import frame_bytes
from sqlwall.wire.frames import Frame, FrameReader, Side

PARSED, BOUND, CLOSED, NO_DATA = b"1\0\0\0\4", b"2\0\0\0\4", b"3\0\0\0\4", b"n\0\0\0\4"
NO_PARAMETERS = b"t\0\0\0\6\0\0"
EMPTY, SUSPENDED = b"I\0\0\0\4", b"s\0\0\0\4"

#: What each text writes. `sneaky` is permitted by its text and writes behind it.
WRITES = {
    "INSERT INTO orders VALUES (1)": ("INSERT 0 1", ("orders",)),
    "UPDATE orders SET note = 'x' WHERE id = 1": ("UPDATE 1", ("orders",)),
    "UPDATE watched SET v = 2 WHERE id = 1": ("UPDATE 1", ("watched", "payroll")),
    "DELETE FROM payroll": ("DELETE 5", ("payroll",)),
}
COPIES = {"COPY orders FROM STDIN": ("orders",), "COPY watched FROM STDIN": ("watched", "payroll")}
#: PREPARE, under a name that the protocol's Parse uses too.
PREPARES = {f"PREPARE x AS {text}": text for text in (*list(WRITES)[:3], "SELECT 1")}
#: Texts that are allowed while a transaction has failed.
EXITS = ("ROLLBACK", "COMMIT", "ROLLBACK TO a", "ROLLBACK AND CHAIN", "COMMIT AND CHAIN", "END")


class Failure(Exception):  # noqa: N818 - a message of the protocol, as PostgreSQL names it
    """An ErrorResponse."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.reply = error_response(sqlstate=state, message=message)


@dataclass(slots=True)
class Transaction:
    """One transaction: what it wrote, whether it may, whether it has run anything, and its savepoints."""

    read_only: bool
    is_explicit: bool = False
    is_failed: bool = False
    has_run: bool = False
    has_id: bool = False
    messages: int = 0  # that wrote something
    writes: list[str] = field(default_factory=list)
    savepoints: list[tuple[str, list[str]]] = field(default_factory=list)


class ModelServer:
    """One session of it. `feed` takes a client's bytes and returns the server's."""

    def __init__(self, *, read_only: bool) -> None:
        self._default_read_only = read_only
        self._reader = FrameReader(Side.FRONTEND)
        self._transaction: Transaction | None = None
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, tuple[str, bool]] = {}
        self._skipping = False
        self._copying: tuple[tuple[str, ...], bool] | None = None
        self._rows = 0
        self._kept: list[bytes] = []
        self._sent: list[bytes] = []
        self.committed: list[str] = []
        self.seen: list[str] = []
        self.committed_messages = 0  # that wrote something
        self._has_written = False  # the one that is being answered has
        self.on_commit: Callable[[], None] = lambda: None
        self.is_closed = False

    def feed(self, data: bytes) -> bytes:
        """The replies that leave the server."""
        for frame in self._reader.feed(data):
            if self.is_closed:
                break
            self._message(frame)
        sent = b"".join(self._sent)
        self._sent.clear()
        return sent

    @property
    def status(self) -> TransactionStatus:
        """As ReadyForQuery says it."""
        found = self._transaction
        if found is None or not found.is_explicit:
            return TransactionStatus.IDLE
        return TransactionStatus.FAILED if found.is_failed else TransactionStatus.IN_TRANSACTION

    def _reply(self, *replies: bytes) -> None:
        self._kept.extend(replies)

    def _flush(self) -> None:
        self._sent.extend(self._kept)
        self._kept.clear()

    def _ready(self) -> None:
        self._reply(ready_for_query(self.status))
        self._flush()

    def _message(self, frame: Frame) -> None:
        code = chr(frame.type_code)
        self._has_written = False
        if self._copying is not None:
            self._copy(code)
        elif code == "X":
            self.is_closed = True
        elif code == "S":
            self._skipping = False
            self._finish_implicit()
            self._ready()
        elif self._skipping or code in "dcf":
            return
        elif code == "H":
            self._flush()
        elif code == "Q":
            self._query(frontend.decode_query(frame).text.decode())
        elif code == "F":
            self._call(frontend.decode_function_call(frame).function)
        else:
            self._extended(code, frame)

    # -- the extended protocol

    def _extended(self, code: str, frame: Frame) -> None:
        handlers: dict[str, Callable[[Frame], None]] = {
            "P": self._parse, "B": self._bind, "D": self._describe, "E": self._execute, "C": self._close,
        }  # fmt: skip
        try:
            handlers[code](frame)
        except Failure as failure:
            self._fail(failure)
            self._skipping = True

    def _fail(self, failure: Failure) -> None:
        self._reply(failure.reply)
        self._flush()
        found = self._transaction
        if found is not None and found.is_explicit:
            found.is_failed = True
        else:
            self._end()

    def _parse(self, frame: Frame) -> None:
        message = frontend.decode_parse(frame)
        text = message.query.decode()
        self._note(text)
        self._require_usable(text)
        self._current()
        if message.name and message.name in self._statements:
            raise Failure("42P05", f'prepared statement "{message.name.decode()}" already exists')
        self._statements[message.name] = text
        self._reply(PARSED)

    def _bind(self, frame: Frame) -> None:
        portal, name = frontend.bind_names(frame)
        text = self._statement(name)
        self._require_usable(text)
        self._current()
        if portal and portal in self._portals:
            raise Failure("42P03", f'cursor "{portal.decode()}" already exists')
        self._portals[portal] = (text, False)
        self._reply(BOUND)

    def _describe(self, frame: Frame) -> None:
        kind, name = frontend.kind_and_name(frame)
        self._current()
        if kind == b"S":
            self._statement(name)
            self._reply(NO_PARAMETERS)
        else:
            self._portal(name)
        self._reply(NO_DATA)

    def _execute(self, frame: Frame) -> None:
        name = frontend.execute_portal(frame)
        text, is_done = self._portal(name)
        self._require_usable(text)
        if is_done and text != "SELECT 1":
            raise Failure("55000", f'portal "{name.decode()}" cannot be run')
        self._portals[name] = (text, True)
        if text in COPIES:
            self._begin_copy(text, is_simple=False)
            return
        self._run(text, is_done=is_done)

    def _close(self, frame: Frame) -> None:
        kind, name = frontend.kind_and_name(frame)
        (self._statements if kind == b"S" else self._portals).pop(name, None)
        self._reply(CLOSED)

    def _statement(self, name: bytes) -> str:
        if name not in self._statements:
            if not name:
                raise Failure("26000", "unnamed prepared statement does not exist")
            raise Failure("26000", f'prepared statement "{name.decode()}" does not exist')
        return self._statements[name]

    def _portal(self, name: bytes) -> tuple[str, bool]:
        if name not in self._portals:
            raise Failure("34000", f'portal "{name.decode()}" does not exist')
        return self._portals[name]

    def _note(self, text: str) -> None:
        self.seen.append(text)
        if text.startswith("_sqlwall") or text == "nonsense":
            raise Failure("42601", f'syntax error at or near "{text}"')

    def _require_usable(self, text: str) -> None:
        found = self._transaction
        if found is not None and found.is_failed and text not in EXITS:
            raise Failure(
                "25P02", "current transaction is aborted, commands ignored until end of transaction block"
            )

    # -- the simple protocol

    def _query(self, text: str) -> None:
        self._statements.pop(b"", None)
        self._portals.pop(b"", None)
        # Only a text that is empty as a whole has the answer of an empty one (exec_simple_query() in tcop/postgres.c).
        texts = [part.strip() for part in text.split(";") if part.strip()] or [""]
        try:
            for one in texts:
                self._note(one)
            for one in texts:
                self._require_usable(one)
                if one in COPIES:
                    self._begin_copy(one, is_simple=True)
                    return
                self._run(one)
            self._finish_implicit()
        except Failure as failure:
            self._fail(failure)
        self._ready()

    def _call(self, function: int) -> None:
        """A FunctionCall: of all functions the model has the one that asks for the transaction's id."""
        self.seen.append(f"function {function}")
        try:
            self._require_usable("")
            current = self._current()
            self._reply(
                frame_bytes(FUNCTION_CALL_RESPONSE, b"\0\0\0\0017" if current.has_id else b"\xff\xff\xff\xff")
            )
            self._finish_implicit()
        except Failure as failure:
            self._fail(failure)
        self._ready()

    def _begin_copy(self, text: str, *, is_simple: bool) -> None:
        self._require_writable(self._current(), "COPY FROM")
        self._copying = (COPIES[text], is_simple)
        self._rows = 0
        self._reply(copy_response(ord("G"), CopyResponse(0, (0,))))
        self._flush()

    def _copy(self, code: str) -> None:
        assert self._copying is not None
        tables, is_simple = self._copying
        if code in "SH":
            return
        if code == "d":
            self._rows += 1
            return
        self._copying = None
        try:
            if code != "c":
                raise Failure("57014", "COPY from stdin failed")
            current = self._current()
            current.writes += tables
            current.has_id = True
            self._reply(command_complete(f"COPY {self._rows}".encode()))
            if is_simple:
                self._finish_implicit()
        except Failure as failure:
            self._fail(failure)
            self._skipping = not is_simple
        if is_simple:
            self._ready()

    # -- transactions

    def _current(self) -> Transaction:
        if self._transaction is None:
            self._transaction = Transaction(self._default_read_only)
        return self._transaction

    def _end(self) -> None:
        self._transaction = None
        self._portals.clear()

    def _finish_implicit(self) -> None:
        found = self._transaction
        if found is not None and not found.is_explicit:
            self._commit(found)
            self._end()

    def _commit(self, ended: Transaction) -> None:
        self.committed += ended.writes
        self.committed_messages += ended.messages
        self.on_commit()

    def _require_writable(self, found: Transaction, what: str) -> None:
        if found.read_only:
            raise Failure("25006", f"cannot execute {what} in a read-only transaction")
        found.has_run = True

    def _run(self, text: str, *, is_done: bool = False) -> None:
        current = self._current()
        if text in WRITES:
            tag, tables = WRITES[text]
            self._require_writable(current, tag.split()[0])
            current.messages += not self._has_written
            self._has_written = True
            current.writes += tables
            current.has_id = True
            self._reply(command_complete(tag.encode()))
        elif text == "SELECT 1":
            current.has_run = True
            if not is_done:
                self._reply(data_row([b"1"]))
            self._reply(command_complete(b"SELECT 0" if is_done else b"SELECT 1"))
        elif text in PREPARES:
            if b"x" in self._statements:
                raise Failure("42P05", 'prepared statement "x" already exists')
            current.has_run = True
            self._statements[b"x"] = PREPARES[text]
            self._reply(command_complete(b"PREPARE"))
        elif text == "EXECUTE x":
            self._run(self._executed())
        elif text.startswith(("DEALLOCATE", "DISCARD")):
            self._deallocate(text, current)
        elif text == "SELECT 1/0":
            raise Failure("22012", "division by zero")
        elif text == "":
            self._reply(EMPTY)
        elif text.encode() in (XID_QUERY, HELD_QUERY, WITNESS_QUERY, BASELINE_QUERY):
            self._ask(text.encode(), current)
        else:
            self._control(text, current)

    def _executed(self) -> str:
        """What EXECUTE x runs. SQL cannot execute what only the protocol can have parsed."""
        text = self._statement(b"x")
        if text not in PREPARES.values():
            raise Failure("26000", "the model executes no such thing")
        return text

    def _deallocate(self, text: str, current: Transaction) -> None:
        if text == "DISCARD ALL" and current.is_explicit:
            raise Failure("25001", "DISCARD ALL cannot run inside a transaction block")
        if text == "DEALLOCATE x":
            self._statement(b"x")
            del self._statements[b"x"]
        else:
            self._statements.clear()
        if text == "DISCARD ALL":
            self._portals.clear()
        self._reply(command_complete(b"DEALLOCATE" if text == "DEALLOCATE x" else text.encode()))

    def _ask(self, text: bytes, current: Transaction) -> None:
        rows: list[list[bytes | None]] = []
        if text == XID_QUERY:
            rows = [[b"7" if current.has_id else None]]
        elif text == HELD_QUERY:
            rows = [[b"0"]]
        elif text == WITNESS_QUERY:
            rows = [
                [b"%d" % (100 + number), b"public", name.encode(), b"r", b"0", b"%d" % current.writes.count(name), b"0",
                 b"RowExclusiveLock", b"true", b"true", b"true"]
                for number, name in enumerate(sorted(set(current.writes)))
            ]  # fmt: skip
            rows.append([b"end", b"read committed", b"7", b"0", *[None] * 7])
        self._reply(*(data_row(row) for row in rows), command_complete(b"SELECT %d" % len(rows)))

    def _control(self, text: str, current: Transaction) -> None:
        if text.startswith("BEGIN"):
            self._begin(text, current)
        elif text in ("COMMIT", "END", "COMMIT AND CHAIN", "ROLLBACK", "ROLLBACK AND CHAIN"):
            self._finish(text, current)
        elif text == "SET TRANSACTION READ WRITE":
            self._read_write(current)
            self._reply(command_complete(b"SET"))
        elif text == "SET TRANSACTION READ ONLY":
            current.read_only = True
            self._reply(command_complete(b"SET"))
        elif text == "SET CONSTRAINTS ALL IMMEDIATE":
            self._reply(command_complete(b"SET CONSTRAINTS"))
        elif text in ("SAVEPOINT a", "ROLLBACK TO a"):
            self._savepoint(text, current)
        else:
            raise Failure("42601", f"the model does not know {text}")

    def _begin(self, text: str, current: Transaction) -> None:
        current.is_explicit = True
        if text.endswith("READ WRITE"):
            self._read_write(current)
        elif text.endswith("READ ONLY"):
            current.read_only = True
        self._reply(command_complete(b"BEGIN"))

    def _read_write(self, current: Transaction) -> None:
        if current.has_run and current.read_only:
            raise Failure("25001", "transaction read-write mode must be set before any query")
        current.read_only = False

    def _finish(self, text: str, current: Transaction) -> None:
        commits = not text.startswith("ROLLBACK") and not current.is_failed
        if text.endswith("CHAIN") and not current.is_explicit:
            raise Failure("25P01", f"{text} can only be used in transaction blocks")
        if commits:
            self._commit(current)
        self._end()
        if text.endswith("CHAIN"):
            read_only = self._default_read_only if current.is_failed else current.read_only
            self._transaction = Transaction(read_only, is_explicit=True)
        self._reply(command_complete(b"COMMIT" if commits else b"ROLLBACK"))

    def _savepoint(self, text: str, current: Transaction) -> None:
        if not current.is_explicit:
            raise Failure("25P01", f"{text} can only be used in transaction blocks")
        if text == "SAVEPOINT a":
            current.savepoints.append(("a", list(current.writes)))
            self._reply(command_complete(b"SAVEPOINT"))
            return
        if not current.savepoints:
            current.is_failed = True
            raise Failure("3B001", 'savepoint "a" does not exist')
        current.writes = list(current.savepoints[-1][1])
        current.is_failed = False
        self._reply(command_complete(b"ROLLBACK"))


#: Texts of the wall's own, besides its poisons, and the only function that it calls by its number.
INTERNAL = frozenset(
    text.decode()
    for text in (
        XID_QUERY, HELD_QUERY, WITNESS_QUERY, BASELINE_QUERY, block._READ_WRITE, lanes._BEGIN, lanes._COMMIT, b"ROLLBACK",
        b"SET CONSTRAINTS ALL IMMEDIATE", b"SET TRANSACTION READ ONLY", b"function %d" % block.XID_FUNCTION,
    )
)  # fmt: skip
