"""Streams: one that breaks before its first content is begun anew on another deployment, and the client does not notice.

The guard is the first that sees a stream, before guardrails and whoever else reads it. It holds events back until there is
content. What breaks before (an error, a connection that is cut, garbage, nothing in time) is recorded as a failed attempt; then
the router is asked again, for the same request with the same ticket, so that all that holds for a further try holds for this
one. What breaks after ends the stream with LiteLLM's error event in the protocol's form, and is recorded as broken.

LiteLLM has a failover of its own for streams, which differs by protocol: it does not try the group's other deployments, or only
the one that just failed, lets Anthropic's streams end without a word, and goes on with a half answer of the Responses API in
another model's words. While the guard reads a stream the hook refuses it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from litellm.exceptions import MidStreamFallbackError
from litellm.integrations.custom_logger import CustomLogger

from pointsman.custom_router.elsewhere import RestingError
from pointsman.custom_router.failover.events import CALLS, Reader
from pointsman.custom_router.failover.stop import StopError
from pointsman.custom_router.failover.trail import Trail
from pointsman.decisions.ticket import Ticket, current_ticket
from pointsman.resilience_settings import FailoverSettings

__all__ = ["BrokenStreamError", "FirstTokenTimeout", "StreamGuard"]

logger = logging.getLogger("pointsman.failover")

MAX_HELD = 200
"""Events that are held back; a stream with more of them before its first content goes on as it is."""
MAX_DEPTH = 8
CALLERS_FAULT = frozenset({400, 404, 405, 413, 415, 422})


class BrokenStreamError(Exception):
    """A stream ended before its end."""

    status_code = 502

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class FirstTokenTimeout(BrokenStreamError):
    """No content came in time."""

    status_code = 504


class Record(Protocol):
    """Told of a stream's try that failed; `broken`: after its first content."""

    def __call__(self, ticket: Ticket, error: Exception, /, *, broken: bool) -> None: ...


async def _begin(data: dict[str, Any], call: str, caller: Any) -> Any:
    from litellm.proxy import proxy_server
    from litellm.proxy.route_llm_request import route_request

    asked = await route_request(
        data=data, llm_router=proxy_server.llm_router, user_model=None, route_type=call, user_api_key_dict=caller
    )
    return await asked


