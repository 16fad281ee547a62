"""The effective copy: private, whole, explicit, and the user's file untouched."""

from __future__ import annotations

import copy
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.errors import ProcessError
from pointsman.litellm_config import Detected, litellm_environment, load, write_effective
from pointsman.litellm_config.effective import DEFAULTS, ENVIRONMENT, HOOK, deployment_id


def entry(name: str, model: str, **more: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": model}, **more}


def effective(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": [], **sections}))
    return load(path, {}).effective


def ids(tmp_path: Path, *entries: dict[str, Any]) -> list[str]:
    return [item["model_info"]["id"] for item in effective(tmp_path, model_list=list(entries))["model_list"]]


@pytest.mark.requirement("R-1.5", "P-3")
def test_it_is_private_whole_and_the_users_file_untouched(tmp_path: Path) -> None:
    user = tmp_path / "config.yaml"
    text = "# mine\nmodel_list:\n  - {model_name: é, litellm_params: {model: mock/x}}\npointsman: {shutdown: {grace: 3}}\n"
    user.write_text(text)
    before = user.stat()
    run_dir = tmp_path / "run"
    config = load(user, {})
    written = write_effective(config, run_dir)
    assert written == run_dir / "config.yaml"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    assert list(run_dir.iterdir()) == [written]
    assert yaml.safe_load(written.read_text()) == config.effective
    assert "pointsman" not in config.effective
    assert user.read_text() == text
    assert user.stat().st_mtime_ns == before.st_mtime_ns
    again = load(written, {})
    assert again.effective == config.effective


def test_a_literal_secret_stays_and_a_reference_is_not_resolved(tmp_path: Path) -> None:
    assert effective(tmp_path, general_settings={"master_key": "sk-lit"})["general_settings"]["master_key"] == "sk-lit"
    path = tmp_path / "config.yaml"
    path.write_text("model_list: []\ngeneral_settings: {master_key: os.environ/MINE}\n")
    config = load(path, {"MINE": "sk-secret"})
    assert config.master_key == "sk-secret"
    assert "sk-secret" not in write_effective(config, tmp_path / "run").read_text()
    assert effective(tmp_path)["general_settings"]["master_key"] == "os.environ/LITELLM_MASTER_KEY"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model_list: []\n")
    config = load(path, {})
    run_dir = tmp_path / "run"
    written = write_effective(config, run_dir)
    good = written.read_text()
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the directory should be")
    with pytest.raises(ProcessError) as caught:
        write_effective(config, blocked)
    assert caught.value.code == "E4602"
    assert str(blocked) in str(caught.value.where)
    full = Path("/dev/full")
    if full.exists():
        limited = tmp_path / "limited"
        limited.mkdir()
        (limited / "config.yaml").mkdir()  # the replacement cannot succeed
        with pytest.raises(ProcessError):
            write_effective(config, limited)
        assert [item.name for item in limited.iterdir()] == ["config.yaml"]
    assert written.read_text() == good


def test_every_default_is_given_and_gives_way(tmp_path: Path) -> None:
    silent = effective(tmp_path)
    for default in DEFAULTS:
        assert silent[default.section][default.key] == default.value
        assert default.reason
        if default.enforced:
            continue
        own = "least-busy" if default.key == "routing_strategy" else "os.environ/X" if default.key == "master_key" else 3
        assert effective(tmp_path, **{default.section: {default.key: own}})[default.section][default.key] == own
        for other in default.unless:
            section, key = other.split(".")
            given = effective(tmp_path, **{section: {key: 9}})
            assert default.key not in given.get(default.section, {})
            assert given[section][key] == 9


def test_the_hook_comes_last_and_once(tmp_path: Path) -> None:
    assert effective(tmp_path)["litellm_settings"]["callbacks"] == [HOOK]
    given = effective(tmp_path, litellm_settings={"callbacks": ["prometheus", HOOK, "otel"]})
    assert given["litellm_settings"]["callbacks"] == ["prometheus", "otel", HOOK]
    assert effective(tmp_path, litellm_settings={"callbacks": "prometheus"})["litellm_settings"]["callbacks"] == [
        "prometheus",
        HOOK,
    ]


def test_the_mock_provider_is_added_where_it_is_used(tmp_path: Path) -> None:
    own = {"provider": "mine", "custom_handler": "m.h"}
    assert "custom_provider_map" not in effective(tmp_path, model_list=[entry("a", "openai/x")])["litellm_settings"]
    given = effective(tmp_path, model_list=[entry("a", "mock/x")], litellm_settings={"custom_provider_map": [own]})
    mock = {"provider": "mock", "custom_handler": "pointsman.backends.mock.handler"}
    assert given["litellm_settings"]["custom_provider_map"] == [own, mock]


def test_ids_survive_edits_of_others_and_tell_equals_apart(tmp_path: Path) -> None:
    a, b, c = entry("g", "mock/a"), entry("g", "mock/b"), entry("h", "mock/a")
    first = ids(tmp_path, a, b, c)
    assert len(set(first)) == 3
    assert ids(tmp_path, c, b) == [first[2], first[1]]
    changed = copy.deepcopy(b)
    changed["litellm_params"]["timeout"] = 5
    assert ids(tmp_path, a, changed, c)[0] == first[0]
    assert ids(tmp_path, a, changed, c)[1] != first[1]
    twice = ids(tmp_path, a, a, b)
    assert twice[0] == first[0]
    assert len(set(twice)) == 3
    assert ids(tmp_path, a, b) == first[:2]
    reordered = {"litellm_params": dict(reversed(list(changed["litellm_params"].items()))), "model_name": "g"}
    assert ids(tmp_path, reordered) == ids(tmp_path, changed)


def test_given_ids_stay_and_are_never_made_again(tmp_path: Path) -> None:
    a = entry("g", "mock/a")
    made = deployment_id("g", a["litellm_params"])
    taken = ids(tmp_path, entry("x", "mock/x", model_info={"id": made}), a, entry("y", "mock/y", model_info={"id": 7}))
    assert taken[0] == made
    assert taken[1] == deployment_id("g", a["litellm_params"], 1)
    assert taken[2] == "7"


def test_a_deployment_rests_only_where_another_can_serve(tmp_path: Path) -> None:
    models = [entry("two", "mock/a"), entry("two", "mock/b"), entry("backed", "mock/c"), entry("alone", "mock/d")]
    off = {"resilience": {"breaker": {"enabled": False}}}
    given = effective(tmp_path, model_list=models, router_settings={"fallbacks": [{"backed": ["alone"]}]}, pointsman=off)
    assert "disable_cooldowns" not in given["router_settings"]
    info = [item["model_info"] for item in given["model_list"]]
    assert info[0]["allowed_fails"] == info[1]["allowed_fails"] == 1
    assert info[2]["allowed_fails_policy"]["InternalServerErrorAllowedFails"] == 1
    assert set(info[3]) == {"id"}
    own = effective(tmp_path, model_list=models, router_settings={"allowed_fails": 9})
    assert all(set(item["model_info"]) == {"id"} for item in own["model_list"])


@pytest.mark.parametrize(
    ("sections", "params", "off"),
    [
        ({}, {}, True),
        ({"router_settings": {"cooldown_time": 30}}, {}, None),
        ({"router_settings": {"allowed_fails_policy": {"TimeoutErrorAllowedFails": 3}}}, {}, None),
        ({"router_settings": {"disable_cooldowns": False}}, {}, False),
        ({"litellm_settings": {"allowed_fails": 3}}, {}, None),
        ({}, {"cooldown_time": 5}, None),
        ({"pointsman": {"resilience": {"breaker": {"enabled": False}}}}, {}, None),
    ],
)
def test_with_breakers_litellms_cooldowns_are_off_unless_the_file_speaks_of_them(
    tmp_path: Path, sections: dict[str, Any], params: dict[str, Any], off: bool | None
) -> None:
    models = [entry("two", "mock/a"), entry("two", "mock/b")]
    models[0]["litellm_params"] |= params
    given = effective(tmp_path, model_list=models, **sections)
    assert given["router_settings"].get("disable_cooldowns") is off
    if off:
        assert all(set(item["model_info"]) == {"id"} for item in given["model_list"])


@pytest.mark.requirement("R-14.3")
@pytest.mark.parametrize("section", ["router_settings", "litellm_settings"])
def test_prompts_are_measured_before_the_call_where_the_file_says_who_takes_long_ones(tmp_path: Path, section: str) -> None:
    models = [entry("small", "mock/a"), entry("large", "mock/b")]
    fallbacks = {"context_window_fallbacks": [{"small": ["large"]}]}
    assert effective(tmp_path, model_list=models, **{section: fallbacks})["router_settings"]["enable_pre_call_checks"] is True
    assert "enable_pre_call_checks" not in effective(tmp_path, model_list=models)["router_settings"]
    own = {"router_settings": {"enable_pre_call_checks": False}}
    own[section] = {**own.get(section, {}), **fallbacks}
    assert effective(tmp_path, model_list=models, **own)["router_settings"]["enable_pre_call_checks"] is False


def test_models_found_on_the_machine_join_without_replacing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": [entry("llama", "mock/a")]}))
    found = Detected(
        "ollama", "http://127.0.0.1:1", ("llama", "qwen"), (entry("llama", "ollama/llama"), entry("qwen", "ollama/qwen"))
    )
    config = load(path, {}, extra=[found])
    assert [(e["model_name"], e["litellm_params"]["model"]) for e in config.effective["model_list"]] == [
        ("llama", "mock/a"),
        ("qwen", "ollama/qwen"),
    ]
    assert all(e["model_info"]["id"] for e in config.effective["model_list"])
    assert "model_info" not in found.entries[1]


def test_the_environment_gives_way_to_the_users(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model_list: []\nlitellm_settings: {callbacks: [otel]}\n")
    config = load(path, {})
    everything = {item.name for item in ENVIRONMENT}
    assert set(litellm_environment(config, {})) == everything
    given = {"LITELLM_OTEL_V2": "false", "DISABLE_SCHEMA_UPDATE": ""}
    assert set(litellm_environment(config, given)) == everything - set(given)
    assert all(item.reason for item in ENVIRONMENT)


@pytest.mark.parametrize(
    ("settings", "env", "wanted"),
    [
        ({}, {}, False),
        ({"callbacks": ["prometheus"]}, {}, False),
        ({"callbacks": ["otel"]}, {}, True),
        ({"success_callback": ["langfuse_otel"]}, {}, True),
        ({}, {"OTEL_EXPORTER": "otlp_http"}, True),
    ],
)
def test_traces_are_made_only_where_they_are_asked_for(
    tmp_path: Path, settings: dict[str, Any], env: dict[str, str], wanted: bool
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": [], "litellm_settings": settings}))
    assert ("LITELLM_OTEL_V2" in litellm_environment(load(path, env), env)) is wanted


def test_litellm_writes_no_lines_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model_list: []\nlitellm_settings: {json_logs: true, drop_params: true}\n")
    config = load(path, {})
    assert config.effective["litellm_settings"]["drop_params"] is True
    assert "json_logs" not in config.effective["litellm_settings"]


def test_nothing_of_the_process_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model_list: []\n")
    monkeypatch.setitem(os.environ, "POINTSMAN__SHUTDOWN__GRACE", "7")
    monkeypatch.setitem(os.environ, "DATABASE_URL", "postgresql://x/y")
    config = load(path, {})
    assert config.settings.shutdown.grace == 30
    assert config.database_url is None


def test_prices_move_except_where_litellm_routes_by_them(tmp_path: Path) -> None:
    price = {"input_cost_per_token": 0.000_001}
    models = [{"model_name": name, "litellm_params": {"model": "openai/m", "api_key": "k", **price}} for name in "ab"]
    group = {"group_name": "g", "models": ["b"], "routing_strategy": "cost-based-routing"}
    moved, kept = effective(tmp_path, model_list=models, router_settings={"routing_groups": [group]})["model_list"]
    assert price.items() <= moved["model_info"].items()
    assert "input_cost_per_token" not in moved["litellm_params"]
    assert price.items() <= kept["litellm_params"].items()
    for one in effective(tmp_path, model_list=models, router_settings={"routing_strategy": "cost-based-routing"})["model_list"]:
        assert price.items() <= one["litellm_params"].items()
