"""The configuration of the shared gateway, as data: which groups there are and which fake upstream serves each deployment.

An upstream is named after its deployment, so that a fault is switched for one and the log is read of one: the deployment
`auto-weak` is served by the upstream `auto-weak`.
"""

from __future__ import annotations

from typing import Any

from support.calls import WAYS
from support.strategy import STRONG, WEAK, Publisher, S3Publisher
from support.upstreams import Upstreams

__all__ = ["FAILOVER", "UPSTREAM_KEY", "deployment", "pair", "routed_config", "shared_config", "single", "small_config"]

PRICES: dict[str, Any] = {"input_cost_per_token": 0.01, "output_cost_per_token": 0.01}
UPSTREAM_KEY = "sk-upstream-secret"
FAILOVER = ("status", "busy", "refuse", "cut", "hang", "garbage", "cool", "dead", "twice", *(f"way-{way}" for way in WAYS))
"""Failover groups: one a kind of failure and one a way to ask, so that a cooldown of one never shows in another's test."""


def deployment(
    group: str, name: str, model: str, url: str, info: dict[str, Any] | None = None, **params: Any
) -> dict[str, Any]:
    """One entry of `model_list`."""
    return {
        "model_name": group,
        "litellm_params": {"model": model, "api_base": url, "api_key": UPSTREAM_KEY, **params},
        "model_info": {"id": name, **(info or {})},
    }


def pair(upstreams: Upstreams, group: str, **params: Any) -> list[dict[str, Any]]:
    """A routed group of two: `GROUP-weak` and `GROUP-strong`."""
    return [
        deployment(group, f"{group}-{size}", f"openai/{model}", upstreams.url(f"{group}-{size}"), **params)
        for size, model in (("weak", WEAK), ("strong", STRONG))
    ]


def single(upstreams: Upstreams, group: str, model: str, info: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """A group of one; its deployment and upstream have its name."""
    return deployment(group, group, model, upstreams.url(group), info, **params)


def routed_config(
    models: list[dict[str, Any]], strategies: dict[str, dict[str, Any]], groups: dict[str, str], **section: Any
) -> dict[str, Any]:
    """A whole configuration: the models, the strategies, which group uses which; `section` overrides parts of `pointsman:`."""
    return {
        "model_list": models,
        "litellm_settings": {"request_timeout": 20},
        "router_settings": {
            "routing_strategy": "simple-shuffle",
            "num_retries": 2,
            "retry_after": 0,
            "allowed_fails": 0,
            "cooldown_time": 3,
        },
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "store_model_in_db": True,
            "proxy_batch_write_at": 1,
            "user_api_key_cache_ttl": 5,  # seconds; a blocked key is a matter of a minute else
        },
        "pointsman": {
            "strategies": strategies,
            # A decision takes well under a millisecond; the deadline is for a machine that runs a test suite besides.
            "routing": {"groups": groups, "deadline_ms": 2_000},
            "shutdown": {"not_ready": 0.5, "grace": 5.0},
            "decisions": {"flush_interval": 0.2},
            "config_reload": {"interval": 0.5},
            **section,
        },
    }


def small_config(upstreams: Upstreams, publisher: S3Publisher, **section: Any) -> dict[str, Any]:
    """For gateways of a test's own: the routed group `auto`, and `plain`, `other`, `priced`.

    The strategy is configured as users of LLMRouter gateways write it: by `router_settings.routing_strategy` and its arguments.
    """
    models = [
        *pair(upstreams, "auto"),
        *(single(upstreams, name, f"openai/{name}-model") for name in ("plain", "other")),
        priced(upstreams),
    ]
    config = routed_config(models, {}, {}, **section)
    settings = publisher.settings()
    config["router_settings"] |= {
        "routing_strategy": publisher.strategy,
        "routing_strategy_args": {
            "model_s3_bucket": publisher.bucket,
            "model_s3_key": publisher.key,
            "hot_reload": True,
            "reload_interval": 1,
            "trusted_keys": settings["trusted_keys"],
            "s3": settings["s3"],
        },
    }
    return config


def priced(upstreams: Upstreams) -> dict[str, Any]:
    """A group `priced` at a cent a token, so that an answer to two words costs five cents."""
    return single(upstreams, "priced", "openai/priced-model", PRICES)


def shared_config(upstreams: Upstreams, publisher: Publisher, file_publisher: Publisher) -> dict[str, Any]:
    """Everything that the end-to-end tests ask for by name."""
    failover = [
        entry
        for kind in FAILOVER
        for entry in pair(upstreams, kind, **({"timeout": 1.5, "stream_timeout": 1.5} if kind == "hang" else {}))
    ]
    next(e for e in failover if e["model_info"]["id"] == "refuse-strong")["litellm_params"]["api_base"] = (
        upstreams.refused_url()
    )
    claude = [
        deployment("claude", "claude", "anthropic/claude-sonnet-4-5", upstreams.anthropic_url("claude")),
        deployment("mixed", "mixed-weak", f"openai/{WEAK}", upstreams.url("mixed-weak")),
        deployment("mixed", "mixed-strong", f"anthropic/{STRONG}", upstreams.anthropic_url("mixed-strong")),
    ]
    singles = [
        single(upstreams, "plain", "openai/plain-model"),
        single(upstreams, "other", "openai/other-model"),
        single(upstreams, "embed", "openai/text-embedding-3-small", {"mode": "embedding"}),
        priced(upstreams),
        single(upstreams, "priced-in-params", "openai/priced-in-params-model", **PRICES),
        single(upstreams, "moderate", "openai/omni-moderation-latest"),
        single(upstreams, "draw", "openai/gpt-image-1", {"mode": "image_generation"}),
        single(upstreams, "speak", "openai/tts-1", {"mode": "audio_speech"}),
        single(upstreams, "listen", "openai/whisper-1", {"mode": "audio_transcription"}),
        single(upstreams, "rank", "hosted_vllm/rank-model", {"mode": "rerank"}),
    ]
    models = [*pair(upstreams, "auto"), *pair(upstreams, "filed"), *failover, *claude, *singles]
    strategies = {each.strategy: each.settings(reload_interval=1.0) for each in (publisher, file_publisher)}
    groups = dict.fromkeys(("auto", "mixed", *FAILOVER), publisher.strategy)
    return routed_config(models, strategies, {**groups, "filed": file_publisher.strategy})
