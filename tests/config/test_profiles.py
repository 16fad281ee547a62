"""Profiles, examples, the generated reference, and how light this room is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from pointsman.backends.mock_settings import MockSettings
from pointsman.errors import ConfigError
from pointsman.litellm_config import PROFILES, check, load, profile_path
from pointsman.litellm_config.reference import configuration_page
from pointsman.settings import PointsmanSettings
from support.marks import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.requirement("C-2")
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_has_no_error(name: str) -> None:
    problems = check(profile_path(name), {})
    assert [problem for problem in problems if problem.severity == "error"] == []
    settings = load(profile_path(name), {}).settings
    assert settings.require_signature is (name != "local")
    assert all(strategy.require_signature for strategy in settings.strategies.values())


@pytest.mark.parametrize("name", ["REDIS_HOST", "REDIS_URL", "REDIS_SENTINEL_NODES"])
def test_ha_wants_to_know_where_redis_is(name: str) -> None:
    def about_redis(env: dict[str, str]) -> list[str]:
        return [problem.message for problem in check(profile_path("ha"), env) if "Redis" in problem.message]

    assert about_redis({}) == ["the cache is Redis, and nothing says where it is"]
    assert about_redis({name: "anything"}) == []


def test_the_local_profile_has_nothing_to_complain_about() -> None:
    config = load(profile_path("local"), {})
    assert config.warnings == ()
    groups = [entry["model_name"] for entry in config.effective["model_list"]]
    assert groups.count("auto") == 2


def test_an_unknown_profile_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean local"):
        profile_path("locl")
    with pytest.raises(ConfigError):
        profile_path("../../etc/passwd")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_no_error(path: Path) -> None:
    assert [problem for problem in check(path, {}) if problem.severity == "error"] == []


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_the_reference_is_fresh() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == configuration_page(), "run `make docs`"


def _undocumented(model: type[BaseModel]) -> list[str]:
    return [f"{model.__name__}.{name}" for name, info in model.model_fields.items() if not info.description]


def test_every_setting_has_a_description() -> None:
    models = [item for item in vars(sys.modules["pointsman.settings"]).values() if isinstance(item, type)]
    models += [item for item in vars(sys.modules["pointsman.backends.mock_settings"]).values() if isinstance(item, type)]
    found = {item for item in models if issubclass(item, BaseModel)}
    assert {PointsmanSettings, MockSettings} <= found
    assert [name for model in found for name in _undocumented(model)] == []


@pytest.mark.alone
def test_the_supervisor_may_import_this_without_litellm() -> None:
    code = (
        "import sys, pointsman.litellm_config, pointsman.settings; sys.exit('litellm' in sys.modules or 'boto3' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import pointsman.litellm_config"], check=True)
        times.append(time.perf_counter() - started)
    # 0.13 s on an idle machine, interpreter included; LiteLLM alone would be above 1.5 s. The margin is for a loaded one.
    assert min(times) < 0.8
