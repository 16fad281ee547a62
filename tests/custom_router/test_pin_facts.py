"""What is told of sessions: how long ago, not when; the supervisor's shelf keeps what holds and corrects who is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.affinity import Affinity
from pointsman.custom_router.pin_facts import FRESH, PinFact
from pointsman.custom_router.pins import Pin
from pointsman.custom_router.request import Session
from pointsman.custom_router.session_keys import KEY_BYTES
from pointsman.process.facts import Exchange
from pointsman.process.pool import Worker
from pointsman.process.sharing import shelves
from pointsman.process.sources import Sources
from pointsman.resilience_settings import StickySettings

TTL = 100.0
SESSION = b"s" * KEY_BYTES
pins = st.builds(Pin, st.sampled_from("abc"), st.floats(0, 5), st.integers(0, 3), st.none() | st.sampled_from("abc"))
facts = st.builds(PinFact, st.just(SESSION), pins, st.floats(0, 50), st.floats(0, 50), st.just(TTL))


@given(facts, st.floats(50, 1e6), st.floats(-1e6, 1e6))
def test_a_fact_travels_between_clocks_that_have_nothing_in_common(fact: PinFact, now: float, there: float) -> None:
    read = PinFact.from_wire(fact.to_wire(now), there, TTL)
    assert (read.session, read.pin) == (fact.session, fact.pin)
    assert abs((now - fact.moved) - (there - read.moved)) < 0.002
    assert abs((now - fact.used) - (there - read.used)) < 0.002


@given(st.lists(facts, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_in_which_pins_come_does_not_matter(told: list[PinFact], chance: Any) -> None:
    def held(said: list[PinFact]) -> PinFact:
        known = said[0]
        for fact in said[1:]:
            known = fact.over(known) or known
        return known

    shuffled = [*told, *told[:2]]
    chance.shuffle(shuffled)
    one, other = held(told), held(shuffled)
    assert one.pin == other.pin
    assert abs(one.used - other.used) <= FRESH


def test_a_pin_of_a_session_that_had_ended_does_not_come_back() -> None:
    old = PinFact(SESSION, Pin("a", 1.0, moves=3), 0.0, 0.0, TTL)
    new = replace(old, pin=Pin("b", 500.0), moved=TTL + 1, used=TTL + 1)
    assert new.over(old) == new
    assert old.over(new) is None


class Line:
    """Stands for a worker's channel: what is sent is there at once."""

    unread = 0

    def __init__(self, receive: Any) -> None:
        self.send = receive


def workers(count: int, **sticky: Any) -> tuple[list[Affinity], Callable[[], None]]:
    """Workers of one instance over the supervisor's exchange, and what lets each tell its news once."""
    given_ = StickySettings(enabled=True, **sticky)
    now = [0.0]
    made = [Affinity(given_, b"k", lambda: now[0], lambda: now[0]) for _ in range(count)]
    slots: list[Worker] = []
    exchange = Exchange(shelves(given_), lambda: slots, lambda: now[0])
    for index, one in enumerate(made):
        slots.append(Worker(index, channel=Line(lambda message, one=one: one.adopt(message["facts"]))))

    def tell() -> None:
        now[0] += 0.2
        for slot, one in zip(slots, made, strict=True):
            sources = Sources(lambda message, slot=slot: exchange.heard(slot, message))  # type: ignore[misc]
            sources.add("affinity", one)
            sources.tell()

    return made, tell


def test_a_worker_that_forgot_a_session_over_its_bound_and_began_it_anew_is_corrected() -> None:
    (one, two), tell = workers(2, max_sessions_per_tenant=2)
    tenant = ("key", None, None)
    keys = [key for number in range(3) if (key := one.key(tenant, "auto", [Session("header", str(number))])) is not None]
    for key in keys[:2]:
        one.claim(key, "a", {"a", "b"})
    tell()
    two.claim(keys[2], "a", {"a", "b"})
    assert two.find(keys[0]) is None
    two.claim(keys[0], "b", {"a", "b"})
    tell()
    pin = two.find(keys[0])
    assert pin is not None
    assert pin.deployment_id == "a"
    assert one.find(keys[0]) in (None, pin)


def test_two_workers_that_begin_a_session_at_once_end_with_one_pin() -> None:
    (one, two), tell = workers(2)
    key = one.key(("key",), "auto", [Session("header", "x")])
    assert key is not None
    one.claim(key, "a", {"a", "b"})
    two.claim(key, "b", {"a", "b"})
    tell()
    pin = one.find(key)
    assert pin is not None
    assert pin == two.find(key)
    assert pin.moves == 0


def test_nothing_of_the_client_is_told() -> None:
    affinity = Affinity(StickySettings(enabled=True), b"k")
    key = affinity.key(("key-hash", "team", "user"), "group", [Session("user", "somebody@example.org")])
    assert key is not None
    affinity.claim(key, "deployment", {"deployment"})
    (fact,) = affinity.news()
    assert fact.pop("deployment") == "deployment"
    assert not any(word in str(fact) for word in ("key-hash", "team", "group", "somebody", "example"))
