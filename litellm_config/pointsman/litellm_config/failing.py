"""What the effective configuration says of failing deployments and of prompts that do not fit, where the file is silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_windows", "leave_rests_to_breakers", "set_allowed_fails"]

ALLOWED_FAILS = 1
"""Failures within `cooldown_time` that a deployment may have before it rests, where its group has an alternative."""

COOLDOWN_KEYS = ("cooldown_time", "allowed_fails", "allowed_fails_policy", "disable_cooldowns")
"""Settings of LiteLLM's own cooldowns, of the router or of a deployment. With none of them given and breakers on (which is the
default) it is told `disable_cooldowns: true`."""

_COUNTED_FAILURES = (
    "TimeoutErrorAllowedFails",
    "RateLimitErrorAllowedFails",
    "InternalServerErrorAllowedFails",
    "ServiceUnavailableErrorAllowedFails",
    "BadGatewayErrorAllowedFails",
)


def leave_rests_to_breakers(effective: dict[str, Any]) -> None:
    """Switch LiteLLM's own cooldowns off, unless the file says anything of them: then both are on.

    They would take a deployment out before our hook sees the candidates: without its bounds for a whole group, without probes,
    and in each worker by itself where there is no Redis.
    """
    router = effective["router_settings"]
    sections = [router, *(value for name in ("litellm_settings",) if isinstance(value := effective.get(name), dict))]
    for entry in effective["model_list"]:
        parts = (entry.get(part) for part in ("litellm_params", "model_info")) if isinstance(entry, dict) else ()
        sections.extend(part for part in parts if isinstance(part, dict))
    if not any(section.get(key) is not None for section in sections for key in COOLDOWN_KEYS):
        router["disable_cooldowns"] = True


def set_allowed_fails(effective: dict[str, Any]) -> None:
    """Let a dead deployment rest where another can serve.

    Said for each deployment and not for the router: the router's `allowed_fails` would also put the only deployment of a group
    without fallbacks to rest, which turns a hiccup into an outage. A policy by kind of error is what LiteLLM honours for the
    only deployment of a group; it is given where the group has fallbacks.
    """
    router = effective["router_settings"]
    litellm = effective["litellm_settings"]
    told = ("allowed_fails", "allowed_fails_policy", "disable_cooldowns")
    if any(router.get(key) is not None for key in told) or litellm.get("allowed_fails") is not None:
        return
    sizes: dict[Any, int] = {}
    for entry in effective["model_list"]:
        sizes[entry["model_name"]] = sizes.get(entry["model_name"], 0) + 1
    backed = _groups_with_fallbacks(router) | _groups_with_fallbacks(litellm)
    for entry in effective["model_list"]:
        info, name = entry["model_info"], entry["model_name"]
        if info.get("allowed_fails") is not None or info.get("allowed_fails_policy") is not None:
            continue
        if sizes[name] > 1:
            info["allowed_fails"] = ALLOWED_FAILS
        elif name in backed or "*" in backed:
            info["allowed_fails_policy"] = dict.fromkeys(_COUNTED_FAILURES, ALLOWED_FAILS)


def check_windows(effective: dict[str, Any]) -> None:
    """Ask before the call whether a prompt fits, where the file says which group takes those that do not.

    LiteLLM asks a provider first and falls back by its error, and counts every prompt's tokens where it is told not to. Within
    a group our hook looks at the windows in any case.
    """
    router, litellm = effective["router_settings"], effective["litellm_settings"]
    fallbacks = router.get("context_window_fallbacks") or litellm.get("context_window_fallbacks")
    if fallbacks and router.get("enable_pre_call_checks") is None:
        router["enable_pre_call_checks"] = True


def _groups_with_fallbacks(section: Mapping[str, Any]) -> set[str]:
    groups = {"*"} if section.get("default_fallbacks") else set()
    entries = section.get("fallbacks")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            groups.update(name for name, targets in entry.items() if targets)
    return groups
