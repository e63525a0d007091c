"""What captures and the guard have in common: answers that leave their depths, images on their way to the disk, and
what was kept of tables before a TRUNCATE.
"""

from __future__ import annotations

import asyncio
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from sqlwall.errors import StoreError
from sqlwall.proxy.counters import Counters
from sqlwall.proxy.observer import Table
from sqlwall.rules.verdict import Action, SnapshotPolicy, Verdict
from sqlwall.session.internal import Answer
from sqlwall.snapshot import queries
from sqlwall.snapshot.catalogs import UNTOUCHED, Explained
from sqlwall.snapshot.manifest import Move, Part, SequenceChange
from sqlwall.snapshot.trash import PINNED_PATH
from sqlwall.store.container import PartsWriter, read_part
from sqlwall.store.snapshots import Snapshots, cut_lines
from sqlwall.store.stamp import new_ulid
from sqlwall.wire.backend import decode_diagnostics
from sqlwall.wire.frames import Frame

#: Bytes of images that gather before they are written to disk.
PAGE = 1 << 20
#: Bytes that the event loop writes itself.
SMALL = 1 << 16


@dataclass(frozen=True, slots=True)
class TooMany:
    """The statement would change more rows than its rule allows."""

    limit: int


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A snapshot could not be shown to cover what was written: why, on what. `kind` is a short word for metrics.

    `retryable` says that the same transaction may pass at another moment.
    """

    reason: str
    target: str
    kind: str
    retryable: bool = False


class ServerError(Exception):
    """One of our statements on the agent's session failed, perhaps by the client's own cancel: the client's answer."""

    def __init__(self, frame: Frame) -> None:
        super().__init__("the server failed a statement of ours")
        self.frame = frame


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """Leaves the guard's depths with an answer."""

    def __init__(self, uncovered: Uncovered, hint: str = "") -> None:
        super().__init__(uncovered.reason)
        self.uncovered = uncovered
        self.hint = hint


def denied(verdict: Verdict, why: Uncovered, hint: str = "") -> Verdict:
    """The refusal of a statement that its rule would let pass."""
    return replace(
        verdict,
        action=Action.DENY,
        judged=Action.DENY,
        reason=why.reason,
        hint=hint,
        target=why.target,
        snapshot=SnapshotPolicy.NONE,
    )


