"""The parser in a process of its own, for texts that are too large to be read between two other clients' messages.

It may take seconds, gigabytes, or the whole process with it (MECHANICS, section 10): then that process is killed, the
text is refused, and the worker lives. One child at a time, and a bounded queue of each agent before it; whose texts
have taken the least of its time is next. Facts come back as JSON of plain values, never as code.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import resource
import struct
import sys
import time
from typing import Any, Final

import orjson

from sqlwall.sql.parse import analyze_guarded
from sqlwall.sql.statement import (
    Bounded,
    Effect,
    FunctionName,
    Operation,
    Relation,
    Statement,
    Transaction,
    TransactionControl,
    Unparsable,
)
from sqlwall.sql.turns import Turns

logger = logging.getLogger(__name__)

Facts = tuple[Statement, ...] | Unparsable

DEADLINE: Final = 5.0  # seconds of wall time for one text
QUEUE_LIMIT: Final = 8  # texts of one agent that are read or wait
MEMORY_LIMIT: Final = 2 * 1024**3  # bytes of address space
CPU_LIMIT: Final = 3600  # seconds of the child's whole life
ANSWER_LIMIT: Final = 64 * 1024 * 1024
_LENGTH: Final = struct.Struct("!I")


class ParserSandbox:
    """Reads texts in a killable child. `close` ends it; it ends by itself when the parent goes."""

    def __init__(self, deadline: float = DEADLINE, queue_limit: int = QUEUE_LIMIT) -> None:
        self.deadline = deadline
        self._queue_limit = queue_limit
        self._asked: dict[str, int] = {}
        self._turns = Turns()
        self._child: asyncio.subprocess.Process | None = None
        self._ending: set[asyncio.Future[None]] = set()
        self._is_closed = False
        self._starting: asyncio.Future[asyncio.subprocess.Process] | None = None
        self.requests = 0
        self.deaths = 0
        self.timeouts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        child = self._child
        return child.pid if child is not None and child.returncode is None else None

    async def analyze(self, text: bytes, agent: str = "", *, is_patient: bool = False) -> Facts:
        """Facts about the text; Unparsable 54001 if the child is late or dies, 53400 if too many of the agent's wait.

        One that is patient waits whatever the queue: it holds little, and its session waits with it.
        """
        asked = self._asked.get(agent, 0)
        if asked >= self._queue_limit and not is_patient:
            return Unparsable("53400", "too many large statements of this agent are being parsed")
        self._asked[agent] = asked + 1
        self.requests += 1
        try:
            await self._turns.take(agent)
            started = time.monotonic()
            try:
                if self._is_closed:
                    return Unparsable("57P01", "the parser has been ended")
                return await self._ask(text)
            finally:
                self._turns.release(agent, time.monotonic() - started)
        finally:
            left = self._asked[agent] - 1
            if left:
                self._asked[agent] = left
            else:
                del self._asked[agent]

    async def close(self) -> None:
        """End the child, for good: what waits for it or comes later is not read."""
        self._is_closed = True
        await self._turns.take("")
        try:
            await self._kill()
            while self._ending:
                await asyncio.wait(self._ending)
        finally:
            self._turns.release("", 0.0)

    async def _ask(self, text: bytes) -> Facts:
        try:
            async with asyncio.timeout(self.deadline):
                child = await self._start()
                assert child.stdin is not None and child.stdout is not None
                child.stdin.write(_LENGTH.pack(len(text)) + text)
                await child.stdin.drain()
                size = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))[0]
                if size > ANSWER_LIMIT:
                    raise ValueError("an answer that is too long")
                return decode(orjson.loads(await child.stdout.readexactly(size)))
        except TimeoutError:
            self.timeouts += 1
            await self._kill()
            return Unparsable("54001", f"statement could not be parsed within {self.deadline:g} s")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            self.deaths += 1
            logger.warning("the sandboxed parser has failed: %s", error)
            await self._kill()
            return Unparsable("54001", "statement is too complex to be parsed")
        except BaseException:
            # Cancelled in between: an answer to this text must never be taken for one to the next.
            await self._kill()
            raise

    async def _start(self) -> asyncio.subprocess.Process:
        """The child. Its start goes on if the deadline falls into it: one that was cut short would leave a process."""
        if self._child is None or self._child.returncode is not None:
            if self._starting is None:
                self._starting = asyncio.ensure_future(_spawn())
            self._child = await asyncio.shield(self._starting)
            self._starting = None
        return self._child

    async def _kill(self) -> None:
        """End the child. Whoever waits for that may be cancelled; the end itself goes on, and `close` waits for it."""
        starting, self._starting = self._starting, None
        child, self._child = self._child, None
        if starting is not None or child is not None:
            ending = asyncio.ensure_future(_end(starting, child))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)


async def _end(
    starting: asyncio.Future[asyncio.subprocess.Process] | None, child: asyncio.subprocess.Process | None
) -> None:
    if starting is not None:
        with contextlib.suppress(OSError):  # it never started
            child = await starting
    if child is not None and child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _spawn() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sqlwall.sql.sandbox",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "LANG": "C.UTF-8"},
        limit=ANSWER_LIMIT,
    )


def encode(facts: Facts) -> bytes:
    """Facts as JSON."""
    if isinstance(facts, Unparsable):
        return orjson.dumps({"unparsable": dataclasses.astuple(facts)})
    return orjson.dumps({"statements": [dataclasses.asdict(statement) for statement in facts]})


def decode(value: dict[str, Any]) -> Facts:
    """Facts from JSON. Raises KeyError, TypeError or ValueError for anything else."""
    if "unparsable" in value:
        state, message, position = value["unparsable"]
        return Unparsable(str(state), str(message), int(position))
    return tuple(_statement(item) for item in value["statements"])


def _statement(item: Any) -> Statement:
    if not isinstance(item, dict):
        raise TypeError("not a statement")
    control = item.pop("control")
    return Statement(
        effects=tuple(_effect(effect) for effect in item.pop("effects")),
        functions=tuple(FunctionName(**function) for function in item.pop("functions")),
        columns=tuple(item.pop("columns")),
        names=tuple(item.pop("names")),
        control=None
        if control is None
        else TransactionControl(**(control | {"verb": Transaction(control["verb"])})),
        **item,
    )


def _effect(item: dict[str, Any]) -> Effect:
    relation = item["relation"]
    return Effect(
        Operation(item["operation"]),
        Relation(**relation) if relation is not None else None,
        item["subject"],
        item["value"],
        tuple(item["columns"]),
        Bounded(item["bounded"]),
    )


def main() -> None:
    """The child: one length-prefixed text in, one length-prefixed answer out, until the parent closes the pipe."""
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_LIMIT),
        (resource.RLIMIT_CPU, CPU_LIMIT),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        resource.setrlimit(limit, (value, value))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(header := source.read(_LENGTH.size)) == _LENGTH.size:
        answer = encode(analyze_guarded(source.read(_LENGTH.unpack(header)[0])))
        target.write(_LENGTH.pack(len(answer)) + answer)
        target.flush()


if __name__ == "__main__":
    main()
