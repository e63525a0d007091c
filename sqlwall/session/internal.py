"""Statements of our own on the agent's session: named, swallowed by the ledger, answered as values.

A statement and a portal with names of their own leave the client's unnamed ones alone (MECHANICS, section 9). The name
is random per session; an agent may not use its prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlwall.session.ledger import Expectation, Kind, Ledger
from sqlwall.session.refusal import Refusal
from sqlwall.wire import frontend
from sqlwall.wire.backend import decode_data_row
from sqlwall.wire.frames import Frame, FrameReader, Side

Row = tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of our statements came to: its rows, or the server's error."""

    rows: tuple[Row, ...]
    error: Frame | None


class Internal:
    """One statement of ours, from its messages to its answer."""

    __slots__ = ("_expectations", "_name", "_sql")

    def __init__(self, name: bytes, sql: bytes) -> None:
        self._name = name
        self._sql = sql
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
        return b"".join(
            (
                frontend.parse(name, self._sql),
                frontend.bind(name, name),
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
                error = next(reply for reply in expectation.replies if reply.type_code == ord("E"))
                return Answer((), error)
        reader = FrameReader(Side.BACKEND)
        rows: list[Row] = []
        for expectation in self._expectations:
            for data in expectation.data:
                rows.extend(decode_data_row(frame) for frame in reader.feed(data))
        return Answer(tuple(rows), None)
