"""A bundle's calibration table: which margin sends which share of the requests to the strong model, and what that gives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pointsman.strategies.manifest import CALIBRATION_STEPS, MARGIN_DIGITS, Calibration

__all__ = ["calibrate"]

Numbers = NDArray[np.float64]


def calibrate(weak: str, strong: str, margin: Numbers, scores: tuple[Numbers, Numbers], costs: Numbers | None) -> Calibration:
    """The table, from held-out rows.

    Args:
        weak, strong: names of the models, different ones.
        margin: (n,) predicted score of the strong model minus that of the weak one.
        scores: (n,) true scores of the weak model, and of the strong one.
        costs: (n, 2) costs of the weak and the strong model, or None.

    At step i the rows with the highest margins go to the strong model, i percent of all; of rows that tie at the threshold the
    share that makes it exact, so quality and cost are expectations over which of them go.
    """
    rounded = np.round(margin.astype(np.float64), MARGIN_DIGITS) + 0.0  # no negative zero
    rows = len(rounded)
    falling = np.sort(rounded)[::-1]
    margins, ties, quality, spent = [], [], [], []
    for wanted in np.linspace(0, rows, CALIBRATION_STEPS):
        threshold = falling[max(0, int(np.ceil(wanted - 1e-9)) - 1)]
        tied = rounded == threshold
        above = int((rounded > threshold).sum())
        tie = float(np.clip((wanted - above) / tied.sum(), 0, 1))
        share = (rounded > threshold) + tie * tied
        margins.append(float(threshold))
        ties.append(round(tie, 6))
        quality.append(round(float((share * scores[1] + (1 - share) * scores[0]).mean()), 6))
        if costs is not None:
            spent.append(float((share * costs[:, 1] + (1 - share) * costs[:, 0]).mean()))
    dear = spent[-1] if spent else 0.0
    return Calibration(
        weak=weak,
        strong=strong,
        rows=rows,
        margins=tuple(margins),
        ties=tuple(ties),
        quality=tuple(quality),
        cost=tuple(round(value / dear, 6) for value in spent) if dear > 0 else None,
    )
