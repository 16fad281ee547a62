"""Strategies that call models in the configuration: both ways to write them, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.litellm_config import Problem, check, load
from pointsman.litellm_config.effective import REPLAY_HANDLER, REPLAY_PROVIDER

MODELS = [
    {"model_name": "auto", "litellm_params": {"model": f"mock/{name}"}, "model_info": {"id": f"auto-{name}"}}
    for name in ("cheap", "strong")
]
ENV = {"LITELLM_MASTER_KEY": "sk-master"}


def written(directory: Path, **sections: Any) -> Path:
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": MODELS, **sections}, sort_keys=False))
    return path


def long_form(directory: Path, **strategy: Any) -> Path:
    return written(directory, pointsman={"strategies": {"s": strategy}, "routing": {"groups": {"auto": "s"}}})


def test_as_users_of_llmrouters_gateways_write_it(tmp_path: Path) -> None:
    args = {"cascade": {"threshold": 0.9, "models": ["auto-cheap", "strong"], "verifier": "mock/strong"}}
    path = written(tmp_path, router_settings={"routing_strategy": "llmrouter-automix", "routing_strategy_args": args})
    assert check(path, ENV) == []
    config = load(path, ENV)
    strategy = config.settings.strategies["llmrouter-automix"]
    assert (strategy.kind, strategy.source, strategy.cascade.threshold) == ("automix", None, 0.9)
    assert config.settings.routing.default == "llmrouter-automix"
    assert config.effective["router_settings"]["routing_strategy"] == "simple-shuffle"
    providers = config.effective["litellm_settings"]["custom_provider_map"]
    assert {"provider": REPLAY_PROVIDER, "custom_handler": REPLAY_HANDLER} in providers


@pytest.mark.parametrize("name", ["llmrouter-automix", "llmrouter-llm-multiround"])
def test_no_argument_is_needed(tmp_path: Path, name: str) -> None:
    assert check(written(tmp_path, router_settings={"routing_strategy": name}), ENV) == []


def test_without_a_cascade_no_provider_is_added(tmp_path: Path) -> None:
    providers = load(written(tmp_path), ENV).effective["litellm_settings"]["custom_provider_map"]
    assert [entry["provider"] for entry in providers] == ["mock"]


def found(path: Path) -> Problem:
    problems = check(path, ENV)
    assert len(problems) == 1, problems
    assert problems[0].line is not None
    return problems[0]


@pytest.mark.parametrize(
    ("strategy", "code", "key", "severity"),
    [
        ({"kind": "automix", "source": "x.json"}, "E4203", "source", "error"),
        ({"kind": "knn-multiround"}, "E4204", "source", "error"),
        ({"kind": "automix", "cascade": {"treshold": 0.5}}, "E4202", "cascade.treshold", "error"),
        ({"kind": "automix", "cascade": {"threshold": 1.5}}, "E4203", "cascade.threshold", "error"),
        ({"kind": "automix", "cascade": {"threshold": 0.5, "hopeless": 0.6}}, "E4203", "cascade", "error"),
        ({"kind": "automix", "cascade": {"models": ["cheap"]}}, "E4206", "cascade.models", "error"),
        ({"kind": "automix", "cascade": {"models": ["cheap", "strung"]}}, "E4206", "cascade.models[1]", "warning"),
        ({"kind": "llm-multiround", "cascade": {"planner": "nobody"}}, "E4206", "cascade.planner", "warning"),
    ],
)
def test_mistakes_are_told_where_they_stand(
    tmp_path: Path, strategy: dict[str, Any], code: str, key: str, severity: str
) -> None:
    problem = found(long_form(tmp_path, **strategy))
    assert (problem.code, problem.key, problem.severity) == (code, f"pointsman.strategies.s.{key}", severity)


def test_mistakes_in_the_short_form_too(tmp_path: Path) -> None:
    args = {"cascade": {"samples": 99}}
    path = written(tmp_path, router_settings={"routing_strategy": "llmrouter-automix", "routing_strategy_args": args})
    assert found(path).key == "router_settings.routing_strategy_args.cascade.samples"


def test_other_kinds_call_no_models(tmp_path: Path) -> None:
    path = long_form(tmp_path, kind="knn", source="x.json", cascade={"threshold": 0.5})
    assert [(problem.code, problem.key) for problem in check(path, ENV) if problem.severity == "error"] == [
        ("E4206", "pointsman.strategies.s.cascade")
    ]
