"""Policies and rules that the types allow and the configuration cannot serve, as far as the file alone tells."""

from __future__ import annotations

from collections.abc import Iterable

from pointsman.litellm_config.models import Deployment
from pointsman.litellm_config.problems import KeyPath
from pointsman.litellm_config.source import Source
from pointsman.overrides import closest
from pointsman.settings import PointsmanSettings

__all__ = ["RANK_KINDS", "check_policies"]

RANK_KINDS = frozenset({"elo", "hybrid", "largest", "smallest"})
"""Kinds whose scores are never qualities; of others the bundle tells."""
UNCALIBRATED_KINDS = frozenset({"largest", "smallest"})
"""Kinds that learn nothing, so that no evaluation calibrates them."""


def check_policies(source: Source, settings: PointsmanSettings, deployments: Iterable[Deployment]) -> None:
    """Note weights that cannot be applied, targets without a table, rules without a deployment; none keeps it from starting.

    Args:
        source: takes the problems.
        settings: valid settings.
        deployments: usable entries of `model_list`.
    """
    for name, strategy in settings.strategies.items():
        own = strategy.policy is not None
        policy = strategy.policy or settings.routing.policy
        where: KeyPath = ("pointsman", "strategies", name, "policy") if own else ("pointsman", "routing", "policy")
        if policy.cost_weight > 0 and strategy.kind in RANK_KINDS:
            message = f"{name} is of kind {strategy.kind}, whose scores are ranks and no qualities: the weight is not applied"
            source.warn((*where, "cost_weight"), "E4206", message, "Leave it out, or use a kind that predicts quality.")
        if policy.target is not None and (strategy.kind in UNCALIBRATED_KINDS or strategy.source is None):
            message = f"{name} comes without a calibration table: the target is not applied"
            source.warn((*where, "target"), "E4206", message, "Leave it out, or use a strategy that was trained.")
    deployments = list(deployments)
    for group, rules in settings.routing.embeddings.items():
        names = {name for item in deployments if item.group == group for name in (item.model, item.model_id) if name}
        for index, rule in enumerate(rules):
            if rule.deployment not in names:
                guess = closest(rule.deployment, names)
                mend = f"Did you mean {guess}?" if guess else f"Deployments of {group}: {', '.join(sorted(names)) or 'none'}."
                place: KeyPath = ("pointsman", "routing", "embeddings", group, index, "deployment")
                source.warn(place, "E4206", f"the group {group!r} has no deployment {rule.deployment!r}", mend)
