"""Which class a request is of, and how long its client waits: `x-pointsman-priority`, `x-pointsman-deadline-ms`, the key.

The class is the key's (`pointsman_priority` in its metadata), else its team's, else the configured one. A header may always ask
for a lower one, which harms nobody; for a higher one only where the key may: `pointsman_allow_override` with `priority` in it
(`custom_router.override`), or an administrator's key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pointsman.custom_router.override import allowed
from pointsman.custom_router.queue import Priority
from pointsman.errors import AccessError, RequestError

__all__ = ["DEADLINE_HEADER", "PRIORITY_HEADER", "read_patience", "read_priority"]

PRIORITY_HEADER = "x-pointsman-priority"
DEADLINE_HEADER = "x-pointsman-deadline-ms"
_PRIORITY = "pointsman_priority"
_WORDS = {priority.name.lower(): priority for priority in Priority}


def read_priority(
    headers: Mapping[str, str],
    key: Mapping[str, Any] | None,
    team: Mapping[str, Any] | None,
    *,
    admin: bool,
    default: Priority,
) -> Priority:
    """The class of a request.

    Args:
        headers: of the request, names in lower case.
        key, team: LiteLLM's metadata of the key and of its team. A word there that is no class is passed over.
        admin: whether the key is an administrator's.
        default: where neither says.

    Raises:
        AccessError: E4110, a header asks for a higher class than the key may have.
        RequestError: E4010, a header with a word that is no class.
    """
    key, team = key if isinstance(key, Mapping) else {}, team if isinstance(team, Mapping) else {}
    own = next((_WORDS[word] for place in (key, team) if (word := str(place.get(_PRIORITY)).lower()) in _WORDS), default)
    if (asked := headers.get(PRIORITY_HEADER)) is None:
        return own
    wanted = _WORDS.get(asked.lower())
    if wanted is None:
        message = f"{asked[:32]!r} is no priority"
        raise RequestError(message, code="E4010", where=PRIORITY_HEADER, mend=f"one of {', '.join(_WORDS)}")
    if wanted < own and not admin and not allowed(key, team, "priority"):
        raise AccessError(
            f"this key's requests have {own.name.lower()} priority at most",
            code="E4110",
            where=PRIORITY_HEADER,
            mend="ask for no more, or have an administrator set pointsman_allow_override: ['priority'] in the key's metadata",
        )
    return wanted


def read_patience(headers: Mapping[str, str]) -> float | None:
    """Seconds for which the client waits for its turn at most, None where it does not say. Any key may.

    Raises:
        RequestError: E4010, no number of milliseconds.
    """
    if (asked := headers.get(DEADLINE_HEADER)) is None:
        return None
    try:
        value = float(asked)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        message = f"a deadline is a number of milliseconds over 0, and not {asked[:32]!r}"
        raise RequestError(message, code="E4010", where=DEADLINE_HEADER, mend="leave it out to wait as long as is configured")
    return value / 1000
