"""What keeps the gateway answering while upstreams fail: the section `pointsman.resilience`, a part of `pointsman.settings`.

Safe and useful without any of it being configured; what changes which deployment answers, beyond avoiding failed ones, is off.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BreakerSettings",
    "HedgingSettings",
    "LimitSettings",
    "ProbeSettings",
    "QueueSettings",
    "ResilienceSettings",
    "ScoreSettings",
    "SessionSource",
    "SharingSettings",
    "StickySettings",
    "WarmUpSettings",
]


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


def _part_of(whole: int, worker: int, workers: int) -> int:
    """What one of the workers has of a number that they share: as even as can be, and together the whole."""
    return whole // workers + (worker < whole % workers)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BreakerSettings(_Part):
    """When an upstream (base URL, model, region) is given a rest, and how it comes back."""

    enabled: bool = Field(True, description="Give upstreams that fail a rest.")
    consecutive_failures: int = Field(3, ge=1, le=1_000, description="Failed attempts in a row that open the breaker.")
    failure_rate: float = Field(
        0.5, gt=0, le=1, allow_inf_nan=False, description="Share of failed attempts in `window` that opens it."
    )
    minimum_volume: int = Field(10, ge=1, le=100_000, description="Attempts in `window` before `failure_rate` counts.")
    window: Seconds = Field(30.0, description="Seconds that `failure_rate` looks back.")
    recovery: Seconds = Field(5.0, description="Seconds of the first rest.")
    recovery_growth: float = Field(
        2.0, ge=1, le=10, allow_inf_nan=False, description="How many times as long each further rest is."
    )
    max_recovery: Seconds = Field(120.0, description="Seconds of the longest rest, of one that `Retry-After` asks for too.")
    forget_after: Seconds = Field(
        120.0, description="Seconds that an upstream must have served before a rest is as short as the first again."
    )
    jitter: Share = Field(0.2, description="Part of a rest that chance may take off, so that not all ask again at once.")
    rate_limits: int = Field(
        2, ge=1, le=1_000, description="Answers 429 in a row that open it; of those with `Retry-After` one is enough."
    )
    rate_limit_recovery: Seconds = Field(
        2.0, description="Seconds of a rest for 429 where no `Retry-After` says; it does not grow."
    )
    probes: int = Field(
        1,
        ge=1,
        le=100,
        description="Attempts at once, in each worker, that find out whether it is back; who opened it begins, the others "
        "hear how it went or begin a second later.",
    )
    probes_to_close: int = Field(2, ge=1, le=1_000, description="How many of them must have succeeded.")
    probe_timeout: Seconds = Field(30.0, description="Seconds after which one that has not ended makes room for another.")
    suspect_after: Seconds = Field(
        1.0,
        description="Seconds, at least, of such a wait as opens it after `stall_after` and `stall_factor` times what is usual, "
        "after which other upstreams are asked first, until anything comes from this one.",
    )
    stall_after: Seconds = Field(
        5.0,
        description="Seconds, at least, that `consecutive_failures` attempts must have waited at once without an answer "
        "(streams: without content), and nothing have come from the upstream, before it counts as stalled.",
    )
    stall_factor: float = Field(
        5.0,
        ge=1,
        le=1_000,
        allow_inf_nan=False,
        description="They must have waited as many times longer than what is usual with that upstream (p95, the upper bound of "
        "its interval); plain answers, of which nothing is known yet, as many times `stall_after`.",
    )
    max_ejection_percent: Percent = Field(
        75.0, description="Most of a model group's deployments that may rest at a time, rounded down; the others are tried."
    )
    panic_percent: Percent = Field(
        25.0, description="With fewer of a group's deployments left than that, all are tried but those held open by hand."
    )

    @model_validator(mode="after")
    def _ordered(self) -> BreakerSettings:
        if self.max_recovery < self.recovery:
            raise ValueError("max_recovery is at least recovery")
        return self


SessionSource: TypeAlias = Literal["header", "litellm", "conversation", "context", "user"]
"""Where a request names its session."""


class StickySettings(_Part):
    """A session stays on the deployment that it began on, while that is there."""

    enabled: bool = Field(False, description="Keep sessions of groups with a strategy on their deployment.")
    sources: tuple[SessionSource, ...] = Field(
        ("header", "litellm", "conversation", "context", "user"),
        description="Where a session's id is looked for, in this order: `header` is `x-pointsman-session`; `litellm` what "
        "LiteLLM takes for one (its headers, `metadata.session_id`, Anthropic's); `conversation` that of the Responses API; "
        "`context` an MCP session or an A2A context; `user` the request's `user`, all of whose requests are then one session.",
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


class LimitSettings(_Part):
    """How many requests of a queue run at once in an instance."""

    kind: Literal["fixed", "adaptive"] = Field(
        "fixed", description="`adaptive`: it begins at `limit` and follows the gradient of the answers' latency."
    )
    limit: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Requests that run at once, in all workers of the instance; each has its share, 1 at least.",
    )
    least: int = Field(10, ge=1, le=10_000, description="An adaptive limit does not fall below it.")
    most: int = Field(1_000, ge=1, le=10_000, description="An adaptive limit does not rise above it.")
    tolerance: float = Field(
        1.5,
        ge=1,
        le=100,
        allow_inf_nan=False,
        description="How many times its own past a latency may be before the limit falls.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> LimitSettings:
        if self.kind == "adaptive" and not self.least <= self.limit <= self.most:
            raise ValueError("least is at most limit, and limit at most most")
        return self

    def share(self, worker: int, workers: int) -> LimitSettings:
        """Of one of the workers, counted from 0."""
        limit, least, most = (max(1, _part_of(value, worker, workers)) for value in (self.limit, self.least, self.most))
        return self.model_copy(update={"limit": limit, "least": min(least, limit), "most": most})


class QueueSettings(_Part):
    """Requests that wait for their turn in the gateway, by priority: `high`, `normal`, `low`.

    A request's class is `pointsman_priority` in the metadata of its key, else of its team, else `default`.
    """

    enabled: bool = Field(False, description="Let requests beyond the limit wait here.")
    limit: LimitSettings = Field(
        default_factory=LimitSettings, description="Of the queue of all groups without one of their own."
    )
    groups: dict[str, LimitSettings] = Field(
        default_factory=dict, description="Model groups that have a queue of their own, and its limit."
    )
    size: int = Field(
        200, ge=0, le=10_000, description="Requests of each class that may wait in a queue of the instance; more: 429, E4720."
    )
    max_wait: Seconds = Field(
        30.0,
        description="Seconds that a request may wait, or less where `x-pointsman-deadline-ms` says so; longer: 503, E4721.",
    )
    patience: int = Field(
        8,
        ge=2,
        le=1_000,
        description="How often in a row the first of `low` is passed over at most; the first of `normal`: once more.",
    )
    default: Literal["high", "normal", "low"] = Field("normal", description="Class of a request whose key and team do not say.")

    def share(self, worker: int, workers: int) -> QueueSettings:
        """Of one of the workers, counted from 0; all shares together are the instance's, where there is one for each."""
        size = max(min(1, self.size), _part_of(self.size, worker, workers))
        groups = {name: limit.share(worker, workers) for name, limit in self.groups.items()}
        return self.model_copy(update={"limit": self.limit.share(worker, workers), "size": size, "groups": groups})


