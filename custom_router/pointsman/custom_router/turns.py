"""Waiting for a turn: the asyncio side of `pointsman.custom_router.queue`, which decides.

One `Turns` a worker, one event loop, no lock and no await between a decision and its taking effect. A `Turn` is taken once and
freed once, by whoever holds the request (the ASGI layer, when the answer ended or the client left); freed while it waits it
leaves the queue, freed before it was taken it never joins. So no order of cancellations, deadlines and hang-ups leaks a place.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pointsman.custom_router.gradient import Gradient
from pointsman.custom_router.queue import (
    Admit,
    Drain,
    Event,
    Join,
    Leave,
    Priority,
    QueueState,
    Reason,
    Refuse,
    Resize,
    Tick,
    step,
)
from pointsman.errors import PointsmanError, RequestError, RoutingError
from pointsman.resilience_settings import LimitSettings, QueueSettings

__all__ = ["MAX_RETRY_AFTER", "REST", "QueueRefusedError", "Turn", "Turns", "Watcher"]

MAX_RETRY_AFTER = 60
"""Seconds. An estimate of more is no better than to come and ask."""
REST = ""
"""Name of the queue of all groups that have none of their own."""
_CODES: dict[Reason, tuple[str, str]] = {
    "full": ("E4720", "as many requests of its class wait as may"),
    "late": ("E4721", "its turn did not come in time"),
    "closing": ("E4722", "the gateway is shutting down"),
}
_MEND = "send the request again after the seconds that Retry-After names"


class Watcher(Protocol):
    """Who counts what happens in queues (`pointsman.callbacks.metrics.Metrics`); it neither raises nor blocks."""

    def queue_left(self, group: str, priority: str, result: str, seconds: float) -> None:
        """One no longer waits: `admitted`, `full`, `late`, `closing` or `gone`, after so many seconds."""


class QueueRefusedError(Exception):
    """A request does not get a turn.

    Attributes:
        error: what to tell its client.
        retry_after: whole seconds, at least 1; None where nobody is there to be told.
    """

    def __init__(self, error: PointsmanError, retry_after: int | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


class Turn:
    """One request's place in a queue; made by `Turns.turn`."""

    def __init__(self, queue: _Queue, priority: Priority, deadline: float, tenant: str) -> None:
        self._queue = queue
        self._priority = priority
        self._deadline = deadline
        self._tenant = tenant
        self._number = -1
        self._told: asyncio.Future[Refuse | None] | None = None
        self._freed = False
        self._began: float | None = None
        self.waited = False
        """It did not run, and was not refused, at once."""

    async def take(self, gone: Callable[[], Awaitable[None]] | None = None) -> None:
        """Wait until it may run; call it once. However it ends but by returning, the place is given back.

        Args:
            gone: returns when the client has left. Only called, and cancelled again, where there is a wait.

        Raises:
            QueueRefusedError: it may not, or the client left.
        """
        if self._freed:
            raise self._gone()
        self._number, self._told = next(self._queue.numbers), asyncio.get_running_loop().create_future()
        self._queue.waiting[self._number] = self
        try:
            self._queue.apply(Join(self._number, self._priority, self._deadline, self._tenant))
            self.waited = not self._told.done()
            if gone is not None and self.waited:
                await _either(self._told, gone)
            elif self.waited:
                await self._told
            if self._freed or not self._told.done():
                raise self._gone()
            if (refused := self._told.result()) is not None:
                raise self._refused(refused)
            self._began = self._queue.clock()
        except BaseException:
            self.free()
            raise

    def answered(self) -> None:
        """The answer began well: an adaptive limit learns how long that took. Later calls change nothing."""
        if self._began is not None and not self._freed:
            self._queue.observe(self._queue.clock() - self._began)
            self._began = None

    def free(self) -> None:
        """Give the place back, or leave the queue; further calls change nothing."""
        if self._freed:
            return
        self._freed = True
        if self._told is None:
            return
        self._queue.waiting.pop(self._number, None)
        if not self._told.done():
            self._told.set_result(None)  # wakes whoever waits; `_freed` says what it means
        self._queue.apply(Leave(self._number))

    def tell(self, refused: Refuse | None) -> None:
        """For the queue: what was decided."""
        if self._told is not None and not self._told.done():
            self._told.set_result(refused)

    def _refused(self, refused: Refuse) -> QueueRefusedError:
        code, why = _CODES[refused.reason]
        where = f"queue of {self._queue.name!r}" if self._queue.name else "queue"
        seconds = 1 if refused.reason == "closing" else max(1, min(MAX_RETRY_AFTER, math.ceil(refused.retry_after)))
        error = RoutingError(f"the request cannot be served now: {why}", code=code, where=where, mend=_MEND)
        return QueueRefusedError(error, seconds)

    @staticmethod
    def _gone() -> QueueRefusedError:
        return QueueRefusedError(RequestError("the client has left", code="E4723"), None)


