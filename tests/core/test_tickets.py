"""The headers of an answer are made from the request's own ticket."""

from __future__ import annotations

import asyncio

import httpx
from starlette.types import Receive, Scope, Send

from pointsman.decisions import Decision
from pointsman.decisions.ticket import current_ticket
from pointsman.http.tickets import HEADERS, Tickets


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Decides as the path says, in a task of its own, as LiteLLM does."""

    async def decide() -> None:
        ticket = current_ticket()
        assert ticket is not None
        await asyncio.sleep(0)
        name = scope["path"].strip("/")
        if name != "none":
            ticket.models = {"d-" + name: "openai/" + name, "d-other": "openai/other"}
            ticket.decision = Decision("dec_" + name, None, "auto", strategy="knn", version="1", model="openai/" + name)

    await asyncio.create_task(decide())
    headers = [(b"x-litellm-model-id", b"d-other")] if scope["query_string"] == b"other" else []
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(Tickets(application)), base_url="http://gateway")


async def test_each_request_has_its_own_headers() -> None:
    async with client() as http:
        answers = await asyncio.gather(*(http.get(f"/m{number}") for number in range(200)))
    for number, answer in enumerate(answers):
        assert answer.headers["x-pointsman-decision-id"] == f"dec_m{number}"
        assert answer.headers["x-pointsman-model"] == f"openai/m{number}"
        assert "x-pointsman-fallback" not in answer.headers


async def test_no_decision_no_headers() -> None:
    async with client() as http:
        answer = await http.get("/none")
    assert not set(HEADERS) & set(answer.headers)


async def test_the_model_header_tells_who_answered() -> None:
    async with client() as http:
        answer = await http.get("/picked?other")
    assert answer.headers["x-pointsman-model"] == "openai/other"


async def test_a_name_that_is_no_header_value_is_made_one() -> None:
    async with client() as http:
        answer = await http.get("/a%0D%0Aevil:%20x")
    assert "evil" not in answer.headers
    assert answer.headers["x-pointsman-model"] == "openai/a??evil: x"
