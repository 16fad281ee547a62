"""What one request has tried so far. Belongs to its `Ticket`; one event loop, no lock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsman.custom_router.failover.stop import Limit
from pointsman.decisions.ticket import Ticket

__all__ = ["Asking", "Trail", "Tried", "deadline_of", "note", "trail_of"]

MAX_TOLD = 8
"""Tries that an error's text names."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Who is being asked.

    Attributes:
        decision_id, deployment_id: of the try.
        at: monotonic seconds when it began.
    """

    decision_id: str
    deployment_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Tried:
    """A try that failed: by whom, with which class of error and status, when; and until when it wants to be left alone."""

    deployment_id: str
    error: str
    status: int | None
    at: float
    not_before: float = 0.0


@dataclass(slots=True)
class Trail:
    """See the module.

    Attributes:
        deadline: monotonic time until which the answer must have begun.
        call: LiteLLM's name of the call, e.g. `acompletion`.
        asking: who is asked now, or was asked last and neither failed nor answered.
        tried: those that failed.
        cause: what the last of them failed with.
        ended: decision and deployment of tries whose end is recorded; LiteLLM tells of some twice.
        groups: model groups whose budget knows of this request.
        pauses: how often it waited.
        shortened: the time-out of the try was cut by the deadline, and says nothing of the upstream.
        limit: what ended the request, or None.
        streaming: a stream is read, and a further try now would be LiteLLM's own failover.
        broken: a stream broke after its first content, which ends the request.
        replays: how often a stream was begun anew.
        again: the try that comes is such a one.
        waits: a stream's first content is waited for, and whoever wants may end that (`give_up`).
        router: the task in which LiteLLM's router works for it, once that has begun, which `routed` tells.
        hopeless: of a request that can be begun anew, what ends the wait for the router's work (`give_up`).
        repeats: how often the request was begun anew, as far as this trail knows.
    """

    deadline: float = math.inf
    call: str = ""
    asking: Asking | None = None
    tried: list[Tried] = field(default_factory=list)
    cause: Exception | None = None
    ended: set[tuple[str, str]] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    pauses: int = 0
    shortened: bool = False
    limit: Limit | None = None
    streaming: bool = False
    broken: bool = False
    replays: int = 0
    again: bool = False
    waits: asyncio.Timeout | None = None
    router: asyncio.Task[Any] | None = None
    routed: asyncio.Event = field(default_factory=asyncio.Event)
    hopeless: asyncio.Future[None] | None = None
    repeats: int = 0

    def give_up(self) -> None:
        """Wait no longer for whoever is asked: for a stream's first content, or for the beginning of an answer."""
        if self.waits is not None:
            if not self.waits.expired():
                self.waits.reschedule(0.0)
        elif self.hopeless is not None and not self.hopeless.done():
            self.hopeless.set_result(None)

    def begin_anew(self) -> None:
        """The same request comes once more: what it tried stays known, and its first try now counts as a further one."""
        self.repeats += 1
        self.router, self.routed, self.hopeless = None, asyncio.Event(), None
        self.asking, self.again, self.streaming = None, True, False

    def told(self) -> str:
        """What was tried and why it failed, in a sentence, without anything a provider wrote; empty: nothing was."""
        if not self.tried:
            return ""
        words = [
            f"{one.deployment_id} ({one.error}{f', {one.status}' if one.status else ''})" for one in self.tried[-MAX_TOLD:]
        ]
        return f"Tried: {', '.join(words)}."


def note(ticket: Ticket, deployment_id: str, error: Exception, now: float, retry_after: float | None) -> None:
    """A try failed."""
    trail = trail_of(ticket)
    until = now + retry_after if retry_after is not None else 0.0
    status = getattr(error, "status_code", None)
    trail.tried.append(Tried(deployment_id, type(error).__name__, status if isinstance(status, int) else None, now, until))
    trail.cause = error


def trail_of(ticket: Ticket) -> Trail:
    """The request's trail; made when first asked for."""
    if not isinstance(ticket.trail, Trail):
        ticket.trail = Trail()
    return ticket.trail


def deadline_of(asked: Mapping[str, str], data: Mapping[str, Any], limit: float | None, started: float) -> float:
    """Until when a request must be answered, as monotonic seconds; endless where nothing says.

    The soonest of the header `x-pointsman-deadline-ms`, the setting, and the time-out in the request's own body.

    Args:
        asked: our headers of the request.
        data: the request's body.
        limit: seconds of the setting, or None.
        started: when the request came, monotonic seconds.
    """
    found = [limit] if limit is not None else []
    milliseconds = asked.get("x-pointsman-deadline-ms", "")
    if milliseconds.isascii() and milliseconds.isdigit() and int(milliseconds) > 0:
        found.append(int(milliseconds) / 1000)
    for name in ("timeout", "request_timeout"):
        value = data.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            found.append(float(value))
    return started + min(found) if found else math.inf
