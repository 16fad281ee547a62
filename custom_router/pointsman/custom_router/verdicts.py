"""What a failed attempt says of its upstream, which is not what it says of the request.

Counted against it: time-outs, connections that fail or break, answers 5xx, and what makes it useless to everybody (its key is
refused, its bill is not paid). Not counted: what the caller made wrong, for else any tenant could take an upstream from all
others; nor 403 and 404, which may be of the caller's making (a file, a previous response), nor 501, which says that the
upstream lacks what was asked for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

from pointsman.custom_router.breaker import Verdict
from pointsman.custom_router.breakers import Breakers, Transition
from pointsman.decisions import Attempt, Decision, Outcome
from pointsman.decisions.ticket import current_ticket

__all__ = ["retry_after_of", "sink", "tell", "verdict_of", "verdict_on"]

logger = logging.getLogger("pointsman.breakers")

MAX_CHANGES = 16
"""Of one request that its spans tell."""
USELESS = frozenset({401, 402, 408})
ACCOUNTS = frozenset({401, 402})
"""What says something of the key alone; so does 429."""
NOT_ITS_FAULT = frozenset({501, 505})
BAD_CLASSES = frozenset({
    *("Timeout", "APITimeoutError", "TimeoutError", "ReadTimeout", "ConnectTimeout", "WriteTimeout", "PoolTimeout"),
    *("APIConnectionError", "ConnectionError", "ConnectError", "ReadError", "WriteError", "RemoteProtocolError"),
    *("InternalServerError", "ServiceUnavailableError", "BadGatewayError", "MidStreamFallbackError"),
    *("BrokenStreamError", "FirstTokenTimeout"),
    *("APIResponseValidationError", "ClientConnectorError", "ServerDisconnectedError", "ClientPayloadError"),
})  # fmt: skip
"""Of LiteLLM, openai, httpx and aiohttp; for errors without a status."""
CALLERS_CLASSES = frozenset({"JSONSchemaValidationError", "UnsupportedParamsError", "ImageFetchError"})
"""Whatever their status: what the caller wants of the answer, or sent with the question."""


def verdict_on(attempt: Attempt) -> Verdict:
    """The verdict on an attempt as it is recorded; of one over the caller's own connection that it went well counts alone."""
    if attempt.callers_connection and attempt.outcome != "ok":
        return "none"
    return verdict_of(attempt.outcome, attempt.error, attempt.status, callers_timeout=attempt.callers_timeout)


def verdict_of(outcome: str, error: str | None, status: int | None, *, callers_timeout: bool = False) -> Verdict:
    """The verdict on one attempt.

    Args:
        outcome: `ok` or `error` (`decisions.Attempt`).
        error: class name of the error.
        status: HTTP status of the error.
        callers_timeout: the caller set the time-out itself; then that it was too short says nothing.
    """
    if outcome == "ok":
        return "good"
    if error in CALLERS_CLASSES:
        return "none"
    if status is None:
        if error == "RateLimitError":
            return "limited"
        late = error is not None and "Timeout" in error
        return "bad" if error in BAD_CLASSES and not (late and callers_timeout) else "none"
    if status < 400:
        return "bad"  # it says that all is well, and cannot be read
    if status == 429:
        return "limited"
    if callers_timeout and status in (408, 504):
        return "none"
    return "bad" if status in USELESS or (status >= 500 and status not in NOT_ITS_FAULT) else "none"


def retry_after_of(error: BaseException, wall: Callable[[], float] = time.time) -> float | None:
    """Seconds that an error's answer asks to wait for, by Retry-After (RFC 9110, seconds or a date); None: it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "litellm_response_headers", None)
    value = headers.get("retry-after") if isinstance(headers, Mapping) else None
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            seconds = parsedate_to_datetime(str(value)).timestamp() - wall()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 < seconds < math.inf else None


def sink(breakers: Breakers) -> Callable[[Decision | Attempt | Outcome], None]:
    """What takes attempts to the breakers."""

    def record(told: Decision | Attempt | Outcome) -> None:
        if isinstance(told, Attempt):
            verdict = verdict_on(told)
            account = verdict == "limited" or told.status in ACCOUNTS
            breakers.record(told.deployment_id, verdict, told.decision_id, told.retry_after, account=account)

    return record


def tell(change: Transition) -> None:
    """A log line for a change of a breaker, and an event on the span of the request in which it came about."""
    level = logging.WARNING if change.after == "open" else logging.INFO
    if change.heard:
        level = logging.DEBUG  # who saw it has said it
    ticket = current_ticket()
    if ticket is not None and len(ticket.breaker_changes) < MAX_CHANGES and not change.heard:
        ticket.breaker_changes.append((time.time_ns(), change.upstream, change.before, change.after, change.cause))
    cause = f" ({change.cause})" if change.cause is not None else ""
    logger.log(level, "the breaker of %s is %s, it was %s%s", change.upstream, change.after, change.before, cause)
