"""One worker process: a `Wall` on a shared port, and a line to the supervisor that started it.

Nothing is shared but the port. If the line breaks, the supervisor is gone: the worker ends its sessions, since nobody
could tell it of a freeze or a reload any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from sqlwall.config import Config
from sqlwall.errors import SqlwallError
from sqlwall.proxy.line import Message, listen
from sqlwall.proxy.wall import Wall
from sqlwall.proxy.worker import FindRuleset, Prepared
from sqlwall.store.chain import AuditKind, AuditRecord

SWITCH_INTERVAL = 0.0005  # seconds
#: Objects that may be made before a look for cycles, and how many looks of each generation go before one of the next.
#: The wall makes few cycles, and many objects that wait a while: records.
GC_THRESHOLDS = (20_000, 20, 20)
RECURSION_LIMIT = 4000  # deep statements are walked by recursion; frames of pure Python need no C stack

logger = logging.getLogger(__name__)


class WorkerProcess:
    """The inside of a worker process."""

    def __init__(self, config: Config, find_ruleset: FindRuleset, line: Connection) -> None:
        self._config = config
        self._wall = Wall(config, find_ruleset, config.workers.count or os.cpu_count() or 1)
        self._line = line
        self._prepared: Prepared | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Serve until the supervisor says stop, or is gone."""
        loop = asyncio.get_running_loop()
        try:
            await self._wall.start(listen(self._config))
        except (SqlwallError, OSError) as error:
            self._send(Message("failed", str(error)))
            return
        gc.collect()
        gc.freeze()  # what was made so far stays: nobody needs to look at it again
        self._wall.worker.forward_cancel = self._forward_cancel
        loop.add_reader(self._line.fileno(), self._receive)
        self._send(Message("ready", self._wall.address))
        await self._ended.wait()
        loop.remove_reader(self._line.fileno())
        await self._wall.stop()

    def _forward_cancel(self, process_id: int, secret: bytes) -> None:
        self._send(Message("cancel", (process_id, secret)))

    def _receive(self) -> None:
        try:
            while self._line.poll():
                self._obey(self._line.recv())
        except (EOFError, OSError):
            logger.error("the supervisor is gone: this worker ends")
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            self._ended.set()

    def _obey(self, message: Message) -> None:
        worker = self._wall.worker
        if message.word == "report":
            self._send(Message("report", self._report()))
        elif message.word == "cancel":
            worker.tasks.spawn(worker.cancel_here(*message.value), "cancel from another worker")
        elif message.word == "prepare":
            self._prepare(message.value)
        elif message.word == "reload":
            self._reload(message.value)
        elif message.word == "drain":
            worker.tasks.spawn(self._drain(message.value), "drain")
        elif message.word == "stop":
            self._ended.set()

    def _prepare(self, config: Config) -> None:
        """Read all of it and change nothing: what one worker cannot take over no worker does."""
        try:
            self._prepared = self._wall.worker.prepare(config)
        except (SqlwallError, OSError) as error:
            self._note_reload("failure", str(error))
            self._send(Message("prepared", str(error)))
            return
        self._send(Message("prepared"))

    def _reload(self, config: Config) -> None:
        worker = self._wall.worker
        try:
            # One that was started since the others prepared has not.
            prepared, self._prepared = self._prepared or worker.prepare(config), None
        except (SqlwallError, OSError) as error:
            self._note_reload("failure", str(error))
            self._send(Message("reloaded", str(error)))
            return
        worker.take_over(prepared)
        self._note_reload("success", f"ruleset {config.ruleset.path}")
        self._send(Message("reloaded"))

    def _note_reload(self, outcome: str, reason: str) -> None:
        self._wall.worker.counters.reload(outcome)
        self._wall.audit.note(AuditRecord(AuditKind.RELOAD, outcome=outcome, reason=reason))

    async def _drain(self, seconds: float) -> None:
        await self._wall.worker.drain(seconds)
        self._ended.set()

    def _report(self) -> dict[str, Any]:
        audit = self._wall.audit
        return {
            "counters": self._wall.worker.counters.snapshot(),
            "problems": self._wall.problems(),
            "audit_lag": audit.lag(),
            "audit_waiting": audit.waiting,
            "audit_failures": audit.failures,
            "audit_written": audit.written,
            "head": str(audit.head) if audit.head is not None else "",
        }

    def _send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone; _receive sees it as well
            self._line.send(message)


def serve(config: Config, find_ruleset: FindRuleset, line: Connection) -> None:
    """Serve on an event loop of this process's own."""
    # The audit thread works in long runs; between them the event loop must not wait the usual 5 ms for its turn.
    sys.setswitchinterval(SWITCH_INTERVAL)
    sys.setrecursionlimit(RECURSION_LIMIT)
    gc.set_threshold(*GC_THRESHOLDS)

    async def main() -> None:
        await WorkerProcess(config, find_ruleset, line).run()

    uvloop.run(main())
