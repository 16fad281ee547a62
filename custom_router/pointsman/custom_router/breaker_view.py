"""What a breaker's state means for a request, and what people are told of it."""

from __future__ import annotations

import math
from typing import Any

from pointsman.custom_router.breaker import Breaker, Closed, HalfOpen, Held, Open, State
from pointsman.resilience_settings import BreakerSettings

__all__ = ["HELD", "OPEN", "PROBING", "SUSPECTED", "details", "name_of", "shut"]

OPEN, PROBING, HELD = "breaker_open", "breaker_probing", "breaker_held"
"""Why a candidate is dropped: it rests, as many probes as may are under way, an administrator said so."""
SUSPECTED = "breaker_suspected"
"""Its breaker is closed, but attempts wait there for longer than is usual, and others do not."""


def shut(state: State, rules: BreakerSettings, now: float) -> tuple[str, float] | None:
    """Why it may not be tried now and until when that is so; None: it may."""
    if isinstance(state, Held):
        return (HELD, state.until) if state.open else None
    if isinstance(state, Open):
        return OPEN, state.until + state.lead
    if isinstance(state, HalfOpen) and state.places(rules, now) <= 0:
        return PROBING, now
    return None


def name_of(state: State) -> str:
    """`closed`, `open`, `half_open`, `held_open`, `held_closed`."""
    if isinstance(state, Held):
        return "held_open" if state.open else "held_closed"
    return {Closed: "closed", Open: "open", HalfOpen: "half_open"}[type(state)]


def details(breaker: Breaker, now: float) -> dict[str, Any]:
    """As JSON; times in seconds from now, counts of this worker."""
    fact, state = breaker.fact(""), breaker.state
    half = state if isinstance(state, HalfOpen) else None
    closed = state if isinstance(state, Closed) else Closed()
    probe = fact.until + (state.lead if isinstance(state, Open) else 0.0) - now
    good, bad = closed.window.totals()
    return {
        "cause": fact.cause,
        "reason": fact.reason or None,
        "held_by": fact.actor or None,
        "seconds_in_state": round(now - fact.since, 3) if fact.since > -math.inf and half is None else None,
        "seconds_left": round(fact.until - now, 3) if now < fact.until < math.inf else None,
        "seconds_to_probe": round(probe, 3) if isinstance(state, Open) and probe > 0 else None,
        "failures_in_a_row": closed.failures,
        "window": {"good": good, "bad": bad},
        "probes": {"running": sum(until > now for _, until in half.leases), "good": half.good} if half is not None else None,
        "rests": fact.rests,
        "generation": fact.generation,
        "orders": fact.orders,
    }
