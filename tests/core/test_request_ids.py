"""Every answer has the request's id: the client's where it is usable, else one made here."""

from __future__ import annotations

import uuid

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from pointsman.http.request_ids import RequestIds, request_id_of, usable


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers what it was given below, and tells an id of its own, as a provider does."""
    names = ("x-request-id", "x-litellm-call-id")
    found = [(f"below-{k.decode()}".encode(), v) for k, v in scope["headers"] if k.decode() in names]
    assert request_id_of(scope) is not None
    await send({"type": "http.response.start", "status": 404, "headers": [*found, (b"x-request-id", b"the provider's")]})
    await send({"type": "http.response.body", "body": b""})


async def ask(headers: list[tuple[str, str]]) -> httpx.Headers:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(RequestIds(application)), base_url="http://g") as http:
        answer = await http.get("/", headers=headers)
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert answer.headers.get_list("below-x-request-id") == [answer.headers["x-request-id"]]
    return answer.headers


@pytest.mark.requirement("S-6")
async def test_a_clients_id_is_taken() -> None:
    said = await ask([("X-Request-ID", "order 66/a")])
    assert said["x-request-id"] == "order 66/a"
    stem, _, digits = said["below-x-litellm-call-id"].rpartition(".")
    assert (stem, len(digits)) == ("order 66/a", 8)  # a second request of the same id is another row of spend
    assert said["below-x-litellm-call-id"] != (await ask([("x-request-id", "order 66/a")]))["below-x-litellm-call-id"]


async def test_one_is_made() -> None:
    for headers in ([], [("x-request-id", "")], [("x-request-id", "x" * 129)], [("x-request-id", "a\tb")]):
        said = await ask(list(headers))
        assert uuid.UUID(said["x-request-id"]).version == 4
        assert said["below-x-litellm-call-id"] == said["x-request-id"]


async def test_a_call_id_of_the_clients_stays() -> None:
    said = await ask([("x-litellm-call-id", "call-1")])
    assert (said["x-request-id"], said["below-x-litellm-call-id"]) == ("call-1", "call-1")
    said = await ask([("x-litellm-call-id", "call-1"), ("x-request-id", "mine")])
    assert (said["x-request-id"], said["below-x-litellm-call-id"]) == ("mine", "call-1")


@given(st.binary(max_size=140))
def test_what_is_usable(value: bytes) -> None:
    printable = all(0x20 <= byte <= 0x7E for byte in value)
    assert usable(value) is (0 < len(value) <= 128 and printable and value.strip() == value)
