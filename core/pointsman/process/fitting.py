"""Whether what a strategy has in service fits the configuration: its models the deployments, its scores the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pointsman.settings import PointsmanSettings
from pointsman.strategies.matching import Names, names_of
from pointsman.strategies.snapshot import Snapshot

__all__ = ["fitting"]


def fitting(
    name: str,
    settings: PointsmanSettings,
    snapshot: Snapshot | None,
    models: Sequence[Mapping[str, Any]],
    groups: Sequence[str],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """For the status: `unmatched_models`, `unscored_deployments` and `warnings`.

    Args:
        name: of the strategy.
        settings: the instance's.
        snapshot: what it has in service, or None.
        models: entries of `model_list` in service.
        groups: those that use it.
        aliases: bundle's name -> deployment's model.
    """
    if snapshot is None or not snapshot.models:
        return {"unmatched_models": [], "unscored_deployments": [], "warnings": []}
    names = Names(snapshot.models, {**aliases, **settings.routing.candidates})
    matched: set[str] = set()
    unscored: list[str] = []
    for entry in models:
        info, params = entry.get("model_info") or {}, entry.get("litellm_params") or {}
        model = str(params.get("model") or "")
        deployment_id = str(info.get("id") or model)
        found = names.find(names_of(deployment_id, model, info.get("base_model")))
        if found is not None:
            matched.add(found)
        elif entry.get("model_name") in groups:
            unscored.append(deployment_id)
    unmatched = [model for model in snapshot.models if model not in matched]
    warnings = []
    if unmatched:
        warnings.append(f"no deployment is {', '.join(map(repr, unmatched))}: they are never chosen")
    if unscored:
        warnings.append(f"no score for the deployments {', '.join(map(repr, unscored))}: they serve last")
    own = settings.strategies.get(name)
    policy = own.policy if own is not None and own.policy is not None else settings.routing.policy
    if policy.target is not None and not snapshot.calibrated:
        warnings.append("the policy has a target, and the bundle no calibration table: argmax holds")
    if policy.cost_weight > 0 and snapshot.scale == "rank":
        warnings.append("the policy has a cost weight, and the scores are ranks, not qualities: argmax holds")
    return {"unmatched_models": unmatched, "unscored_deployments": unscored, "warnings": warnings}
