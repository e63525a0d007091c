"""Statements of our own on the agent's session: named, swallowed by the ledger, answered as values.

A statement and a portal with names of their own leave the client's unnamed ones alone (MECHANICS, section 9). The name
is random per session; an agent may not use its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlwall.session.ledger import Expectation, Kind, Ledger
from sqlwall.session.refusal import Refusal
from sqlwall.wire import frontend
from sqlwall.wire.backend import decode_data_row, decode_parameter_description
from sqlwall.wire.frames import Frame, FrameReader, Side

Row = tuple[bytes | None, ...]

_COPY_DATA = ord("d")
#: Bytes of a message before its body: type and length.
_HEAD = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of our statements came to: its rows, or the lines of a COPY TO STDOUT without their ends, or the
    server's error. Nothing at all, if the server skipped it behind another's error.
    """

    rows: tuple[Row, ...]
    error: Frame | None
    lines: tuple[bytes, ...] = ()


class Internal:
    """One statement of ours, from its messages to its answer. `types` and `bound` are for one with parameters: the
    object ids of their types, and a Bind of the client's that has their values.
    """

    __slots__ = ("_bound", "_expectations", "_name", "_sql", "_types")

    def __init__(
        self, name: bytes, sql: bytes, types: Sequence[int] = (), bound: frontend.Bind | None = None
    ) -> None:
        self._name = name
        self._sql = sql
        self._types = types
        self._bound = bound
        self._expectations: list[Expectation] = []

    def messages(self, ledger: Ledger, *, sync: bool, on_error: Refusal | None = None) -> bytes:
        """Its messages, whose replies are expected from now on.

        `sync` ends them with a Sync of their own, which commits an implicit transaction. `on_error` is what the client
        is told if the statement fails; without it a failure is only in `answer`.
        """
        name = self._name
        kinds = [Kind.PARSE, Kind.BIND, Kind.EXECUTE, Kind.CLOSE, Kind.CLOSE]
        if sync:
            kinds.append(Kind.SYNC)
        for kind in kinds:
            expectation = Expectation(kind, forward=False)
            expectation.refusal = on_error
            self._expectations.append(expectation)
            ledger.expect(expectation)
        values, formats = (
            ((), ()) if self._bound is None else (self._bound.parameters, self._bound.parameter_formats)
        )
        return b"".join(
            (
                frontend.parse(name, self._sql, self._types),
                frontend.bind(name, name, values, formats),
                frontend.execute(name),
                frontend.close(frontend.Kind.PORTAL, name),
                frontend.close(frontend.Kind.STATEMENT, name),
                frontend.sync() if sync else b"",
            )
        )

    def answer(self) -> Answer:
        """What came back; to be asked once the ledger is settled."""
        for expectation in self._expectations:
            if expectation.failed:
                return Answer((), _error_of(expectation))
        reader = FrameReader(Side.BACKEND)
        rows: list[Row] = []
        lines: list[bytes] = []
        for expectation in self._expectations:
            for data in expectation.data:
                for frame in reader.feed(data):
                    if frame.type_code == _COPY_DATA:
                        lines.append(frame.raw[_HEAD:-1])
                    else:
                        rows.append(decode_data_row(frame))
        return Answer(tuple(rows), None, tuple(lines))


class TypesOfStatement:
    """A Describe of ours: which types the parameters of one of the client's prepared statements have."""

    __slots__ = ("_expectation", "_name", "_sync")

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._expectation = Expectation(Kind.DESCRIBE, forward=False)
        self._sync = Expectation(Kind.SYNC, forward=False)

    def messages(self, ledger: Ledger) -> bytes:
        """The message and a Sync, which is harmless inside a transaction block only."""
        ledger.expect(self._expectation)
        ledger.expect(self._sync)
        return frontend.describe(frontend.Kind.STATEMENT, self._name) + frontend.sync()

    def answer(self) -> tuple[int, ...] | Frame:
        """The object ids of the types, or the server's error; to be asked once the ledger is settled."""
        if self._expectation.failed:
            return _error_of(self._expectation)
        described = next(reply for reply in self._expectation.replies if reply.type_code == ord("t"))
        return decode_parameter_description(described)


def _error_of(expectation: Expectation) -> Frame:
    return next(reply for reply in expectation.replies if reply.type_code == ord("E"))
