"""Deployments that differ in their key alone: one upstream, several accounts."""

from __future__ import annotations

import pytest

from pointsman.custom_router.breakers import OPEN, Breakers
from pointsman.custom_router.request import Candidate, candidate_of
from pointsman.custom_router.upstream import account_of
from pointsman.custom_router.verdicts import sink
from pointsman.decisions import Attempt
from pointsman.resilience_settings import BreakerSettings

SECRET = b"s" * 32


def deployment(name: str, key: str | None) -> Candidate:
    params = {"model": "openai/m", "api_base": "https://u.example/v1", **({"api_key": key} if key else {})}
    return candidate_of({"model_info": {"id": name}, "litellm_params": params}, secret=SECRET)


class Stand:
    def __init__(self, *group: Candidate) -> None:
        self.group, self.now = group, 100.0
        self.breakers = Breakers(BreakerSettings(jitter=0.0), lambda: self.now, lambda: 0.0)
        self.put = sink(self.breakers)
        self.dropped()

    def dropped(self) -> dict[str, str]:
        return dict(self.breakers.admit(self.group, self.group, "look").dropped)

    def fails(self, name: str, status: int, times: int = 3) -> None:
        for _ in range(times):
            self.put(Attempt("d", 1, name, "openai/m", "error", error="Error", status=status))

    def answers(self, name: str, token: str) -> None:
        self.put(Attempt(token, 1, name, "openai/m", "ok"))


@pytest.mark.requirement("F-3")
@pytest.mark.parametrize("status", [401, 402, 429])
def test_a_key_that_is_refused_or_used_up_takes_no_other_with_it(status: int) -> None:
    stand = Stand(deployment("a", "sk-one"), deployment("b", "sk-two"))
    stand.fails("a", status)
    assert stand.dropped() == {"a": OPEN}
    states = stand.breakers.states()
    assert sorted(states.values()) == ["closed", "open"] or sorted(states.values()) == ["closed", "closed", "open"]
    rests = [row for row in stand.breakers.describe() if row["state"] == "open"]
    assert [row["deployments"] for row in rests] == [["a"]]


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_host_that_fails_fails_for_every_key(status: int) -> None:
    stand = Stand(deployment("a", "sk-one"), deployment("b", "sk-two"), Candidate("c", "x", ("c",), None, None, "up-c"))
    stand.fails("a", status, 2)
    stand.fails("b", status, 1)
    assert stand.dropped() == {"a": OPEN, "b": OPEN}


@pytest.mark.parametrize("keys", [("sk-one", "sk-one"), (None, None)])
def test_one_account_is_the_upstream(keys: tuple[str | None, str | None]) -> None:
    stand = Stand(*(deployment(name, key) for name, key in zip("ab", keys, strict=True)), deployment("c", keys[0]))
    stand.fails("a", 401)
    assert set(stand.breakers.states().values()) == {"open"}


def test_an_account_comes_back_by_probes_of_its_own() -> None:
    stand = Stand(deployment("a", "sk-one"), deployment("b", "sk-two"))
    stand.fails("a", 401)
    stand.now += 5
    for token in ("p1", "p2"):
        assert stand.breakers.admit(stand.group, stand.group, token).dropped == {}
        stand.breakers.settle(token, "a")
        stand.answers("a", token)
    assert set(stand.breakers.states().values()) == {"closed"}


def test_a_held_upstream_is_held_for_every_account() -> None:
    stand = Stand(deployment("a", "sk-one"), deployment("b", "sk-two"), Candidate("c", "x", ("c",), None, None, "up-c"))
    name = stand.breakers.find("a")
    assert name is not None
    stand.breakers.hold(name, open=True, reason="why")
    assert set(stand.dropped()) == {"a", "b"}


def test_the_digest_tells_accounts_apart_and_nothing_of_the_key() -> None:
    one, two = ({"api_key": key} for key in ("sk-one", "sk-two"))
    assert account_of(one, SECRET) == account_of(dict(one), SECRET) != account_of(two, SECRET)
    assert account_of(one, SECRET) != account_of(one, b"another")
    assert account_of({}, SECRET) == account_of(one, b"") == ""
    assert len(account_of(one, SECRET)) == 8