class ScoreSettings(_Part):
    """How well each upstream does (`GET /pointsman/providers`), by attempts and feedback that fade with time."""

    half_life: Seconds = Field(300.0, description="Seconds after which an attempt counts half.")
    feedback_half_life: float = Field(
        86_400.0, gt=0, le=31_536_000, allow_inf_nan=False, description="Seconds after which feedback counts half."
    )


class ProbeSettings(_Part):
    """Questions of the gateway's own to deployments that nobody has asked for a while. They cost what the provider asks."""

    enabled: bool = Field(False, description="Ask idle deployments whether they answer.")
    interval: float = Field(
        300.0,
        ge=1,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds without an attempt after which an upstream is asked; one whose breaker is half open: at once.",
    )
    jitter: Share = Field(0.2, description="Part of `interval` that chance may add.")
    timeout: Seconds = Field(10.0, description="Seconds that an answer may take; later is a failure.")
    concurrency: int = Field(4, ge=1, le=100, description="Deployments that are asked at once.")
    groups: tuple[str, ...] | None = Field(None, description="Model groups whose deployments are asked; none: all.")


class WarmUpSettings(_Part):
    """One tiny question to local backends before traffic comes, so that the first request does not pay for loading a model.

    Local is what `model_info.pointsman.local` says; without it, providers that serve models themselves (vLLM, Ollama,
    llamafile, LM Studio, ...), and OpenAI's protocol at an address of a private network.
    """

    enabled: bool = Field(False, description="Ask local backends at the start, and when their breaker has closed.")
    wait: bool = Field(True, description="Be ready only when they have answered, or `timeout` is over.")
    timeout: Seconds = Field(60.0, description="Seconds that all of it may take at the start, and one question later on.")
    concurrency: int = Field(4, ge=1, le=100, description="Backends that are asked at once.")


