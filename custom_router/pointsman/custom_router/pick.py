"""From scores to an order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pointsman.custom_router.request import Candidate
from pointsman.custom_router.session_keys import pull
from pointsman.strategies.matching import Names

__all__ = ["POLICY", "match", "order"]

POLICY = "argmax"


def match(
    candidates: Sequence[Candidate], models: Sequence[str], aliases: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Match deployments with a bundle's models.

    Args:
        candidates: deployments.
        models: the bundle's names.
        aliases: bundle's name -> deployment's id or model (`pointsman.routing.candidates`, LLMRouter's metadata).

    Returns:
        deployment id -> bundle's name, and the ids that no name fits. The same name may fit several deployments. A name
        that is the same but for case or provider fits where no other does.
    """
    known = Names(models, aliases)
    matched: dict[str, str] = {}
    unmatched: list[str] = []
    for candidate in candidates:
        name = known.find(candidate.names)
        if name is None:
            unmatched.append(candidate.deployment_id)
        else:
            matched[candidate.deployment_id] = name
    return matched, tuple(unmatched)


def order(candidates: Sequence[Candidate], scores: Mapping[str, float], session: bytes | None = None) -> tuple[str, ...]:
    """Deployment ids, best first: higher score, then cheaper, then by id (so that ties never depend on the file's order).

    Candidates without a score come last. Of a session's equals the first is the one that it is drawn to (`session_keys.pull`).
    """

    def rank(candidate: Candidate) -> tuple[float, float, int, str]:
        name = candidate.deployment_id
        cost = candidate.cost if candidate.cost is not None else math.inf
        return (-scores.get(name, -math.inf), cost, -pull(session, name) if session is not None else 0, name)

    return tuple(candidate.deployment_id for candidate in sorted(candidates, key=rank))
