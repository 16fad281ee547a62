"""Two instances, any interleaving of requests, failures and news: a session moves only when its deployment left."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pointsman.custom_router.affinity import Affinity
from pointsman.custom_router.decide import Decider
from pointsman.custom_router.pins import Pin, winner
from pointsman.custom_router.request import Candidate, Prices, RoutingRequest, Session
from pointsman.decisions import Decision
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import StickySettings
from pointsman.settings import RoutingSettings

NAMES = "abc"
PRICE = {"a": 1e-6, "b": 2e-6}
TTL = 100.0
TENANTS = (("key-1", None, None), ("key-2", None, None), (None, "team", None))

instances = st.integers(0, 1)
tenants = st.sampled_from(TENANTS)
sessions = st.sampled_from(["one", "two", "three"])
some = st.sets(st.sampled_from(NAMES), max_size=2)


def score(text: str, _: str | None) -> dict[str, float]:
    """The text is the order of preference."""
    return {name: -float(place) for place, name in enumerate(text)}


class Asks:
    """A strategy that waits once, so that requests overlap."""

    version, kind, scale, models = "1", "custom", "rank", tuple(NAMES)

    async def score_async(self, query: Any) -> dict[str, float]:
        await asyncio.sleep(0)
        return score(query.text, None)


class Sticky(RuleBasedStateMachine):
    """The deciders are real; the model knows which pins were made for whom, and where each session was last."""

    def __init__(self) -> None:
        super().__init__()
        self.monotonic, self.wall = 1_000.0, 1_700_000_000.0
        self.loop = asyncio.new_event_loop()
        self.gone: list[set[str]] = [set(), set()]
        self.mail: list[tuple[int, str]] = []
        self.made: dict[Any, set[Pin]] = {}
        self.last: dict[Any, str] = {}

    @initialize(prompt=st.booleans(), priced=st.booleans(), tight=st.booleans(), skew=st.sampled_from([0.0, 1e6, -1e6]))
    def start(self, prompt: bool, priced: bool, tight: bool, skew: float) -> None:
        """`prompt`: news arrive before the next request does, else they lie about. `tight`: there is too little memory.

        Neither clock of the one has anything in common with the other's.
        """
        self.prompt, self.priced = prompt, priced
        self.bound, self.share = (6, 2) if tight else (9, 9)
        sticky = StickySettings(enabled=True, ttl=TTL, max_sessions=self.bound, max_sessions_per_tenant=self.share)
        self.affinities = [
            Affinity(sticky, b"k", lambda: self.monotonic, lambda: self.wall),
            Affinity(sticky, b"k", lambda: self.monotonic + 1e5, lambda: self.wall + skew),
        ]
        shelf: Any = SimpleNamespace(get=lambda name: Asks() if name == "s" else None)
        self.deciders = [
            Decider(RoutingSettings(default="s", deadline_ms=5000), shelf, {}, capture_prompts=False, affinity=one)
            for one in self.affinities
        ]

    def teardown(self) -> None:
        if hasattr(self, "deciders"):
            self.agree()
            for decider in self.deciders:
                decider.close()
        self.loop.close()

    def asked(self, instance: int, tenant: Any, session: str, wish: str) -> RoutingRequest:
        candidates = tuple(
            Candidate(name, f"x/{name}", (name,), None, Prices(PRICE[name], 0.0) if self.priced and name in PRICE else None)
            for name in NAMES
            if name not in self.gone[instance]
        )
        key, team, user = tenant
        asked = RoutingRequest("auto", wish, candidates, None, None, key, team, user, (0, 0), frozenset())
        return replace(
            asked, sessions=(Session("header", session),), messages=[{"role": "user", "content": wish * 100}], session=session
        )

    def key(self, tenant: Any, session: str) -> bytes:
        found = self.affinities[0].key(tenant, "auto", [Session("header", session)])
        assert found is not None
        return found

    @rule(
        instance=instances,
        tenant=tenants,
        session=sessions,
        wishes=st.lists(st.permutations(NAMES).map("".join), min_size=1, max_size=3),
        failed=some,
        litellm=st.booleans(),
    )
    def request(self, instance: int, tenant: Any, session: str, wishes: list[str], failed: set[str], litellm: bool) -> None:
        """Some requests of a session at the same time, in which some deployments have failed before."""
        self.monotonic, self.wall = self.monotonic + 0.01, self.wall + 0.01
        affinity, decider, key = self.affinities[instance], self.deciders[instance], self.key(tenant, session)
        before, whose = affinity.find(key), (tenant, session)
        assert before is None or before in self.made[whose], "nobody has another's pin"
        tickets = [Ticket(failed=set(failed)) for _ in wishes]

        async def run() -> list[Decision]:
            requests = [self.asked(instance, tenant, session, wish) for wish in wishes]
            if litellm:  # no text: no strategy, and LiteLLM chooses
                requests = [replace(one, text="") for one in requests]
            return await asyncio.gather(*(decider.decide(one, ticket) for one, ticket in zip(requests, tickets, strict=True)))

        decisions = self.loop.run_until_complete(run())
        here = set(NAMES) - self.gone[instance]
        there = here - failed
        for decision, ticket, wish in zip(decisions, tickets, wishes, strict=True):
            pick = decision.order[0] if decision.order else next(name for name in wish if name in (there or here))
            decider.answered(ticket, pick, 10, 10)
            after = affinity.find(key)
            assert after is not None
            self.made.setdefault(whose, set()).add(after)
            assert pick in here
            assert litellm or decision.strategy in ("s", "sticky") or len(decision.order) == 1, decision.fallback
            if decision.strategy == "sticky":
                assert (decision.policy, decision.chosen_by, decision.propensity) == ("sticky", "session", None)
                assert {one.deployment_id for one in decision.dropped if one.reason == "sticky"} == (there or here) - {pick}
            if before is not None and before.deployment_id in there and after.deployment_id != before.deployment_id:
                self.went_back(before, after)
            elif before is not None and before.deployment_id in there:
                assert pick == before.deployment_id, "it stays"
                assert after == before
        if there:
            picks = {one.order[0] for one in decisions if one.order}
            assert len(picks) <= 1 or self.priced, "requests of a session at the same time go to one deployment"
        last, now = self.last.get(whose), affinity.find(key)
        assert now is not None
        if self.prompt and last in there and last != now.deployment_id and not self.forgot():
            assert before is not None
            self.went_back(before, now)
        self.last[whose] = now.deployment_id
        if self.prompt:
            self.exchange([])

    def went_back(self, before: Pin, after: Pin) -> None:
        """The only move from a deployment that is there."""
        assert self.priced
        assert after.deployment_id == before.left
        assert PRICE[after.deployment_id] < PRICE[before.deployment_id]

    @rule(instance=instances, gone=some)
    def leave(self, instance: int, gone: set[str]) -> None:
        """Breakers open, deployments rest or return, as this instance sees it."""
        self.gone[instance] = gone

    @rule(order=st.lists(st.integers(0, 100), max_size=6))
    def exchange(self, order: list[int]) -> None:
        """News come in any order, some of them twice."""
        for sender in range(2):
            self.mail += [(1 - sender, json.dumps(fact)) for fact in self.affinities[sender].news()]
        for number in order:
            if self.mail:
                receiver, fact = self.mail[number % len(self.mail)]
                self.learn(receiver, fact)
        while self.mail:
            self.learn(*self.mail.pop(order[0] % len(self.mail) if order else 0))

    def learn(self, receiver: int, said: str) -> None:
        affinity, fact = self.affinities[receiver], json.loads(said)
        key = bytes.fromhex(fact["session"])
        before = affinity.find(key)
        assert affinity.adopt([fact]) == 0
        after = affinity.find(key)
        assert before is None or after == before or (after is not None and winner(before, after) == after)

    @rule(seconds=st.floats(0, TTL / 2), jump=st.sampled_from([0.0, 0.0, 0.0, 3600.0, -3600.0]))
    def wait(self, seconds: float, jump: float) -> None:
        """Time passes; news are faster. Both instances' wall clock may jump."""
        self.exchange([])
        self.exchange([])
        self.monotonic += seconds
        self.wall += seconds + jump
        for whose in [whose for whose in self.last if all(one.find(self.key(*whose)) is None for one in self.affinities)]:
            del self.last[whose]  # it has ended

    @invariant()
    def memory_is_bounded(self) -> None:
        for affinity in getattr(self, "affinities", ()):
            assert len(affinity) <= self.bound
            assert len(affinity._untold) <= self.bound
            assert sum(map(len, affinity._tenants.values())) == len(affinity)
            for own in affinity._tenants.values():
                assert len(own) <= self.share

    def forgot(self) -> bool:
        return any(one.forgotten for one in self.affinities)

    def agree(self) -> None:
        """When all news have come, all that know a session know the same of it."""
        for _ in range(4):
            self.exchange([])
        assert not self.mail
        one, two = self.affinities
        for key in (self.key(*whose) for whose in self.made):
            pins = {pin for pin in (one.find(key), two.find(key)) if pin is not None}
            assert len(pins) <= 1 or self.forgot()


TestSticky = Sticky.TestCase
TestSticky.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
