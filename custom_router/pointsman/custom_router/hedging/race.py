"""Two calls of which the first good answer wins, the second one made only where the first takes long. Knows no LiteLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Call", "Race", "race"]

T = TypeVar("T")

GRACE = 1.0
"""Seconds that calls are given to end once they are cancelled; the answer does not wait for one that does not."""


@dataclass(slots=True)
class Call(Generic[T]):
    """One of the two.

    Attributes:
        work: makes it.
        second: it is the one that was made because the first took long.
        began, ended: monotonic seconds.
        answer: it won.
        error: it failed.
    """

    work: Callable[[], Awaitable[T]]
    second: bool = False
    began: float = 0.0
    ended: float = 0.0
    answer: T | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Race(Generic[T]):
    """How it went.

    Attributes:
        calls: those that were made, in order. One without answer and error was cancelled.
        won: the one that answered, or None.
        left: the client has left.
    """

    calls: list[Call[T]] = field(default_factory=list)
    won: Call[T] | None = None
    left: bool = False


async def race(
    first: Call[T],
    second: Callable[[], Call[T] | None],
    delay: float,
    gone: Callable[[], Awaitable[None]] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Race[T]:
    """Make the first call, and the second one after the delay, unless the first has ended by then.

    However it ends, also by being cancelled, no call goes on.

    Args:
        first: the call.
        second: gives the other call when the delay is over; None: there is none.
        delay: seconds.
        gone: returns when the client has left.
        sleep, clock: time.
    """
    told: Race[T] = Race()
    running: dict[asyncio.Task[T], Call[T]] = {}

    def begin(call: Call[T]) -> None:
        call.began = clock()
        told.calls.append(call)
        running[asyncio.ensure_future(_made(call))] = call

    begin(first)
    timer = asyncio.ensure_future(_slept(sleep, delay))
    watch = asyncio.ensure_future(_left(gone)) if gone is not None else None
    helpers = {timer} if watch is None else {timer, watch}
    pending = set(helpers)
    try:
        while running and told.won is None:
            done, _ = await asyncio.wait({*running, *pending}, return_when=asyncio.FIRST_COMPLETED)
            pending -= done
            for task in [one for one in running if one in done]:  # in the order in which they were asked
                call = running.pop(task)
                call.ended = clock()
                call.error = _error(task)
                if call.error is None and told.won is None:
                    told.won, call.answer = call, task.result()
            if told.won is None and watch is not None and watch in done:
                told.left = True
                break
            if told.won is None and running and timer in done and (other := second()) is not None:
                other.second = True
                begin(other)
        return told
    finally:
        over = [*running, *helpers]
        for one in over:
            one.cancel()
        await asyncio.wait(over, timeout=GRACE)
        for call in running.values():
            call.ended = clock()


async def _made(call: Call[T]) -> T:
    return await call.work()


async def _slept(sleep: Callable[[float], Awaitable[None]], seconds: float) -> None:
    await sleep(seconds)


async def _left(gone: Callable[[], Awaitable[None]]) -> None:
    await gone()


def _error(task: asyncio.Task[T]) -> Exception | None:
    """What a call that ended failed with; one that was cancelled from outside has failed, too."""
    if task.cancelled():
        return ConnectionError("the call was cancelled")
    error = task.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error
