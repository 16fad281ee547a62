"""What keeps the gateway answering while upstreams fail: the section `pointsman.resilience`, a part of `pointsman.settings`.

Safe and useful without any of it being configured; what changes which deployment answers, beyond avoiding failed ones, is off.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ResilienceSettings", "SessionSource", "StickySettings"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


SessionSource: TypeAlias = Literal["header", "litellm", "conversation", "context", "user"]
"""Where a request names its session."""


class StickySettings(_Part):
    """A session stays on the deployment that it began on, while that is there."""

    enabled: bool = Field(False, description="Keep sessions of groups with a strategy on their deployment.")
    sources: tuple[SessionSource, ...] = Field(
        ("header", "litellm", "conversation", "context", "user"),
        description="Where a session's id is looked for, in this order: `header` is `x-pointsman-session`; `litellm` what "
        "LiteLLM takes for one (its headers, `metadata.session_id`, Anthropic's); `conversation` that of the Responses API; `context` "
        "an MCP session or an A2A context; `user` the request's `user`, all of whose requests are then one session.",
    )
    groups: tuple[str, ...] | None = Field(None, description="Model groups whose sessions stick; none: all with a strategy.")
    ttl: float = Field(
        3600.0, gt=0, le=604_800, allow_inf_nan=False, description="Seconds without a request that end a session."
    )
    max_sessions: int = Field(
        20_000, gt=0, le=10_000_000, description="Sessions a worker remembers; more: the one unused longest."
    )
    max_sessions_per_tenant: int = Field(
        5_000, gt=0, le=10_000_000, description="Of them those of one key, so that none can make others' sessions forgotten."
    )
    returns: bool = Field(
        True,
        description="Go back to the deployment that a session had to leave, where that costs less even after the prompt cache "
        "that it loses where it is; never without prices.",
    )


class ResilienceSettings(_Part):
    """Each part its own class."""

    sticky: StickySettings = Field(default_factory=StickySettings, description="Sessions that stay where they are.")
