"""What becomes a decision: a strategy's opinion, and the refusal where there is nobody to try."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pointsman.custom_router.override import LITELLM
from pointsman.custom_router.request import RoutingRequest
from pointsman.decisions import Decision, Dropped, Encoded
from pointsman.strategies.base import Scale
from pointsman.strategies.manifest import Calibration

__all__ = ["RESTING", "Opinion", "encoded", "refusal"]

RESTING = "resting"
"""Why nobody decided: all of the group rest, and the request goes elsewhere or has tried them all."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a strategy said: deployment id -> score and the strategy's name for its model; and why it said nothing."""

    scores: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    scale: Scale = "rank"
    table: Calibration | None = None
    dropped: tuple[Dropped, ...] = ()
    fallback: str | None = None
    text: str = ""
    encoded: tuple[str, int, int, int] | None = None
    """Encoder's kind and dimensions, and when it began and ended, by `time.perf_counter_ns`."""


def encoded(opinion: Opinion, started: int) -> Encoded | None:
    """When the encoder was at work, in microseconds after the decision began at `started` (`time.perf_counter_ns`)."""
    if opinion.encoded is None:
        return None
    encoder, dimensions, begin, end = opinion.encoded
    return Encoded((begin - started) // 1000, (end - started) // 1000, encoder, dimensions)


def refusal(request: RoutingRequest, dropped: tuple[Dropped, ...], started: int) -> Decision:
    """The decision that nobody is tried, and why each of the candidates is not."""
    return Decision(
        decision_id=request.decision_id,
        request_id=request.request_id,
        group=request.group,
        strategy=None,
        version=None,
        scores={},
        dropped=dropped,
        order=(),
        model=None,
        policy=LITELLM,
        microseconds=(time.perf_counter_ns() - started) // 1000,
        fallback=RESTING,
        trace_id=request.trace_id,
        key_hash=request.key_hash,
        team_id=request.team_id,
        user_id=request.user_id,
    )
