"""Sticky sessions: a session stays on the deployment that it began on, while that is there.

A session is what a client names (`kwargs.sessions_of`), in one model group, of one tenant: key, team and user go into a keyed
digest, so nobody can name, guess or reach another's. Its pin moves when its deployment left: it is no longer among the
candidates that the filters leave (gone from the configuration, resting, breaker open, no room for the text) or has failed in
this very request. It goes back only where that is cheaper after the prompt cache that it loses (`cost.switching_costs`).

Several workers and instances each decide by what they remember and tell the others later (`news`, `adopt`). Whatever the order
in which they hear of it, they end with the same pin: more moves win, among equals the oldest, then the names. So two that began
a session before they heard of each other end on one deployment, and that is the only move besides those above.

Memory of one worker, bounded, and bounded for each tenant; an end of a session is not told, both sides forget it by themselves.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.custom_router.pin_facts import PinFact
from pointsman.custom_router.pins import Pin, claimed, goes_back
from pointsman.custom_router.policy import Costs
from pointsman.custom_router.request import Session
from pointsman.custom_router.session_keys import TENANT_BYTES, session_key
from pointsman.resilience_settings import StickySettings

__all__ = ["STICKY", "Affinity", "Waiting"]

STICKY = "sticky"
"""In a decision: the strategy's name, the policy, and why the others were dropped, where a pin decided."""
ROUND = 250
"""Facts that are told at a time, some 60 KB; at five rounds a second more new sessions than a worker can begin."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request of a session, while it is not settled where it goes; where LiteLLM chooses, that is when it has answered.

    Attributes:
        session: its key.
        seen: the pin at the decision; when it has changed since, another request has settled it.
        choices: deployments that it may go to.
        there: those that it may stay on: they have not failed in this request.
        strategy: which would decide.
    """

    session: bytes
    seen: Pin | None
    choices: frozenset[str]
    there: frozenset[str]
    strategy: str = ""


@dataclass(slots=True)
class _Entry:
    pin: Pin
    moved: float
    """Monotonic time at which it came there."""
    used: float
    """Monotonic time of the last request."""
    told: float
    """Monotonic time at which the others were told last."""


