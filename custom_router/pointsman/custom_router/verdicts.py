"""What a failed attempt says of its upstream, which is not what it says of the request.

Counted against it: time-outs, connections that fail or break, answers 5xx, and what makes it useless to everybody (its key is
refused, its bill is not paid). Not counted: what the caller made wrong, for else any tenant could take an upstream from all
others; nor 403 and 404, which may be of the caller's making (a file, a previous response), nor 501, which says that the
upstream lacks what was asked for.
"""

from __future__ import annotations

from pointsman.custom_router.breaker import Verdict

__all__ = ["verdict_of"]

USELESS = frozenset({401, 402, 408})
NOT_ITS_FAULT = frozenset({501, 505})
BAD_CLASSES = frozenset({
    *("Timeout", "APITimeoutError", "TimeoutError", "ReadTimeout", "ConnectTimeout", "WriteTimeout", "PoolTimeout"),
    *("APIConnectionError", "ConnectionError", "ConnectError", "ReadError", "WriteError", "RemoteProtocolError"),
    *("InternalServerError", "ServiceUnavailableError", "BadGatewayError", "MidStreamFallbackError"),
    *("APIResponseValidationError", "ClientConnectorError", "ServerDisconnectedError", "ClientPayloadError"),
})  # fmt: skip
"""Of LiteLLM, openai, httpx and aiohttp; for errors without a status."""
CALLERS_CLASSES = frozenset({"JSONSchemaValidationError", "UnsupportedParamsError", "ImageFetchError"})
"""Whatever their status: what the caller wants of the answer, or sent with the question."""


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
    if status == 429:
        return "limited"
    if callers_timeout and status in (408, 504):
        return "none"
    return "bad" if status in USELESS or (status >= 500 and status not in NOT_ITS_FAULT) else "none"