class Hold(PartsWriter):
    """Images that wait for the end of their transaction, in a file without a name, under the key of the snapshots.

    A snapshot is given its id at the end, so that ids tell the order in which transactions were committed; until then
    its rows are here. Nothing of them stays when nobody needs this any more. Blocking.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        super().__init__(new_ulid(), snapshots.key, self._add, lambda: self._size)
        self._size = 0
        with self._failures():
            self._file = tempfile.TemporaryFile(dir=snapshots.blobs.spool())  # noqa: SIM115 - closed with this
        weakref.finalize(self, self._file.close)

    def read(self, part: Part) -> Iterator[bytes]:
        """The COPY text of a part in pieces. Raises SnapshotError, StoreError."""
        return read_part(self._identifier, part, self._range, self._key)

    def _add(self, data: bytes) -> None:
        with self._failures():
            self._file.seek(self._size)
            self._file.write(data)
        self._size += len(data)

    def _range(self, start: int, length: int) -> bytes:
        with self._failures():
            self._file.seek(start)
            return self._file.read(length)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"rows that wait for a snapshot: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Emptied:
    """A table as a TRUNCATE found it: every committed row is a part of `hold`."""

    table: Table
    before: Part
    hold: Hold


@dataclass(frozen=True, slots=True)
class Findings:
    """What the open transaction did to definitions, at its end: what explains the witnesses, the tables that stand
    empty but for its own rows, by object id in decimal, the sequences that it restarted, the tables that it dropped.
    """

    explained: Explained = UNTOUCHED
    emptied: Mapping[str, Emptied] = field(default_factory=dict)
    sequences: tuple[SequenceChange, ...] = ()
    moves: tuple[Move, ...] = ()

    @property
    def is_something(self) -> bool:
        """Whether a snapshot has to tell of more than rows."""
        return bool(self.sequences or self.moves)


Ask = Callable[[Sequence[bytes]], Awaitable[list[Answer]]]

#: Errors that are the client's answer: its cancel, and what a retry may cure. Any other the statement will meet itself.
DECISIVE = frozenset({"57014", "57P01", "57P02", "40001", "40P01", "55P03"})

_SAVEPOINT = b"SAVEPOINT _sqlwall_definition"
_RELEASE = b"RELEASE SAVEPOINT _sqlwall_definition"
_ROLL_BACK = b"ROLLBACK TO SAVEPOINT _sqlwall_definition"


class Talk:
    """Statements of ours on the agent's session, inside its transaction block."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def run(self, *texts: bytes) -> list[Answer]:
        """All of them. Raises ServerError."""
        answers = await self._ask(texts) if texts else []
        for answer in answers:
            if answer.error is not None:
                raise ServerError(answer.error)
        return answers

    async def look(self, *texts: bytes) -> list[Answer]:
        """Questions, under settings that the client never sees changed. Raises ServerError."""
        answers = await self.run(
            _SAVEPOINT, queries.exact_settings(), PINNED_PATH, *texts, _ROLL_BACK, _RELEASE
        )
        return answers[3:-2]

    async def attempt(self, texts: Sequence[bytes]) -> Frame | None:
        """All of them or none; the error that came. Raises ServerError for one that is the client's answer."""
        for answer in await self._ask((_SAVEPOINT, *texts, _RELEASE)):
            if answer.error is None:
                continue
            if decode_diagnostics(answer.error).sqlstate in DECISIVE:
                raise ServerError(answer.error)
            await self.run(_ROLL_BACK, _RELEASE)
            return answer.error
        return None


class Pages:
    """Images on their way to the snapshot, some at a time: its writer blocks and therefore works in a thread.

    `limit` bounds their bytes in all, as COPY text; `label` is the table whose rows come. What is only held is not
    counted: it has no `counters`.
    """

    def __init__(self, writer: PartsWriter, counters: Counters | None, limit: int | None) -> None:
        self.label = ""
        self._writer = writer
        self._counters = counters
        self._left = limit
        self._lines: list[bytes] = []
        self._bytes = 0
        self._is_large = False

    async def begin(self) -> None:
        """The next part."""
        self._is_large = False
        self._writer.begin()

    async def add(self, lines: Iterable[bytes]) -> None:
        """More rows of it: lines of COPY text without their ends."""
        for line in lines:
            self._count(1, len(line) + 1)
            self._lines.append(line)
            self._bytes += len(line) + 1
            if self._bytes >= PAGE:
                self._is_large = True
                await asyncio.to_thread(self._flush)

    async def end(self) -> Part:
        """No more rows."""
        if self._bytes <= SMALL and not self._is_large:
            return self._end()  # a thread would cost more than the work
        return await asyncio.to_thread(self._end)

    async def copy(self, kept: Emptied) -> Part:
        """A whole part from where it was kept until now."""
        self._count(kept.before.rows, kept.before.size)
        return await asyncio.to_thread(self._copy, kept)

    def _count(self, rows: int, size: int) -> None:
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise Refusal(
                    Uncovered("the changed rows have more bytes than the rule allows", self.label, "limit")
                )
        if self._counters is not None:
            self._counters.snapshot_rows += rows
            self._counters.snapshot_bytes += size

    def _copy(self, kept: Emptied) -> Part:
        self._writer.begin()
        for line in cut_lines(kept.hold.read(kept.before)):
            self._lines.append(line[:-1])
            self._bytes += len(line)
            if self._bytes >= PAGE:
                self._flush()
        return self._end()

    def _flush(self) -> None:
        lines, self._lines, self._bytes = self._lines, [], 0
        if lines:
            lines.append(b"")  # the last one has an end, too
            self._writer.write(b"\n".join(lines), len(lines) - 1)

    def _end(self) -> Part:
        self._flush()
        return self._writer.end()
