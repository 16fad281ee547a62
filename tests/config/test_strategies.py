"""`router_settings.routing_strategy: llmrouter-*` as users of such gateways write it, and the sources of strategies."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.cascade_settings import SOURCELESS_KINDS
from pointsman.litellm_config import GatewayConfig, Problem, check, load
from pointsman.litellm_config.tables import LITELLM_STRATEGIES, SERVED_KINDS
from pointsman.strategies.catalogue import CATALOGUE

KEY = base64.b64encode(b"k" * 32).decode()
MODELS = [{"model_name": "auto", "litellm_params": {"model": f"mock/{name}"}} for name in ("cheap", "strong")]


def file(tmp_path: Path, router: dict[str, Any], **sections: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": MODELS, "router_settings": router, **sections}))
    return path


def problems(tmp_path: Path, strategy: str, arguments: Any = None, **sections: Any) -> list[Problem]:
    return check(file(tmp_path, {"routing_strategy": strategy, "routing_strategy_args": arguments}, **sections), {})


def config(tmp_path: Path, arguments: dict[str, Any], env: dict[str, str] | None = None) -> GatewayConfig:
    return load(file(tmp_path, {"routing_strategy": "llmrouter-knn", "routing_strategy_args": arguments}), env or {})


@pytest.mark.requirement("R-2.2", "R-2.3", "R-2.4")
def test_a_local_strategy_is_translated(tmp_path: Path) -> None:
    (tmp_path / "current.json").write_text("{}")
    (tmp_path / "llms.json").write_text(json.dumps({"small": {"model": "mock/cheap"}, "strong": {}}))
    arguments = {
        "model_path": "current.json",
        "llm_data_path": "llms.json",
        "hot_reload": True,
        "reload_interval": 5,
        "trusted_keys": {"release": KEY},
    }
    result = config(tmp_path, arguments)
    strategy = result.settings.strategies["llmrouter-knn"]
    assert strategy.source == str(tmp_path / "current.json")
    assert strategy.llm_data_path == str(tmp_path / "llms.json")
    assert (strategy.kind, strategy.hot_reload, strategy.reload_interval) == ("knn", True, 5)
    assert strategy.require_signature is True
    assert result.settings.routing.default == "llmrouter-knn"
    assert result.effective["router_settings"]["routing_strategy"] == "simple-shuffle"
    assert "routing_strategy_args" not in result.effective["router_settings"]
    assert result.warnings == ()


@pytest.mark.requirement("R-2.3", "R-3.4")
@pytest.mark.parametrize("key", ["router/current.json", "router/knn-7.zip", "/router/current.json"])
def test_a_strategy_in_s3_is_translated(tmp_path: Path, key: str) -> None:
    result = config(tmp_path, {"model_s3_bucket": "models", "model_s3_key": key, "require_signature": False})
    assert result.settings.strategies["llmrouter-knn"].source == f"s3://models/{key.lstrip('/')}"
    assert result.warnings == ()


def test_without_a_trusted_key_it_is_accepted_and_the_consequence_told(tmp_path: Path) -> None:
    result = config(tmp_path, {"model_s3_bucket": "models", "model_s3_key": "current.json"})
    assert result.settings.strategies["llmrouter-knn"].require_signature is True
    assert [(w.code, "no key is trusted" in w.message) for w in result.warnings] == [("E4206", True)]


def test_a_bare_bundle_under_signatures_is_told(tmp_path: Path) -> None:
    result = config(tmp_path, {"model_s3_bucket": "m", "model_s3_key": "a.zip", "trusted_keys": {"k": KEY}})
    assert ["no signature" in w.message for w in result.warnings] == [True]


def test_the_environment_reaches_the_translated_strategy(tmp_path: Path) -> None:
    env = {
        "POINTSMAN__STRATEGIES__LLMROUTER_KNN__RELOAD_INTERVAL": "2",
        "POINTSMAN__STRATEGIES__LLMROUTER_KNN__TRUSTED_KEYS": json.dumps({"k": KEY}),
    }
    result = config(tmp_path, {"model_s3_bucket": "m", "model_s3_key": "a.json", "reload_interval": 60}, env)
    strategy = result.settings.strategies["llmrouter-knn"]
    assert (strategy.reload_interval, dict(strategy.trusted_keys)) == (2, {"k": KEY})


def test_the_sections_default_for_signatures(tmp_path: Path) -> None:
    router = {"routing_strategy": "llmrouter-knn", "routing_strategy_args": {"model_s3_bucket": "b", "model_s3_key": "k.json"}}
    off = load(file(tmp_path, router, pointsman={"require_signature": False}), {})
    assert off.settings.strategies["llmrouter-knn"].require_signature is False
    on = load(file(tmp_path, router, pointsman={"require_signature": False}), {"POINTSMAN__REQUIRE_SIGNATURE": "true"})
    assert on.settings.strategies["llmrouter-knn"].require_signature is True


@pytest.mark.parametrize("name", ["knn.pkl", "knn.pickle", "m.pt", "m.pth", "m.joblib", "m.bin", "M.PKL"])
@pytest.mark.parametrize("where", ["path", "url", "s3", "section"])
def test_a_pickle_is_refused_with_the_import_command(tmp_path: Path, name: str, where: str) -> None:
    if where == "section":
        found = check(file(tmp_path, {}, pointsman={"strategies": {"s": {"source": f"s3://b/{name}"}}}), {})
    elif where == "s3":
        found = problems(tmp_path, "llmrouter-knn", {"model_s3_bucket": "b", "model_s3_key": name})
    else:
        prefix = "file:///srv/" if where == "url" else ""
        found = problems(tmp_path, "llmrouter-knn", {"model_path": prefix + name})
    pickles = [p for p in found if p.code == "E4205"]
    assert len(pickles) == 1
    assert "pointsman strategies import" in pickles[0].mend
    assert pickles[0].line is not None


def test_a_pickle_in_disguise_is_refused(tmp_path: Path) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "current.json").write_bytes(pickle.dumps({"a": 1}, protocol))
        assert "E4205" in [p.code for p in problems(tmp_path, "llmrouter-knn", {"model_path": "current.json"})]


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        (None, "E4204", "router_settings.routing_strategy"),
        ({}, "E4204", "router_settings.routing_strategy"),
        ({"hot_reload": True}, "E4204", "router_settings.routing_strategy_args"),
        ({"model_s3_bucket": "b"}, "E4204", "router_settings.routing_strategy_args.model_s3_key"),
        ({"model_s3_key": "k.json"}, "E4204", "router_settings.routing_strategy_args.model_s3_bucket"),
        ({"model_path": 5}, "E4203", "router_settings.routing_strategy_args.model_path"),
        ([1], "E4203", "router_settings.routing_strategy_args"),
        ({"model_path": "m.json", "reload_interval": "soon"}, "E4203", "router_settings.routing_strategy_args.reload_interval"),
        ({"model_path": "m.json", "reload_interval": -1}, "E4203", "router_settings.routing_strategy_args.reload_interval"),
        ({"model_path": "m.json", "trusted_keys": {"k": "x"}}, "E4203", "router_settings.routing_strategy_args.trusted_keys.k"),
        ({"model_path": "m.json", "modle_path": "x"}, "E4202", "router_settings.routing_strategy_args.modle_path"),
        ({"model_path": "m.txt"}, "E4203", "router_settings.routing_strategy_args.model_path"),
        ({"model_path": "."}, "E4203", "router_settings.routing_strategy_args.model_path"),
        ({"model_path": "ftp://x/y.json"}, "E4203", "router_settings.routing_strategy_args.model_path"),
        (
            {"model_path": "m.json", "llm_data_path": "none.json"},
            "E4203",
            "router_settings.routing_strategy_args.llm_data_path",
        ),
    ],
)
def test_bad_arguments_are_told_where_they_stand(tmp_path: Path, arguments: Any, code: str, key: str) -> None:
    found = [p for p in problems(tmp_path, "llmrouter-knn", arguments) if p.severity == "error"]
    assert [(p.code, p.key) for p in found] == [(code, key)]
    assert found[0].line is not None


def test_a_directory_named_as_pointer(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()
    found = problems(tmp_path, "llmrouter-knn", {"model_path": "d.json"})
    assert any(p.code == "E4203" and "directory" in p.message for p in found)


def test_metadata_that_is_no_object(tmp_path: Path) -> None:
    for text in ("[", "[1]", '{"a": 1}', "\xff"):
        (tmp_path / "llms.json").write_text(text, encoding="latin-1")
        found = problems(tmp_path, "llmrouter-knn", {"model_path": "m.json", "llm_data_path": "llms.json"})
        assert [p.key for p in found if p.severity == "error"] == ["router_settings.routing_strategy_args.llm_data_path"]


SOURCE = {"source": "s3://b/k.json", "require_signature": False}
ENOUGH: dict[str, dict[str, Any]] = {
    "bundle": SOURCE,
    "cascade": SOURCE,
    "worker": {"llmrouter": {"config": "router.yaml"}},
    "plugin": {"entry_point": "mine"},
}
"""What a strategy needs in the configuration, by how it is served."""


def needed(kind: str) -> dict[str, Any]:
    return {} if kind in SOURCELESS_KINDS else ENOUGH[CATALOGUE[kind].serving]


@pytest.mark.strategy("refused", "router-r1", "gmt", "tsrouter")
@pytest.mark.requirement("R-2.1")
@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_name_is_served_or_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    """Both ways to write it lead to the same."""
    (tmp_path / "router.yaml").write_text("data_path: {}\n")
    installed = tmp_path / "mine-1.0.dist-info"
    installed.mkdir()
    (installed / "entry_points.txt").write_text("[pointsman.strategies]\nmine = mine:make\n")
    entry = CATALOGUE[kind]
    arguments = {"model_path" if key == "source" else key: value for key, value in needed(kind).items()}
    by_name = [p for p in problems(tmp_path, entry.name, arguments) if p.severity == "error"]
    section = {"strategies": {"mine": {"kind": kind, **needed(kind)}}}
    by_kind = [p for p in check(file(tmp_path, {}, pointsman=section), {}) if p.severity == "error"]
    if entry.broken is None:
        assert (by_name, by_kind) == ([], [])
        loaded = load(file(tmp_path, {"routing_strategy": entry.name, "routing_strategy_args": arguments}), {})
        assert (loaded.settings.strategies[entry.name].kind, loaded.settings.routing.default) == (kind, entry.name)
        assert loaded.effective["router_settings"]["routing_strategy"] == "simple-shuffle"
        return
    for found, key in ((by_name, "router_settings.routing_strategy"), (by_kind, "pointsman.strategies.mine.kind")):
        assert [(p.code, p.key, entry.broken in p.message) for p in found] == [("E4206", key, True)]
        assert "strategies list" in found[0].mend


@pytest.mark.parametrize("kind", sorted(SERVED_KINDS - SOURCELESS_KINDS))
def test_a_strategy_that_lacks_what_it_is_served_from_says_what(tmp_path: Path, kind: str) -> None:
    entry = CATALOGUE[kind]
    wanted = {"bundle": "model_path", "cascade": "model_path", "worker": "llmrouter", "plugin": "entry_point"}[entry.serving]
    found = problems(tmp_path, entry.name, {})
    assert [(p.code, wanted in p.mend) for p in found if p.severity == "error"] == [("E4204", True)]


@pytest.mark.parametrize("kind", [kind for kind, entry in CATALOGUE.items() if entry.serving in ("worker", "plugin")])
def test_what_no_bundle_can_serve_is_not_taken_from_one(tmp_path: Path, kind: str) -> None:
    found = check(file(tmp_path, {}, pointsman={"strategies": {"s": {**SOURCE, "kind": kind}}}), {})
    place, code = ("source", "E4205") if kind == "custom" else ("kind", "E4206")
    assert [(p.key, p.code) for p in found if p.severity == "error"] == [(f"pointsman.strategies.s.{place}", code)]


def test_llmrouter_has_no_strategy_of_ours(tmp_path: Path) -> None:
    section = {"strategies": {"s": {"kind": "linear", "llmrouter": {"config": "router.yaml"}}}}
    found = check(file(tmp_path, {}, pointsman=section), {})
    assert [p.key for p in found if "LLMRouter has no" in p.message] == ["pointsman.strategies.s.kind"]


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("llmrouter-kn", "llmrouter-knn"),
        ("llmrouterknn", "llmrouter-knn"),
        ("knn", "llmrouter-knn"),
        ("least_busy", "least-busy"),
        ("lienar", "linear"),
        ("llmrouter-linear", "linear"),
    ],
)
def test_a_misspelt_strategy_gets_a_suggestion(tmp_path: Path, name: str, guess: str) -> None:
    found = problems(tmp_path, name)
    assert [p.code for p in found] == ["E4206"]
    assert f"Did you mean {guess}?" in found[0].mend


@pytest.mark.requirement("R-2.6")
@pytest.mark.parametrize("name", sorted(LITELLM_STRATEGIES))
def test_litellms_own_strategies_are_left_alone(tmp_path: Path, name: str) -> None:
    arguments = {"ttl": 10, "anything": 1}
    result = load(file(tmp_path, {"routing_strategy": name, "routing_strategy_args": arguments}), {})
    assert result.settings.strategies == {}
    assert result.effective["router_settings"]["routing_strategy"] == name
    assert result.effective["router_settings"]["routing_strategy_args"] == arguments


def test_said_twice_and_differently(tmp_path: Path) -> None:
    source = {"source": "s3://b/k.json", "require_signature": False}
    section = {"strategies": {"llmrouter-knn": source, "mine": source}, "routing": {"default": "mine"}}
    found = problems(tmp_path, "llmrouter-knn", {"model_path": "s3://b/k.json"}, pointsman=section)
    assert "pointsman.strategies.llmrouter-knn" in [p.key for p in found if p.severity == "error"]
    del section["strategies"]["llmrouter-knn"]
    found = problems(tmp_path, "llmrouter-knn", {"model_path": "s3://b/k.json"}, pointsman=section)
    assert "pointsman.routing.default" in [p.key for p in found if p.severity == "error"]


def test_a_learned_strategy_in_a_routing_group_says_where_it_belongs(tmp_path: Path) -> None:
    groups = [
        {"group_name": "g", "models": ["auto"], "routing_strategy": name} for name in ("llmrouter-knn", "leastbusy", "priority")
    ]
    found = check(file(tmp_path, {"routing_groups": groups}), {})
    assert [(p.key, p.code) for p in found] == [
        ("router_settings.routing_groups[0].routing_strategy", "E4206"),
        ("router_settings.routing_groups[1].routing_strategy", "E4206"),
    ]
    assert "pointsman.routing.groups" in found[0].mend


def test_an_unknown_kind(tmp_path: Path) -> None:
    section = {"strategies": {"s": {**SOURCE, "kind": "llmrouter-svn"}}}
    found = check(file(tmp_path, {}, pointsman=section), {})
    assert [(p.key, p.code) for p in found] == [("pointsman.strategies.s.kind", "E4206")]
    assert "Did you mean svm?" in found[0].mend
