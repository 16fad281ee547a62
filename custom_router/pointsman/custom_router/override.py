"""Who chooses the strategy: the request's header, the key, the team, the group, the default; in this order.

A header counts only for a key that may: `pointsman_allow_override` in the metadata of the key, else of its team, or an
administrator's key. One that asks for what it may not is refused, so that nobody takes an answer for what it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pointsman.errors import AccessError, RequestError
from pointsman.settings import RoutingSettings

__all__ = ["COST_WEIGHT_HEADER", "LITELLM", "STRATEGY_HEADER", "By", "Choice", "Wish", "allowed", "choose", "read_wish"]

STRATEGY_HEADER = "x-pointsman-strategy"
COST_WEIGHT_HEADER = "x-pointsman-cost-weight"
LITELLM = "litellm"
"""In place of a strategy's name: LiteLLM's own choice."""
_STRATEGY, _ALLOW = "pointsman_strategy", "pointsman_allow_override"
_WORDS = {STRATEGY_HEADER: "strategy", COST_WEIGHT_HEADER: "cost_weight"}
MAX_COST_WEIGHT = 1000.0

By: TypeAlias = Literal["header", "key", "team", "group", "default"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of routing.

    Attributes:
        strategies: names, the first that exists counts; with who asks.
        cost_weight: in place of the policy's, or None.
    """

    strategies: tuple[tuple[By, str], ...] = ()
    cost_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The strategy for a request.

    Attributes:
        name: None for LiteLLM's own choice.
        by: who chose it.
        ignored: names of strategies that do not exist, which key or team ask for.
    """

    name: str | None
    by: By
    ignored: tuple[str, ...] = ()


def read_wish(
    headers: Mapping[str, str],
    key: Mapping[str, Any] | None,
    team: Mapping[str, Any] | None,
    *,
    admin: bool,
    known: Callable[[str], bool],
) -> Wish:
    """What a request asks for.

    Args:
        headers: of the request, names in lower case.
        key, team: LiteLLM's metadata of the key and of its team.
        admin: whether the key is an administrator's.
        known: whether a strategy of that name exists.

    Raises:
        AccessError: E4110, a header that the key may not use.
        RequestError: E4010, a header with a value that means nothing.
    """
    key, team = key if isinstance(key, Mapping) else {}, team if isinstance(team, Mapping) else {}
    for header, word in _WORDS.items():
        if header in headers and not admin and not allowed(key, team, word):
            raise AccessError(
                f"this key may not choose its {word.replace('_', ' ')}",
                code="E4110",
                where=header,
                mend=f"leave the header out, or have an administrator set {_ALLOW}: [{word!r}] in the key's metadata",
            )
    strategies: list[tuple[By, str]] = []
    if (wanted := headers.get(STRATEGY_HEADER)) is not None:
        if wanted != LITELLM and not known(wanted):
            mend = f"name a strategy of the gateway's configuration, or {LITELLM!r}"
            raise RequestError(f"there is no strategy {wanted[:64]!r}", code="E4010", where=STRATEGY_HEADER, mend=mend)
        strategies.append(("header", wanted))
    metadata: tuple[tuple[By, Mapping[str, Any]], ...] = (("key", key), ("team", team))
    for by, place in metadata:
        name = place.get(_STRATEGY)
        if name is not None:
            strategies.append((by, str(name)))
    return Wish(tuple(strategies), _weight(headers.get(COST_WEIGHT_HEADER)))


def allowed(key: Mapping[str, Any], team: Mapping[str, Any], word: str) -> bool:
    """Whether the key may choose that by header. Its own metadata decide where they say anything; else the team's."""
    given = key[_ALLOW] if _ALLOW in key else team.get(_ALLOW)
    return given is True or (isinstance(given, list) and word in given)


def _weight(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_COST_WEIGHT:
        message = f"a cost weight is a number from 0 to {MAX_COST_WEIGHT:g}, and not {text[:32]!r}"
        raise RequestError(message, code="E4010", where=COST_WEIGHT_HEADER, mend="0 takes the best at any price")
    return value


def choose(wish: Wish, group: str, routing: RoutingSettings, known: Callable[[str], bool]) -> Choice:
    """The strategy for a request in a model group. A name that does not exist is passed over, never an error."""
    ignored: list[str] = []
    for by, name in wish.strategies:
        if name == LITELLM:
            return Choice(None, by, tuple(ignored))
        if known(name):
            return Choice(name, by, tuple(ignored))
        ignored.append(name)
    if group in routing.groups:
        return Choice(routing.groups[group], "group", tuple(ignored))
    return Choice(routing.default, "default", tuple(ignored))
