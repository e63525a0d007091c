"""The process that a person starts: keeps the workers alive, tells them of reload, drain and cancel, sums them up.

Signals: SIGTERM and SIGINT drain and stop, SIGHUP reads configuration and rulesets anew, all of it or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import uvloop

from sqlwall.config import Config
from sqlwall.errors import ConfigError, SqlwallError
from sqlwall.proxy.counters import merge
from sqlwall.proxy.line import FindRuleset, Message, configure_logging, listen, run_worker
from sqlwall.proxy.tasks import TaskSet

logger = logging.getLogger(__name__)

START_TIMEOUT = 30.0  # seconds for a worker to be ready
REPORT_TIMEOUT = 2.0  # seconds for a worker to tell its counters
RESTART_PAUSE = (
    0.5  # seconds before a worker that died is started again; doubled each time that it does not last
)
RESTART_PAUSE_LIMIT = 30.0
LASTING = 60.0  # seconds after which a worker counts as one that lasts
STOP_GRACE = 10.0  # seconds beyond the drain for a worker to end

LoadConfig = Callable[[], Config]
#: Raises SqlwallError for what would stop every worker.
Check = Callable[[Config], None]


class Console(Protocol):
    """What serves /metrics, /healthz and /readyz."""

    async def close(self) -> None:
        """Stop serving."""


class StartConsole(Protocol):
    """Starts the console for a supervisor."""

    async def __call__(self, supervisor: Supervisor) -> Console:
        """Raises OSError if the address cannot be had."""


class Child:
    """One worker process and the line to it."""

    def __init__(self, index: int, process: BaseProcess, line: Connection) -> None:
        self.index = index
        self.process = process
        self.line = line
        self.ready: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.reports: list[asyncio.Future[dict[str, Any]]] = []
        self.answer: asyncio.Future[str | None] | None = None
        self.last_counters: dict[str, Any] | None = None
        self.attempts = 0  # how often it was started in a row without lasting
        self.complaint = ""  # why it could not start
        self.ready_at = 0.0

    @property
    def has_lasted(self) -> bool:
        """Whether it has served for a while."""
        return bool(self.ready_at) and time.monotonic() - self.ready_at > LASTING

    def send(self, message: Message) -> None:
        """Tell the worker; one that is gone is noticed elsewhere."""
        with contextlib.suppress(OSError):
            self.line.send(message)

    def fail_waiting(self) -> None:
        """Nothing more will come over the line."""
        waiting: list[asyncio.Future[Any] | None] = [self.ready, *self.reports, self.answer]
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(ConnectionError(f"worker {self.index} has ended"))
        if self.ready.done() and not self.ready.cancelled():
            self.ready.exception()  # somebody may have stopped waiting for it
        self.reports.clear()

    async def ask(self, message: Message) -> str | None:
        """Send what is answered by a complaint, or by none. Raises TimeoutError, and ConnectionError once it ended."""
        self.answer = asyncio.get_running_loop().create_future()
        if self.ended.is_set():
            raise ConnectionError(f"worker {self.index} has ended")
        self.send(message)
        async with asyncio.timeout(START_TIMEOUT):
            return await self.answer


class Supervisor:
    """The workers of one wall."""

    def __init__(
        self, config: Config, load_config: LoadConfig, find_ruleset: FindRuleset, check: Check | None = None
    ) -> None:
        self.config = config
        self._check = check
        self._load_config = load_config
        self._find_ruleset = find_ruleset
        self._context = multiprocessing.get_context("spawn")
        self._children: list[Child] = []
        self._gone: dict[str, Any] = merge(())
        self._tasks = TaskSet()
        self._reloading = asyncio.Lock()
        self._is_started = False
        self._is_stopping = False
        self._stop = asyncio.Event()
        self._again = asyncio.Event()  # workers that could not start may try again now
        self.restarts = 0
        self.reload_failed = False

    @property
    def address(self) -> tuple[str, int]:
        """Where agents connect."""
        return self._children[0].ready.result()

    async def start(self) -> None:
        """Start the workers.

        Raises OSError for the address, SqlwallError for what stops all of them, ConfigError for what one says.
        """
        listen(self.config).close()  # a port in use shows here, with a better error than from a child
        count = self.config.workers.count or os.cpu_count() or 1
        for index in range(count):
            self._children.append(self._start_child(index))
        # While the workers load what they need, so do we: what stops all of them is then said once, by us.
        if self._check is not None:
            await asyncio.to_thread(self._check, self.config)
        for child in self._children:
            child.send(Message("go"))
        for child in self._children:
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    await child.ready
            except TimeoutError:
                raise ConfigError(
                    f"worker {child.index} was not ready within {START_TIMEOUT:.0f} s"
                ) from None
            except ConnectionError as error:
                raise ConfigError(str(error)) from error
        self._is_started = True
        for child in self._children:
            if child.ended.is_set():  # it was ready, and died before the others were
                self._restart_soon(child)

    def _start_child(self, index: int) -> Child:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=run_worker,
            args=(self.config, self._find_ruleset, theirs, self.config.log.level),
            name=f"sqlwall-worker-{index}",
        )
        process.start()
        theirs.close()
        child = Child(index, process, ours)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._receive, child)
        loop.add_reader(process.sentinel, self._reap, child)
        return child

    def _receive(self, child: Child) -> None:
        try:
            while child.line.poll():
                self._hear(child, child.line.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(child.line.fileno())

    def _hear(self, child: Child, message: Message) -> None:
        if message.word == "ready":
            child.ready_at = time.monotonic()
            child.ready.set_result(message.value)
        elif message.word == "failed":
            child.complaint = message.value
            if self._is_started:
                logger.error("worker %d cannot start: %s", child.index, message.value)
            if not child.ready.done():
                child.ready.set_exception(ConnectionError(message.value))
        elif message.word == "report":
            child.last_counters = message.value["counters"]
            for future in child.reports:
                if not future.done():
                    future.set_result(message.value)
            child.reports.clear()
        elif message.word in ("prepared", "reloaded"):
            if child.answer is not None and not child.answer.done():
                child.answer.set_result(message.value)
        elif message.word == "cancel":
            for other in self._children:
                if other is not child:
                    other.send(message)

    def _reap(self, child: Child) -> None:
        """A worker has ended, on purpose or not."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.process.sentinel)
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(child.line.fileno())
        child.fail_waiting()
        child.ended.set()
        child.process.join()
        if child.last_counters is not None:
            # What it counted stays counted, its open sessions do not.
            self._gone = merge((self._gone, child.last_counters | {"sessions": []}))
            child.last_counters = None
        if self._is_started:
            self._restart_soon(child)

    def _restart_soon(self, child: Child) -> None:
        if not self._is_stopping:
            logger.error("worker %d has died (%s): restarting", child.index, child.process.exitcode)
            self._tasks.spawn(self._restart(child), "restart of a worker")

    async def _restart(self, child: Child) -> None:
        """Start it again, later each time that it does not last; at once when a reload may have put it right."""
        self.restarts += 1
        attempts = 1 if child.has_lasted else child.attempts + 1
        while not self._is_stopping:
            pause = min(RESTART_PAUSE * 2 ** min(attempts - 1, 16), RESTART_PAUSE_LIMIT)
            self._again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()
            try:
                started = self._start_child(child.index)
            except OSError as error:
                logger.error("worker %d cannot be started: %s", child.index, error)
                attempts += 1
            else:
                started.attempts = attempts
                started.send(Message("go"))
                self._children[self._children.index(child)] = started
                return

    async def report(self) -> list[dict[str, Any]]:
        """What each worker tells of itself; one that does not answer in time has one problem: that."""
        return list(await asyncio.gather(*(self._report_of(child) for child in self._children)))

    async def _report_of(self, child: Child) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if child.ended.is_set():
            return {"counters": None, "problems": [_absence(child)]}
        if child.attempts and not child.ready.done():
            return {"counters": None, "problems": [f"worker {child.index} is being started again"]}
        child.reports.append(future)
        child.send(Message("report"))
        try:
            async with asyncio.timeout(REPORT_TIMEOUT):
                return await future
        except (TimeoutError, ConnectionError):
            return {"counters": child.last_counters, "problems": [f"worker {child.index} does not answer"]}

    async def metrics(self) -> tuple[Mapping[str, Any], Mapping[str, float]]:
        """The sum of all workers' counters, those that have ended included, and gauges by name."""
        reports = await self.report()
        counters = merge([self._gone, *(r["counters"] for r in reports if r["counters"] is not None)])
        gauges = {
            "sqlwall_audit_lag_seconds": max((r.get("audit_lag", 0.0) for r in reports), default=0.0),
            "sqlwall_audit_waiting_records": float(sum(r.get("audit_waiting", 0) for r in reports)),
            "sqlwall_audit_failed_writes": float(sum(r.get("audit_failures", 0) for r in reports)),
            "sqlwall_workers": float(sum(child.process.is_alive() for child in self._children)),
            "sqlwall_workers_failing": float(sum(bool(child.complaint) for child in self._children)),
            "sqlwall_worker_restarts": float(self.restarts),
            "sqlwall_last_reload_successful": 0.0 if self.reload_failed else 1.0,
            "sqlwall_ready": 0.0 if any(r["problems"] for r in reports) or self._is_stopping else 1.0,
        }
        return counters, gauges

    async def problems(self) -> list[str]:
        """Why the wall cannot serve now; empty if it can."""
        found = ["stopping"] if self._is_stopping else []
        for report in await self.report():
            found.extend(problem for problem in report["problems"] if problem not in found)
        return found

    async def reload(self) -> None:
        """Read configuration and rulesets anew. Raises ConfigError; then everything stays as it was."""
        async with self._reloading:
            try:
                config = await asyncio.to_thread(self._load_config)
                await self._tell_all("prepare", config)
            except (SqlwallError, ConnectionError, TimeoutError) as error:
                self.reload_failed = True
                logger.error("reload refused, the old configuration stays: %s", error)
                raise
            # A worker that is started again from here on begins with it.
            self.config = config
            try:
                await self._tell_all("reload", config)
            except (SqlwallError, ConnectionError, TimeoutError) as error:
                self.reload_failed = True
                logger.error("reload not finished, try again: %s", error)
                raise
            self.reload_failed = False
            self._again.set()
            logger.info("reloaded")

    async def _tell_all(self, word: str, config: Config) -> None:
        """Every worker agrees; raises ConfigError for what the first one says that does not."""
        running = [child for child in self._children if not child.ended.is_set()]
        for complaint in await asyncio.gather(*(child.ask(Message(word, config)) for child in running)):
            if complaint is not None:
                raise ConfigError(complaint)

    async def stop(self, drain: float) -> None:
        """Let open transactions end for at most `drain` seconds, then stop every worker."""
        self._is_stopping = True
        for child in self._children:
            child.send(Message("drain", drain))
        waiting = [asyncio.ensure_future(child.ended.wait()) for child in self._children]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=drain + STOP_GRACE)
            for task in late:
                task.cancel()
        for child in self._children:
            if child.process.is_alive():
                child.process.kill()
                await asyncio.to_thread(child.process.join, STOP_GRACE)
        await self._tasks.close()

    def request_stop(self) -> None:
        """Called by SIGTERM and SIGINT; the second time nothing is waited for."""
        if self._is_stopping:
            for child in self._children:
                child.send(Message("stop"))
        self._stop.set()

    async def serve(self, start_console: StartConsole) -> None:
        """Start, serve until asked to stop, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        try:
            await self.start()
            console = await start_console(self)
            logger.info("agents connect to %s:%d", *self.address)
            try:
                await self._stop.wait()
            finally:
                await console.close()
        finally:
            await self.stop(self.config.timeouts.drain if self._stop.is_set() else 0.0)

    def _reload_soon(self) -> None:
        self._tasks.spawn(self._reload_quietly(), "reload")

    async def _reload_quietly(self) -> None:
        with contextlib.suppress(SqlwallError, ConnectionError, TimeoutError):  # logged, and in the metrics
            await self.reload()


def _absence(child: Child) -> str:
    """Why a worker does not run. Its own words are for the log: whoever may read /readyz need not know our files."""
    if not child.complaint:
        return f"worker {child.index} is being started again"
    tries = "once" if child.attempts < 2 else f"{child.attempts} times"
    return f"worker {child.index} cannot start, tried {tries}: the log says why; a reload tries again at once"


def run(
    config: Config,
    load_config: LoadConfig,
    find_ruleset: FindRuleset,
    start_console: StartConsole,
    check: Check | None = None,
) -> None:
    """Run a wall until a signal ends it. Raises ConfigError and OSError for what a person has to put right."""
    configure_logging(config.log.level, config.log.format)

    async def main() -> None:
        await Supervisor(config, load_config, find_ruleset, check).serve(start_console)

    uvloop.run(main())
