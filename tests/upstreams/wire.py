"""What the two protocols share: ids, token counts, server-sent events, refusals, and the answer that endpoints return."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Payload", "Refused", "event", "known_only", "new_id", "pieces", "require", "tokens"]

Payload = dict[str, Any]


class Refused(Exception):
    """The request is not what the protocol allows; `param` and `code` go where the protocol has them."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: JSON (or bytes) for a plain call, the events in order for a streamed one."""

    id: str
    body: Payload | bytes | list[Any]
    events: tuple[str, ...] = ()
    error_event: str = ""
    media_type: str = "application/json"


def new_id(prefix: str) -> str:
    """An id never given twice: LiteLLM keys its spend log on it and skips what it has seen."""
    return f"{prefix}{uuid.uuid4().hex}"


def tokens(*texts: str) -> int:
    """The fakes' tokenizer: words, at least one."""
    return max(1, sum(len(text.split()) for text in texts))


def pieces(text: str) -> Iterator[str]:
    """A text in the pieces in which it is streamed; joined they give it back."""
    for number, word in enumerate(text.split(" ")):
        yield word if number == 0 else f" {word}"


def event(data: Payload | str, name: str | None = None) -> str:
    """One server-sent event (WHATWG HTML, section 9.2)."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


def require(
    payload: Payload,
    key: str,
    kinds: type | tuple[type, ...],
    *,
    low: float | None = None,
    high: float | None = None,
    needed: bool = False,
) -> Any:
    """`payload[key]` if it has one of `kinds` and lies within [low, high]; absent or null is None unless `needed`.

    Raises:
        Refused: in the words of the services: which parameter, and what is wrong with it.
    """
    value = payload.get(key)
    if value is None:
        if needed:
            raise Refused(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")
        return None
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise Refused(
            f"Invalid type for '{key}': expected {names}, got {type(value).__name__}.", param=key, code="invalid_type"
        )
    number: Any = value
    if (low is not None and number < low) or (high is not None and number > high):
        raise Refused(f"Invalid '{key}': {value} is outside [{low}, {high}].", param=key, code="out_of_range")
    return value


def known_only(payload: Payload, known: Collection[str]) -> None:
    """Raise `Refused` when the request has a parameter that the service does not know."""
    for key in payload:
        if key not in known:
            raise Refused(f"Unknown parameter: '{key}'.", param=key, code="unknown_parameter")
