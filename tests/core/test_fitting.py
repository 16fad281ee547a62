"""The status says when a bundle and the configuration do not fit each other."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.process.fitting import fitting
from pointsman.settings import PointsmanSettings
from pointsman.strategies.snapshot import Snapshot


def entry(group: str, name: str, model: str) -> dict[str, Any]:
    return {"model_name": group, "litellm_params": {"model": model}, "model_info": {"id": name}}


MODELS = [
    entry("auto", "a", "openai/weak"),
    entry("auto", "b", "azure/Strong"),
    entry("auto", "c", "x/c"),
    entry("free", "d", "x/d"),
]


def found(policy: dict[str, Any] | None = None, **snapshot: Any) -> dict[str, Any]:
    strategy = {"source": "s3://b/k.json", **({"policy": policy} if policy else {})}
    settings = PointsmanSettings.load({"strategies": {"s": strategy}})
    served = Snapshot(
        "s", 1, "/p", "0" * 64, "1", "knn", **{"models": ("weak", "openai/strong", "gone"), "scale": "rank", **snapshot}
    )
    return fitting("s", settings, served, MODELS, ["auto"], {})


@pytest.mark.requirement("R-2.4")
def test_models_without_a_deployment_and_deployments_without_a_score() -> None:
    status = found()
    assert (status["unmatched_models"], status["unscored_deployments"]) == (["gone"], ["c"])
    assert ["'gone'" in status["warnings"][0], "'c'" in status["warnings"][1]] == [True, True]


def test_a_policy_that_the_bundle_cannot_serve() -> None:
    fits = {"models": ("weak", "strong", "c")}
    assert found(**fits)["warnings"] == []
    assert ["no calibration" in one for one in found({"target": {"cost": 0.5}}, **fits)["warnings"]] == [True]
    assert found({"target": {"cost": 0.5}}, calibrated=True, **fits)["warnings"] == []
    assert ["ranks" in one for one in found({"cost_weight": 0.5}, **fits)["warnings"]] == [True]
    assert found({"cost_weight": 0.5}, **{**fits, "scale": "quality"})["warnings"] == []


def test_nothing_in_service_is_no_misfit() -> None:
    assert found(models=())["warnings"] == []