class FailoverSettings(_Part):
    """What is tried again, how often, and until when."""

    enabled: bool = Field(
        True, description="Decide on further tries here; off: LiteLLM's retries and fallbacks alone, streams as it has them."
    )
    deadline: Seconds | None = Field(
        None,
        description="Seconds within which an answer must have begun; then no further try, and tries' time-outs end with it. "
        "`x-pointsman-deadline-ms` and a request's own `timeout` shorten it.",
    )
    backoff: Seconds = Field(0.25, description="Seconds of the first pause at most; each further one may be twice as long.")
    max_backoff: Seconds = Field(4.0, description="Seconds of the longest pause.")
    max_retry_after: float = Field(
        10.0, ge=0, le=86_400, allow_inf_nan=False, description="Seconds of the longest `Retry-After` that is waited for."
    )
    budget_share: float = Field(
        0.2, ge=0, le=10, allow_inf_nan=False, description="Further tries for each request of a group that its budget allows."
    )
    budget_floor: int = Field(10, ge=0, le=100_000, description="Further tries in `budget_window` that it allows besides.")
    budget_window: Seconds = Field(10.0, description="Seconds that a budget looks back; a budget is a worker's own.")
    first_token: Seconds | None = Field(
        None, description="Seconds from asking a deployment for a stream to its first content; later: another one is asked."
    )
    stalled: bool = Field(
        True,
        description="Begin requests for text and embeddings anew that wait for an upstream whose breaker opened as `stalled`, "
        "twice at most; off: they wait until something times out.",
    )
    streams: bool = Field(
        True,
        description="Hold a stream's first events back until there is content, and ask another deployment if it breaks before; "
        "one that breaks later ends with an error event. Off: as LiteLLM has it, another model may go on with the answer.",
    )
    stream_tries: int = Field(
        2, ge=0, le=10, description="How often a stream that broke before its first content is begun anew."
    )


class HedgingSettings(_Part):
    """A second deployment is asked as well where the first takes long; the first answer that comes is given.

    Chats that are not streamed, in groups with two deployments whose breakers are closed. `share` of them may cost twice.
    """

    enabled: bool = Field(False, description="Ask a second deployment where the first takes longer than `delay`.")
    classes: tuple[Literal["high", "normal", "low"], ...] = Field(
        ("high",),
        description="Of which requests: `pointsman_priority` of the key or its team or `x-pointsman-priority`, as the queue "
        "reads them, also where that is off; `queue.default` where they say nothing.",
    )
    groups: tuple[str, ...] | None = Field(None, description="Model groups whose requests are hedged; none: all.")
    delay: Literal["p95"] | Seconds = Field(
        "p95",
        description="Seconds after which the second is asked; `p95`: the time in which the first one's upstream gave 95% of "
        "its answers; nobody is hedged before 20 answers are known.",
    )
    least_delay: Seconds = Field(0.2, description="Seconds that `p95` is taken to be at least.")
    share: Share = Field(0.1, description="Second calls for each first try of a group that a worker makes in `window`.")
    floor: int = Field(1, ge=0, le=100_000, description="Second calls in `window` that it makes besides.")
    window: Seconds = Field(60.0, description="Seconds that `share` looks back.")


class SharingSettings(_Part):
    """What instances tell each other over the Redis that LiteLLM uses: breakers, sessions, scores."""

    enabled: bool = Field(
        True,
        description="Share with other instances, where `cache_params` or `REDIS_*` name a Redis; off: each for itself.",
    )
    prefix: str = Field(
        "pointsman",
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$",
        description="Beginning of the keys in Redis. Instances with the same one share; installations that must not share "
        "and use one Redis have different ones.",
    )


class ResilienceSettings(_Part):
    """Each part its own class."""

    breaker: BreakerSettings = Field(default_factory=BreakerSettings, description="Circuit breakers.")
    sharing: SharingSettings = Field(default_factory=SharingSettings, description="What instances tell each other.")
    sticky: StickySettings = Field(default_factory=StickySettings, description="Sessions that stay where they are.")
    queue: QueueSettings = Field(default_factory=QueueSettings, description="Waiting for a turn, by priority.")
    scores: ScoreSettings = Field(default_factory=ScoreSettings, description="How well upstreams do.")
    probes: ProbeSettings = Field(default_factory=ProbeSettings, description="Questions to idle deployments.")
    warm_up: WarmUpSettings = Field(default_factory=WarmUpSettings, description="Questions to local backends before traffic.")
    failover: FailoverSettings = Field(default_factory=FailoverSettings, description="Further tries.")
    hedging: HedgingSettings = Field(default_factory=HedgingSettings, description="Second calls where the first takes long.")
