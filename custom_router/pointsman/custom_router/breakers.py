"""A worker's breakers, by upstream: whom of a group a request may try, what its attempts said, what others saw.

Everything is decided from this process's memory. What changed here is told to the supervisor (`news`), what others saw comes
in the background (`adopt`); without either the breakers are the worker's own. The worker that opened a breaker probes first;
where it does not tell how that went within a second, each of the others sends its own probes.

One event loop owns it; nothing here waits. Clock and chance are given: monotonic seconds, and a number in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from pointsman.custom_router.breaker import Breaker, Closed, HalfOpen, Held, Open, State, Verdict
from pointsman.custom_router.breaker_facts import Fact
from pointsman.custom_router.upstream import upstream_of
from pointsman.resilience_settings import BreakerSettings

__all__ = ["HELD", "OPEN", "PROBING", "Admission", "Breakers", "Transition"]

OPEN, PROBING, HELD = "breaker_open", "breaker_probing", "breaker_held"
"""Why a candidate is dropped: it rests, as many probes as may are under way, an administrator said so."""

MAX_UPSTREAMS = 10_000


class Deployment(Protocol):
    """What is needed of a candidate."""

    @property
    def deployment_id(self) -> str: ...
    @property
    def upstream(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may not be tried: deployment id -> reason; and whether so few are left that nearly all are."""

    dropped: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    panic: bool = False


NOBODY = Admission()


@dataclass(frozen=True, slots=True)
class Transition:
    """One breaker went from one state to another (`closed`, `open`, `half_open`, `held_open`, `held_closed`).

    `heard`: another worker or instance told it.
    """

    upstream: str
    before: str
    after: str
    cause: str | None
    heard: bool = False