class Affinity:
    """Session -> pin. Neither blocks nor raises; one event loop owns it.

    Args:
        settings: see there.
        secret: key of the digests (`session_secret`).
        clock: monotonic seconds, by which sessions end.
        wall: Unix time, by which pins are told apart and the older one is known.
    """

    MAX_FACTS = 4096
    """Facts that wait to be told; more of them replace the oldest, and its session is told of with its next request."""

    def __init__(
        self,
        settings: StickySettings,
        secret: bytes,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._secret, self._clock, self._wall = secret, clock, wall
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._tenants: dict[bytes, OrderedDict[bytes, None]] = {}
        self._untold: OrderedDict[bytes, None] = OrderedDict()
        self.forgotten = 0
        """Sessions that were forgotten over a bound."""

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, tenant: Sequence[str | None], group: str, sessions: Iterable[Session]) -> bytes | None:
        """The session of a request, or None where it names none, or its group's do not stick."""
        settings = self.settings
        if not settings.enabled or (settings.groups is not None and group not in settings.groups):
            return None
        named = {session.source: session for session in reversed(tuple(sessions)) if session.value}
        found = next((named[source] for source in settings.sources if source in named), None)
        return session_key(self._secret, tenant, group, found) if found is not None else None

    def find(self, session: bytes) -> Pin | None:
        """The pin, unless the session has ended."""
        entry = self._entries.get(session)
        if entry is None:
            return None
        if self._clock() - entry.used > self.settings.ttl:
            self._forget(session)
            return None
        return entry.pin

    def claim(self, session: bytes, chosen: str, there: Collection[str]) -> tuple[Pin, str]:
        """Where a request goes that was about to go to `chosen` (see `claimed`), which the session stays with from now on.

        Two requests that begin a session at the same time go to the same deployment: the first to claim it.
        """
        pin, what = claimed(self.find(session), chosen, there, self._wall())
        self._use(session, pin)
        return pin, what

    def answered(self, waiting: Waiting, deployment_id: str) -> None:
        """LiteLLM has chosen a deployment, and it answered."""
        if deployment_id in waiting.choices and self.find(waiting.session) == waiting.seen:
            self.claim(waiting.session, deployment_id, waiting.there)

    def back(self, session: bytes, there: Collection[str], costs: Callable[[], Costs]) -> Pin | None:
        """Go back where the session had to leave, if that pays (see `goes_back`); `costs` is asked only where it may."""
        pin = self.find(session)
        if pin is None or not self.settings.returns or pin.left not in there:
            return None
        home = goes_back(pin, there, costs(), self._clock() - self._entries[session].moved, self._wall())
        if home is not None:
            self._use(session, home)
        return home

    def news(self, limit: int = ROUND) -> list[dict[str, Any]]:
        """What the others do not know yet: JSON values, at most `limit`; they count as told."""
        result: list[dict[str, Any]] = []
        now = self._clock()
        while self._untold and len(result) < limit:
            session, _ = self._untold.popitem(last=False)
            entry = self._entries.get(session)
            if entry is None:
                continue
            entry.told = now
            result.append(PinFact(session, entry.pin, entry.moved, entry.used, self.settings.ttl).to_wire(now))
        return result

    def adopt(self, said: Iterable[Mapping[str, Any]]) -> int:
        """Take what others tell, in any order, any number of times; gives back how many meant nothing, and are passed over."""
        refused, now = 0, self._clock()
        for item in said:
            try:
                fact = PinFact.from_wire(item, now, self.settings.ttl)
            except (ValueError, TypeError, AttributeError):  # from outside; whatever it is, it is no fact
                refused += 1
                continue
            if fact.ended(now):
                continue
            if self.find(fact.session) is None:
                self._keep(fact.session, _Entry(fact.pin, fact.moved, fact.used, now))
                continue
            entry = self._entries[fact.session]
            holds = fact.over(PinFact(fact.session, entry.pin, entry.moved, entry.used, self.settings.ttl))
            if holds is not None:
                entry.pin, entry.moved, entry.used = holds.pin, holds.moved, holds.used
            if entry.pin != fact.pin:
                self._tell(fact.session)  # so that who told learns of the better one, though news of it was lost
        return refused

    def _use(self, session: bytes, pin: Pin) -> None:
        now, entry = self._clock(), self._entries.get(session)
        if entry is None:
            self._keep(session, _Entry(pin, now, now, now))
            self._tell(session)
            return
        # Others end it as well, unless they are told now and then that it goes on.
        if pin != entry.pin or now - entry.told > self.settings.ttl / 4:
            entry.told = now
            self._tell(session)
        if pin != entry.pin:
            entry.pin, entry.moved = pin, now
        entry.used = now
        self._entries.move_to_end(session)
        self._tenants[session[:TENANT_BYTES]].move_to_end(session)

    def _tell(self, session: bytes) -> None:
        self._untold[session] = None
        self._untold.move_to_end(session)
        if len(self._untold) > self.MAX_FACTS:
            dropped, _ = self._untold.popitem(last=False)
            if (entry := self._entries.get(dropped)) is not None:
                entry.told = -math.inf

    def _keep(self, session: bytes, entry: _Entry) -> None:
        self._entries[session] = entry
        own = self._tenants.setdefault(session[:TENANT_BYTES], OrderedDict())
        own[session] = None
        if len(own) > self.settings.max_sessions_per_tenant:
            self.forgotten += 1
            self._forget(next(iter(own)))
        if len(self._entries) > self.settings.max_sessions:
            self.forgotten += 1
            self._forget(next(iter(self._entries)))

    def _forget(self, session: bytes) -> None:
        del self._entries[session]
        self._untold.pop(session, None)
        tenant = session[:TENANT_BYTES]
        own = self._tenants[tenant]
        del own[session]
        if not own:
            del self._tenants[tenant]
