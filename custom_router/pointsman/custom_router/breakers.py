"""A worker's breakers, by upstream: whom of a group a request may try, what its attempts said, what others saw.

Everything is decided from this process's memory. What changed here is told to the supervisor (`news`), what others saw comes
in the background (`adopt`); without either the breakers are the worker's own. The worker that opened a breaker probes first;
where it does not tell how that went within a second, each of the others sends its own probes.

One event loop owns it; nothing here waits. Clock and chance are given: monotonic seconds, and a number in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from pointsman.custom_router.breaker import Breaker, Closed, HalfOpen, Open, Verdict
from pointsman.custom_router.breaker_facts import Fact
from pointsman.custom_router.breaker_view import HELD, OPEN, PROBING, details, name_of
from pointsman.custom_router.breaker_view import shut as why_shut
from pointsman.custom_router.upstream import upstream_of
from pointsman.resilience_settings import BreakerSettings

__all__ = ["HELD", "OPEN", "PROBING", "Admission", "Breakers", "Transition"]

MAX_UPSTREAMS = 10_000


class Deployment(Protocol):
    """What is needed of a candidate."""

    @property
    def deployment_id(self) -> str: ...
    @property
    def upstream(self) -> str: ...
    @property
    def account(self) -> str: ...


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
        self.suspected: Collection[str] = ()
        """Upstreams that serve, and from which nothing has come for longer than is usual (`stalls` writes it)."""
        self._breakers: dict[str, Breaker] = {}
        self._upstreams: dict[str, str] = {}
        self._configured: dict[str, str] = {}
        self._accounts: dict[str, str] = {}
        self._shared: dict[str, set[str]] = {}
        """Upstream -> its accounts."""
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
        self._meet(group)
        if not self._rules.enabled:
            return NOBODY
        now = self._clock()
        shut: dict[str, tuple[str, float]] = {}
        probing: dict[str, list[str]] = {}
        for one in group:
            for name in self._names(one.deployment_id):
                breaker = self._breakers.get(name)
                if breaker is None or isinstance(breaker.state, Closed):
                    continue
                state = self._keep(name, breaker.at(now)).state
                if (why := why_shut(state, self._rules, now)) is not None:
                    before = shut.get(one.deployment_id, why)
                    shut[one.deployment_id] = max(before, why, key=lambda item: (item[0] == HELD, item[1]))
                elif isinstance(state, HalfOpen):
                    probing.setdefault(one.deployment_id, []).append(name)
        self.panicked = False
        if not shut and not probing:
            return NOBODY
        out, panic = self._ejected(shut, len(group))
        self.panicked = panic
        remains = {one.deployment_id for one in remaining}
        names = (name for who, found in probing.items() if who in remains and who not in shut for name in found)
        taken = [name for name in dict.fromkeys(names) if self._lease(name, token, now)]
        if taken:
            self._leases[token] = (now + self._rules.probe_timeout, tuple(taken))
        return Admission({name: reason for name, reason in out.items() if name in remains}, panic)

    def resting(self, remaining: Sequence[Deployment]) -> dict[str, str]:
        """Deployment id -> why it may not be tried, where none of them may, whatever the bounds say; else nothing."""
        found: dict[str, str] = {}
        self._meet(remaining)
        for one in remaining if self._rules.enabled else ():
            if (why := self._why(one.deployment_id)) is None:
                return {}
            found[one.deployment_id] = why[0]
        return found

    def seconds_left(self, deployments: Sequence[Deployment]) -> float:
        """Until one of them may be tried; 0: now, or nobody knows."""
        untils = [why[1] for one in deployments if (why := self._why(one.deployment_id)) is not None]
        now = self._clock()
        soonest = min(untils, default=now) - now
        return max(0.0, soonest) if soonest < math.inf else 0.0

    def _why(self, deployment_id: str) -> tuple[str, float] | None:
        """Why it may not be tried now and until when that is so; None: it may."""
        now = self._clock()
        breakers = (self._breakers.get(name) for name in self._names(deployment_id))
        found = (why_shut(breaker.at(now).state, self._rules, now) for breaker in breakers if breaker is not None)
        return max((why for why in found if why is not None), key=lambda why: why[1], default=None)

    def _meet(self, group: Sequence[Deployment]) -> None:
        """Which deployment is which upstream, and with which account."""
        if len(self._upstreams) + len(group) > MAX_UPSTREAMS:
            self._upstreams, self._accounts, self._shared = {}, {}, {}
        for one in group:
            upstream = self._upstreams[one.deployment_id] = one.upstream or one.deployment_id
            if one.account:
                self._accounts[one.deployment_id] = one.account
                self._shared.setdefault(upstream, set()).add(one.account)

    def _names(self, deployment_id: str) -> tuple[str, ...]:
        """Whose breakers count for a deployment: its upstream's, and its account's where that has several."""
        upstream = self._upstreams.get(deployment_id, deployment_id)
        account = self._accounts.get(deployment_id)
        if account is None or len(self._shared.get(upstream, ())) < 2:
            return (upstream,)
        return upstream, f"{upstream} ~{account}"

    def _ejected(self, shut: Mapping[str, tuple[str, float]], size: int) -> tuple[dict[str, str], bool]:
        """Who is dropped of those that rest (id -> reason, until), and whether too few are left."""
        allowed = self.may_rest(size)
        panic = (size - len(shut)) * 100 < self._rules.panic_percent * size
        held = {name for name, (reason, _) in shut.items() if reason == HELD}
        out = held if panic else set(shut)
        if len(out) == size and panic:
            out = set()  # somebody has to be tried
        longest = sorted(out, key=lambda name: (name in held, shut[name][1], name))
        return {name: shut[name][0] for name in longest[max(0, len(longest) - allowed) :]}, panic

    def may_rest(self, size: int) -> int:
        """How many of a group of so many may be left out at a time."""
        return math.floor(size * self._rules.max_ejection_percent / 100 + 1e-9)

    def closed(self, deployment_id: str) -> bool:
        """Whether it serves, as far as is known."""
        breakers = (self._breakers.get(name) for name in self._names(deployment_id))
        return all(one is None or isinstance(one.at(self._clock()).state, Closed) for one in breakers)

    def settle(self, token: str, deployment_id: str) -> None:
        """This one was picked; the leases of the others are free again."""
        _, leased = self._leases.get(token, (0.0, ()))
        own = self._names(deployment_id)
        self._release(token, (name for name in leased if name not in own))

    def release(self, token: str) -> None:
        """Nobody is tried after all."""
        _, leased = self._leases.pop(token, (0.0, ()))
        self._release(token, leased)

    def record(
        self, deployment_id: str, verdict: Verdict, token: str = "", after: float | None = None, *, account: bool = False
    ) -> None:
        """An attempt at a deployment ended.

        Args:
            deployment_id: whose upstream it says something of; one that was never a candidate is passed over.
            verdict: what it says.
            token: as given to `admit`.
            after: seconds of its Retry-After.
            account: it says something of the account alone, where its upstream has several.
        """
        if deployment_id not in self._upstreams or not self._rules.enabled:
            return
        names = self._names(deployment_id)
        if verdict in ("bad", "limited"):
            names = names[-1:] if account else names[:1]
        now = self._clock()
        for name in names:
            breaker = self._breakers.get(name)
            if breaker is None:
                if verdict == "none":
                    continue
                self._breakers[name] = breaker = self._new()
            self._keep(name, breaker.at(now))
            self._keep(name, self._breakers[name].record(verdict, now, self._chance(), token, after))
        self.release(token)

    def stalled(self, upstream: str, tokens: Collection[str]) -> None:
        """Attempts at an upstream, by their tokens, have waited for too long (`stalls`)."""
        now, breaker = self._clock(), self._breakers.get(upstream) or self._new()
        before = self._keep(upstream, breaker.at(now))
        self._keep(upstream, before.stalled(tokens, now, self._chance()))

    def upstream(self, deployment_id: str) -> str | None:
        """The upstream of a deployment that was a candidate."""
        return self._upstreams.get(deployment_id)

    def suspects(self, remaining: Sequence[Deployment]) -> list[str]:
        """Ids of those whose upstream is suspected."""
        if not self.suspected or not self._rules.enabled:
            return []
        return [one.deployment_id for one in remaining if self._upstreams.get(one.deployment_id) in self.suspected]

    def serves_since(self, upstream: str) -> float | None:
        """Monotonic seconds (-inf: always); None: it does not serve."""
        state = breaker.state if (breaker := self._breakers.get(upstream)) is not None else Closed()
        return state.since if isinstance(state, Closed) else None

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
            found[upstream] = name_of(self._keep(upstream, self._breakers[upstream].at(now)).state)
        return found

    def describe(self) -> list[dict[str, Any]]:
        """One JSON object for each of `states`, by name."""
        states, now = self.states(), self._clock()
        deployments: dict[str, list[str]] = {}
        known = {**self._configured, **self._upstreams}
        pairs = ((one, name) for one, upstream in known.items() for name in (upstream, *self._names(one)[1:]))
        for deployment_id, upstream in pairs:
            deployments.setdefault(upstream, []).append(deployment_id)
        never = Breaker(self._rules)
        return [
            {"upstream": upstream, "state": state, "deployments": sorted(deployments.get(upstream, []))}
            | details(self._breakers.get(upstream, never), now)
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
        was, is_ = name_of(before.state) if before is not None else "closed", name_of(breaker.state)
        if was != is_:
            change = Transition(upstream, was, is_, breaker.fact(upstream).cause, heard)
            for told in self.listeners:
                told(change)
        return breaker
