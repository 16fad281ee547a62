"""How scores become a choice, which text is scored, and the rules for embeddings: parts of `pointsman.settings`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["EmbeddingRule", "ExploreSettings", "PolicySettings", "TargetSettings", "TextSettings"]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetSettings(_Part):
    """What a threshold between the weak and the strong model is calibrated to; one of them.

    The bundle's evaluation has the table (`pointsman.strategies.manifest.Calibration`); a step of it is one percent.
    """

    strong_share: Share | None = Field(None, description="Share of requests that go to the strong model.")
    quality: Share | None = Field(None, description="Part of the strong model's mean score that is to be kept.")
    cost: Share | None = Field(None, description="Part of the strong model's mean cost that may be spent.")

    @model_validator(mode="after")
    def _one(self) -> TargetSettings:
        if sum(value is not None for value in (self.strong_share, self.quality, self.cost)) != 1:
            raise ValueError("a target is one of strong_share, quality and cost")
        return self


class ExploreSettings(_Part):
    """A share of the first attempts that is decided by chance, so that the others can be learned of."""

    share: Share = Field(0.0, description="Share of the decisions that chance makes; retries are never among them.")
    among: Literal["all", "top2"] = Field("all", description="Every candidate left, or the best two.")
    how: Literal["uniform", "softmax"] = Field("uniform", description="Evenly, or by the scores (only those that have one).")
    temperature: float = Field(0.1, ge=0.001, le=1000, description="Of `softmax`: the higher, the more even.")


class PolicySettings(_Part):
    """How scores become a choice; without any of it the highest score wins."""

    cost_weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="Score that is given up to save the whole reference cost. Needs scores that mean quality, and prices.",
    )
    reference_cost: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="US dollars of a request that count as 1; none: what the dearest candidate would cost for this request.",
    )
    completion_tokens: int = Field(
        256, gt=0, le=1_000_000, description="Expected length of an answer until a worker has seen answers of the deployment."
    )
    switching: bool = Field(
        True, description="Count the provider's prompt cache that is lost when a conversation changes deployments as cost."
    )
    health_weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="Score that an upstream loses that always fails (`pointsman.resilience.scores`); one that fails in every "
        "tenth attempt loses a tenth of it. Scores that are ranks: only where they are equal.",
    )
    target: TargetSettings | None = Field(None, description="Calibrate a threshold between a weak and a strong model.")
    explore: ExploreSettings = Field(default_factory=ExploreSettings, description="A share that chance decides.")

    @model_validator(mode="after")
    def _target_or_weight(self) -> PolicySettings:
        if self.target is not None and self.cost_weight > 0:
            raise ValueError("give a target or a cost_weight, not both")
        return self


class TextSettings(_Part):
    """What of a request a strategy reads. Change it only together with what the strategy was trained on."""

    turns: Literal["last_user", "user", "conversation"] = Field(
        "last_user", description="The last user message that has text, all user messages, or those of user and assistant."
    )
    max_chars: int = Field(32_768, gt=0, le=1_048_576, description="Characters; of a longer text the end is read.")
    system: bool = Field(False, description="Put the system prompt before it.")


class EmbeddingRule(_Part):
    """Which deployment embeds a text; a rule holds when all that it says is so."""

    deployment: str = Field(min_length=1, description="`model_info.id` or `litellm_params.model` of a deployment of the group.")
    over_tokens: int | None = Field(None, ge=0, description="The longest text has more tokens (one for four bytes).")
    script: Literal["latin", "non_latin"] | None = Field(None, description="Script of most letters.")

    @model_validator(mode="after")
    def _says_something(self) -> EmbeddingRule:
        if self.over_tokens is None and self.script is None:
            raise ValueError("a rule says over_tokens, script or both")
        return self
