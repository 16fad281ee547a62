"""Errors of requests as a real server, its websockets and its event loop leave them: told once, with ids, without words."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pointsman.decisions.ticket import CURRENT, MAX_HELD, Ticket
from pointsman.http.drain import DrainingServer, InFlight
from pointsman.http.request_ids import RequestIds
from pointsman.http.tickets import Tickets
from support.log_lines import telling

PROMPT = "Zwetschgenknödel"
LOGGERS = ("uvicorn", "pointsman.http", "library", "asyncio")
library = logging.getLogger("library")


class RefusedError(Exception):
    """As an HTTP client says that a sink has refused."""

    status_code = 403


async def broken(request: Request) -> Response:
    raise ValueError(f"cannot read {(await request.body()).decode()}")


async def told_before(request: Request) -> Response:
    """As LiteLLM often does."""
    try:
        return await broken(request)
    except ValueError:
        library.exception("cannot serve")
        raise


async def after_a_good_answer(request: Request) -> Response:
    async def sink() -> None:
        try:
            raise RefusedError(PROMPT)
        except RefusedError:
            library.exception("the batch was refused")

    return PlainTextResponse("good", background=BackgroundTask(sink))


async def talk(websocket: WebSocket) -> None:
    """As many turns that fail as the path says."""
    if websocket.path_params["turns"] == 0:
        await websocket.close(1008)
        return
    await websocket.accept()
    for number in range(websocket.path_params["turns"]):
        fail(number)
        await websocket.send_text(str(number))
    await websocket.close()


async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.receive_text()


def fail(number: int) -> None:
    try:
        raise RuntimeError(f"{PROMPT} {number}")
    except RuntimeError:
        library.exception("turn failed")


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """No Starlette around it, so the server itself answers."""
    raise ValueError(PROMPT)


def application() -> Starlette:
    routes = [
        Route("/broken", broken, methods=["POST"]),
        Route("/told", told_before, methods=["POST"]),
        Route("/sink", after_a_good_answer, methods=["POST"]),
        WebSocketRoute("/listen", listen),
        WebSocketRoute("/talk/{turns:int}", talk),
    ]
    return Starlette(routes=routes)


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """The middleware of a worker around it, on a port; all requests have ended when the block has."""
    in_flight = InFlight(Tickets(app))
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    started = asyncio.Event()
    config = uvicorn.Config(RequestIds(in_flight), http="httptools", log_config=None, lifespan="off", access_log=False)
    server = DrainingServer(config, in_flight, not_ready=0, grace=10, on_started=started.set)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    await asyncio.wait_for(started.wait(), 10)
    try:
        yield f"127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.drain()
        await asyncio.wait_for(task, 20)


@pytest.mark.requirement("P-21")
@pytest.mark.requirement("R-15.3")
@pytest.mark.parametrize(("app", "path"), [(application(), "/broken"), (application(), "/told"), (bare, "/x")])
async def test_an_error_that_escapes_is_one_line_with_its_stack_and_its_requests_id(app: ASGIApp, path: str) -> None:
    with telling(*LOGGERS) as told:
        async with serving(app) as address, httpx.AsyncClient() as http:
            answer = await http.post(f"http://{address}{path}", content=PROMPT.encode(), headers={"x-request-id": "mine"})
            assert answer.status_code == 500
    lines = [line for line in told.lines() if line["level"] != "INFO"]
    assert [(line["level"], line.get("request_id"), line["error_type"]) for line in lines] == [("ERROR", "mine", "ValueError")]
    assert "raise ValueError" in lines[0]["stack"]
    assert PROMPT not in json.dumps(told.lines(), ensure_ascii=False)


async def test_what_the_server_says_of_a_request_outside_of_it_is_withheld() -> None:
    with telling(*LOGGERS) as told:
        async with serving(application()):
            # As it does for an error in a middleware that stands around the tickets.
            logging.getLogger("uvicorn.error").error("Exception in %s\n", PROMPT, exc_info=ValueError(PROMPT))
    assert PROMPT not in json.dumps(told.lines(), ensure_ascii=False)


async def test_why_a_server_does_not_start_is_told() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("the oven is cold")
        yield

    server = uvicorn.Server(uvicorn.Config(Starlette(lifespan=lifespan), lifespan="on", log_config=None))
    with telling(*LOGGERS) as told, pytest.raises(SystemExit):
        await server.serve()
    assert any("the oven is cold" in line["message"] for line in told.lines())


async def test_a_sinks_refusal_after_a_good_answer_is_told() -> None:
    with telling(*LOGGERS) as told:
        async with serving(application()) as address, httpx.AsyncClient() as http:
            assert (await http.post(f"http://{address}/sink")).status_code == 200
    (line,) = [line for line in told.lines() if line["logger"] == "library"]
    assert (line["level"], line["error_type"]) == ("ERROR", "RefusedError")


async def test_errors_of_an_open_websocket_are_told_at_once() -> None:
    with telling(*LOGGERS) as told:
        async with serving(application()) as address:
            count = 0
            async with connect(f"ws://{address}/talk/1200") as websocket:
                async for _ in websocket:
                    count += 1
    assert count == 1200
    lines = [line for line in told.lines() if line["logger"] == "library"]
    assert len(lines) == 1200
    assert told.logs.dropped == {"stdout": 0}
    assert PROMPT not in json.dumps(told.lines(), ensure_ascii=False)


async def test_a_client_that_leaves_is_no_error() -> None:
    with telling(*LOGGERS) as told:
        async with serving(application()) as address, connect(f"ws://{address}/listen") as websocket:
            await websocket.send("hello")
    assert [line for line in told.lines() if line["level"] in ("WARNING", "ERROR")] == []


async def test_a_websocket_that_is_refused_is_one_warning() -> None:
    with telling(*LOGGERS) as told:
        async with serving(application()) as address:
            with pytest.raises(InvalidStatus):
                await connect(f"ws://{address}/talk/0")
    (line,) = [line for line in told.lines() if line["logger"] == "pointsman.http"]
    assert (line["level"], line["method"], line["status"]) == ("WARNING", "websocket", 403)


@pytest.mark.parametrize("status", [500, 401])
def test_what_waits_for_the_answer_is_bounded_and_all_of_it_is_told(status: int) -> None:
    ticket = Ticket(request_id="mine")
    token = CURRENT.set(ticket)
    try:
        with telling("library") as told:
            for number in range(1200):
                fail(number)
            assert len(ticket.held) == MAX_HELD
            ticket.settle(status)
    finally:
        CURRENT.reset(token)
    assert len(told.lines()) == 1200


@pytest.mark.requirement("R-15.3")
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_the_event_loop_says_of_a_task_or_a_callback_is_not_told(loop: object) -> None:
    async def boom() -> None:
        raise ValueError(PROMPT)

    def call_back(_words: str) -> None:
        raise ValueError(PROMPT)

    async def forget() -> None:
        task = asyncio.create_task(boom())
        await asyncio.wait([task])
        del task
        asyncio.get_running_loop().call_soon(call_back, PROMPT)
        await asyncio.sleep(0)

    with telling("asyncio") as told:
        with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type] # both make one
            runner.run(forget())
            runner.run(asyncio.sleep(0))
        gc.collect()
    messages = {line["message"] for line in told.lines() if line["level"] == "ERROR"}
    assert "Task exception was never retrieved" in messages
    assert any(message.startswith("Exception in callback") for message in messages)
    assert PROMPT not in json.dumps(told.lines(), ensure_ascii=False)
