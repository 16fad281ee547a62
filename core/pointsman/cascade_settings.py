"""How a strategy that calls the gateway's own models goes about it: `pointsman.strategies.<name>.cascade`."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["CASCADE_KINDS", "SOURCELESS_KINDS", "CascadeSettings"]

CASCADE_KINDS = frozenset({"automix", "knn-multiround", "llm-multiround"})
"""Kinds of strategies that call models."""

SOURCELESS_KINDS = frozenset({"automix", "llm-multiround"})
"""Those of them that come without a bundle, so that they have no `source`."""


class CascadeSettings(BaseModel):
    """Limits and models. A model is named by its deployment's `litellm_params.model` or `model_info.id`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(
        (), description="The group's models, weakest first; those not named are left out. Absent: all of them, by price."
    )
    threshold: float = Field(0.7, ge=0, le=1, description="`automix`: confidence from which a cheap answer is given.")
    hopeless: float = Field(
        0.0,
        ge=0,
        le=1,
        description="`automix`: confidence below which no stronger model is expected to help, so that the answer is given as "
        "it is; 0: never.",
    )
    samples: int = Field(1, ge=1, le=8, description="`automix`: how often the verifier is asked, at once; the mean counts.")
    verifier: str | None = Field(None, description="`automix`: model that judges; absent: the one that answered.")
    planner: str | None = Field(None, description="`*-multiround`: model that divides the request; absent: the strongest.")
    composer: str | None = Field(None, description="`*-multiround`: model that writes the answer; absent: the strongest.")
    max_parts: int = Field(4, ge=2, le=16, description="`*-multiround`: parts at most.")
    max_calls: int = Field(8, ge=1, le=64, description="Calls at most before the one that answers.")
    max_cost: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="US dollars; once the calls of a request have cost so much, no further one begins before the one that "
        "answers.",
    )
    deadline_ms: float = Field(
        30_000.0, ge=10, le=600_000, description="Milliseconds for everything before the call that answers."
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.hopeless > self.threshold:
            raise ValueError("`hopeless` is above `threshold`, so that no answer would ever be doubted")
        return self
