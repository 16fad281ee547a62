"""Those of one class who wait: keys take turns, and of one key the first that came is the first that goes.

So between two requests of one key at most one of each other key is served, however many that one has sent. Immutable, as all
of `pointsman.custom_router.queue`; every change is a new `Line`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

__all__ = ["Line", "Priority", "Waiting"]


class Priority(IntEnum):
    """Classes; the lower the number, the sooner."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that waits; times in monotonic seconds. `tenant`: whose it is, a key's hash."""

    id: int
    priority: Priority
    arrived: float
    deadline: float
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Who waits: tenant -> its requests in the order of arrival, tenants in the order of their turns; and how many in all."""

    tenants: Mapping[str, tuple[Waiting, ...]] = field(default_factory=dict)
    count: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Waiting]:
        for own in self.tenants.values():
            yield from own

    def join(self, place: Waiting) -> Line:
        """At the end of its tenant's; a tenant of which nobody waits comes last."""
        return Line({**self.tenants, place.tenant: (*self.tenants.get(place.tenant, ()), place)}, self.count + 1)

    def next(self) -> tuple[Waiting, Line]:
        """Whose turn it is, and the line without it. Of an empty line there is none: `StopIteration`."""
        tenant = next(iter(self.tenants))
        first, *rest = self.tenants[tenant]
        tenants = {name: own for name, own in self.tenants.items() if name != tenant}
        if rest:
            tenants[tenant] = tuple(rest)
        return first, Line(tenants, self.count - 1)

    def without(self, place: Waiting) -> Line:
        """Without one that is in it."""
        return self._with(place.tenant, tuple(one for one in self.tenants[place.tenant] if one.id != place.id))

    def split(self, now: float) -> tuple[Line, tuple[Waiting, ...]]:
        """Those whose deadline is still to come, and the others."""
        late = tuple(one for one in self if one.deadline <= now)
        kept = {name: left for name, own in self.tenants.items() if (left := tuple(one for one in own if one.deadline > now))}
        return Line(kept, self.count - len(late)), late

    def until(self, deadline: float) -> Line:
        """Nobody waits longer than that."""
        tenants = {
            name: tuple(replace(one, deadline=min(one.deadline, deadline)) for one in own) for name, own in self.tenants.items()
        }
        return Line(tenants, self.count)

    def to_make_room(self, tenant: str) -> Waiting | None:
        """Where there is no room: who gives way to one more of `tenant`. The newest of who has most, if still no fewer."""
        most = max(self.tenants.values(), key=len, default=())
        return most[-1] if len(most) >= len(self.tenants.get(tenant, ())) + 2 else None

    def _with(self, tenant: str, own: tuple[Waiting, ...]) -> Line:
        tenants = {name: own if name == tenant else others for name, others in self.tenants.items() if name != tenant or own}
        return Line(tenants, self.count - len(self.tenants[tenant]) + len(own))