async def _either(told: asyncio.Future[Any], gone: Callable[[], Awaitable[None]]) -> None:
    """Return when one of them is done. Neither is left running; what `gone` raises counts as that the client left."""
    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({told, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


class _Queue:
    """One queue: its state, its timer, those that wait."""

    def __init__(
        self, name: str, settings: QueueSettings, limit: LimitSettings, clock: Callable[[], float], watcher: Watcher | None
    ) -> None:
        self.name = name
        self.state = QueueState(limit.limit, settings.size, settings.patience)
        self.clock = clock
        self.numbers = itertools.count()
        self.waiting: dict[int, Turn] = {}
        """Those that were not told yet."""
        self._watcher = watcher
        self._adaptive = limit.kind == "adaptive"
        self._gradient = Gradient(float(limit.limit), limit.least, limit.most, limit.tolerance)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.counts: dict[str, dict[str, int]] = {priority.name.lower(): {} for priority in Priority}

    def apply(self, event: Event) -> None:
        """Take one step and tell whom it concerns. Everybody is told before anybody runs again."""
        before, now = self.state, self.clock()
        if isinstance(event, Join):
            self._count_joined(event.priority)
        self.state, effects = step(before, event, now)
        for effect in effects:
            if isinstance(effect, Admit):
                self._count(effect.priority, "admitted", effect.waited)
                told = None
            else:
                arrived = next((one.arrived for one in before.waiting[effect.priority] if one.id == effect.id), now)
                self._count(effect.priority, effect.reason, now - arrived)
                told = effect
            if (turn := self.waiting.pop(effect.id, None)) is not None:
                turn.tell(told)
        if isinstance(event, Leave) and event.id not in before.running:
            for of_class in before.waiting:
                for one in of_class:
                    if one.id == event.id:
                        self._count(one.priority, "gone", now - one.arrived)
        self._wake(now)

    def observe(self, latency: float) -> None:
        """An answer began after so many seconds."""
        if not self._adaptive:
            return
        self._gradient = self._gradient.observe(latency, len(self.state.running), self.clock())
        if self._gradient.limit != self.state.limit:
            self.apply(Resize(self._gradient.limit))

    def _count_joined(self, priority: Priority) -> None:
        of_class = self.counts[priority.name.lower()]
        of_class["joined"] = of_class.get("joined", 0) + 1

    def _count(self, priority: Priority, result: str, seconds: float) -> None:
        of_class = self.counts[priority.name.lower()]
        of_class[result] = of_class.get(result, 0) + 1
        if self._watcher is not None:
            self._watcher.queue_left(self.name, priority.name.lower(), result, max(0.0, seconds))

    def _wake(self, now: float) -> None:
        """Look again when the next deadline comes."""
        if self.state.soonest == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = self.state.soonest
        if self._timer_at < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._timer_at - now), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.apply(Tick())


class Turns:
    """The queues of a worker: one for each group that is configured to have its own, and one for all others.

    Args:
        settings: `pointsman.resilience.queue`.
        watcher: counts what happens.
        clock: monotonic seconds.
    """

    def __init__(
        self, settings: QueueSettings, watcher: Watcher | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        limits = {REST: settings.limit, **settings.groups}
        self._queues = {name: _Queue(name, settings, limit, clock, watcher) for name, limit in limits.items()}

    def turn(self, group: str, priority: Priority, patience: float | None = None, tenant: str = "") -> Turn:
        """A place for a request; it joins the queue when it is taken.

        Args:
            group: model group that is asked for.
            priority: its class.
            patience: seconds that the client waits at most; `max_wait` holds for it too.
            tenant: whose it is; those of one class take turns.
        """
        wait = self._settings.max_wait if patience is None else min(patience, self._settings.max_wait)
        return Turn(self._queues.get(group, self._queues[REST]), priority, self._clock() + wait, tenant)

    def drain(self, seconds: float) -> None:
        """The worker stops: whoever has no turn after so many seconds is told to go elsewhere, and so is who comes later."""
        for queue in self._queues.values():
            queue.apply(Drain(self._clock() + seconds))

    def status(self) -> dict[str, Any]:
        """Of this worker, for `GET /pointsman/queue`."""
        return {
            "enabled": self._settings.enabled,
            "queues": [
                {
                    "group": name or None,
                    "limit": queue.state.limit,
                    "adaptive": (self._settings.groups.get(name) or self._settings.limit).kind == "adaptive",
                    "running": len(queue.state.running),
                    "closing": queue.state.closing is not None,
                    "classes": [
                        {
                            "priority": priority.name.lower(),
                            "waiting": len(queue.state.waiting[priority]),
                            "size": queue.state.size,
                            "retry_after_seconds": round(queue.state.retry_after(priority), 3),
                            "counts": dict(queue.counts[priority.name.lower()]),
                        }
                        for priority in Priority
                    ],
                }
                for name, queue in self._queues.items()
            ],
        }
