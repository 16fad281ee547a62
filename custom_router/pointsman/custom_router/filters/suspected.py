"""Not who seems to hang, while there are others: attempts wait there, and nothing has come for longer than is usual."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.custom_router.breaker_view import SUSPECTED
from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.decisions import Dropped
from pointsman.decisions.ticket import Ticket

__all__ = ["SuspectedFilter"]


class SuspectedFilter:
    """Drops them (`breaker_suspected`), within the bound of what may rest of a group. Not ejected: it ends with any answer."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def __call__(self, request: RoutingRequest, ticket: Ticket, candidates: Sequence[Candidate]) -> tuple[Dropped, ...]:
        """Whoever was dropped before counts towards the bound."""
        found = self._breakers.suspects(candidates)
        spared = self._breakers.may_rest(len(request.candidates)) - (len(request.candidates) - len(candidates))
        return tuple(Dropped(name, SUSPECTED) for name in found[: max(0, spared)])
