"""Not whose breaker is open, as far as the group can spare it (`custom_router.breakers`)."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.decisions import Dropped
from pointsman.decisions.ticket import Ticket

__all__ = ["BreakerFilter"]


class BreakerFilter:
    """Drops what rests (`breaker_open`), is being probed (`breaker_probing`) or is held open by hand (`breaker_held`)."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def __call__(self, request: RoutingRequest, ticket: Ticket, candidates: Sequence[Candidate]) -> tuple[Dropped, ...]:
        """The bounds are reckoned over all candidates of the request, those that failed in it as well."""
        admission = self._breakers.admit(request.candidates, candidates, request.decision_id)
        return tuple(Dropped(name, reason) for name, reason in admission.dropped.items())
