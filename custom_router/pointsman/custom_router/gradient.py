"""How many may run at once, learned from how long answers take: a concurrency limit that follows the gradient of latency.

The formula is that of Gradient2 in Netflix's concurrency-limits (`Gradient2Limit.java`, 2018; "Performance Under Load", Netflix
Technology Blog, 2018-03-23), with the tolerance that its earlier releases had::

    gradient  = clamp(tolerance * long / short, 0.5, 1)
    headroom  = min(4, sqrt(limit))
    limit'    = limit * (1 - smoothing) + (limit * gradient + headroom) * smoothing

`short` is the mean latency of one window, `long` an exponentially weighted mean of those of many. A latency that rises against
its own past means that requests queue up at the provider: the limit falls. One that stays lets the limit grow by `headroom`.
The headroom is theirs, 4, but the root (of their first release) where that is less: with 4 no limit falls below 8, and
workers share small ones. As there, a limit of which less than half is used does not grow, and a `long` more than twice
`short` is let down quickly.

Pure: `observe` is told the time and returns the next state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["Gradient"]

LONG_WINDOWS = 600
WARM_UP = 10
"""Windows of which `long` is the plain mean."""
DRIFT, LET_DOWN = 2.0, 0.9
STEEPEST = 0.5
HEADROOM = 4.0
SMOOTHING = 0.2
MIN_SAMPLES = 10
WINDOW = 1.0
"""A window has that many samples at least and lasts that many seconds at least."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """The limit and what it was learned from.

    Attributes:
        estimate: the limit, before it is rounded down.
        least, most: what it stays between.
        tolerance: how many times `long` a latency may be before the limit falls.
        long: mean latency of the past in seconds, None before the first window.
        windows: how many there were.
        began: when this window began, None before its first sample.
        samples, total: of this window; total in seconds.
        busiest: most that ran at once in this window.
    """

    estimate: float
    least: int
    most: int
    tolerance: float
    long: float | None = None
    windows: int = 0
    began: float | None = None
    samples: int = 0
    total: float = 0.0
    busiest: int = 0

    @property
    def limit(self) -> int:
        """How many may run."""
        return max(self.least, min(self.most, int(self.estimate)))

    def observe(self, latency: float, running: int, now: float) -> Gradient:
        """An answer came.

        Args:
            latency: its seconds, without those in the queue. Of requests that failed nothing is observed: an error that comes
                quickly would look like a provider with time to spare.
            running: how many ran then, itself among them.
            now: monotonic seconds.
        """
        began = now if self.began is None else self.began
        state = replace(
            self,
            began=began,
            samples=self.samples + 1,
            total=self.total + max(latency, 1e-6),
            busiest=max(self.busiest, running),
        )
        return state._close() if state.samples >= MIN_SAMPLES and now - began >= WINDOW else state

    def _close(self) -> Gradient:
        short, windows = self.total / self.samples, self.windows + 1
        weight = 1 / windows if windows <= WARM_UP else 2 / (LONG_WINDOWS + 1)
        long = short if self.long is None else self.long + weight * (short - self.long)
        if long > DRIFT * short:
            long *= LET_DOWN
        estimate = self.estimate
        if self.busiest >= estimate / 2:
            gradient = max(STEEPEST, min(1.0, self.tolerance * long / short))
            headroom = min(HEADROOM, math.sqrt(estimate))
            estimate += SMOOTHING * (estimate * gradient + headroom - estimate)
            estimate = max(float(self.least), min(float(self.most), estimate))
        return replace(self, estimate=estimate, long=long, windows=windows, began=None, samples=0, total=0.0, busiest=0)
