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

import hashlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.custom_router.conversation import PREFIX_CHARS, digest_of
from pointsman.custom_router.pins import KEY_BYTES, Pin, claimed, fact_of_pin, goes_back, pin_of_fact, winner
from pointsman.custom_router.policy import Costs
from pointsman.custom_router.request import Session
from pointsman.resilience_settings import StickySettings

__all__ = ["STICKY", "Affinity", "Waiting", "session_key", "session_secret"]

STICKY = "sticky"
"""In a decision: the strategy's name, the policy, and why the others were dropped, where a pin decided."""
TENANT_BYTES = 8
"""Of a session's key, its beginning."""


def session_secret(env: Mapping[str, str]) -> bytes:
    """The key of the sessions' digests: the same in all that share a salt key (or master key), else of this process alone."""
    secret = env.get("LITELLM_SALT_KEY") or env.get("LITELLM_MASTER_KEY")
    if not secret:
        return os.urandom(32)
    return hashlib.blake2b(secret.encode("utf-8", "replace"), digest_size=32, person=b"pointsman pins").digest()


def session_key(secret: bytes, tenant: Sequence[str | None], group: str, session: Session) -> bytes | None:
    """By what a session is known: a tenant's digest and the session's. None without a tenant, who could be anybody.

    Args:
        secret: of `session_secret`.
        tenant: hash of the key, team, user.
        group: model group.
        session: its id; of one that is too long the beginning counts.
    """
    if not any(tenant):
        return None
    parts = ("session", *tenant, group, session.source, session.value[:PREFIX_CHARS])
    return digest_of(("tenant", *tenant), secret, TENANT_BYTES) + digest_of(parts, secret, KEY_BYTES - TENANT_BYTES)


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
        wall: Unix time, by which the oldest pin is told.
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
        home = goes_back(pin, there, costs(), self._wall())
        if home is not None:
            self._use(session, home)
        return home

    def news(self, limit: int = 256) -> list[dict[str, Any]]:
        """What the others do not know yet: JSON values, at most `limit`; they count as told."""
        result: list[dict[str, Any]] = []
        now, wall = self._clock(), self._wall()
        while self._untold and len(result) < limit:
            session, _ = self._untold.popitem(last=False)
            entry = self._entries.get(session)
            if entry is None:
                continue
            entry.told = now
            result.append(fact_of_pin(session, entry.pin, wall - max(0.0, now - entry.used)))
        return result

    def retell(self) -> None:
        """Tell all of it again, for those who have just come; of very many sessions the ones used last."""
        for session in self._entries:
            self._tell(session)

    def adopt(self, said: Iterable[Mapping[str, Any]]) -> int:
        """Take what others tell, in any order, any number of times; gives back how many meant nothing, and are passed over."""
        refused = 0
        for fact in said:
            read = pin_of_fact(fact)
            if read is None:
                refused += 1
                continue
            session, pin, used = read
            stamp = self._clock() - max(0.0, self._wall() - used)
            if self._clock() - stamp > self.settings.ttl:
                continue  # it has ended
            known = self.find(session)
            best = pin if known is None else winner(known, pin)
            entry = self._entries.get(session)
            if entry is None:
                self._keep(session, _Entry(best, stamp, self._clock()))
                continue
            entry.pin, entry.used = best, max(entry.used, stamp)
            if best != pin:
                self._tell(session)  # so that who told learns of the better one, though news of it was lost
        return refused

    def _use(self, session: bytes, pin: Pin) -> None:
        now, entry = self._clock(), self._entries.get(session)
        if entry is None:
            self._keep(session, _Entry(pin, now, now))
            self._tell(session)
            return
        # Others end it as well, unless they are told now and then that it goes on.
        if pin != entry.pin or now - entry.told > self.settings.ttl / 4:
            entry.told = now
            self._tell(session)
        entry.pin, entry.used = pin, now
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
