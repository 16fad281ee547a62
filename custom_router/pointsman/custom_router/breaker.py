"""One upstream's circuit breaker: states as immutable objects that return the next state.

`Closed` -> `Open`: failures in a row, or their share in a sliding window that has seen enough, or answers 429 by a rule of
their own that honours Retry-After. `Open` -> `HalfOpen` when its rest is over. `HalfOpen` -> `Closed` after enough good probes,
-> `Open` after a bad one, for longer than before. `Held`: an administrator's word, until it expires.

No clock, no chance, no I/O in here: `now` is monotonic seconds and `luck` a number in [0, 1), both passed in. A method gives
back the breaker itself where nothing changed. How long a rest is: min(max_recovery, recovery * growth^(rests - 1)), of which
jitter takes off a part; this is exponential back-off, with Envoy's way of forgetting rests after a time without one.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from pointsman.custom_router.breaker_facts import Cause, Fact, FactState
from pointsman.resilience_settings import BreakerSettings

__all__ = ["LEAD", "Breaker", "Closed", "HalfOpen", "Held", "Open", "State", "Verdict"]

Verdict: TypeAlias = Literal["good", "bad", "limited", "none"]
"""What an attempt says of its upstream: it works, it fails, it answered 429, nothing."""

SLOTS = 10
LATE = 32
"""Probes whose time is over, whose end still counts when it comes."""
MAX_EXPONENT = 60
LEAD = 1.0
"""Seconds that who heard of a rest leaves, when it is over, to the one who began it: that one's probe tells the others."""


