"""The request's own state: one `Ticket` a request, found through a ContextVar.

The outermost ASGI middleware issues it, the routing hook writes the decision into it, the middleware reads it when the answer
starts. It belongs to one request; the tasks that LiteLLM starts for that request see the same object, one event loop, no lock.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pointsman.decisions.types import Decision

__all__ = ["CURRENT", "MAX_HELD", "Place", "Ticket", "current_ticket"]

MAX_HELD = 16
"""Log lines that wait for one request's answer; what comes then is told at once."""


class OpenSpan(Protocol):
    """A span that ends with what it tells of."""

    def abandon(self) -> None:
        """End it: nobody will tell how that ended."""


class Place(Protocol):
    """A request's place in the queue (`custom_router.turns.Turn`)."""

    def answered(self) -> None:
        """Its answer begins well."""

    def free(self) -> None:
        """The request ended, however; further calls change nothing."""


@dataclass(slots=True)
class Ticket:
    """What is known of the request so far.

    Attributes:
        decision: the last decision; retries and fallbacks replace it.
        failed: deployment ids that failed in this request.
        picked: the id that the last decision put first.
        attempt: count of attempts that ended, good or bad.
        retries: LiteLLM's retry and fallback counters at the last decision; when they have grown, that pick has failed.
        closed: the outcome is recorded.
        models: deployment id -> `litellm_params.model` of all candidates seen.
        started: monotonic time in seconds.
        asked: our headers of the request, names in lower case.
        endpoint: what is asked for (`custom_router.request.Endpoint`), once LiteLLM has told.
        given: what is to be embedded.
        wish: what the request, its key and its team ask of routing (`custom_router.override.Wish`), once that was checked.
        conversation: digest by which the next turn finds who served this one, where a policy wants it.
        cascade: state of the cascade that was made of it (`custom_router.cascades.service.State`).
        gone: returns when the client has left; to be called only after the request's body was read.
        group: model group that was asked for first; a fallback asks for others.
        attempt_error: class name of the last attempt's error, or None.
        error: class name of the error that ended the request, or None.
        budget: whose budget is spent (`key`, `team`, ...), where that is why it was refused.
        fell_back: why LiteLLM went on with another group: class name of the last attempt's error, `unavailable` without one.
        prices: deployment id -> prices (`custom_router.request.Prices`) of the last decision's candidates, where known.
        request_id: the request's own id, the client's or made here (`http.request_ids`).
        trace: trace id and span id that the client's `traceparent` names, in hexadecimal digits, or None.
        key_alias: alias of the key, once LiteLLM has told.
        team: the key's team (its alias, else its id), once LiteLLM has told.
        told: count of its errors that a log line was written of, or is held back.
        answered: status of the answer, once that has begun.
        held: log lines of errors that wait for that status, which `settle` gives them; at most `MAX_HELD`.
        refusal: class or kind of the caller's mistake, for the one line that tells of it.
        spans: open spans of attempts (`callbacks.spans`), by their decision's id.
        place: its place in the queue, given back when the request ends, or None.
        retry_after: seconds after which to come again, for the answer's header, where the queue refused it.
        session: the session of a request whose deployment LiteLLM chooses (`custom_router.affinity.Waiting`), or None.
        caller: who asks, as LiteLLM's hooks before a call are given it (`UserAPIKeyAuth`), or None.
        trail: what it has tried (`custom_router.failover.trail.Trail`), or None.
        under_way: decision's and deployment's id of attempts that nothing was heard of yet (`custom_router.stalls`).
        settled: told when the answer begins, with its status; where there is none, with 500 at the end.
        callers_connection: the caller has brought a key or headers for the provider; that they fail says nothing of it.
        callers_timeout: the caller has set a time-out; that it was too short says nothing of an upstream.
        fallbacks: the request's own list of fallbacks, False where it wants none, None where it says nothing.
        groups: model groups that were asked so far.
        hedge: of a request that may be hedged, its class and what came of it (`custom_router.hedging.service.Hedge`), or None.
        repeatable: the request is held whole and nothing of its answer has begun (`http.anew`).
        repeat: whoever waits for its upstream has given up; the answer that comes is dropped and the request begun anew.
        repeats: how often it was begun anew.
        traceparent: what ties it to its trace when it is begun anew, or None.
        breaker_changes: of breakers in this request, for its next span: nanoseconds since the epoch, upstream, state before,
            state after, cause.
    """

    decision: Decision | None = None
    failed: set[str] = field(default_factory=set)
    picked: str | None = None
    attempt: int = 0
    retries: tuple[int, int] = (0, 0)
    closed: bool = False
    models: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    asked: Mapping[str, str] = field(default_factory=dict)
    endpoint: Literal["text", "embedding", "other"] | None = None
    given: object = None
    wish: object | None = None
    conversation: bytes | None = None
    cascade: object | None = None
    gone: Callable[[], Awaitable[None]] | None = None
    group: str | None = None
    attempt_error: str | None = None
    error: str | None = None
    budget: str | None = None
    fell_back: str | None = None
    prices: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    trace: tuple[str, str] | None = None
    key_alias: str | None = None
    team: str | None = None
    told: int = 0
    answered: int | None = None
    held: list[Callable[[int], None]] = field(default_factory=list)
    refusal: str | None = None
    spans: dict[str, OpenSpan] = field(default_factory=dict)
    caller: object | None = None
    callers_timeout: bool = False
    callers_connection: bool = False
    fallbacks: object = None
    groups: set[str] = field(default_factory=set)
    breaker_changes: list[tuple[int, str, str, str, str | None]] = field(default_factory=list)
    session: object | None = None
    place: Place | None = None
    retry_after: int | None = None
    trail: object | None = None
    hedge: object | None = None
    under_way: set[tuple[str, str]] = field(default_factory=set)
    settled: Callable[[Ticket, int], None] | None = None
    repeatable: bool = False
    repeat: bool = False
    repeats: int = 0
    traceparent: str | None = None

    def settle(self, status: int) -> None:
        """Tell what waits for the answer's status."""
        if self.settled is not None:
            self.settled(self, status)
        held, self.held = self.held, []
        for told in held:
            told(status)


CURRENT: ContextVar[Ticket | None] = ContextVar("pointsman_ticket", default=None)


def current_ticket() -> Ticket | None:
    """The ticket of the running request, or None outside of one (background health checks, tests)."""
    return CURRENT.get()
