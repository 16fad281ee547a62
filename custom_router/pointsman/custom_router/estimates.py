"""Estimates that forget: sums in which what came a half-life ago counts half, and what can be said by them, how surely.

- Sums: forward decay (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009). A sample is added with the weight
  2^((t - landmark) / half_life); read at `now`, all of them are divided by the weight of `now`. Adding costs the same however
  much there is, and sums of several processes add up, in whatever order.
- Quantiles: the histogram of DDSketch (Masson, Rim, Lee, VLDB 2019), whose buckets grow by a constant ratio, so that a quantile
  is off by `ACCURACY` of itself at most. Its counts are such sums.
- Uncertainty: of a share by Wilson's score interval (1927; Brown, Cai, DasGupta 2001), of a quantile by the ranks between which
  it lies (binomial, normal approximation), both of 95% and with the decayed weight as the number of samples. So an estimate
  that gets no more samples grows less sure by itself.

Pure; no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["ACCURACY", "Decayed", "Estimate", "bucket", "quantile", "share", "value_of"]

ACCURACY = 0.05
"""Relative, of a quantile."""
RATIO = (1 + ACCURACY) / (1 - ACCURACY)
LEAST, MOST = 1e-3, 1e8
"""Values beyond are counted as these."""
Z = 1.959963984540054
"""Normal quantile of 97.5%."""
LEAST_WEIGHT = 1e-3
"""Of so few samples, decayed, nothing is said."""
REBASE = 40.0
"""Half-lives after which the landmark moves on, long before a float overflows."""


class Estimate(NamedTuple):
    """A value, the interval that holds it with 95%, and the weight of the samples, decayed (1.0: one that has just come)."""

    value: float
    low: float
    high: float
    weight: float


class Decayed:
    """Sums by name, as of a moment.

    Args:
        half_life: seconds after which a sample counts half.
        now: any monotonic second, the landmark.
        sums: as they are at `now`.
    """

    __slots__ = ("_landmark", "_sums", "half_life")

    def __init__(self, half_life: float, now: float, sums: Mapping[str, float] | None = None) -> None:
        self.half_life = half_life
        self._landmark = now
        self._sums: dict[str, float] = dict(sums or {})

    def add(self, name: str, amount: float, now: float) -> None:
        """Add to a sum; what is negative takes back."""
        elapsed = (now - self._landmark) / self.half_life
        if elapsed > REBASE:
            self._sums = self.at(now)
            self._landmark, elapsed = now, 0.0
        self._sums[name] = self._sums.get(name, 0.0) + amount * 2.0**elapsed

    def factor(self, now: float) -> float:
        """What the sums that are kept are to be multiplied by."""
        return float(2.0 ** min(REBASE, (self._landmark - now) / self.half_life))

    def at(self, now: float) -> dict[str, float]:
        """The sums as they are at `now`, without what is nearly nothing."""
        factor = self.factor(now)
        return {name: kept for name, value in self._sums.items() if abs(kept := value * factor) > 1e-6}

    def into(self, total: dict[str, float], now: float) -> None:
        """Add them to a total."""
        factor = self.factor(now)
        for name, value in self._sums.items():
            total[name] = total.get(name, 0.0) + value * factor


def share(good: float, of: float) -> Estimate | None:
    """A share of decayed counts, by Wilson; None where there is nothing to tell by. Both are clipped to what makes sense."""
    if not of >= LEAST_WEIGHT:
        return None
    rate = min(1.0, max(0.0, good / of))
    denominator = 1 + Z * Z / of
    centre = (rate + Z * Z / (2 * of)) / denominator
    half = Z / denominator * math.sqrt(rate * (1 - rate) / of + Z * Z / (4 * of * of))
    return Estimate(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)), of)


def bucket(value: float) -> int:
    """Number of the bucket of a value."""
    return math.ceil(math.log(min(MOST, max(LEAST, value))) / math.log(RATIO) - 1e-9)


def value_of(number: int) -> float:
    """The value that stands for a bucket: no value of it is further away than `ACCURACY` of itself."""
    return float(2 * RATIO**number / (RATIO + 1))


def quantile(counts: Iterable[tuple[int, float]], q: float) -> Estimate | None:
    """A quantile of a histogram, (bucket, decayed count) each; None where there is nothing to tell by."""
    kept = sorted((number, count) for number, count in counts if count > 0)
    total = math.fsum(count for _, count in kept)
    if not total >= LEAST_WEIGHT:
        return None
    spread = Z * math.sqrt(q * (1 - q) / total)
    low, value, high = (_at(kept, min(1.0, max(0.0, rank)) * total) for rank in (q - spread, q, q + spread))
    return Estimate(value, low, high, total)


def _at(kept: list[tuple[int, float]], rank: float) -> float:
    seen = 0.0
    for number, count in kept:
        seen += count
        if seen >= rank:
            return value_of(number)
    return value_of(kept[-1][0])
