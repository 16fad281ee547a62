"""The error that ends a request: no further try, though LiteLLM would make one. Says what the provider said.

LiteLLM's router tries again on most statuses, so that while it looks at the error the status is one on which it does not; the
hook that is called when the request has failed gives it its own (`settle`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

__all__ = ["Limit", "StopError"]

Limit: TypeAlias = Literal["deadline", "budget", "retry_after", "exhausted", "stream", "stalled"]
"""What ended it: the deadline; the group's retry budget; a provider that wants to be left alone for longer than is waited;
everybody of the group has failed and the next group is to be tried; a stream had begun; its upstream hangs, and the request is
begun anew."""

WORDS: dict[Limit, str] = {
    "deadline": "E4730: the request's deadline has passed.",
    "budget": "E4731: the retry budget of its model group is spent.",
    "retry_after": "E4732: the provider asks to be left alone for longer than is waited.",
    "exhausted": "All deployments of its model group have failed.",
    "stream": "A stream had begun.",
    "stalled": "Nothing came from its upstream.",
}
NOT_TO_BE_REPEATED = 400


def _headers(cause: Exception | None) -> dict[str, str]:
    """Of the provider's answer what a client has to know."""
    headers = getattr(getattr(cause, "response", None), "headers", None) or getattr(cause, "litellm_response_headers", None)
    value = headers.get("retry-after") if isinstance(headers, Mapping) else None
    return {"retry-after": str(value)} if value is not None else {}


class StopError(Exception):
    """No further try.

    Args:
        limit: what ended it.
        cause: what the last try failed with, or None where there was none.
        status: of the answer, where there was no try.
    """

    num_retries = 0
    """LiteLLM's router reads it off an error."""

    def __init__(self, limit: Limit, cause: Exception | None, status: int = 504) -> None:
        self.limit, self.cause = limit, cause
        said = getattr(cause, "message", None) or (str(cause) if cause is not None else "")
        self.message = str(said) or "The request's deadline has passed."
        super().__init__(self.message)
        own = getattr(cause, "status_code", None)
        self._status = own if isinstance(own, int) and cause is not None else status
        self.status_code = NOT_TO_BE_REPEATED
        self.headers = _headers(cause)
        self.llm_provider, self.model = getattr(cause, "llm_provider", ""), getattr(cause, "model", "")

    @property
    def why(self) -> str:
        """What ended it, in words, with its code where it has one."""
        return WORDS[self.limit]

    def settle(self) -> None:
        """The request has failed: from now on it has the status that the client is told."""
        self.status_code = 504 if self.limit == "deadline" else self._status
