"""The ASGI application: routes, how answers are delivered, and how that goes wrong when it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from upstreams import anthropic_wire, openai_wire
from upstreams.state import Fault, Line, Recorded, Registry, Upstream
from upstreams.wire import Answer, Payload, Refused, event

__all__ = ["create_app"]

Endpoint = Callable[..., Answer]
GARBAGE = '<html>{"choices": [{"delta": \x00 oops'


class ConnectionCutError(Exception):
    """Raised inside a body: the server closes the connection without ending the answer."""


def _authenticate(request: Request, anthropic: bool) -> None:
    if anthropic:
        if not request.headers.get("anthropic-version"):
            raise Refused("anthropic-version: header is required")
        if not (request.headers.get("x-api-key") or request.headers.get("authorization")):
            raise Refused("x-api-key header is required", status=401)
    elif not request.headers.get("authorization", "").startswith("Bearer "):
        raise Refused("You didn't provide an API key.", status=401, code="invalid_api_key")


def _error(anthropic: bool, status: int, message: str, fault: Fault | None = None, refused: Refused | None = None) -> Response:
    headers = {} if fault is None or fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
    if anthropic:
        return JSONResponse(anthropic_wire.error_body(status, message), status, headers)
    param, code = (refused.param, refused.code) if refused else (None, None)
    return JSONResponse(openai_wire.error_body(status, message, param, code), status, headers)


async def _until_cleared(request: Request, cleared: asyncio.Event) -> None:
    """Wait until the fault is cleared or the client has gone."""
    while not cleared.is_set() and not await request.is_disconnected():
        try:
            await asyncio.wait_for(cleared.wait(), 0.1)
        except TimeoutError:
            continue


async def _cut_body(entry: Recorded, raw: bytes) -> AsyncIterator[bytes]:
    entry.delivered = "cut"
    yield raw[: len(raw) // 2]
    await asyncio.sleep(0.05)  # let the half reach the client before the connection goes
    raise ConnectionCutError


async def _drip(entry: Recorded, raw: bytes, seconds: float) -> AsyncIterator[bytes]:
    entry.delivered = "disconnected"
    try:
        for number in range(len(raw)):
            yield raw[number : number + 1]
            await asyncio.sleep(seconds)
        entry.delivered = "complete"
    except asyncio.CancelledError:
        entry.delivered = "left"
        raise


async def _stream(answer: Answer, fault: Fault | None, cleared: asyncio.Event, entry: Recorded) -> AsyncIterator[str]:
    """The answer's events, with the fault's interruption. A client that leaves cancels this."""
    entry.delivered = "disconnected"
    for number, chunk in enumerate(answer.events):
        if fault is not None:
            if fault.cut_after_chunks == number:
                entry.delivered = "cut"
                await asyncio.sleep(0.05)
                raise ConnectionCutError
            if fault.error_after_chunks == number:
                entry.delivered = "complete"
                yield answer.error_event
                return
            if fault.stall_after_chunks == number:
                await cleared.wait()
            if fault.garbage:
                chunk = event(GARBAGE)  # noqa: PLW2901 - the same chunk, spoiled
            if fault.chunk_delay and number:
                await asyncio.sleep(fault.chunk_delay)
        yield chunk
    entry.delivered = "complete"


async def _payload(request: Request, raw: bytes) -> Payload:
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form() as form:
            return {k: v if isinstance(v, str) else len(await v.read()) for k, v in form.multi_items()}
    try:
        payload = json.loads(raw)
    except ValueError as error:
        raise Refused(f"We could not parse the JSON body of your request. ({error})") from error
    if not isinstance(payload, dict):
        raise Refused("Invalid body: expected a JSON object.")
    return payload


async def _deliver(request: Request, upstream: Upstream, endpoint: Endpoint, anthropic: bool) -> Response:
    raw = await request.body()
    entry = upstream.record(request.method, request.url.path, dict(request.headers), raw.decode(errors="replace"))
    try:
        _authenticate(request, anthropic)
        payload = entry.body = await _payload(request, raw)
        said = upstream.line(raw) if endpoint is openai_wire.chat else None
        answer = endpoint(payload, upstream.name) if said is None else endpoint(payload, upstream.name, said)
    except Refused as refused:
        entry.status, entry.delivered = refused.status, "complete"
        return _error(anthropic, refused.status, refused.message, refused=refused)
    fault, cleared = upstream.take_fault(raw), upstream.cleared
    streamed = payload.get("stream") is True and bool(answer.events)
    entry.fault, entry.response_id, entry.status = fault is not None, answer.id, 200
    if fault is not None:
        await asyncio.sleep(fault.delay)
        if fault.hang:
            await _until_cleared(request, cleared)
        if fault.status is not None:
            entry.status, entry.delivered = fault.status, "complete"
            return _error(anthropic, fault.status, f"{upstream.name} was told to answer {fault.status}", fault)
    if streamed:
        return StreamingResponse(_stream(answer, fault, cleared, entry), media_type="text/event-stream")
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    if fault is not None and fault.cut_after_chunks is not None:
        headers = {"content-length": str(len(body))}
        return StreamingResponse(_cut_body(entry, body), headers=headers, media_type=answer.media_type)
    if fault is not None and fault.drip:
        headers = {"content-length": str(len(body))}
        return StreamingResponse(_drip(entry, body, fault.drip), headers=headers, media_type=answer.media_type)
    entry.delivered = "complete"
    return Response(GARBAGE if fault is not None and fault.garbage else body, media_type=answer.media_type)


def _route(registry: Registry, path: str, endpoint: Endpoint, *, anthropic: bool = False) -> Route:
    async def handle(request: Request) -> Response:
        upstream = registry[request.path_params["name"]]
        upstream.active += 1
        try:
            return await _deliver(request, upstream, endpoint, anthropic)
        finally:
            upstream.active -= 1

    return Route(f"/u/{{name}}{path}", handle, methods=["POST"])


def _control(registry: Registry) -> list[Route]:
    async def set_fault(request: Request) -> Response:
        try:
            fault = Fault.model_validate(await request.json())
        except ValidationError as error:
            return JSONResponse({"error": str(error)}, 400)
        registry[request.path_params["name"]].set_fault(fault)
        return JSONResponse(fault.model_dump())

    async def set_script(request: Request) -> Response:
        registry[request.path_params["name"]].script = [Line.model_validate(line) for line in await request.json()]
        return JSONResponse({})

    async def clear(request: Request) -> Response:
        registry[request.path_params["name"]].set_fault(None)
        return JSONResponse({})

    async def clear_all(request: Request) -> Response:
        registry.clear_faults()
        return JSONResponse({})

    async def log(request: Request) -> Response:
        since = int(request.query_params.get("since", "0"))
        upstream = registry[request.path_params["name"]]
        return JSONResponse(upstream.report(contains=request.query_params.get("contains"), since=since))

    async def summary(request: Request) -> Response:
        return JSONResponse(registry.summary())

    return [
        Route("/_control", summary, methods=["GET"]),
        Route("/_control", clear_all, methods=["DELETE"]),
        Route("/_control/{name}", set_fault, methods=["POST"]),
        Route("/_control/{name}", clear, methods=["DELETE"]),
        Route("/_control/{name}/script", set_script, methods=["POST"]),
        Route("/_control/{name}/log", log, methods=["GET"]),
    ]


def create_app() -> Starlette:
    """An application with a registry of its own."""
    registry = Registry()

    async def models(request: Request) -> Response:
        try:
            _authenticate(request, anthropic=False)
        except Refused as refused:
            return _error(False, refused.status, refused.message, refused=refused)
        return JSONResponse(openai_wire.models(request.path_params["name"]))

    async def unknown(request: Request, error: Exception) -> Response:
        return JSONResponse(openai_wire.error_body(404, f"Invalid URL ({request.method} {request.url.path})"), 404)

    handlers: dict[Any, Any] = {404: unknown}
    openai: dict[str, Endpoint] = {
        "/v1/chat/completions": openai_wire.chat,
        "/v1/completions": openai_wire.completion,
        "/v1/responses": openai_wire.responses,
        "/v1/embeddings": openai_wire.embeddings,
        "/v1/moderations": openai_wire.moderations,
        "/v1/images/generations": openai_wire.images,
        "/v1/audio/speech": openai_wire.speech,
        "/v1/audio/transcriptions": openai_wire.transcription,
        "/v1/rerank": openai_wire.rerank,
    }
    anthropic: dict[str, Endpoint] = {
        "/v1/messages": anthropic_wire.messages,
        "/v1/messages/count_tokens": anthropic_wire.count_tokens,
    }
    return Starlette(
        routes=[
            *_control(registry),
            Route("/u/{name}/v1/models", models, methods=["GET"]),
            *(_route(registry, path, endpoint) for path, endpoint in openai.items()),
            *(_route(registry, path, endpoint, anthropic=True) for path, endpoint in anthropic.items()),
        ],
        exception_handlers=handlers,
    )
