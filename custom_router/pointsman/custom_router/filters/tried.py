"""Never an id that has failed in this request, while another remains.

Measured without it: with one deployment returned and that one dead, every retry goes to it again.
"""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.decisions import Dropped
from pointsman.decisions.ticket import Ticket

__all__ = ["tried"]


def tried(request: RoutingRequest, ticket: Ticket, candidates: Sequence[Candidate]) -> tuple[Dropped, ...]:
    """Drop what failed here before (`tried`) and what LiteLLM itself excludes from this attempt (`excluded`)."""
    dropped = []
    for candidate in candidates:
        if candidate.deployment_id in ticket.failed:
            dropped.append(Dropped(candidate.deployment_id, "tried"))
        elif candidate.deployment_id in request.excluded:
            dropped.append(Dropped(candidate.deployment_id, "excluded"))
    return tuple(dropped)
