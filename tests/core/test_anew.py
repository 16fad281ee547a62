"""A request whose upstream hangs goes through the application once more; the client sees the last answer alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.http.anew import MAX_KEPT, Anew

NOTED: ContextVar[str] = ContextVar("noted", default="nothing")
BODY = b'{"model": "m"}'


class Application:
    """Notes what it is sent; gives up the first `hangs` times, as LiteLLM does: with an answer, or with an error."""

    def __init__(self, hangs: int = 1, raises: Exception | None = None) -> None:
        self.hangs, self.raises = hangs, raises
        self.bodies, self.noted, self.calls, self.parents = list[bytes](), list[str](), list[bytes](), list[list[bytes]]()
        self.ticket = Ticket()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        self.bodies.append(body)
        self.noted.append(NOTED.get())
        self.calls += [value for name, value in scope["headers"] if name == b"x-litellm-call-id"]
        self.parents.append([value for name, value in scope["headers"] if name == b"traceparent"])
        NOTED.set("by the first one")
        assert "written" not in scope["state"], "what the first one wrote into the scope"
        scope["state"]["written"] = scope["path_params"] = {}
        if len(self.bodies) <= self.hangs and self.ticket.repeatable:
            self.ticket.repeat = True
            if self.raises is not None:
                raise self.raises
            await send({"type": "http.response.start", "status": 504, "headers": []})
            await send({"type": "http.response.body", "body": b"late"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not self.ticket.repeatable, "an answer has begun"
        await send({"type": "http.response.body", "body": b"answer %d" % len(self.bodies)})


def issued(application: Application) -> ASGIApp:
    """The middleware below what issues tickets."""
    inner = Anew(application)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        token = CURRENT.set(application.ticket)
        try:
            await inner({**scope, "state": {}}, receive, send)
        finally:
            CURRENT.reset(token)

    return outer


async def ask(application: Application, body: bytes | AsyncIterator[bytes] = BODY, method: str = "POST") -> httpx.Response:
    transport = httpx.ASGITransport(issued(application))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        headers = {"x-litellm-call-id": "call", "traceparent": "the client's"}
        return await http.request(method, "/v1/chat/completions", content=body, headers=headers)


@pytest.mark.requirement("F-3")
@pytest.mark.parametrize("raises", [None, RuntimeError("of the answer that is dropped")])
async def test_the_client_sees_the_last_answer_alone(raises: Exception | None) -> None:
    application = Application(hangs=2, raises=raises)
    answer = await ask(application)
    assert (answer.status_code, answer.text) == (200, "answer 3")
    assert application.bodies == [BODY] * 3
    assert application.noted == ["nothing"] * 3, "each begins in the context that the first one began in"
    assert len(set(application.calls)) == 3, "LiteLLM drops a second row of one id"
    assert all(call.startswith(b"call") for call in application.calls)
    assert application.parents == [[b"the client's"]] * 3
    assert application.ticket.repeats == 2
    assert not application.ticket.repeatable


async def test_what_comes_in_pieces_comes_in_pieces_again_and_stays_in_its_trace() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            yield b"%d" % number

    application = Application()
    application.ticket.traceparent = "the first one's"
    assert (await ask(application, pieces())).status_code == 200
    assert application.bodies == [b"01234"] * 2
    assert application.parents == [[b"the client's"], [b"the first one's"]]


async def test_an_answer_that_has_begun_is_given_whatever_comes() -> None:
    async def stubborn(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not application.ticket.repeatable
        await send({"type": "http.response.body", "body": b"answer"})

    application = Application()
    transport = httpx.ASGITransport(_below(application.ticket, stubborn))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        assert (await http.post("/")).text == "answer"
    assert application.ticket.repeats == 0


def _below(ticket: Ticket, app: ASGIApp) -> ASGIApp:
    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        CURRENT.set(ticket)
        await Anew(app)(scope, receive, send)

    return outer


@pytest.mark.parametrize(("body", "method"), [(b"x" * (MAX_KEPT + 1), "POST"), (BODY, "PUT")])
async def test_what_is_too_long_to_keep_and_what_is_no_post_is_not_repeated(body: bytes, method: str) -> None:
    application = Application()
    assert (await ask(application, body, method)).text == "answer 1"
    assert application.bodies == [body]


async def test_errors_of_an_answer_that_counts_are_raised() -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("this one")

    transport = httpx.ASGITransport(_below(Ticket(), broken))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        with pytest.raises(RuntimeError, match="this one"):
            await http.post("/")


async def test_a_client_that_leaves_ends_the_second_one_too() -> None:
    """The server cancels a request's task when it has to; what runs for it must not go on."""
    application, second, ended = Application(), asyncio.Event(), asyncio.Event()

    async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
        if not application.bodies:
            await application(scope, receive, send)
            return
        second.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {}}
    request: Callable[[], Message] = lambda: {"type": "http.request", "body": BODY, "more_body": False}  # noqa: E731

    async def receive() -> Message:
        return request()

    async def send(message: Message) -> None:
        raise AssertionError(message)

    task = asyncio.create_task(_coroutine(_below(application.ticket, hangs), scope, receive, send))
    await asyncio.wait_for(second.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def _coroutine(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
