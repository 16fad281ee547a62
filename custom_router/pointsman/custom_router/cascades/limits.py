"""What one cascade may spend: calls, dollars, time. Belongs to one request and one event loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pointsman.cascade_settings import CascadeSettings
from pointsman.custom_router.cascades.types import Role, Said, StopError

__all__ = ["Limits", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One call, for the decision's record; no text.

    Attributes:
        role: what it was for.
        model: who was asked.
        milliseconds: how long it took.
        said: the answer, or None.
        error: class of the error, or None.
    """

    role: Role
    model: str
    milliseconds: float
    said: Said | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        told: dict[str, Any] = {"role": self.role, "model": self.model, "ms": round(self.milliseconds, 1)}
        if self.said is not None:
            told |= {
                "deployment": self.said.deployment_id,
                "prompt_tokens": self.said.prompt_tokens,
                "completion_tokens": self.said.completion_tokens,
                "cost": self.said.cost,
            }
        return told | ({"error": self.error} if self.error is not None else {})


@dataclass(slots=True)
class Limits:
    """Counts what was spent and says when there is no more.

    Attributes:
        settings: `max_calls`, `max_cost`, `deadline_ms`.
        clock: monotonic seconds.
        steps: calls that ended.
        begun: calls that began.
    """

    settings: CascadeSettings
    clock: Callable[[], float] = time.monotonic
    steps: list[Step] = field(default_factory=list)
    begun: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def seconds_left(self) -> float:
        """Until the deadline; not below 0."""
        return max(0.0, self.started + self.settings.deadline_ms / 1000 - self.clock())

    @property
    def calls_left(self) -> int:
        """Calls that may still begin."""
        return max(0, self.settings.max_calls - self.begun)

    @property
    def cost(self) -> float:
        """US dollars so far."""
        return sum(step.said.cost for step in self.steps if step.said is not None)

    @property
    def prompt_tokens(self) -> int:
        """Of all calls that were answered."""
        return sum(step.said.prompt_tokens for step in self.steps if step.said is not None)

    @property
    def completion_tokens(self) -> int:
        """Of all calls that were answered."""
        return sum(step.said.completion_tokens for step in self.steps if step.said is not None)

    def begin(self) -> None:
        """A call is about to be made.

        Raises:
            StopError: it must not be.
        """
        if self.settings.max_cost is not None and self.cost >= self.settings.max_cost:
            raise StopError("max_cost")
        if not self.calls_left:
            raise StopError("max_calls")
        if not self.seconds_left:
            raise StopError("deadline")
        self.begun += 1

    def summary(self) -> str:
        """For the header: calls, tokens, dollars."""
        return (
            f"calls={self.begun}, prompt_tokens={self.prompt_tokens}, "
            f"completion_tokens={self.completion_tokens}, cost={self.cost:.8g}"
        )
