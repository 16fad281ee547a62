"""A response is kept by the provider that gave it: what goes on from one goes to the same deployment."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.decisions import Dropped
from pointsman.decisions.ticket import Ticket

__all__ = ["CONTINUED", "continued"]

CONTINUED = "continued"


def continued(request: RoutingRequest, ticket: Ticket, candidates: Sequence[Candidate]) -> tuple[Dropped, ...]:
    """Drop the others, where the one that keeps the previous response is still among the candidates."""
    if not any(candidate.deployment_id == request.continues for candidate in candidates):
        return ()
    others = (candidate.deployment_id for candidate in candidates if candidate.deployment_id != request.continues)
    return tuple(Dropped(name, CONTINUED) for name in others)
