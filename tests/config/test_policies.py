"""Policies that cannot be served as written are told when the file is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.litellm_config import Problem, check
from pointsman.litellm_config.policies import RANK_KINDS
from pointsman.policy_settings import PolicySettings
from pointsman.settings import PointsmanSettings
from pointsman.strategies.catalogue import CATALOGUE

MODELS = [
    {"model_name": "vectors", "litellm_params": {"model": f"openai/{name}", "api_key": "k"}} for name in ("small", "large")
]


def found(tmp_path: Path, strategy: dict[str, Any] | None = None, **routing: Any) -> list[Problem]:
    settings = {"source": "s3://b/k.json", "require_signature": False, **(strategy or {})}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": MODELS, "pointsman": {"strategies": {"s": settings}, "routing": routing}}))
    return check(path, {})


@pytest.mark.parametrize(
    ("strategy", "routing", "key"),
    [
        ({"kind": "elo", "policy": {"cost_weight": 0.1}}, {}, "pointsman.strategies.s.policy.cost_weight"),
        ({"kind": "elo"}, {"policy": {"cost_weight": 0.1}}, "pointsman.routing.policy.cost_weight"),
        ({"kind": "smallest", "policy": {"target": {"cost": 0.5}}}, {}, "pointsman.strategies.s.policy.target"),
        (
            {},
            {"embeddings": {"vectors": [{"deployment": "tiny", "over_tokens": 9}]}},
            "pointsman.routing.embeddings.vectors[0].deployment",
        ),
        (
            {},
            {"embeddings": {"none": [{"deployment": "x", "script": "latin"}]}},
            "pointsman.routing.embeddings.none[0].deployment",
        ),
    ],
)
def test_what_cannot_be_applied_is_a_warning(tmp_path: Path, strategy: Any, routing: Any, key: str) -> None:
    problems = found(tmp_path, strategy, **routing)
    assert [(one.key, one.code, one.severity) for one in problems] == [(key, "E4206", "warning")]
    assert problems[0].line is not None


def test_what_can_be_applied_is_no_problem(tmp_path: Path) -> None:
    rules = [{"deployment": "openai/large", "over_tokens": 500}, {"deployment": "openai/small", "script": "latin"}]
    policy = {"cost_weight": 0.1, "explore": {"share": 0.05, "among": "top2", "how": "softmax"}}
    assert found(tmp_path, {"kind": "knn", "policy": policy, "text": {"turns": "user"}}, embeddings={"vectors": rules}) == []


@pytest.mark.parametrize(
    ("strategy", "code", "key"),
    [
        ({"policy": {"cost_wieght": 1}}, "E4202", "pointsman.strategies.s.policy.cost_wieght"),
        ({"policy": {"cost_weight": -1}}, "E4203", "pointsman.strategies.s.policy.cost_weight"),
        ({"policy": {"explore": {"share": 2}}}, "E4203", "pointsman.strategies.s.policy.explore.share"),
        ({"policy": {"target": {"quality": 0.9, "cost": 0.5}}}, "E4203", "pointsman.strategies.s.policy.target"),
        ({"text": {"turns": "all"}}, "E4203", "pointsman.strategies.s.text.turns"),
    ],
)
def test_bad_settings_are_told_where_they_stand(tmp_path: Path, strategy: Any, code: str, key: str) -> None:
    problems = [one for one in found(tmp_path, strategy) if one.severity == "error"]
    assert [(one.code, one.key) for one in problems] == [(code, key)]
    assert "cost_weight" in problems[0].mend or code == "E4203"


def test_settings_survive_the_way_to_a_worker() -> None:
    policy = {"target": {"strong_share": 0.2}, "explore": {"share": 0.1}}
    section = {"strategies": {"s": {"source": "s3://b/k.json", "policy": policy}, "t": {"source": "s3://b/k.json"}}}
    settings = PointsmanSettings.load(section)
    back = PointsmanSettings.model_validate_json(settings.model_dump_json())
    assert back == settings
    assert (back.strategies["t"].policy, back.strategies["s"].policy) == (None, PolicySettings.model_validate(policy))
    assert set(CATALOGUE) >= RANK_KINDS
