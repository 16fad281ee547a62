"""What `check` says of sinks: credentials that are not there, the SDK, teams' settings that would not be followed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litellm
import pytest
import yaml

from pointsman.litellm_config import Problem, check, litellm_environment, load
from pointsman.litellm_config.callbacks import CALLBACKS, NEEDS

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"}
TEAM = {"team_id": "t", "langfuse_public_key": "pk", "langfuse_secret_key": "sk"}


def told(tmp_path: Path, settings: dict[str, Any], env: dict[str, str] | None = None, **sections: Any) -> list[Problem]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": [], **sections, "litellm_settings": settings}, sort_keys=False))
    return check(path, env or {})


def test_a_sink_without_credentials_is_told_with_its_line(tmp_path: Path) -> None:
    (problem,) = told(tmp_path, {"callbacks": ["prometheus", "langfuse_otel"]})
    assert (problem.severity, problem.key, problem.line) == ("warning", "litellm_settings.callbacks[1]", 5)
    assert problem.path.name == "config.yaml"
    assert problem.message == "langfuse_otel is named, and LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY are not set"


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_every_sink_says_what_it_needs(tmp_path: Path, name: str) -> None:
    bare = [item for item in told(tmp_path, {"success_callback": name}) if "is named, and" in item.message]
    assert len(bare) == 1
    assert all(group[0] in bare[0].message for group in NEEDS[name])
    env = {group[-1]: "x" for group in NEEDS[name]}
    assert [item for item in told(tmp_path, {"success_callback": name}, env) if "is named, and" in item.message] == []


@pytest.mark.parametrize(
    "sections",
    [
        {"environment_variables": KEYS},
        {"general_settings": {"key_management_system": "aws_secret_manager"}},
        {"callback_settings": {"langfuse_otel": {"anything": 1}}},
    ],
)
def test_credentials_may_come_from_elsewhere(tmp_path: Path, sections: dict[str, Any]) -> None:
    assert told(tmp_path, {"callbacks": ["langfuse_otel"]}, **sections) == []


def test_named_twice_is_told_once(tmp_path: Path) -> None:
    named = {"success_callback": ["langsmith"], "failure_callback": ["langsmith"]}
    assert len(told(tmp_path, named | {"turn_off_message_logging": True})) == 1


def test_a_sink_that_is_sent_what_was_asked_and_answered(tmp_path: Path) -> None:
    named, env = {"success_callback": ["langsmith", "prometheus", "langfuse_otel"]}, KEYS | {"LANGSMITH_API_KEY": "k"}
    (problem,) = told(tmp_path, named, env)
    assert problem.key == "litellm_settings.success_callback[0]"
    assert "is sent prompts and answers" in problem.message
    for settled in ({"turn_off_message_logging": True}, {"turn_off_message_logging": False}):
        assert told(tmp_path, named | settled, env) == []
    assert told(tmp_path, named, env, pointsman={"privacy": {"capture_prompts": True}}) == []


def test_a_misspelt_sink(tmp_path: Path) -> None:
    (problem,) = told(tmp_path, {"callbacks": ["langfuse_otl", "my_module.instance", "s3"]}, KEYS)
    assert problem.mend == "Did you mean langfuse_otel?"


@pytest.mark.parametrize(
    ("installed", "said"), [(None, "not installed"), ("5.0.1", "5.0.1"), ("4.6.9", "4.6.9"), ("4.18.0", "")]
)
def test_langfuses_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str | None, said: str) -> None:
    if installed is None:
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    else:  # what the installer of that release would have left on the path
        about = tmp_path / "site" / f"langfuse-{installed}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: langfuse\nVersion: {installed}\n")
        monkeypatch.setattr(sys, "path", [str(about.parent), *sys.path])
    problems = told(tmp_path, {"success_callback": ["langfuse"], "turn_off_message_logging": True}, KEYS)
    assert [said in item.message for item in problems] == ([True] if said else [])


def test_a_team_without_keys(tmp_path: Path) -> None:
    teams = [TEAM | {"success_callback": ["langfuse_otel"]}, {"team_id": "u", "success_callback": ["langfuse_otel"]}]
    (problem,) = told(tmp_path, {"default_team_settings": teams})
    assert problem.key == "litellm_settings.default_team_settings[1]"
    assert problem.message == "langfuse_otel is named without langfuse_public_key and langfuse_secret_key"


def test_a_teams_host_beside_the_gateways_own(tmp_path: Path) -> None:
    """LiteLLM would send the team's traces, and its keys, to the gateway's host (seen in tests/e2e/test_sinks.py)."""
    team = TEAM | {"success_callback": ["langfuse_otel"], "langfuse_host": "https://langfuse.team"}
    settings = {"callbacks": ["langfuse_otel"], "default_team_settings": [team]}
    (problem,) = told(tmp_path, settings, KEYS)
    assert problem.key == "litellm_settings.default_team_settings[0].langfuse_host"
    assert told(tmp_path, settings | {"callbacks": []}, KEYS) == []


@pytest.mark.parametrize("callbacks", ["otel", ["otel"]])
def test_one_callback_may_stand_alone(tmp_path: Path, callbacks: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": [], "litellm_settings": {"callbacks": callbacks}}))
    assert "LITELLM_OTEL_V2" in litellm_environment(load(path, {}), {})


def test_a_web_hook_that_litellm_never_calls(tmp_path: Path) -> None:
    """Seen in tests/slow/test_sinks.py, which holds it."""
    hook = {"callback_type": "generic_api", "endpoint": "http://hook", "headers": {"a": "b"}}
    (problem,) = told(tmp_path, {"success_callback": ["mine"]}, callback_settings={"mine": hook})
    assert problem.key == "litellm_settings.success_callback[0]"
    assert told(tmp_path, {"callbacks": ["mine"]}, callback_settings={"mine": hook}) == []
    assert len(told(tmp_path, {"callbacks": ["generic_api"]})) == 1


def test_the_tables_are_litellms() -> None:
    assert {*litellm._known_custom_logger_compatible_callbacks, "helicone"} == CALLBACKS
    package = Path(litellm.__file__).parent
    text = "\n".join(
        file.read_text(encoding="utf-8")
        for folder in ("integrations", "litellm_core_utils", "types")
        for file in (package / folder).rglob("*.py")
    )
    assert [name for groups in NEEDS.values() for group in groups for name in group if name not in text] == []
