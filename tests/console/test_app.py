"""The console behind a real HTTP server on a port of its own."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sqlwall.console.app import Served, create_app, serve_app
from sqlwall.proxy.counters import Counters


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass(slots=True)
class Source:
    """What the console reads from."""

    counters: Counters = field(default_factory=Counters)
    found: list[str] = field(default_factory=list)
    error: Exception | None = None

    async def metrics(self) -> tuple[Mapping[str, Any], Mapping[str, float]]:
        if self.error is not None:
            raise self.error
        return self.counters.snapshot(), {"sqlwall_ready": 1.0}

    async def problems(self) -> list[str]:
        return self.found


@asynccontextmanager
async def serving(source: Source, host: str = "127.0.0.1") -> AsyncIterator[Served]:
    served = await serve_app(create_app(source.metrics, source.problems), host, 0)
    try:
        yield served
    finally:
        await served.close()


async def fetch(served: Served, path: str, method: str = "GET") -> Answer:
    """One request, read to the end of the connection."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*served.address)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    status, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), headers, body)


async def test_metrics_can_be_read_by_prometheus() -> None:
    source = Source()
    source.counters.statement("bot", "select", "allow")
    async with serving(source) as served:
        answer = await fetch(served, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(answer.body)}
    assert {"sqlwall_statements", "sqlwall_build_info", "sqlwall_ready", "sqlwall_parse_seconds"} <= names


async def test_each_scrape_reads_anew() -> None:
    source = Source()
    async with serving(source) as served:
        before = await fetch(served, "/metrics")
        source.counters.connection_opened()
        after = await fetch(served, "/metrics")
    assert "sqlwall_connections_total 0.0" in before.body
    assert "sqlwall_connections_total 1.0" in after.body


async def test_healthz_tells_that_the_process_lives_whatever_is_wrong() -> None:
    async with serving(Source(found=["store: gone"])) as served:
        answer = await fetch(served, "/healthz")
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "alive"})


async def test_readyz_tells_whether_it_can_serve_and_why_not() -> None:
    source = Source()
    async with serving(source) as served:
        ready = await fetch(served, "/readyz")
        source.found.append("draining")
        not_ready = await fetch(served, "/readyz")
    assert (ready.status, json.loads(ready.body)) == (200, {"status": "ready", "problems": []})
    assert not_ready.status == 503
    assert json.loads(not_ready.body) == {"status": "not ready", "problems": ["draining"]}


@pytest.mark.parametrize("path", ["/", "/metrics/x", "/../etc/passwd", "/static/x", "/docs", "/openapi.json"])
async def test_there_is_nothing_else(path: str) -> None:
    async with serving(Source()) as served:
        assert (await fetch(served, path)).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_can_be_changed_over_it(method: str) -> None:
    async with serving(Source()) as served:
        assert (await fetch(served, "/metrics", method)).status == 405


async def test_every_answer_forbids_caching_and_guessing() -> None:
    async with serving(Source()) as served:
        for path in ("/metrics", "/healthz", "/readyz"):
            headers = (await fetch(served, path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "server" not in headers


async def test_a_failure_tells_no_details_and_the_next_scrape_works() -> None:
    source = Source(error=RuntimeError("secret detail"))
    async with serving(source) as served:
        failed = await fetch(served, "/metrics")
        source.error = None
        assert (await fetch(served, "/metrics")).status == 200
    assert failed.status == 500
    assert "secret detail" not in failed.body


async def test_an_address_in_use_is_an_os_error_not_the_end_of_the_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError):
            await serve_app(create_app(Source().metrics, Source().problems), *taken.getsockname())


async def test_it_stops_with_a_request_under_way() -> None:
    source = Source()
    entered = asyncio.Event()

    async def slow() -> tuple[Mapping[str, Any], Mapping[str, float]]:
        entered.set()
        await asyncio.sleep(60)
        return {}, {}

    served = await serve_app(create_app(slow, source.problems), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        await entered.wait()
        await served.close()
        await reader.read()
    writer.close()
    with pytest.raises(OSError):
        await asyncio.open_connection(*served.address)


async def answer_to_host(served: Served, *headers: str) -> int:
    """The status of a request with these Host headers."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*served.address)
        lines = "".join(f"Host: {header}\r\n" for header in headers)
        version = "1.1" if headers else "1.0"
        writer.write(f"GET /metrics HTTP/{version}\r\n{lines}Connection: close\r\n\r\n".encode())
        status = (await reader.read()).split(b" ")[1]
        writer.close()
        await writer.wait_closed()
    return int(status)


OWN = [
    "127.0.0.1:9643",
    "localhost",
    "LOCALHOST:1",
    "[::1]:9643",
    "10.0.0.7",
    "wall",
    "wall.ns.svc:9643",
    "a.internal.",
]
STRANGE = [
    "evil.example",
    "evil.example:9643",
    "127.0.0.1.evil.example",
    "localhost.evil.com",
    "1.2.3.4.5",
    "",
    "a:b:c",
]


@pytest.mark.parametrize("host", OWN)
async def test_names_that_no_stranger_can_register_are_served(host: str) -> None:
    async with serving(Source()) as served:
        assert await answer_to_host(served, host) == 200


@pytest.mark.parametrize("host", STRANGE)
async def test_a_strangers_name_that_was_pointed_at_us_is_refused(host: str) -> None:
    async with serving(Source()) as served:
        assert await answer_to_host(served, host) in (400, 421)


async def test_two_names_in_one_request_are_refused_and_none_is_a_health_check() -> None:
    async with serving(Source()) as served:
        assert await answer_to_host(served, "localhost", "evil.example") in (400, 421)
        assert await answer_to_host(served) == 200


async def test_errors_carry_the_same_headers_and_nothing_allows_other_origins() -> None:
    source = Source(error=RuntimeError("x"))
    async with serving(source) as served:
        for path in ("/metrics", "/nowhere"):
            headers = (await fetch(served, path)).headers
            assert headers["x-frame-options"] == "deny"
            assert not [name for name in headers if name.startswith("access-control")]
