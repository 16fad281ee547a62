"""Models that pretend: answers, delays and faults as configured, without a network.

`handler` serves LiteLLM's provider `mock`. A deployment says in `litellm_params.mock` how it behaves (`MockSettings`); LiteLLM
hands unknown parameters of a custom provider to its handler in `optional_params`. A caller's `mock` in the body overrides the
deployment's, which makes single requests slow or faulty in tests; it can only hurt that request.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import litellm
from litellm import CustomLLM
from litellm.types.utils import EmbeddingResponse, GenericStreamingChunk, ModelResponse
from pydantic import ValidationError

from pointsman.backends.mock_settings import MockSettings

__all__ = ["MockLLM", "handler"]

HANG = 3_600.0
"""Seconds that `hang` lasts at most, should nobody have a time-out."""

MAX_COUNTERS = 10_000
"""Deployments whose calls are counted; a hand-made one beyond starts anew with the oldest forgotten."""


class MockLLM(CustomLLM):  # type: ignore[misc] # LiteLLM is not type-checked here
    """The handler. Calls are counted for each deployment in this process, which makes `every` and `rate` reproducible."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[str, tuple[int, random.Random]] = {}

    async def acompletion(self, *_: Any, **call: Any) -> ModelResponse:
        """The answer, after its delay."""
        settings = self._begin(call)
        await _pause(HANG if settings.hang else settings.delay, call)
        return _answer(settings, call)

    def completion(self, *_: Any, **call: Any) -> ModelResponse:
        """As `acompletion`, blocking."""
        settings = self._begin(call)
        _pause_blocking(HANG if settings.hang else settings.delay, call)
        return _answer(settings, call)

    async def astreaming(self, *_: Any, **call: Any) -> AsyncIterator[GenericStreamingChunk]:
        """The answer in chunks of a word each; the last one carries the usage."""
        settings = self._begin(call)
        await _pause(HANG if settings.hang else settings.delay, call)
        for pause, chunk in _chunks(settings, call):
            if pause:
                await _pause(pause, call)
            yield chunk

    def streaming(self, *_: Any, **call: Any) -> Iterator[GenericStreamingChunk]:
        """As `astreaming`, blocking."""
        settings = self._begin(call)
        _pause_blocking(HANG if settings.hang else settings.delay, call)
        for pause, chunk in _chunks(settings, call):
            _pause_blocking(pause, call)
            yield chunk

    async def aembedding(self, *_: Any, **call: Any) -> EmbeddingResponse:
        """One vector for each input, made from its text alone, of length 1."""
        settings = self._begin(call)
        await _pause(HANG if settings.hang else settings.delay, call)
        return _embeddings(settings, call)

    def embedding(self, *_: Any, **call: Any) -> EmbeddingResponse:
        """As `aembedding`, blocking."""
        settings = self._begin(call)
        _pause_blocking(HANG if settings.hang else settings.delay, call)
        return _embeddings(settings, call)

    def _begin(self, call: Mapping[str, Any]) -> MockSettings:
        """Read the settings, count the call and fail it if it is its turn."""
        model = str(call["model"])
        given = (call.get("optional_params") or {}).get("mock")
        try:
            settings = MockSettings.model_validate({} if given is None else given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in ("mock", *first["loc"]))
            raise litellm.BadRequestError(f"{place}: {first['msg']}", model=model, llm_provider="mock") from error
        fault = settings.fail
        key = _deployment(call)
        if key not in self._calls:
            self._calls[key] = (0, random.Random(f"{fault.seed if fault else 0}:{key}"))  # noqa: S311 - not for secrets
        number, generator = self._calls.pop(key)
        number += 1
        self._calls[key] = (number, generator)
        if len(self._calls) > MAX_COUNTERS:
            del self._calls[next(iter(self._calls))]
        if fault is None:
            return settings
        drawn = fault.rate is not None and generator.random() < fault.rate
        if drawn or (fault.every is not None and number % fault.every == 0) or (fault.rate is None and fault.every is None):
            raise _error(fault.status, fault.message, model)
        return settings


def _allowed(call: Mapping[str, Any]) -> float:
    """Seconds that the caller waits for bytes; LiteLLM leaves that to the provider's client, which here is this module."""
    timeout = call.get("timeout")
    if isinstance(timeout, httpx.Timeout):
        timeout = timeout.read
    return float(timeout) if isinstance(timeout, int | float) else math.inf


def _timed_out(allowed: float, call: Mapping[str, Any]) -> Exception:
    error: Exception = litellm.Timeout(
        f"mock: nothing came within {allowed:g} s", model=str(call["model"]), llm_provider="mock"
    )
    return error


async def _pause(seconds: float, call: Mapping[str, Any]) -> None:
    allowed = _allowed(call)
    await asyncio.sleep(min(seconds, allowed))
    if seconds > allowed:
        raise _timed_out(allowed, call)


def _pause_blocking(seconds: float, call: Mapping[str, Any]) -> None:
    allowed = _allowed(call)
    time.sleep(min(seconds, allowed))
    if seconds > allowed:
        raise _timed_out(allowed, call)


