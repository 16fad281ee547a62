"""What passes between the parts of a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

__all__ = ["Ask", "Ending", "FailedCallError", "Level", "Messages", "Role", "Said", "StopError"]

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Role: TypeAlias = Literal["answer", "verify", "plan", "part"]
"""What a call is made for. `answer` and `part` are made with the client's own parameters (temperature, length, ...)."""


class StopError(Exception):
    """No further call may be made; `reason` is one word: `deadline`, `max_calls`, `max_cost`, `budget`. Never seen outside."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the cascade stops: {reason}")
        self.reason = reason


class FailedCallError(Exception):
    """A model did not answer, or said nothing; `reason` names the error's class. Never seen outside."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a call of the cascade failed: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Level:
    """One model of the group, with the deployments that serve it.

    Attributes:
        model: `litellm_params.model`.
        deployments: ids, all of the same model.
        names: every name under which settings, planners and bundles may know it.
    """

    model: str
    deployments: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A model's answer.

    Attributes:
        text: never empty.
        level: who said it.
        deployment_id: which of its deployments.
        finish_reason: the provider's.
        prompt_tokens, completion_tokens: as the provider told.
        cost: US dollars.
    """

    text: str
    level: Level
    deployment_id: str = ""
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a cascade ends: with an answer to give again, or with a model to ask, or with a refusal.

    Attributes:
        said: the answer that there is already.
        level: who is to answer; None with `said`, and when the request is refused because the budget is spent.
        messages: what it is asked instead of the client's messages, or None.
        fallback: why this is not the regular end, or None.
        detail: JSON values for the decision's record.
    """

    said: Said | None = None
    level: Level | None = None
    messages: Messages | None = None
    fallback: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


class Ask(Protocol):
    """Asks one model, within the limits."""

    async def __call__(
        self, level: Level, messages: Messages, role: Role, *, max_tokens: int | None = None, temperature: float | None = None
    ) -> Said:
        """The answer.

        Raises:
            StopError: the limits do not allow it.
            FailedCallError: it failed; others may be asked.
        """
