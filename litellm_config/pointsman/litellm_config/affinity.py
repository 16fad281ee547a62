"""LiteLLM's own affinity and ours: one of them for a group.

LiteLLM narrows the candidates to its pin before our hook is asked, so a strategy would decide a session's (or a key's) first
request and never again, our own sessions could not move, and a breaker could not keep anybody from what LiteLLM has pinned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pointsman.litellm_config.models import Deployment
from pointsman.litellm_config.problems import KeyPath
from pointsman.litellm_config.source import Source
from pointsman.settings import PointsmanSettings

__all__ = ["PINS", "check_affinity"]

PINS = frozenset({"deployment_affinity", "session_affinity"})
"""LiteLLM's checks that pin; its others (`responses_api_deployment_check`, ...) only go where something is kept."""


def check_affinity(source: Source, settings: PointsmanSettings, deployments: Iterable[Deployment]) -> None:
    """Warn of groups with a strategy for which LiteLLM's own affinity is on.

    Args:
        source: takes the problems.
        settings: valid settings.
        deployments: usable entries of `model_list`.
    """
    router = (source.value or {}).get("router_settings")
    if not isinstance(router, Mapping):
        return
    groups, default = settings.routing.groups, settings.routing.default
    counts = Counter(item.group for item in deployments)
    routed = sorted(group for group, count in counts.items() if count > 1 and groups.get(group, default) is not None)
    own = router.get("model_group_affinity_config")
    by_group: Mapping[Any, Any] = own if isinstance(own, Mapping) else {}
    instead = "sessions stick by `pointsman.resilience.sticky`"
    for group in routed:
        if group in by_group and (pins := _pins(by_group[group])):
            path: KeyPath = ("router_settings", "model_group_affinity_config", group)
            message = f"{group!r} has a strategy, which {pins} would keep from being asked"
            source.warn(path, "E4206", message, f"Remove it; {instead}.")
    left = [group for group in routed if group not in by_group]
    if left and (pins := _pins(router.get("optional_pre_call_checks"))):
        named = ", ".join(repr(group) for group in left[:3]) + (", ..." if len(left) > 3 else "")
        message = f"groups with a strategy ({named}): {pins} would keep it from being asked"
        mend = f"Name the groups without a strategy in `model_group_affinity_config` instead; for the others {instead}."
        source.warn(("router_settings", "optional_pre_call_checks"), "E4206", message, mend)


def _pins(flags: Any) -> str:
    found = sorted(PINS & {flag for flag in flags if isinstance(flag, str)}) if isinstance(flags, list) else []
    return " and ".join(f"LiteLLM's `{flag}`" for flag in found)
