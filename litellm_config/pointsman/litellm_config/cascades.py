"""Checks of strategies that call models: names that no deployment bears, settings that nobody reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pointsman.cascade_settings import CASCADE_KINDS
from pointsman.litellm_config.models import Deployment
from pointsman.litellm_config.problems import KeyPath
from pointsman.litellm_config.source import Source
from pointsman.overrides import closest
from pointsman.settings import PointsmanSettings

__all__ = ["check_cascades"]


def check_cascades(
    source: Source,
    settings: PointsmanSettings,
    deployments: Iterable[Deployment],
    where: Mapping[str, Mapping[str, KeyPath]],
) -> None:
    """Note the problems of every strategy's `cascade:`.

    Args:
        source: takes the problems.
        settings: valid settings.
        deployments: usable entries of `model_list`.
        where: strategy -> its key -> where that stands in the file, for those that `translate` made.
    """
    names = {name for item in deployments for name in _names(item)}
    for name, strategy in settings.strategies.items():
        place = where.get(name, {}).get("cascade", ("pointsman", "strategies", name, "cascade"))
        given = strategy.cascade
        if strategy.kind not in CASCADE_KINDS:
            if given.model_fields_set:
                mend = f"Remove it, or say one of these as `kind:` {', '.join(sorted(CASCADE_KINDS))}."
                source.problem(place, "E4206", "a strategy of this kind calls no models", mend)
            continue
        if len(given.models) == 1:
            source.problem((*place, "models"), "E4206", "a cascade of one model is none", "Name two or more, or leave it out.")
        named: dict[KeyPath, str | None] = {(*place, "models", index): model for index, model in enumerate(given.models)}
        named |= {(*place, key): getattr(given, key) for key in ("verifier", "planner", "composer")}
        for path, model in named.items():
            if model is not None and model not in names:
                guess = closest(model, names)
                mend = (
                    f"Did you mean {guess}?" if guess else "Give the `litellm_params.model` or `model_info.id` of a deployment."
                )
                source.warn(path, "E4206", f"no deployment in this file has the model or id {model!r}", mend)


def _names(item: Deployment) -> set[str]:
    """As `custom_router.request.candidate_of` knows them."""
    bare = item.model.split("/", 1)[-1]
    return {item.model, bare, bare.rsplit("/", 1)[-1]} | ({item.model_id} if item.model_id else set())
