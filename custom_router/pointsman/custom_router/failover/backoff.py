"""How long to wait before somebody is asked again who has just failed: capped exponential back-off with full jitter.

`sleep = random_between(0, min(cap, base * 2 ** attempt))`, from Marc Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015: of the ways compared there it makes clients wait the least for the least calls.
"""

from __future__ import annotations

__all__ = ["MAX_DOUBLINGS", "full_jitter"]

MAX_DOUBLINGS = 32


def full_jitter(pauses: int, base: float, cap: float, chance: float) -> float:
    """Seconds to wait.

    Args:
        pauses: how many pauses there were before, from 0.
        base, cap: seconds, of the first pause at most and of any.
        chance: a number in [0, 1).
    """
    return chance * min(cap, base * 2.0 ** min(max(0, pauses), MAX_DOUBLINGS))
