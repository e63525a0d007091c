"""What an SRE's tools read: /metrics for Prometheus, /healthz (the process lives), /readyz (it can serve).

Nothing here changes anything, and nothing needs a login: who can reach the address may read. A web page must not be
able to: its origin gets no CORS headers, and a name that its owner points at our address is refused (`is_own_name`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sqlwall.proxy.metrics import WallCollector
from sqlwall.proxy.tasks import TaskSet

logger = logging.getLogger(__name__)

ReadMetrics = Callable[[], Awaitable[tuple[Mapping[str, Any], Mapping[str, float]]]]
ReadProblems = Callable[[], Awaitable[list[str]]]

#: Connections at once; more get 503. Each scrape asks every worker.
MAX_CONNECTIONS: Final = 64
#: Endings that nobody can register on the Internet: RFC 6761, 6762, 8375, 9476, ICANN's internal, Kubernetes' own.
PRIVATE_SUFFIXES: Final = (
    ".localhost", ".local", ".internal", ".home.arpa", ".test", ".alt", ".svc", ".cluster.local",
)  # fmt: skip

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def create_app(read_metrics: ReadMetrics, read_problems: ReadProblems, host: str = "") -> ASGIApp:
    """The application over whatever tells metrics and problems. `host` is the name that it serves as."""

    async def metrics(_request: Request) -> Response:
        try:
            found = await read_metrics()
            registry = CollectorRegistry(auto_describe=False)
            registry.register(WallCollector(lambda: found))
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
        except Exception:
            logger.exception("metrics cannot be read")
            return PlainTextResponse("metrics cannot be read; the log says why\n", status_code=500)

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_request: Request) -> Response:
        try:
            problems = await read_problems()
        except Exception:
            logger.exception("readiness cannot be told")
            problems = ["readiness cannot be told; the log says why"]
        status = "ready" if not problems else "not ready"
        return JSONResponse({"status": status, "problems": problems}, status_code=503 if problems else 200)

    app = Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])
    return _Guard(app, frozenset({host.lower(), socket.gethostname().lower()} - {""}))


class _Guard:
    """Around everything, the errors included: whose name is asked for, and the headers of every answer."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the console does not speak {scope['type']}")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        app = self._app
        if not all(is_own_name(name, self._names) for name in Headers(scope=scope).getlist("host")):
            app = PlainTextResponse("the console does not serve this name\n", status_code=421)
        await app(scope, receive, send_guarded)


def is_own_name(host: str, names: frozenset[str] = frozenset()) -> bool:
    """Whether a Host header cannot be a stranger's domain that was pointed at our address (DNS rebinding).

    Addresses, names without a dot and private suffixes cannot be registered by a stranger; `names` are our own.
    A missing header never comes here: health checks leave it out, browsers never do.
    """
    name = host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.removesuffix(".")
    if name in names or name.endswith(PRIVATE_SUFFIXES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(name) and "." not in name and ":" not in name
    return True


class Served:
    """An application that is being served."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None], address: tuple[str, int]) -> None:
        self._server = server
        self._task = task
        self.address = address

    async def close(self) -> None:
        """Stop serving; requests under way are cut after a second."""
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the supervisor's."""

    def __init__(self, config: uvicorn.Config, tasks: TaskSet) -> None:
        super().__init__(config)
        self.tasks = tasks  # kept as long as the server is
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


async def serve_app(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> Served:
    """Serve on the running loop; it answers when this returns. Raises OSError if the address cannot be had."""
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, log_level="warning", access_log=False, lifespan="off",
        server_header=False, ws="none", proxy_headers=False, limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    listening = await asyncio.to_thread(_bind, host, port)
    server = _Server(config, TaskSet())
    task = server.tasks.spawn(server.serve(sockets=[listening]), "console")
    waiting = server.tasks.spawn(server.is_up.wait(), "start of the console")
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        listening.close()
        raise OSError(f"the console did not start: {task.exception()}")
    name, number = listening.getsockname()[:2]
    return Served(server, task, (str(name), int(number)))


def _bind(host: str, port: int) -> socket.socket:
    """By hand, since uvicorn ends the process where an address is taken."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except BaseException:
        listening.close()
        raise
    return listening