class StreamGuard(CustomLogger):  # type: ignore[misc] # LiteLLM is not typed
    """See the module. Without `bind` it lets everything pass.

    Args:
        clock: monotonic seconds.
        begin: asks the router again: data, name of the call, caller.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, begin: Callable[..., Any] = _begin) -> None:
        super().__init__()
        self._rules: FailoverSettings | None = None
        self._record: Record | None = None
        self._clock, self._begin = clock, begin

    def bind(self, rules: FailoverSettings, record: Record) -> None:
        """Give it the settings and whom to tell; once, before the worker serves."""
        self._rules, self._record = rules, record

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """The stream, as the client is to see it."""
        ticket, rules = current_ticket(), self._rules
        trail = ticket.trail if ticket is not None else None
        if rules is None or not rules.enabled or not rules.streams or not isinstance(trail, Trail) or trail.call not in CALLS:
            until = trail.deadline if isinstance(trail, Trail) else math.inf
            async for piece in response if until == math.inf else _begun_by(until - self._clock(), response):
                yield piece
            return
        assert ticket is not None  # noqa: S101 - narrows the type; it has a trail
        guarded = _Guarded(self, rules, ticket, trail, request_data, user_api_key_dict)
        try:
            async with aclosing(guarded.pieces(response)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            trail.streaming = False

    def failed(self, ticket: Ticket, error: Exception, *, broken: bool) -> None:
        """Tell of a try that failed."""
        if self._record is not None:
            self._record(ticket, error, broken=broken)

    async def again(self, data: dict[str, Any], call: str, caller: Any) -> Any:
        """Ask the router once more."""
        return await self._begin(data, call, caller)

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock()


class _Guarded:
    """One stream of one request."""

    def __init__(
        self, guard: StreamGuard, rules: FailoverSettings, ticket: Ticket, trail: Trail, data: Mapping[str, Any], caller: Any
    ) -> None:
        self._guard, self._rules, self._ticket, self._trail = guard, rules, ticket, trail
        self._data, self._caller, self._call = data, caller, CALLS[trail.call]

    async def pieces(self, response: Any) -> AsyncGenerator[Any, None]:
        """What the client gets."""
        own = False
        try:
            while True:
                reader, held = Reader(self._call), list[Any]()
                self._trail.streaming = True
                stream = aiter(response)
                try:
                    more = await self._until_content(stream, reader, held)
                    break
                except Exception as error:  # noqa: BLE001 - whatever a provider's stream breaks with
                    await _close(response)
                    response, own = await self._anew(error), True
            for piece in held:
                yield piece
            if more:
                async with aclosing(self._rest(stream, reader)) as rest:
                    async for piece in rest:
                        yield piece
        finally:
            if own:  # LiteLLM closes the one that it knows
                await _close(response)

    async def _until_content(self, stream: AsyncIterator[Any], reader: Reader, held: list[Any]) -> bool:
        """Holds back what comes until there is content; gives back whether there may be more."""
        until = self._until()
        while len(held) < MAX_HELD:
            try:
                async with asyncio.timeout(None) as waits:
                    if until < math.inf:
                        waits.reschedule(asyncio.get_running_loop().time() + max(0.0, until - self._guard.now()))
                    self._trail.waits = waits
                    piece = await anext(stream)
            except StopAsyncIteration:
                if not reader.whole or not held:
                    raise BrokenStreamError("the stream ended before there was content") from None
                return False
            except TimeoutError as error:
                if waits.expired():
                    raise FirstTokenTimeout("no content came in time") from error
                raise
            finally:
                self._trail.waits = None
            held.append(piece)
            found = reader.see(piece)
            if found == "error":
                raise BrokenStreamError("the provider ended the stream with an error before there was content")
            if found != "around":
                return True
        return True

    def _until(self) -> float:
        began = self._trail.asking.at if self._trail.asking is not None else self._guard.now()
        first = began + self._rules.first_token if self._rules.first_token is not None else math.inf
        return min(first, self._trail.deadline)

    async def _rest(self, stream: AsyncIterator[Any], reader: Reader) -> AsyncGenerator[Any, None]:
        """What comes after the first content, as it is; tells of a break."""
        told = False
        try:
            async for piece in stream:
                if not reader.whole and not told and reader.see(piece) == "error":
                    told = True
                    self._break(BrokenStreamError("the provider ended the stream with an error"))
                yield piece
            if not reader.whole and not told:
                told = True
                error = BrokenStreamError("the stream ended in the middle of the answer")
                self._break(error)
                raise error
        except Exception as error:
            if not told:
                self._break(_source(error))
            if isinstance(error, StopError):
                raise _source(error) from error
            raise

    def _break(self, error: Exception) -> None:
        self._trail.broken = True
        self._guard.failed(self._ticket, error, broken=True)

    async def _anew(self, error: Exception) -> Any:
        """The stream of another try.

        Raises:
            Exception: there is none: what the stream broke with, or what the other try failed with.
        """
        trail, error = self._trail, _source(error)
        self._guard.failed(self._ticket, error, broken=False)
        trail.streaming = False
        status = getattr(error, "status_code", None)
        if status in CALLERS_FAULT or trail.replays >= self._rules.stream_tries:
            raise error
        trail.replays += 1
        trail.again = True
        try:
            response = await self._guard.again(_fresh(self._data), self._call, self._caller)
        except RestingError as resting:
            raise StopError("exhausted", error) from resting
        if not hasattr(response, "__aiter__"):
            raise error
        return response


async def _begun_by(seconds: float, response: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """A stream whose first event, whatever that is, has come after so many seconds.

    Raises:
        StopError: it has not.
    """
    stream = aiter(response)
    try:
        async with asyncio.timeout(max(0.0, seconds)) as waits:
            first = await anext(stream)
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        if waits.expired():
            raise StopError("deadline", None) from error
        raise
    yield first
    async for piece in stream:
        yield piece


def _fresh(data: Mapping[str, Any]) -> dict[str, Any]:
    """The request's data for another call, without what LiteLLM has put there about the first."""
    kept = {name: value for name, value in data.items() if name != "deployment" and not name.startswith("_litellm_")}
    own = {name: dict(kept[name]) for name in ("metadata", "litellm_metadata") if isinstance(kept.get(name), dict)}
    return {**kept, **own}


def _source(error: Exception) -> Exception:
    """What a stream broke with, behind LiteLLM's envelopes and behind our refusal of its own failover."""
    current: BaseException | None = error
    for _ in range(MAX_DEPTH):
        if isinstance(current, MidStreamFallbackError):
            current = current.original_exception or current.__cause__
        elif isinstance(current, StopError):
            current = current.__cause__ or current.__context__
        else:
            break
    if isinstance(current, Exception) and not isinstance(current, StopError | MidStreamFallbackError):
        return current
    return BrokenStreamError("the stream broke")


async def _close(response: Any) -> None:
    close = getattr(response, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except Exception:  # it is broken already
        logger.debug("a broken stream could not be closed", exc_info=True)