class Breakers:
    """See the module.

    Args:
        rules: the settings.
        clock: monotonic seconds.
        chance: a number in [0, 1) each time.
        told: is given each transition; must neither block nor raise.
    """

    def __init__(
        self,
        rules: BreakerSettings,
        clock: Callable[[], float],
        chance: Callable[[], float],
        told: Callable[[Transition], None] = lambda _: None,
    ) -> None:
        self._rules, self._clock, self._chance = rules, clock, chance
        self.listeners = [told]
        """Are given each transition; must neither block nor raise."""
        self.panicked = False
        """Whether at the last `admit` so few were left that nearly all are tried."""
        self._breakers: dict[str, Breaker] = {}
        self._upstreams: dict[str, str] = {}
        self._configured: dict[str, str] = {}
        self._leases: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._news: dict[str, None] = {}

    # For a request.

    def admit(self, group: Sequence[Deployment], remaining: Sequence[Deployment], token: str) -> Admission:
        """Whom of `remaining` an attempt may not try; the bounds are reckoned over the whole `group`.

        Each that is half open and may be tried is leased to `token`, until `settle` tells who was picked, `record` how it
        ended, or the lease's time is over.

        At most `max_ejection_percent` of the group are dropped, rounded down; those that are back soonest are tried first,
        those that an administrator holds last. With less than `panic_percent` left nobody is dropped, but those so held while
        others are left.
        """
        for one in group:
            self._upstreams[one.deployment_id] = one.upstream or one.deployment_id
        if len(self._upstreams) > MAX_UPSTREAMS:
            self._upstreams = {one.deployment_id: one.upstream or one.deployment_id for one in group}
        if not self._rules.enabled:
            return NOBODY
        now = self._clock()
        shut: dict[str, tuple[str, float]] = {}
        probing: list[str] = []
        for one in group:
            breaker = self._breakers.get(self._upstreams[one.deployment_id])
            if breaker is None or isinstance(breaker.state, Closed):
                continue
            state = self._keep(self._upstreams[one.deployment_id], breaker.at(now)).state
            why = _shut(state, self._rules, now)
            if why is not None:
                shut[one.deployment_id] = why
            elif isinstance(state, HalfOpen):
                probing.append(one.deployment_id)
        self.panicked = False
        if not shut and not probing:
            return NOBODY
        out, panic = self._ejected(shut, len(group))
        self.panicked = panic
        remains = {one.deployment_id for one in remaining}
        taken = [
            upstream
            for upstream in dict.fromkeys(self._upstreams[name] for name in probing if name in remains)
            if self._lease(upstream, token, now)
        ]
        if taken:
            self._leases[token] = (now + self._rules.probe_timeout, tuple(taken))
        return Admission({name: reason for name, reason in out.items() if name in remains}, panic)

    def resting(self, remaining: Sequence[Deployment]) -> dict[str, str]:
        """Deployment id -> why it may not be tried, where none of them may, whatever the bounds say; else nothing."""
        found: dict[str, str] = {}
        now = self._clock()
        for one in remaining if self._rules.enabled else ():
            breaker = self._breakers.get(one.upstream or one.deployment_id)
            why = _shut(breaker.at(now).state, self._rules, now) if breaker is not None else None
            if why is None:
                return {}
            found[one.deployment_id] = why[0]
        return found

    def seconds_left(self, deployments: Sequence[Deployment]) -> float:
        """Until one of them may be tried; 0: now, or nobody knows."""
        now = self._clock()
        breakers = (self._breakers.get(one.upstream or one.deployment_id) for one in deployments)
        untils = [why[1] for one in breakers if one and (why := _shut(one.at(now).state, self._rules, now)) is not None]
        soonest = min(untils, default=now) - now
        return max(0.0, soonest) if soonest < math.inf else 0.0

    def _ejected(self, shut: Mapping[str, tuple[str, float]], size: int) -> tuple[dict[str, str], bool]:
        """Who is dropped of those that rest (id -> reason, until), and whether too few are left."""
        allowed = math.floor(size * self._rules.max_ejection_percent / 100 + 1e-9)
        panic = (size - len(shut)) * 100 < self._rules.panic_percent * size
        held = {name for name, (reason, _) in shut.items() if reason == HELD}
        out = held if panic else set(shut)
        if len(out) == size and panic:
            out = set()  # somebody has to be tried
        longest = sorted(out, key=lambda name: (name in held, shut[name][1], name))
        return {name: shut[name][0] for name in longest[max(0, len(longest) - allowed) :]}, panic

    def closed(self, deployment_id: str) -> bool:
        """Whether it serves, as far as is known."""
        breaker = self._breakers.get(self._upstreams.get(deployment_id, deployment_id))
        return breaker is None or isinstance(breaker.at(self._clock()).state, Closed)

    def settle(self, token: str, deployment_id: str) -> None:
        """This one was picked; the leases of the others are free again."""
        _, leased = self._leases.get(token, (0.0, ()))
        self._release(token, (upstream for upstream in leased if upstream != self._upstreams.get(deployment_id)))

    def release(self, token: str) -> None:
        """Nobody is tried after all."""
        _, leased = self._leases.pop(token, (0.0, ()))
        self._release(token, leased)

    def record(self, deployment_id: str, verdict: Verdict, token: str = "", after: float | None = None) -> None:
        """An attempt at a deployment ended.

        Args:
            deployment_id: whose upstream it says something of; one that was never a candidate is passed over.
            verdict: what it says.
            token: as given to `admit`.
            after: seconds of its Retry-After.
        """
        upstream = self._upstreams.get(deployment_id)
        if upstream is None or not self._rules.enabled:
            return
        breaker = self._breakers.get(upstream)
        if breaker is None:
            if verdict == "none":
                return
            self._breakers[upstream] = breaker = self._new()
        now = self._clock()
        self._keep(upstream, breaker.at(now))
        self._keep(upstream, self._breakers[upstream].record(verdict, now, self._chance(), token, after))
        self.release(token)

    # For administrators, metrics and endpoints.

    def hold(
        self,
        upstream: str,
        *,
        open: bool,  # noqa: A002 - as the breaker's
        reason: str,
        seconds: float | None = None,
        actor: str = "",
    ) -> None:
        """Hold a breaker open or closed, for so long, or until `free`."""
        breaker = self._breakers.get(upstream) or self._new()
        length = seconds if seconds is not None else math.inf
        self._keep(upstream, breaker.hold(open=open, reason=reason, now=self._clock(), seconds=length, actor=actor))

    def free(self, upstream: str) -> None:
        """Hold it no longer; it is closed, and forgets its failures."""
        self._keep(upstream, (self._breakers.get(upstream) or self._new()).free(self._clock()))

    def know(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """The deployments of the configuration (entries of `model_list`); they are told of even before a request came."""
        self._configured = {}
        for entry in entries:
            params, info = entry.get("litellm_params") or {}, entry.get("model_info") or {}
            name = str(info.get("id") or params.get("model") or "")
            if name and "*" not in str(params.get("model")):
                self._configured[name] = upstream_of(params)

    def find(self, name: str) -> str | None:
        """The upstream of that name, or the one of the deployment of that id; None: there is neither."""
        known = {**self._configured, **self._upstreams}
        if name in self._breakers or name in known.values():
            return name
        return known.get(name)

    def states(self) -> dict[str, str]:
        """Upstream -> state, of those that are configured, were candidates or have a breaker."""
        now = self._clock()
        found = dict.fromkeys((*self._configured.values(), *self._upstreams.values()), "closed")
        for upstream in list(self._breakers):
            found[upstream] = _name(self._keep(upstream, self._breakers[upstream].at(now)).state)
        return found

    def describe(self) -> list[dict[str, Any]]:
        """One JSON object for each of `states`, by name."""
        states, now = self.states(), self._clock()
        deployments: dict[str, list[str]] = {}
        for deployment_id, upstream in {**self._configured, **self._upstreams}.items():
            deployments.setdefault(upstream, []).append(deployment_id)
        never = Breaker(self._rules)
        return [
            {"upstream": upstream, "state": state, "deployments": sorted(deployments.get(upstream, []))}
            | _details(self._breakers.get(upstream, never), now)
            for upstream, state in sorted(states.items())
        ]

    # For the supervisor and what it hears.

    def news(self) -> list[dict[str, Any]]:
        """Facts that arose here since the last call, as JSON."""
        now, news = self._clock(), list(self._news)
        self._news.clear()
        return [self._breakers[upstream].fact(upstream).to_wire(now) for upstream in news if upstream in self._breakers]

    def adopt(self, said: Iterable[Mapping[str, Any]]) -> int:
        """Take up what others saw; gives back how many were no facts, and are passed over."""
        now, refused = self._clock(), 0
        for item in said:
            try:
                fact = Fact.from_wire(item, now)
            except ValueError:
                refused += 1
                continue
            before = self._breakers.get(fact.upstream)
            if before is None and fact.state == "closed" and fact.orders == 0 and fact.generation == 0:
                continue
            before = self._keep(fact.upstream, (before or self._new()).at(now))
            after = before.adopt(fact, now)
            own = after is not before and after.state is before.state  # it stands by what it saw: the others should know
            self._keep(fact.upstream, after, news=own and isinstance(after.state, Open | HalfOpen), heard=True)
        return refused

    # Within.

    def _lease(self, upstream: str, token: str, now: float) -> bool:
        leased = self._breakers[upstream].lease(token, now)
        if leased is not None:
            self._keep(upstream, leased)
        for old in list(self._leases):  # oldest first
            if self._leases[old][0] > now:
                break
            del self._leases[old]
        return leased is not None

    def _release(self, token: str, upstreams: Iterable[str]) -> None:
        for upstream in upstreams:
            if upstream in self._breakers:
                self._keep(upstream, self._breakers[upstream].release(token))

    def _new(self) -> Breaker:
        self._make_room()
        return Breaker(self._rules)

    def _make_room(self) -> None:
        """Forget a breaker that serves, where there are too many: models may be named by the caller."""
        if len(self._breakers) >= MAX_UPSTREAMS:
            closed = (name for name, breaker in self._breakers.items() if isinstance(breaker.state, Closed))
            self._breakers.pop(next(closed, next(iter(self._breakers))))

    def _keep(self, upstream: str, breaker: Breaker, *, news: bool | None = None, heard: bool = False) -> Breaker:
        """Put it in its place; tell of what changed. `news`: whether others should hear; None: if it arose here."""
        before = self._breakers.get(upstream)
        if breaker is before:
            return breaker
        self._breakers[upstream] = breaker
        known = (before.orders, before.generation) if before is not None else (0, 0)
        if news or (news is None and (breaker.orders, breaker.generation) != known):
            self._news[upstream] = None
        was, is_ = _name(before.state) if before is not None else "closed", _name(breaker.state)
        if was != is_:
            change = Transition(upstream, was, is_, breaker.fact(upstream).cause, heard)
            for told in self.listeners:
                told(change)
        return breaker


def _shut(state: State, rules: BreakerSettings, now: float) -> tuple[str, float] | None:
    """Why it may not be tried now and until when that is so; None: it may."""
    if isinstance(state, Held):
        return (HELD, state.until) if state.open else None
    if isinstance(state, Open):
        return OPEN, state.until + state.lead
    if isinstance(state, HalfOpen) and state.places(rules, now) <= 0:
        return PROBING, now
    return None


def _name(state: State) -> str:
    if isinstance(state, Held):
        return "held_open" if state.open else "held_closed"
    return {Closed: "closed", Open: "open", HalfOpen: "half_open"}[type(state)]


def _details(breaker: Breaker, now: float) -> dict[str, Any]:
    fact, state = breaker.fact(""), breaker.state
    half = state if isinstance(state, HalfOpen) else None
    closed = state if isinstance(state, Closed) else Closed()
    probe = fact.until + (state.lead if isinstance(state, Open) else 0.0) - now
    good, bad = closed.window.totals()
    return {
        "cause": fact.cause,
        "reason": fact.reason or None,
        "held_by": fact.actor or None,
        "seconds_in_state": round(now - fact.since, 3) if fact.since > -math.inf and half is None else None,
        "seconds_left": round(fact.until - now, 3) if now < fact.until < math.inf else None,
        "seconds_to_probe": round(probe, 3) if isinstance(state, Open) and probe > 0 else None,
        "failures_in_a_row": closed.failures,
        "window": {"good": good, "bad": bad},
        "probes": {"running": sum(until > now for _, until in half.leases), "good": half.good} if half is not None else None,
        "rests": fact.rests,
        "generation": fact.generation,
        "orders": fact.orders,
    }
