"""The queue from end to end but for LiteLLM's own code before the hook: middleware, hook, turn, answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from prometheus_client import CollectorRegistry
from starlette.types import Message

from pointsman.callbacks.metrics import Metrics
from pointsman.custom_router.queue import Priority
from pointsman.custom_router.turns import Turns
from pointsman.http.admin import install_error_handler
from pointsman.http.queue import queue_router
from pointsman.http.tickets import Tickets
from pointsman.settings import PointsmanSettings
from support.hooked import bound

PATH = "/v1/chat/completions"


class Stand:
    """An application that asks the hook as LiteLLM does, and answers when it is told to."""

    def __init__(self, call_type: str = "acompletion", **queue: Any) -> None:
        settings = PointsmanSettings.load({"resilience": {"queue": {"enabled": True, **queue}}})
        self.registry = CollectorRegistry()
        self.metrics = Metrics((), groups=("auto",), registry=self.registry)
        self.turns = Turns(settings.resilience.queue, self.metrics)
        self.hook = bound({"resilience": {"queue": {"enabled": True, **queue}}}, turns=self.turns)
        self.key: dict[str, Any] = {}
        self.go_on = asyncio.Event()
        self.began: list[str] = []
        app = FastAPI()
        install_error_handler(app)
        app.include_router(queue_router(self))

        @app.post(PATH)
        async def chat(request: Request) -> StreamingResponse:
            body = await request.json()
            await self.hook.async_pre_call_hook(UserAPIKeyAuth(metadata=self.key), None, body, call_type)
            self.began.append(body["name"])

            async def chunks() -> AsyncIterator[bytes]:
                yield b"first "
                await self.go_on.wait()
                yield b"last"

            return StreamingResponse(chunks())

        self.app = Tickets(app)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://gateway")

    def queue(self) -> dict[str, Any]:
        return {"worker": 0, **self.turns.status()}

    def ask(self, name: str, **headers: str) -> asyncio.Task[httpx.Response]:
        named = {f"x-pointsman-{header.replace('_', '-')}": value for header, value in headers.items()}
        return asyncio.create_task(self.http.post(PATH, json={"model": "auto", "name": name}, headers=named))

    async def until(self, running: int, waiting: int, began: int | None = None) -> None:
        """Let everything run until the queue is like that, and so many requests have begun."""
        for _ in range(10_000):
            if self.state == (running, waiting) and began in (None, len(self.began)):
                return
            await asyncio.sleep(0)
        raise AssertionError(f"it stays at {self.state}, {self.began}")

    @property
    def state(self) -> tuple[int, int]:
        (only,) = self.turns.status()["queues"]
        return only["running"], sum(of_class["waiting"] for of_class in only["classes"])

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.mark.requirement("L-7")
async def test_a_place_is_held_until_the_streams_end_and_the_next_in_line_goes_on() -> None:
    stand = Stand(limit={"limit": 1})
    first = stand.ask("first")
    await stand.until(1, 0)
    low = stand.ask("low", priority="low")
    await stand.until(1, 1)
    stand.key = {"pointsman_priority": "high"}
    high = stand.ask("high")
    await stand.until(1, 2)
    assert stand.began == ["first"]
    stand.go_on.set()
    assert [answer.status_code for answer in await asyncio.gather(first, low, high)] == [200, 200, 200]
    assert stand.began == ["first", "high", "low"]
    assert stand.state == (0, 0)
    assert stand.metric("pointsman_queue_requests_total", group="", priority="high", result="admitted") == 1
    assert stand.metric("pointsman_queue_wait_seconds_count", group="", priority="low") == 1


@pytest.mark.requirement("L-7")
async def test_full_and_late_are_answers_with_retry_after() -> None:
    stand = Stand(limit={"limit": 1}, size=1)
    first = stand.ask("first")
    await stand.until(1, 0)
    waits = stand.ask("waits", deadline_ms="150")
    await stand.until(1, 1)
    full = await stand.ask("full")
    late = await waits
    assert (full.status_code, full.json()["detail"]["code"], full.headers["retry-after"]) == (429, "E4720", "1")
    assert (late.status_code, late.json()["detail"]["code"], late.headers["retry-after"]) == (503, "E4721", "1")
    stand.metrics.queues(stand.turns.status()["queues"])
    assert stand.metric("pointsman_queue_running_requests", group="") == 1
    assert stand.metric("pointsman_queue_limit_requests", group="") == 1
    assert stand.metric("pointsman_queue_waiting_requests", group="", priority="normal") == 0
    stand.go_on.set()
    assert (await first).status_code == 200
    assert stand.state == (0, 0)


@pytest.mark.parametrize(("header", "value", "status", "code"), [
    ("priority", "high", 403, "E4110"), ("priority", "urgent", 400, "E4010"), ("deadline_ms", "soon", 400, "E4010"),
])  # fmt: skip
async def test_a_header_that_may_not_be_or_means_nothing_is_refused(header: str, value: str, status: int, code: str) -> None:
    stand = Stand()
    answer = await stand.ask("it", **{header: value})
    assert (answer.status_code, answer.json()["detail"]["code"]) == (status, code)
    assert "retry-after" not in answer.headers
    assert stand.state == (0, 0)


@pytest.mark.requirement("L-7")
async def test_a_client_that_hangs_up_leaves_the_queue_at_once_and_gives_its_place_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand = Stand(limit={"limit": 1})

    class Client:
        """A connection, driven by hand."""

        def __init__(self, name: str) -> None:
            self.left = asyncio.Event()
            body = b'{"model": "auto", "name": "%s"}' % name.encode()
            self.messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
            scope = {
                "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": [],
                "http_version": "1.1", "scheme": "http", "server": ("gateway", 80), "client": ("client", 1), "root_path": "",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
            }  # fmt: skip
            self.task = asyncio.create_task(stand.app(scope, self.receive, self.send))

        async def receive(self) -> Message:
            if self.messages:
                return self.messages.pop()
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(self, message: Message) -> None:
            pass

    runs = Client("runs")
    await stand.until(1, 0)
    waits, next_one = Client("waits"), Client("next")
    await stand.until(1, 2)
    waits.left.set()
    await waits.task
    assert stand.state == (1, 1)
    assert caplog.records == [], "a client that leaves has made no mistake"
    runs.left.set()
    await runs.task
    await stand.until(1, 0, began=2)
    assert stand.began == ["runs", "next"]
    next_one.task.cancel()
    await asyncio.gather(next_one.task, return_exceptions=True)
    assert stand.state == (0, 0)
    assert stand.metric("pointsman_queue_requests_total", group="", priority="normal", result="gone") == 1


@pytest.mark.parametrize(
    ("call_type", "body"),
    [
        ("call_mcp_tool", {"model": "auto"}),
        ("acompletion", {}),
        ("acreate_batch", {"model": "auto"}),
        ("afile_content", {"model": "auto"}),
        ("acancel_responses", {"model": "auto"}),
        ("_arealtime", {"model": "auto"}),
    ],
)
async def test_what_asks_no_model_never_queues(call_type: str, body: dict[str, Any]) -> None:
    stand = Stand(call_type, limit={"limit": 1})
    await stand.turns.turn("auto", Priority.HIGH).take()
    stand.go_on.set()
    answer = await stand.http.post(PATH, json={**body, "name": "it"})
    assert answer.status_code == 200
    assert stand.state == (1, 0)


async def test_the_queues_state_is_for_administrators() -> None:
    stand = Stand(limit={"limit": 3}, groups={"gpu": {"kind": "adaptive", "limit": 20}})
    app = FastAPI()
    install_error_handler(app)
    app.include_router(queue_router(stand))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        app.dependency_overrides[user_api_key_auth] = lambda: UserAPIKeyAuth(user_role=LitellmUserRoles.INTERNAL_USER)
        assert (await http.get("/pointsman/queue")).json()["error"]["code"] == "E4103"
        app.dependency_overrides[user_api_key_auth] = lambda: UserAPIKeyAuth(user_role=LitellmUserRoles.PROXY_ADMIN)
        told = (await http.get("/pointsman/queue")).json()
    assert [(one["group"], one["limit"], one["adaptive"]) for one in told["queues"]] == [(None, 3, False), ("gpu", 20, True)]
    assert [of_class["priority"] for of_class in told["queues"][0]["classes"]] == ["high", "normal", "low"]