@dataclass(frozen=True, slots=True)
class Window:
    """Good and bad attempts of the last seconds, in `SLOTS` slots: (number of the slot, good, bad), oldest first.

    A slot is dropped as a whole, so the window is between 9 and 10 tenths of its length.
    """

    slots: tuple[tuple[int, int, int], ...] = ()

    def add(self, good: bool, now: float, length: float) -> Window:
        """With one attempt more, and without what is too old."""
        number = math.floor(now * SLOTS / length)
        kept = tuple(slot for slot in self.slots if number - SLOTS < slot[0] < number)
        last = self.slots[-1] if self.slots and self.slots[-1][0] == number else (number, 0, 0)
        return Window((*kept, (number, last[1] + good, last[2] + (not good))))

    def totals(self) -> tuple[int, int]:
        """Good and bad attempts."""
        return sum(slot[1] for slot in self.slots), sum(slot[2] for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Closed:
    """It serves.

    Attributes:
        since: monotonic seconds.
        rests: rests in a row before; forgotten after `forget_after`.
        failures, limits: bad attempts and answers 429 in a row.
        window: of good and bad attempts.
    """

    since: float = -math.inf
    rests: int = 0
    failures: int = 0
    limits: int = 0
    window: Window = Window()

    def at(self, now: float) -> State:
        """Time alone changes nothing."""
        return self

    def record(self, rules: BreakerSettings, verdict: Verdict, now: float, luck: float, after: float | None) -> State:
        """An attempt ended."""
        if verdict == "none":
            return self
        rests = 0 if now - self.since >= rules.forget_after else self.rests
        if verdict == "limited":
            if after is None and self.limits + 1 < rules.rate_limits:
                return replace(self, limits=self.limits + 1)
            return _limited(rules, now, luck, rests, after)
        good = verdict == "good"
        window = self.window.add(good, now, rules.window)
        if good:
            return replace(self, failures=0, limits=0, window=window)
        well, ill = window.totals()
        if self.failures + 1 >= rules.consecutive_failures:
            return _rest(rules, now, luck, rests + 1, "failures")
        if well + ill >= rules.minimum_volume and ill >= rules.failure_rate * (well + ill):
            return _rest(rules, now, luck, rests + 1, "failure_rate")
        return replace(self, failures=self.failures + 1, window=window)

    def stalled(self, rules: BreakerSettings, tokens: Collection[str], now: float, luck: float) -> State:
        """Attempts wait for too long."""
        if len(tokens) < rules.consecutive_failures:
            return self
        rests = 0 if now - self.since >= rules.forget_after else self.rests
        return _rest(rules, now, luck, rests + 1, "stalled")


@dataclass(frozen=True, slots=True)
class Open:
    """It rests. What ends meanwhile began before, or was tried because too few others are left: it counts for nothing.

    But where it rests because attempts waited, one that is answered shows that it was slow and does not hang.

    Attributes:
        since, until: monotonic seconds.
        rests: rests in a row, this one among them; one for 429 does not count.
        cause: why.
        lead: seconds after `until` that are left to another to probe first; 0: it began here.
    """

    since: float
    until: float
    rests: int
    cause: Cause
    lead: float = 0.0

    def at(self, now: float) -> State:
        """Half open, once the rest is over."""
        return self if now < self.until + self.lead else HalfOpen(self)

    def record(self, rules: BreakerSettings, verdict: Verdict, now: float, luck: float, after: float | None) -> State:
        """Nothing, or that it only was slow."""
        return Closed(now, self.rests) if verdict == "good" and self.cause == "stalled" else self

    def stalled(self, rules: BreakerSettings, tokens: Collection[str], now: float, luck: float) -> State:
        """It rests."""
        return self


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """A few attempts find out whether it is back; each has a lease, and a lease has an end, so none is waited for for ever.

    Attributes:
        opened: the rest that it comes from.
        leases: (token of the attempt, monotonic second at which its place is free again), oldest first.
        good: probes that went well.
    """

    opened: Open
    leases: tuple[tuple[str, float], ...] = ()
    good: int = 0

    def at(self, now: float) -> State:
        """Time alone changes nothing: places are counted when somebody asks for one."""
        return self

    def places(self, rules: BreakerSettings, now: float) -> int:
        """How many more may try now."""
        return rules.probes - sum(until > now for _, until in self.leases)

    def lease(self, rules: BreakerSettings, token: str, now: float) -> HalfOpen | None:
        """With a probe more, or None where there is no place."""
        if any(holder == token and until > now for holder, until in self.leases):
            return self
        if self.places(rules, now) <= 0:
            return None
        over = [lease for lease in self.leases if lease[1] <= now and lease[0] != token]
        running = [lease for lease in self.leases if lease[1] > now]
        return replace(self, leases=(*over[-LATE:], *running, (token, now + rules.probe_timeout)))

    def release(self, token: str) -> HalfOpen:
        """Without that probe: it was not sent, or says nothing."""
        left = tuple(lease for lease in self.leases if lease[0] != token)
        return self if len(left) == len(self.leases) else replace(self, leases=left)

    def probe_ended(
        self, rules: BreakerSettings, token: str, verdict: Verdict, now: float, luck: float, after: float | None
    ) -> State:
        """An attempt ended; it counts if it was a probe, though its time be over."""
        if all(holder != token for holder, _ in self.leases):
            late = verdict == "good" and self.opened.cause == "stalled"  # an attempt from before, answered after all
            return Closed(now, self.opened.rests) if late else self
        if verdict == "bad":
            return _rest(rules, now, luck, self.opened.rests + 1, "probe")
        if verdict == "limited":
            return _limited(rules, now, luck, self.opened.rests, after)
        if verdict == "good":
            if self.good + 1 >= rules.probes_to_close:
                return Closed(now, self.opened.rests)
            return replace(self.release(token), good=self.good + 1)
        return self.release(token)

    def stalled(self, rules: BreakerSettings, tokens: Collection[str], now: float, luck: float) -> State:
        """Attempts wait for too long; one probe of them is enough, others began before the rest."""
        if not any(holder in tokens for holder, _ in self.leases):
            return self
        return _rest(rules, now, luck, self.opened.rests + 1, "stalled")


@dataclass(frozen=True, slots=True)
class Held:
    """An administrator holds it open or closed, for a reason, until a time (infinity: until released)."""

    open: bool
    reason: str
    since: float
    until: float = math.inf
    seconds: float = math.inf
    """For how long it was said; of two words said at once, the same one holds everywhere."""
    actor: str = ""

    def at(self, now: float) -> State:
        """When the hold expires: what was held open shows first that it works."""
        if now < self.until:
            return self
        return HalfOpen(Open(self.since, self.until, 0, "manual")) if self.open else Closed(self.until)


State: TypeAlias = Closed | Open | HalfOpen | Held


@dataclass(frozen=True, slots=True)
class Breaker:
    """A state, with what others need to tell which of two facts is the newer.

    Attributes:
        rules: the settings.
        state: as of the last call; `at` first, where the time matters.
        generation: rises with each opening and closing seen anywhere (Lamport's logical clock).
        orders: rises with each word of an administrator; counts before `generation`.
    """

    rules: BreakerSettings
    state: State = Closed()
    generation: int = 0
    orders: int = 0

    def at(self, now: float) -> Breaker:
        """As time has made it."""
        state = self.state.at(now)
        return self if state is self.state else replace(self, state=state)

    def record(self, verdict: Verdict, now: float, luck: float, token: str = "", after: float | None = None) -> Breaker:
        """An attempt ended.

        Args:
            verdict: what it says of the upstream.
            now: monotonic seconds.
            luck: in [0, 1).
            token: under which it had its lease, if it was a probe.
            after: seconds of its Retry-After; what is no positive number counts as none.
        """
        current = self.at(now)
        state = current.state
        after = after if after is not None and 0 < after < math.inf else None
        if isinstance(state, Held):
            return current
        if isinstance(state, HalfOpen):
            return current._with(state.probe_ended(self.rules, token, verdict, now, luck, after))
        return current._with(state.record(self.rules, verdict, now, luck, after))

    def stalled(self, tokens: Collection[str], now: float, luck: float) -> Breaker:
        """Attempts have waited for too long, since when nothing came from the upstream.

        Args:
            tokens: of those attempts.
            now: monotonic seconds.
            luck: in [0, 1).
        """
        current = self.at(now)
        if isinstance(current.state, Held):
            return current
        return current._with(current.state.stalled(self.rules, tokens, now, luck))

    def lease(self, token: str, now: float) -> Breaker | None:
        """With a probe more; None where it is not half open, or there is no place."""
        current = self.at(now)
        state = current.state.lease(self.rules, token, now) if isinstance(current.state, HalfOpen) else None
        return None if state is None else current._with(state)

    def release(self, token: str) -> Breaker:
        """Without that probe."""
        return self._with(self.state.release(token)) if isinstance(self.state, HalfOpen) else self

    def hold(
        self,
        *,
        open: bool,  # noqa: A002 - what it is called
        reason: str,
        now: float,
        seconds: float = math.inf,
        actor: str = "",
    ) -> Breaker:
        """Held by hand, for so many seconds."""
        held = Held(open, reason, now, now + seconds, seconds, actor)
        return replace(self, state=held, generation=self.generation + 1, orders=self.orders + 1)

    def free(self, now: float) -> Breaker:
        """No longer held, and closed."""
        return replace(self, state=Closed(now), generation=self.generation + 1, orders=self.orders + 1)

    def fact(self, upstream: str) -> Fact:
        """What others should know. Half open is each one's own matter; of it they know the rest that is over."""
        state = self.state.opened if isinstance(self.state, HalfOpen) else self.state
        known = (self.generation, self.orders)
        if isinstance(state, Held):
            held: FactState = "held_open" if state.open else "held_closed"
            since, until, reason, actor = state.since, state.until, state.reason, state.actor
            return Fact(upstream, held, since, until, *known, 0, "manual", reason, state.seconds, actor)
        if isinstance(state, Open):
            return Fact(upstream, "open", state.since, state.until, *known, state.rests, state.cause)
        return Fact(upstream, "closed", state.since, state.since, *known, state.rests)

    def adopt(self, fact: Fact, now: float) -> Breaker:
        """What another has seen, where it is newer than what is known here.

        Who starts anew counts from 0, so a closing with a higher generation may be older than the failures that were seen
        here: then these hold, and the generation says so to the others.
        """
        mine = self.fact(fact.upstream)
        if fact.order <= mine.order:
            return self
        if fact.orders == self.orders and fact.state == "closed" and mine.state == "open" and fact.since < mine.since:
            return replace(self, generation=fact.generation + 1)
        if fact.state == "closed" and isinstance(self.state, Closed):
            return replace(self, generation=fact.generation, orders=fact.orders)
        since = min(fact.since, now)
        state: State
        if fact.state in ("held_open", "held_closed"):
            state = Held(fact.state == "held_open", fact.reason, since, fact.until, fact.seconds, fact.actor)
        elif fact.state == "open":
            until = min(fact.until, now + self.rules.max_recovery)
            state = Open(since, until, fact.rests, fact.cause or "failures", LEAD)
        else:
            state = Closed(since, fact.rests)
        return Breaker(self.rules, state, fact.generation, fact.orders)

    def _with(self, state: State) -> Breaker:
        if state is self.state:
            return self
        changed = type(state) is not type(self.state) and not isinstance(state, HalfOpen)
        return replace(self, state=state, generation=self.generation + changed)


def _rest(rules: BreakerSettings, now: float, luck: float, rests: int, cause: Cause) -> Open:
    longest = rules.recovery * rules.recovery_growth ** min(rests - 1, MAX_EXPONENT)
    return Open(now, now + min(rules.max_recovery, longest) * (1 - rules.jitter * luck), rests, cause)


def _limited(rules: BreakerSettings, now: float, luck: float, rests: int, after: float | None) -> Open:
    """A rest for 429: as long as it was asked for, and never less; else the setting's."""
    rest = rules.rate_limit_recovery * (1 - rules.jitter * luck) if after is None else after
    return Open(now, now + min(rules.max_recovery, rest), rests, "rate_limit")
