"""Retry budgets: further tries are a share of the requests, so that a group whose deployments all fail is not asked manifold.

As Finagle's `RetryBudget` (20% of the requests of 10 s, and a minimum), Envoy's `retry_budget` (20%, at least three) and gRPC's
retry throttling have it. One budget a group and worker; workers do not share it, so that an instance of `n` workers allows the
floor `n` times. One event loop owns it; clock given.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Budgets", "RetryBudget"]

SLOTS = 10
"""Parts of the window; what happened leaves it a part at a time."""
MAX_GROUPS = 1_000


class RetryBudget:
    """Requests and further tries of the last `window` seconds.

    Args:
        share: further tries for each request.
        floor: further tries that are allowed besides, whatever the requests.
        window: seconds.
    """

    def __init__(self, share: float, floor: int, window: float) -> None:
        self._share, self._floor, self._slot = share, floor, window / SLOTS
        self._requests, self._tries = [0] * SLOTS, [0] * SLOTS
        self._at: int | None = None

    def request(self, now: float) -> None:
        """A request began."""
        self._requests[self._turn(now)] += 1

    def take(self, now: float) -> bool:
        """Whether there may be a further try; then it is counted."""
        slot = self._turn(now)
        # The small number makes up for 0.2 * 5 < 1 in floating point.
        if sum(self._tries) + 1 > self._floor + self._share * sum(self._requests) + 1e-9:
            return False
        self._tries[slot] += 1
        return True

    def _turn(self, now: float) -> int:
        """The present part of the window, after those that have left it were emptied. A clock set back changes none."""
        at = int(now // self._slot)
        if self._at is None or at > self._at:
            for passed in range(min(SLOTS, at - self._at) if self._at is not None else SLOTS):
                self._requests[(at - passed) % SLOTS] = self._tries[(at - passed) % SLOTS] = 0
            self._at = at
        return self._at % SLOTS


class Budgets:
    """A budget for each group.

    Args:
        make: a new one.
        clock: monotonic seconds.
    """

    def __init__(self, make: Callable[[], RetryBudget], clock: Callable[[], float]) -> None:
        self._make, self._clock = make, clock
        self._budgets: dict[str, RetryBudget] = {}

    def request(self, group: str) -> None:
        """A request for a group began."""
        self._of(group).request(self._clock())

    def take(self, group: str) -> bool:
        """Whether there may be a further try for a request for this group."""
        return self._of(group).take(self._clock())

    def _of(self, group: str) -> RetryBudget:
        budget = self._budgets.get(group)
        if budget is None:
            if len(self._budgets) >= MAX_GROUPS:
                self._budgets.pop(next(iter(self._budgets)))  # groups may be made up by callers (wildcards)
            budget = self._budgets[group] = self._make()
        return budget
