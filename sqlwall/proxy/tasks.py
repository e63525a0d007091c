"""The only place that starts asyncio tasks: each has a name, an owner that keeps it alive, and its failure is logged.

An event loop holds tasks weakly; one that nobody keeps may vanish in the middle of its work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class TaskSet:
    """The running tasks of one owner. Made by the owner and closed by it."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task of this owner on the running loop."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until every task has ended; False if `seconds` were not enough."""
        if self._tasks:
            _, pending = await asyncio.wait(set(self._tasks), timeout=seconds)
            return not pending
        return True

    async def close(self) -> None:
        """Cancel what still runs and wait until it is gone."""
        remaining = self._tasks - {asyncio.current_task()}
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        log_failure(task)


def spawn(coroutine: Coroutine[Any, Any, T], name: str, owner: TaskSet) -> asyncio.Task[T]:
    """Start a named task that `owner` keeps alive; its failure is logged under that name."""
    return owner.spawn(coroutine, name)


def log_failure(task: asyncio.Task[Any]) -> None:
    """Log the exception a task ended with; a cancelled task did not fail."""
    if task.cancelled():
        return
    failure = task.exception()
    if failure is not None:
        logger.error("task %s failed: %s", task.get_name(), failure, exc_info=failure)
