"""A group's models, weakest first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pointsman.custom_router.cascades.types import Level
from pointsman.custom_router.pick import match
from pointsman.custom_router.request import Candidate

__all__ = ["best_of", "levels_of", "named", "price_of"]


def price_of(candidate: Candidate) -> float:
    """US dollars for a token read and one written; infinite where it is not known, so that it counts as the strongest."""
    prices = candidate.prices
    return prices.input + prices.output if prices is not None else math.inf


def levels_of(candidates: Sequence[Candidate], order: Sequence[str]) -> tuple[Level, ...]:
    """The models that `candidates` serve, weakest first.

    Args:
        candidates: deployments; several may serve one model.
        order: names, weakest first; those that nobody bears are passed over. Empty: by price, equal ones as they come.
    """
    by_model: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_model.setdefault(candidate.model, []).append(candidate)
    levels = [_level(found) for found in by_model.values()]
    if order:
        picked = [named(levels, name) for name in order]
        return tuple(dict.fromkeys(level for level in picked if level is not None))
    price = {found[0].model: min(map(price_of, found)) for found in by_model.values()}
    return tuple(sorted(levels, key=lambda level: price[level.model]))


def named(levels: Sequence[Level], name: str | None) -> Level | None:
    """The first model that bears the name, or None."""
    return next((level for level in levels if name is not None and name in level.names), None)


def best_of(candidates: Sequence[Candidate], scores: Mapping[str, float], aliases: Mapping[str, str]) -> str | None:
    """The model of the candidate that a bundle scores highest; ties go to the cheaper, then by id. None: it scores nobody."""
    matched, _ = match(candidates, tuple(scores), aliases)
    known = [candidate for candidate in candidates if candidate.deployment_id in matched]
    if not known:
        return None
    return min(known, key=lambda one: (-scores[matched[one.deployment_id]], price_of(one), one.deployment_id)).model


def _level(found: Sequence[Candidate]) -> Level:
    names = dict.fromkeys(name for candidate in found for name in candidate.names)
    return Level(found[0].model, tuple(candidate.deployment_id for candidate in found), tuple(names))
