"""Sticky sessions: who may be told apart, when a pin moves, and that any exchange of news ends with one pin."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.affinity import Affinity, Waiting
from pointsman.custom_router.kwargs import session_of, sessions_of
from pointsman.custom_router.pick import order
from pointsman.custom_router.pins import KEPT, REST, Pin, claimed, goes_back, winner
from pointsman.custom_router.policy import Costs
from pointsman.custom_router.request import Candidate, Session
from pointsman.custom_router.session_keys import session_key, session_secret
from pointsman.resilience_settings import StickySettings

ON = StickySettings(enabled=True)
SECRET = b"s" * 32
TENANT = ("key", "team", "user")
HEADER = Session("header", "one")

pins = st.builds(Pin, st.sampled_from("abc"), st.floats(0, 5), st.integers(0, 3), st.none() | st.sampled_from("abc"))


class Time:
    """Both clocks."""

    def __init__(self) -> None:
        self.monotonic, self.unix = 1_000.0, 1_700_000_000.0

    def pass_(self, seconds: float) -> None:
        self.monotonic += seconds
        self.unix += seconds

    def affinity(self, **given: Any) -> Affinity:
        return Affinity(ON.model_copy(update=given), SECRET, lambda: self.monotonic, lambda: self.unix)


def key(affinity: Affinity, value: str = "one", tenant: tuple[str | None, ...] = TENANT) -> bytes:
    found = affinity.key(tenant, "auto", [Session("header", value)])
    assert found is not None
    return found


# Which session a request is of.


def test_a_session_is_found_wherever_clients_name_one() -> None:
    kwargs = {
        "litellm_session_id": "l",
        "metadata": {"session_id": "m", "contextId": "a2a"},
        "conversation": {"id": "conv_1"},
        "user": "u",
    }
    found = sessions_of(kwargs, {"x-pointsman-session": "h", "mcp-session-id": "mcp"})
    assert [tuple(one) for one in found] == [
        ("header", "h"),
        ("litellm", "l"),
        ("litellm", "m"),
        ("conversation", "conv_1"),
        ("context", "mcp"),
        ("context", "a2a"),
        ("user", "u"),
    ]
    assert session_of(found) == "h"
    assert session_of(sessions_of({"user": "u"}, {})) is None, "a user has many conversations"
    assert sessions_of({"conversation": "conv_1"}, {}) == (Session("conversation", "conv_1"),)
    assert sessions_of({"litellm_metadata": {"session_id": "m"}, "metadata": None}, {}) == (Session("litellm", "m"),)


def test_an_id_that_litellm_made_up_is_none() -> None:
    made_up = {"litellm_session_id": "x", "metadata": {"session_id": "x", "litellm_session_id_generated": True}}
    assert sessions_of(made_up, {}) == ()


@given(
    st.dictionaries(
        st.sampled_from(["metadata", "litellm_metadata", "litellm_session_id", "conversation", "user"]),
        st.one_of(
            st.none(),
            st.integers(),
            st.text(max_size=3),
            st.lists(st.integers(), max_size=2),
            st.dictionaries(
                st.sampled_from(["session_id", "id", "contextId"]), st.none() | st.integers() | st.text(max_size=3)
            ),
        ),
    )
)
def test_whatever_a_client_sends_is_a_text_or_no_session(kwargs: dict[str, Any]) -> None:
    assert all(isinstance(one.value, str) and one.value for one in sessions_of(kwargs, {}))


def test_sources_are_asked_in_the_configured_order() -> None:
    both = (Session("header", "h"), Session("user", "u"))
    time = Time()
    first = time.affinity().key(TENANT, "auto", both)
    assert first == time.affinity().key(TENANT, "auto", both[:1])
    assert time.affinity(sources=("user", "header")).key(TENANT, "auto", both) == time.affinity().key(TENANT, "auto", both[1:])
    assert time.affinity(sources=("user",)).key(TENANT, "auto", both[:1]) is None
    assert time.affinity(groups=("other",)).key(TENANT, "auto", both) is None
    assert time.affinity(enabled=False).key(TENANT, "auto", both) is None
    assert StickySettings().enabled is False


words = st.none() | st.text(max_size=4)


@given(
    *[st.tuples(st.tuples(words, words, words), st.text(max_size=4), st.sampled_from(["header", "user"]), st.text(max_size=4))]
    * 2
)
def test_two_tenants_groups_or_sources_never_share_a_session(one: Any, other: Any) -> None:
    def made(given: Any) -> bytes | None:
        tenant, group, source, value = given
        return session_key(SECRET, tenant, group, Session(source, value))

    def same(given: Any) -> Any:
        return tuple(part or "" for part in given[0]), *given[1:]

    if not any(one[0]):
        assert made(one) is None, "who could be anybody has no session"
    elif any(other[0]):
        assert (made(one) == made(other)) == (same(one) == same(other))
        assert (made(one)[:8] == made(other)[:8]) == (same(one)[0] == same(other)[0])  # type: ignore[index]


def test_the_key_of_the_digests_is_shared_by_those_who_share_the_salt_key() -> None:
    env = {"LITELLM_SALT_KEY": "sk-salt", "LITELLM_MASTER_KEY": "sk-1"}
    assert (
        session_secret(env)
        == session_secret({**env, "LITELLM_MASTER_KEY": "sk-2"})
        != session_secret({"LITELLM_MASTER_KEY": "sk-1"})
    )
    assert session_secret({}) != session_secret({}), "without one it is of the process alone"
    secrets = session_secret(env), session_secret({})
    assert session_key(secrets[0], TENANT, "g", HEADER) != session_key(secrets[1], TENANT, "g", HEADER)


# The pin.


@given(pins, pins, pins)
def test_the_order_of_news_does_not_matter(one: Pin, two: Pin, three: Pin) -> None:
    assert winner(one, one) == one
    assert winner(one, two) == winner(two, one)
    assert winner(winner(one, two), three) == winner(one, winner(two, three))


def test_more_moves_win_and_then_the_oldest() -> None:
    assert winner(Pin("b", 9, moves=1), Pin("a", 1)).deployment_id == "b"
    assert winner(Pin("b", 1), Pin("a", 2)).deployment_id == "b"
    assert winner(Pin("b", 1), Pin("a", 1)).deployment_id == "a"


@given(st.none() | pins, st.sampled_from("abc"), st.sets(st.sampled_from("abc")))
def test_a_pin_moves_only_when_its_deployment_left(pin: Pin | None, chosen: str, there: set[str]) -> None:
    after, what = claimed(pin, chosen, there, 7.0)
    if pin is None:
        assert (after, what) == (Pin(chosen, 7.0), "new")
    elif after != pin:
        assert what == "moved"
        assert pin.deployment_id not in there
        assert winner(after, pin) == after, "the others follow"
        assert (after.deployment_id, after.left) == (chosen, pin.deployment_id)
    else:
        assert what == KEPT


def test_it_goes_back_only_where_that_is_cheaper_after_the_lost_cache() -> None:
    there, away = {"home", "here"}, Pin("here", 9.0, 1, "home")
    cheaper = Costs({"home": 1.0, "here": 3.0})
    assert goes_back(away, there, cheaper, REST, 77.0) == Pin("home", 77.0, 2)
    assert goes_back(away, there, Costs(cheaper.expected, {"home": 2.0}), REST, 77.0) is None
    assert goes_back(away, there, Costs(cheaper.expected, {"home": 1.9}), REST, 77.0) is not None
    assert goes_back(away, there, Costs({"home": 3.0, "here": 3.0}), REST, 77.0) is None
    assert goes_back(away, there, Costs({"home": 1.0}), REST, 77.0) is None, "without prices there is nothing to weigh"
    assert goes_back(away, {"here"}, cheaper, REST, 77.0) is None
    assert goes_back(away, there, cheaper, REST - 1, 77.0) is None
    assert goes_back(Pin("here", 0.0, 1), there, cheaper, REST, 77.0) is None


# What a worker remembers.


def test_a_session_ends_when_it_is_not_used() -> None:
    time = Time()
    affinity = time.affinity(ttl=100)
    mine = key(affinity)
    affinity.claim(mine, "a", {"a"})
    for _ in range(3):
        time.pass_(90)
        assert affinity.claim(mine, "b", {"a", "b"})[0].deployment_id == "a"
    time.pass_(101)
    assert affinity.find(mine) is None
    assert len(affinity) == 0
    assert affinity.claim(mine, "b", {"a", "b"}) == (Pin("b", time.unix), "new")


def test_a_jump_of_the_clock_ends_nothing() -> None:
    time = Time()
    affinity = time.affinity(ttl=100)
    mine = key(affinity)
    affinity.claim(mine, "a", {"a"})
    other = time.affinity(ttl=100)
    for jump in (1e6, -3e6):
        time.unix += jump
        assert affinity.claim(mine, "b", {"a", "b"})[0].deployment_id == "a"
        tell(affinity, other)
        assert other.find(mine) == affinity.find(mine), "nor is anything told by the clock on the wall"


def test_memory_is_bounded_and_one_tenant_cannot_make_anothers_sessions_forgotten() -> None:
    time = Time()
    affinity = time.affinity(max_sessions=100, max_sessions_per_tenant=10)
    mine = key(affinity, "mine", ("me", None, None))
    affinity.claim(mine, "a", {"a"})
    for number in range(500):
        affinity.claim(key(affinity, str(number), ("flood", None, None)), "b", {"b"})
    assert affinity.find(mine) is not None
    assert len(affinity) == 11
    assert affinity.forgotten == 490
    for number in range(500):
        affinity.claim(key(affinity, "s", (str(number), None, None)), "b", {"b"})
    assert len(affinity) == 100
    assert len(affinity._tenants) == 100
    assert affinity.find(mine) is None


def test_requests_that_begin_a_session_together_go_to_one_deployment() -> None:
    affinity = Time().affinity()
    mine = key(affinity)
    assert affinity.claim(mine, "a", {"a", "b"})[0].deployment_id == "a"
    assert affinity.claim(mine, "b", {"a", "b"})[0].deployment_id == "a"
    # Where LiteLLM chooses, the first to answer settles it.
    other = key(affinity, "two")
    waits = Waiting(other, None, frozenset("ab"), frozenset("ab"))
    affinity.answered(waits, "b")
    affinity.answered(waits, "a")
    affinity.answered(Waiting(key(affinity, "three"), None, frozenset("ab"), frozenset("ab")), "of another group")
    assert affinity.find(other) == Pin("b", affinity.find(other).since)  # type: ignore[union-attr]
    assert len(affinity) == 2


# What workers tell each other.


def tell(one: Affinity, other: Affinity) -> None:
    """As JSON, as it would travel."""
    other.adopt(json.loads(json.dumps(one.news())))


def test_another_instance_follows_and_agrees() -> None:
    time = Time()
    one, two = time.affinity(), time.affinity()
    mine = key(one)
    one.claim(mine, "a", {"a", "b"})
    tell(one, two)
    assert two.claim(mine, "b", {"a", "b"})[0].deployment_id == "a"
    time.pass_(1)
    two.claim(mine, "b", {"b"})  # a has left there
    tell(two, one)
    assert one.claim(mine, "a", {"a", "b"})[0] == two.find(mine) == Pin("b", time.unix, 1, "a")
    assert one.news() == two.news() == [], "what was learned is not told again"


def test_who_tells_of_a_worse_pin_is_told_of_the_better_one() -> None:
    time = Time()
    one, two = time.affinity(), time.affinity()
    mine = key(one)
    one.claim(mine, "a", {"a"})
    one.news()  # lost on its way
    time.pass_(1)
    two.claim(mine, "b", {"a", "b"})
    tell(two, one)
    tell(one, two)
    assert one.find(mine) == two.find(mine)
    assert two.claim(mine, "b", {"a", "b"})[0].deployment_id == "a"


def test_a_session_that_goes_on_is_told_of_now_and_then() -> None:
    time = Time()
    one, two = time.affinity(ttl=100), time.affinity(ttl=100)
    mine = key(one)
    for _ in range(40):
        one.claim(mine, "a", {"a"})
        tell(one, two)
        time.pass_(10)
        assert two.find(mine) is not None
    time.pass_(100)
    tell(one, two)
    assert two.find(mine) is None


def test_news_that_wait_are_bounded_and_come_with_the_sessions_next_request() -> None:
    time = Time()
    affinity = time.affinity()
    affinity.MAX_FACTS = 3  # type: ignore[misc]
    keys = [key(affinity, str(number)) for number in range(5)]
    for one in keys:
        affinity.claim(one, "a", {"a"})
    assert [fact["session"] for fact in affinity.news()] == [one.hex() for one in keys[2:]]
    for one in keys:
        affinity.claim(one, "a", {"a"})
    assert [fact["session"] for fact in affinity.news()] == [one.hex() for one in keys[:2]]
    assert affinity.news() == []


GOOD = {"session": "00" * 24, "deployment": "a", "since": 1.0, "moves": 0, "left": None, "age": 9.0, "idle": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"session": "00"},
        {"session": "zz" * 24},
        {"session": None},
        {"deployment": ""},
        {"deployment": 1},
        {"deployment": "x" * 513},
        {"left": 1},
        {"moves": -1},
        {"moves": True},
        {"moves": 2**31},
        {"since": math.nan},
        {"since": math.inf},
        {"since": 10**400},
        {"idle": None},
        {"idle": -1},
        {"age": "1"},
        {"age": True},
    ],
)
def test_news_that_mean_nothing_are_counted_and_passed_over(change: dict[str, Any]) -> None:
    affinity = Time().affinity()
    assert affinity.adopt([{**GOOD, **change}, GOOD]) == 1
    assert len(affinity) == 1


def test_news_of_a_session_that_has_ended_are_none() -> None:
    affinity = Time().affinity(ttl=100)
    assert affinity.adopt([{**GOOD, "idle": 101}]) == 0
    assert len(affinity) == 0


# Among equals.


@given(st.sets(st.sampled_from("abcdefgh"), min_size=2), st.binary(min_size=24, max_size=24), st.data())
def test_a_session_is_drawn_to_one_of_equals_and_goes_elsewhere_only_when_that_leaves(
    names: set[str], session: bytes, data: st.DataObject
) -> None:
    equals = [Candidate(name, "x/m", (name,), None) for name in names]
    first = order(data.draw(st.permutations(equals)), dict.fromkeys(names, 1.0), session)
    gone = data.draw(st.sampled_from(sorted(names)))
    left = [one for one in equals if one.deployment_id != gone]
    assert order(left, dict.fromkeys(names, 1.0), session) == tuple(name for name in first if name != gone)


def test_sessions_are_spread_over_equals_and_a_score_or_a_price_comes_first() -> None:
    equals = [Candidate(name, "x/m", (name,), 1.0) for name in "abcd"]
    keys = [number.to_bytes(24) for number in range(4_000)]
    counts = Counter(order(equals, dict.fromkeys("abcd", 1.0), key)[0] for key in keys)
    assert all(900 < counts[name] < 1_100 for name in "abcd"), counts
    cheaper = [*equals, Candidate("e", "x/m", ("e",), 0.5)]
    assert {order(cheaper, dict.fromkeys("abcde", 1.0), key)[0] for key in keys[:50]} == {"e"}
    assert {order(equals, {"a": 1.0, "b": 2.0}, key)[0] for key in keys[:50]} == {"b"}
    assert order(equals, {}) == tuple("abcd"), "without a session, by name"
