"""Who may serve a request. A filter names the candidates that it drops and why; one small file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pointsman.custom_router.breaker_view import HELD, OPEN, PROBING, SUSPECTED
from pointsman.custom_router.filters.breaker import BreakerFilter
from pointsman.custom_router.filters.continued import CONTINUED, continued
from pointsman.custom_router.filters.suspected import SuspectedFilter
from pointsman.custom_router.filters.tried import tried
from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.decisions import Dropped
from pointsman.decisions.ticket import Ticket

__all__ = ["CONTINUED", "FILTERS", "NOT_TO_BE_TRIED", "BreakerFilter", "Filter", "SuspectedFilter", "apply_filters"]

Filter = Callable[[RoutingRequest, Ticket, Sequence[Candidate]], tuple[Dropped, ...]]
"""Request, ticket and remaining candidates in; what is dropped out."""

FILTERS: Sequence[Filter] = (tried, continued)
"""In this order; then, where there are breakers, a `BreakerFilter` and a `SuspectedFilter`."""

NOT_TO_BE_TRIED = frozenset({"tried", "excluded", OPEN, PROBING, HELD, SUSPECTED})
"""Reasons for which LiteLLM's own choice is not to fall on a candidate either."""


def apply_filters(
    request: RoutingRequest,
    ticket: Ticket,
    filters: Sequence[Filter] = FILTERS,
    remaining: tuple[Candidate, ...] | None = None,
) -> tuple[tuple[Candidate, ...], tuple[Dropped, ...]]:
    """What remains (of `remaining`, else of all candidates) and what was dropped.

    A filter that would leave nobody is passed over: trying beats refusing.
    """
    remaining = request.candidates if remaining is None else remaining
    dropped: list[Dropped] = []
    for filter_ in filters:
        out = filter_(request, ticket, remaining)
        ids = {item.deployment_id for item in out}
        kept = tuple(candidate for candidate in remaining if candidate.deployment_id not in ids)
        if kept:
            remaining = kept
            dropped.extend(out)
    return remaining, tuple(dropped)
