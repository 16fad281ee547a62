"""Who chooses the strategy, and who may."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.override import COST_WEIGHT_HEADER, STRATEGY_HEADER, Choice, Wish, choose, read_wish
from pointsman.errors import AccessError, RequestError
from pointsman.settings import RoutingSettings

KNOWN = {"one", "two", "three", "four"}


def wish(headers: dict[str, str], key: Any = None, team: Any = None, admin: bool = False) -> Wish:
    return read_wish(headers, key, team, admin=admin, known=KNOWN.__contains__)


name = st.sampled_from([None, "litellm", "unknown", "one", "two"])


@given(name.filter(lambda one: one != "unknown"), name, name, name, name, st.booleans())
def test_the_first_that_exists_decides(
    header: str | None, key: str | None, team: str | None, group: str | None, default: str | None, has_group: bool
) -> None:
    asked = wish(
        {STRATEGY_HEADER: header} if header else {},
        {"pointsman_allow_override": True, **({"pointsman_strategy": key} if key else {})},
        {"pointsman_strategy": team} if team else {},
    )
    routing = RoutingSettings(groups={"g": group} if has_group else {}, default=default)
    choice = choose(asked, "g", routing, KNOWN.__contains__)
    wanted = [("header", header), ("key", key), ("team", team)]
    first = next(((by, one) for by, one in wanted if one and (one in KNOWN or one == "litellm")), None)
    if first is not None:
        assert (choice.by, choice.name) == (first[0], None if first[1] == "litellm" else first[1])
    else:
        assert choice == Choice(group if has_group else default, "group" if has_group else "default", choice.ignored)
    assert set(choice.ignored) <= {"unknown"}


@pytest.mark.parametrize(
    ("key", "team", "admin", "allowed"),
    [
        ({}, {}, False, set()),
        ({}, {}, True, {"strategy", "cost_weight"}),
        ({"pointsman_allow_override": True}, {}, False, {"strategy", "cost_weight"}),
        ({"pointsman_allow_override": ["strategy"]}, {}, False, {"strategy"}),
        ({}, {"pointsman_allow_override": ["cost_weight"]}, False, {"cost_weight"}),
        ({"pointsman_allow_override": False}, {"pointsman_allow_override": True}, False, set()),
        ({"pointsman_allow_override": "true"}, {}, False, set()),
        (None, "nonsense", False, set()),
    ],
)
def test_who_may_not_is_refused(key: Any, team: Any, admin: bool, allowed: set[str]) -> None:
    for word, header, value in (("strategy", STRATEGY_HEADER, "one"), ("cost_weight", COST_WEIGHT_HEADER, "0.5")):
        if word in allowed:
            assert wish({header: value}, key, team, admin) in (Wish((("header", "one"),)), Wish((), 0.5))
        else:
            with pytest.raises(AccessError, match=r"may not choose") as refused:
                wish({header: value}, key, team, admin)
            assert (refused.value.code, refused.value.status, refused.value.where) == ("E4110", 403, header)


@pytest.mark.parametrize("value", ["", "-1", "1001", "nan", "inf", "much", "0x1", "1e9999"])
def test_a_weight_that_means_nothing_is_refused(value: str) -> None:
    with pytest.raises(RequestError) as refused:
        wish({COST_WEIGHT_HEADER: value}, admin=True)
    assert (refused.value.code, refused.value.status) == ("E4010", 400)


def test_a_strategy_that_does_not_exist_is_refused_in_a_header_and_passed_over_in_metadata() -> None:
    with pytest.raises(RequestError, match="no strategy"):
        wish({STRATEGY_HEADER: "unknown"}, admin=True)
    choice = choose(wish({}, {"pointsman_strategy": "unknown"}), "g", RoutingSettings(default="one"), KNOWN.__contains__)
    assert choice == Choice("one", "default", ("unknown",))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(
    st.dictionaries(st.sampled_from([STRATEGY_HEADER, COST_WEIGHT_HEADER]), st.text()),
    st.dictionaries(st.sampled_from(["pointsman_strategy", "pointsman_allow_override"]), anything) | anything,
)
def test_whatever_is_sent_is_understood_or_refused(headers: dict[str, str], metadata: Any) -> None:
    try:
        asked = wish(headers, metadata, metadata)
    except (AccessError, RequestError):
        return
    choose(asked, "g", RoutingSettings(), KNOWN.__contains__)
