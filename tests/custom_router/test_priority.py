"""Who may ask for which priority."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.custom_router.priority import read_patience, read_priority
from pointsman.custom_router.queue import Priority
from pointsman.errors import PointsmanError

HIGH, NORMAL, LOW = Priority


def read(
    header: str | None = None, key: Any = None, team: Any = None, admin: bool = False, default: Priority = NORMAL
) -> Priority:
    headers = {} if header is None else {"x-pointsman-priority": header}
    return read_priority(headers, key, team, admin=admin, default=default)


@pytest.mark.parametrize(
    ("key", "team", "expected"),
    [
        (None, None, NORMAL),
        ({}, {}, NORMAL),
        ({"pointsman_priority": "high"}, {"pointsman_priority": "low"}, HIGH),
        ({}, {"pointsman_priority": "Low"}, LOW),
        ({"pointsman_priority": "urgent"}, {"pointsman_priority": "low"}, LOW),
        ({"pointsman_priority": 0}, {"pointsman_priority": ["high"]}, NORMAL),
        ("no metadata", 7, NORMAL),
    ],
)
def test_the_key_says_then_the_team_then_the_configuration(key: Any, team: Any, expected: Priority) -> None:
    assert read(None, key, team) is expected


def test_anybody_may_ask_for_less_and_only_who_may_for_more() -> None:
    assert read("low") is LOW
    assert read("Normal", {"pointsman_priority": "high"}) is NORMAL
    assert read("high", admin=True) is HIGH
    assert read("high", {"pointsman_allow_override": ["priority"]}) is HIGH
    assert read("high", {}, {"pointsman_allow_override": True}) is HIGH
    for key, team in (
        ({}, {}),
        ({"pointsman_allow_override": ["strategy"]}, {"pointsman_allow_override": True}),
        ({"pointsman_priority": "low"}, {"pointsman_priority": "high"}),
    ):
        with pytest.raises(PointsmanError, match="E4110"):
            read("high", key, team)
    with pytest.raises(PointsmanError, match="E4110"):
        read("normal", {"pointsman_priority": "low"})


@pytest.mark.parametrize("header", ["", "urgent", "0", "high,low", "é" * 500])
def test_a_word_that_is_no_class_is_refused(header: str) -> None:
    with pytest.raises(PointsmanError, match="E4010"):
        read(header, admin=True)


def test_patience_is_a_number_of_milliseconds() -> None:
    assert read_patience({}) is None
    assert read_patience({"x-pointsman-deadline-ms": "1500"}) == 1.5
    for word in ("", "soon", "nan", "inf", "-1", "0", "1e999"):
        with pytest.raises(PointsmanError, match="E4010"):
            read_patience({"x-pointsman-deadline-ms": word})