def _deployment(call: Mapping[str, Any]) -> str:
    """The deployment's id, or the model where LiteLLM is used without a router."""
    info = (call.get("litellm_params") or {}).get("model_info")
    return str((info or {}).get("id") or call["model"])


def _error(status: int, message: str, model: str) -> Exception:
    """What LiteLLM's own providers raise for that status, so that retries, cool-downs and fallbacks treat it alike."""
    by_status = {
        400: litellm.BadRequestError,
        401: litellm.AuthenticationError,
        404: litellm.NotFoundError,
        408: litellm.Timeout,
        429: litellm.RateLimitError,
        500: litellm.InternalServerError,
        502: litellm.BadGatewayError,
        503: litellm.ServiceUnavailableError,
        504: litellm.Timeout,
    }
    known = by_status.get(status)
    if known is not None:
        error: Exception = known(message=message, model=model, llm_provider="mock")
        return error
    request = httpx.Request("POST", "http://mock.invalid")
    other: Exception = litellm.APIError(status, message, llm_provider="mock", model=model, request=request)
    return other


def _prompt(messages: Sequence[Mapping[str, Any]] | None) -> str:
    """Text of the last user message."""
    for message in reversed(messages or ()):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            parts = content if isinstance(content, list) else []
            return " ".join(str(part.get("text")) for part in parts if isinstance(part, Mapping) and part.get("text"))
    return ""


def _words(messages: Sequence[Mapping[str, Any]] | None) -> int:
    return sum(len(_prompt([{**message, "role": "user"}]).split()) for message in messages or ())


def _text(settings: MockSettings, call: Mapping[str, Any]) -> str:
    """The answer. Only the two names are filled in, each once, so that braces in either text are safe."""
    head, separator, tail = settings.answer.partition("{prompt}")
    model = str(call["model"])
    middle = _prompt(call.get("messages")) if separator else ""
    return head.replace("{model}", model) + middle + tail.replace("{model}", model)


def _limited(settings: MockSettings, call: Mapping[str, Any]) -> tuple[list[str], str]:
    """The answer's words, each with the blank before it, cut at `max_tokens`; and the reason why it ends."""
    words = [word if index == 0 else f" {word}" for index, word in enumerate(_text(settings, call).split(" "))]
    optional = call.get("optional_params") or {}
    limit = optional.get("max_tokens") or optional.get("max_completion_tokens")
    if isinstance(limit, int) and 0 < limit < len(words):
        return words[:limit], "length"
    return words, "stop"


def _usage(settings: MockSettings, prompt: int, completion: int) -> litellm.Usage:
    told = settings.usage
    prompt = prompt if told.prompt_tokens is None else told.prompt_tokens
    completion = completion if told.completion_tokens is None else told.completion_tokens
    return litellm.Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _answer(settings: MockSettings, call: Mapping[str, Any]) -> ModelResponse:
    words, reason = _limited(settings, call)
    response: ModelResponse = call["model_response"]
    response.id = f"chatcmpl-{uuid.uuid4().hex}"  # LiteLLM's spend rows are keyed on it
    response.model = str(call["model"])
    response.choices[0].message.content = "".join(words)
    response.choices[0].finish_reason = reason
    response.usage = _usage(settings, _words(call.get("messages")), len(words))
    return response


def _chunks(settings: MockSettings, call: Mapping[str, Any]) -> Iterator[tuple[float, GenericStreamingChunk]]:
    """Pairs of a pause in seconds and the chunk after it; LiteLLM gives all chunks of a stream one fresh id."""
    words, reason = _limited(settings, call)
    pause = settings.first_token_delay
    for number, word in enumerate(words):
        if settings.cut_after is not None and number >= settings.cut_after:
            break
        yield pause, _chunk(word)
        pause = settings.chunk_delay
    if settings.cut_after is not None:
        message = f"mock stream cut after {settings.cut_after} chunks"
        raise litellm.APIConnectionError(message, llm_provider="mock", model=str(call["model"]))
    usage = _usage(settings, _words(call.get("messages")), len(words))
    counts = {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    yield pause, _chunk("", reason, counts)


def _chunk(text: str, reason: str = "", usage: dict[str, int] | None = None) -> GenericStreamingChunk:
    return {
        "text": text,
        "tool_use": None,
        "is_finished": bool(reason),
        "finish_reason": reason,
        "usage": usage,
        "index": 0,
    }


def _embeddings(settings: MockSettings, call: Mapping[str, Any]) -> EmbeddingResponse:
    given = call["input"]
    inputs = [given] if isinstance(given, str) else list(given)
    response: EmbeddingResponse = call["model_response"]
    response.model = str(call["model"])
    response.data = [
        {"object": "embedding", "index": index, "embedding": _vector(str(item), settings.dimensions)}
        for index, item in enumerate(inputs)
    ]
    response.usage = _usage(settings, sum(len(str(item).split()) for item in inputs), 0)
    return response


def _vector(text: str, dimensions: int) -> list[float]:
    raw = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    values = [int.from_bytes(raw[2 * i : 2 * i + 2], "big") / 32_767.5 - 1 for i in range(dimensions)]
    length = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / length for value in values]


handler = MockLLM()
"""The instance that `litellm_settings.custom_provider_map` names."""
