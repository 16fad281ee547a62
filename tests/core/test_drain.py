"""The drain, on a real server: not ready first, in-flight requests finish, what outlives the grace gets an error event."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pointsman.http.drain import DrainingServer, InFlight


class Site:
    """A served application whose requests wait for `release`."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.lifespan_ended = False

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self.lifespan_ended = True

    async def wait(self, _: Request) -> Response:
        self.entered.set()
        await self.release.wait()
        return PlainTextResponse("done")

    async def stream(self, _: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b'data: {"n": 1}\n\n'
            self.entered.set()
            await self.release.wait()
            yield b"data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def ready(self, _: Request) -> Response:
        return PlainTextResponse("ready")


@asynccontextmanager
async def served(*, not_ready: float, grace: float) -> AsyncIterator[tuple[Site, DrainingServer, str, asyncio.Task[None]]]:
    site = Site()
    routes = [Route("/wait", site.wait), Route("/stream", site.stream), Route("/health/readiness", site.ready)]
    in_flight = InFlight(Starlette(routes=routes, lifespan=site.lifespan))
    sock = socket.create_server(("127.0.0.1", 0))
    supervisors = sock.dup()  # which holds the socket open until the last worker has ended
    started = asyncio.Event()
    config = uvicorn.Config(in_flight, log_config=None, lifespan="on", timeout_graceful_shutdown=30)
    told: list[float] = []
    server = DrainingServer(config, in_flight, not_ready=not_ready, grace=grace, on_started=started.set, on_drain=told.append)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    await asyncio.wait_for(started.wait(), 10)
    try:
        yield site, server, f"http://127.0.0.1:{sock.getsockname()[1]}", task
    finally:
        server.drain()
        site.release.set()
        await asyncio.wait_for(task, 20)
        supervisors.close()
        assert site.lifespan_ended
        assert told == [not_ready + grace], "told once, when the drain began"


async def test_readiness_goes_first_and_a_request_in_flight_finishes() -> None:
    async with served(not_ready=1.0, grace=20) as (site, server, url, task), httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/health/readiness")).status_code == 200
        waiting = asyncio.create_task(client.get("/wait"))
        await asyncio.wait_for(site.entered.wait(), 10)
        server.drain()
        await asyncio.sleep(0)  # one turn of the loop starts the drain
        answer = await client.get("/health/readiness")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "E4605")
        site.release.set()
        assert (await waiting).text == "done"
        await asyncio.wait_for(task, 20)


async def test_a_stuck_stream_is_cut_with_an_error_event() -> None:
    async with served(not_ready=0, grace=0.2) as (site, server, url, task), httpx.AsyncClient(base_url=url) as client:
        async with client.stream("GET", "/stream") as answer:
            await asyncio.wait_for(site.entered.wait(), 10)
            server.drain()
            text = (await answer.aread()).decode()
        first, last = text.strip().split("\n\n")
        assert first == 'data: {"n": 1}'
        name, data = last.split("\n")
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == "E4701"
        await asyncio.wait_for(task, 20)


async def test_a_request_that_said_nothing_yet_gets_a_503() -> None:
    async with served(not_ready=0, grace=0.2) as (site, server, url, _), httpx.AsyncClient(base_url=url) as client:
        waiting = asyncio.create_task(client.get("/wait"))
        await asyncio.wait_for(site.entered.wait(), 10)
        server.drain()
        answer = await waiting
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "E4701")


async def test_new_connections_are_refused_after_the_drain() -> None:
    async with served(not_ready=0, grace=1) as (_, server, url, task):
        server.drain()
        await asyncio.wait_for(task, 20)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health/readiness", timeout=2)  # noqa: ASYNC210 - nothing else runs here


async def test_while_not_ready_answers_ask_for_the_connections_end() -> None:
    async with served(not_ready=1.0, grace=20) as (_, server, url, _), httpx.AsyncClient(base_url=url) as client:
        assert "connection" not in (await client.get("/health/readiness")).headers
        server.drain()
        await asyncio.sleep(0)
        for path in ("/health/readiness", "/nowhere"):
            assert (await client.get(path)).headers["connection"] == "close"


async def test_who_has_connected_is_served_and_who_comes_later_is_refused_at_once() -> None:
    """And not left in the kernel's queue, where nobody would accept it, while requests in flight come to their end."""
    async with served(not_ready=0, grace=20) as (site, server, url, task), httpx.AsyncClient(base_url=url) as client:
        waiting = asyncio.create_task(client.get("/wait"))
        await asyncio.wait_for(site.entered.wait(), 10)
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as early:  # the kernel has it; the server's loop has not
            await server.stop_accepting()
            early.sendall(b"GET /health/readiness HTTP/1.1\r\nhost: x\r\n\r\n")
            early.setblocking(False)
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(early, 4096), 10)
            assert answer.startswith(b"HTTP/1.1 200")
        with pytest.raises(httpx.ConnectError):
            await client.get("/health/readiness", timeout=2)
        assert not task.done()
        site.release.set()
        assert (await waiting).text == "done"


async def test_a_worker_that_ends_alone_leaves_the_socket_to_the_others() -> None:
    """Else one that is told to end by a signal would take the whole instance from its clients until another has come."""
    async with served(not_ready=0.0, grace=5) as (_, server, url, task):
        server.handle_exit(15, None)
        await asyncio.wait_for(task, 20)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5):
            pass  # the kernel keeps it for who accepts next
