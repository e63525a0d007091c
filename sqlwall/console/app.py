"""What an SRE's tools read: /metrics for Prometheus, /healthz (the process lives), /readyz (it can serve)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sqlwall.proxy.metrics import WallCollector
from sqlwall.proxy.tasks import TaskSet

ReadMetrics = Callable[[], Awaitable[tuple[Mapping[str, Any], Mapping[str, float]]]]
ReadProblems = Callable[[], Awaitable[list[str]]]

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",
}


def create_app(read_metrics: ReadMetrics, read_problems: ReadProblems) -> Starlette:
    """The application over whatever tells metrics and problems."""

    async def metrics(_request: Request) -> Response:
        found = await read_metrics()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(WallCollector(lambda: found))
        return Response(generate_latest(registry), headers=_HEADERS | {"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"}, headers=_HEADERS)

    async def readyz(_request: Request) -> Response:
        problems = await read_problems()
        status = "ready" if not problems else "not ready"
        return JSONResponse(
            {"status": status, "problems": problems}, status_code=503 if problems else 200, headers=_HEADERS
        )

    return Starlette(
        routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)]
    )


class Served:
    """An application that is being served."""

    def __init__(
        self, server: uvicorn.Server, task: asyncio.Task[None], listening: socket.socket, tasks: TaskSet
    ) -> None:
        self._server = server
        self._task = task
        self._tasks = tasks
        self.address = listening.getsockname()[:2]

    async def close(self) -> None:
        """Stop serving; requests under way are cut after a second."""
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the supervisor's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_app(app: Starlette, host: str, port: int) -> Served:
    """Serve on the running loop. Raises OSError if the address cannot be had."""
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    listening = _bind(host, port)
    server = _Server(config)
    tasks = TaskSet()
    task = tasks.spawn(server.serve(sockets=[listening]), "console")
    return Served(server, task, listening, tasks)


def _bind(host: str, port: int) -> socket.socket:
    """By hand, since uvicorn ends the process where an address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except BaseException:
        listening.close()
        raise
    return listening
