"""How a `mock/` deployment behaves: its `litellm_params.mock`. Kept apart from the handler, which imports LiteLLM."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MockFault", "MockSettings", "MockUsage"]

Delay = Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MockFault(_Model):
    """An error in place of the answer.

    Which calls fail is reproducible: `every: 3` fails calls 3, 6, 9 ... of the deployment in one process; `rate` draws from a
    generator seeded with `seed` and the deployment's id. With both, either one fails a call; with neither, all fail.
    """

    status: int = Field(500, ge=400, le=599, description="HTTP status that the caller's side sees.")
    every: int | None = Field(None, ge=1, description="Every N-th call fails.")
    rate: float | None = Field(None, ge=0, le=1, description="Share of the calls that fail.")
    seed: int = Field(0, description="Seed of `rate`.")
    message: str = Field("mock fault", description="Text of the error.")


class MockUsage(_Model):
    """Token counts to report instead of the counted ones."""

    prompt_tokens: int | None = Field(None, ge=0, description="Tokens of the prompt; else one for each word.")
    completion_tokens: int | None = Field(None, ge=0, description="Tokens of the answer; else one for each word.")


class MockSettings(_Model):
    """Behaviour of one `mock/` deployment."""

    answer: str = Field(
        "{model} says: {prompt}", description="Answer; `{model}` and `{prompt}` (the last user message) are filled in."
    )
    delay: Delay = Field(0.0, description="Seconds before the answer or the stream's beginning.")
    first_token_delay: Delay = Field(0.0, description="Seconds before the first chunk of a stream, after `delay`.")
    chunk_delay: Delay = Field(0.0, description="Seconds between two chunks of a stream.")
    hang: bool = Field(False, description="Never answer; the caller's time-out ends it.")
    cut_after: int | None = Field(None, ge=0, description="Break a stream off after so many chunks.")
    fail: MockFault | None = Field(None, description="Fail some or all calls.")
    usage: MockUsage = Field(default_factory=MockUsage, description="Token counts to report.")
    dimensions: int = Field(8, ge=1, le=4096, description="Length of an embedding.")
