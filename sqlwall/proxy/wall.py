"""One worker with all it needs: the store, the audit log, the worker itself. Used by each worker process, and by the
demo and the tests in their own.
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType

from sqlalchemy.engine import Engine

from sqlwall.config import Config
from sqlwall.proxy.worker import FindRuleset, Worker
from sqlwall.store.audit import AuditLog, AuditState, AuditWriter
from sqlwall.store.chain import AuditKind, AuditRecord
from sqlwall.store.database import open_store


class Wall:
    """A running wall in this process. Use as an asynchronous context, or `start` and `stop`."""

    def __init__(self, config: Config, find_ruleset: FindRuleset, workers: int = 1) -> None:
        self.config = config
        self._workers = workers
        self._find_ruleset = find_ruleset
        self._engine: Engine | None = None
        self._audit: AuditLog | None = None
        self._worker: Worker | None = None

    async def start(self, listening: socket.socket | None = None) -> None:
        """Open the store, then listen. Raises StoreError, ConfigError, or OSError for the address."""
        self._engine = await asyncio.to_thread(open_store, self.config.store.url)
        writer = AuditWriter(self._engine)
        self._audit = AuditLog(writer, capacity=self.config.audit.queue)
        try:
            self._worker = Worker(self.config, self._engine, self._audit, self._find_ruleset, self._workers)
            await self._worker.start(listening)
        except BaseException:
            await self.stop()
            raise
        self._audit.note(
            AuditRecord(AuditKind.START, reason=f"listening on {self.address[0]}:{self.address[1]}")
        )

    @property
    def worker(self) -> Worker:
        """The worker, once started."""
        assert self._worker is not None
        return self._worker

    @property
    def audit(self) -> AuditLog:
        """The audit log, once started."""
        assert self._audit is not None
        return self._audit

    @property
    def address(self) -> tuple[str, int]:
        """Where agents connect."""
        return self.worker.address

    def problems(self) -> list[str]:
        """Why this wall cannot serve now; empty if it can."""
        found: list[str] = []
        if self.audit.state is not AuditState.HEALTHY:
            found.append(f"store: {self.audit.error or self.audit.state.value}")
        if self.worker.is_draining:
            found.append("draining")
        found.extend(self.worker.problems())
        return found

    async def stop(self, drain: float = 0.0) -> None:
        """Let open transactions end for at most `drain` seconds, then end everything."""
        if self._worker is not None:
            if drain:
                await self._worker.drain(drain)
            await self._worker.stop()
            self._worker = None
        if self._audit is not None:
            audit, self._audit = self._audit, None
            audit.note(AuditRecord(AuditKind.STOP))
            await asyncio.to_thread(audit.close, 10.0)
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    async def __aenter__(self) -> Wall:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
