"""`POINTSMAN__...` variables over the section."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pointsman.errors import ConfigError
from pointsman.settings import PointsmanSettings

SOURCE = {"source": "s3://b/k.json"}


@pytest.mark.requirement("S-1")
@pytest.mark.parametrize(
    ("env", "path", "value"),
    [
        ({"POINTSMAN__SHUTDOWN__GRACE": "5"}, "shutdown.grace", 5.0),
        ({"pointsman__shutdown__grace": "5"}, "shutdown.grace", 5.0),
        ({"POINTSMAN__PRIVACY__CAPTURE_PROMPTS": "yes"}, "privacy.capture_prompts", True),
        ({"POINTSMAN__ROUTING__DEFAULT": "null"}, "routing.default", None),
        ({"POINTSMAN__ROUTING__GROUPS__GPT_4O": "s"}, "routing.groups", {"gpt-4o": "s", "x": "y"}),
        ({"POINTSMAN__ROUTING__GROUPS__NEW": "s"}, "routing.groups", {"gpt-4o": "a", "x": "y", "new": "s"}),
        ({"POINTSMAN__ROUTING__GROUPS": '{"x": null}'}, "routing.groups", {"gpt-4o": "a", "x": None}),
        ({"POINTSMAN__ROUTING": '{"deadline_ms": 7}'}, "routing.deadline_ms", 7),
        ({"POINTSMAN__ROUTING": '{"deadline_ms": 7}', "POINTSMAN__ROUTING__DEADLINE_MS": "8"}, "routing.deadline_ms", 8),
        ({"POINTSMAN__DECISIONS__RETENTION_DAYS": "1", "OTHER": "x"}, "decisions.retention_days", 1),
    ],
)
def test_a_variable_overrides_the_file(env: dict[str, str], path: str, value: object) -> None:
    section = {"routing": {"default": "a", "groups": {"gpt-4o": "a", "x": "y"}}, "shutdown": {"grace": 9}}
    found: object = PointsmanSettings.load(section, env)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert section == {"routing": {"default": "a", "groups": {"gpt-4o": "a", "x": "y"}}, "shutdown": {"grace": 9}}


def test_a_strategy_may_come_from_the_environment_alone() -> None:
    settings = PointsmanSettings.load(None, {"POINTSMAN__STRATEGIES__KNN__SOURCE": "s3://b/k.json"})
    assert settings.strategies["knn"].source == "s3://b/k.json"


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("POINTSMAN__SHUTDOWN__GRACY", "1", "E4202"),
        ("POINTSMAN__SHUTDWN", "{}", "E4202"),
        ("POINTSMAN__", "1", "E4202"),
        ("POINTSMAN____GRACE", "1", "E4202"),
        ("POINTSMAN__SHUTDOWN__GRACE__MORE", "1", "E4202"),
        ("POINTSMAN__ROUTING__GROUPS__A__B", "1", "E4202"),
        ("POINTSMAN__STRATEGIES__", "{}", "E4202"),
        ("POINTSMAN__SHUTDOWN", "5", "E4203"),
        ("POINTSMAN__SHUTDOWN", "[5]", "E4203"),
        ("POINTSMAN__SHUTDOWN", "{", "E4203"),
        ("POINTSMAN__SHUTDOWN", "[" * 100_000, "E4203"),
    ],
)
def test_a_variable_that_means_nothing_is_refused_by_name(variable: str, value: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PointsmanSettings.load({}, {variable: value})
    assert (caught.value.code, caught.value.where) == (code, variable)


def test_a_bad_value_is_pydantics_to_tell() -> None:
    with pytest.raises(ValidationError) as caught:
        PointsmanSettings.load({}, {"POINTSMAN__SHUTDOWN__GRACE": "soon"})
    assert caught.value.errors()[0]["loc"] == ("shutdown", "grace")


def test_settings_survive_the_way_to_a_worker() -> None:
    settings = PointsmanSettings.load({"require_signature": False, "strategies": {"a": SOURCE}}, {})
    assert settings.strategies["a"].require_signature is False
    assert PointsmanSettings.model_validate_json(settings.model_dump_json()) == settings
