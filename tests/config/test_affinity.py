"""LiteLLM's own affinity for a group with a strategy is told when the file is checked: the two fight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.litellm_config import Problem, check
from pointsman.litellm_config.affinity import PINS

MODELS = [
    {"model_name": group, "litellm_params": {"model": f"openai/{name}", "api_key": "k"}}
    for group in ("routed", "bare")
    for name in ("small", "large")
]


def found(tmp_path: Path, router: dict[str, Any], **routing: Any) -> list[Problem]:
    strategies = {"s": {"source": "s3://b/k.json", "require_signature": False}}
    pointsman = {"strategies": strategies, "routing": routing or {"groups": {"routed": "s"}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": MODELS, "router_settings": router, "pointsman": pointsman}))
    return check(path, {})


@pytest.mark.parametrize("flag", sorted(PINS))
def test_affinity_for_all_groups_is_a_warning_where_one_has_a_strategy(tmp_path: Path, flag: str) -> None:
    (problem,) = found(tmp_path, {"optional_pre_call_checks": ["responses_api_deployment_check", flag]})
    assert (problem.key, problem.code, problem.severity) == ("router_settings.optional_pre_call_checks", "E4206", "warning")
    assert problem.line is not None
    assert "'routed'" in problem.message
    assert "'bare'" not in problem.message
    assert flag in problem.message
    assert "model_group_affinity_config" in problem.mend


def test_affinity_of_the_very_group_is_told_where_it_stands(tmp_path: Path) -> None:
    config = {"routed": ["session_affinity"], "bare": ["session_affinity"]}
    (problem,) = found(tmp_path, {"model_group_affinity_config": config})
    assert problem.key == "router_settings.model_group_affinity_config.routed"
    assert "pointsman.resilience.sticky" in problem.mend


def test_a_default_strategy_is_every_groups_but_where_it_is_null(tmp_path: Path) -> None:
    router = {"model_group_affinity_config": {"routed": ["session_affinity"], "bare": ["session_affinity"]}}
    assert len(found(tmp_path, router, default="s")) == 2
    assert len(found(tmp_path, router, default="s", groups={"bare": None})) == 1


@pytest.mark.parametrize(
    "router",
    [
        {"optional_pre_call_checks": ["responses_api_deployment_check", "encrypted_content_affinity"]},
        {"model_group_affinity_config": {"bare": ["session_affinity", "deployment_affinity"]}},
        # What a group's own row says is what LiteLLM does for it.
        {"optional_pre_call_checks": ["session_affinity"], "model_group_affinity_config": {"routed": []}},
        {"optional_pre_call_checks": "session_affinity", "model_group_affinity_config": {"routed": "session_affinity"}},
        {"optional_pre_call_checks": [None, {}], "model_group_affinity_config": [1]},
    ],
)
def test_what_does_not_fight_is_no_problem(tmp_path: Path, router: dict[str, Any]) -> None:
    assert found(tmp_path, router) == []
