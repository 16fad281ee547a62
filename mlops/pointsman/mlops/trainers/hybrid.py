"""Trains `hybrid`: how much the strong model gains over the weak one on a prompt, and from which gain on it is asked.

The gain is regressed on the vector (ridge) over the prompts that both have a score for, so a prompt that both answer equally
well is a gain of 0 and no vote for either. The threshold is the quantile of gains predicted for held-out folds that sends the
wanted share of prompts to the strong model.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.affine import PENALTIES, Affine, Ridge, centred, cross_fit
from pointsman.mlops.trainers.base import Progress, Settings, Trainer
from pointsman.strategies.base import Matrix
from pointsman.strategies.hybrid import HybridStrategy

__all__ = ["TRAINER", "HybridSettings"]

SHARE = 0.5


class HybridSettings(Settings):
    """`weak`, `strong`: the pair; by default the best on average, and the cheapest (without costs: the worst) of the others.
    `share`: of prompts to the strong one, by default a half. `threshold`: instead of a share. `penalty`: of the regression."""

    weak: str | None = None
    strong: str | None = None
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    threshold: Annotated[float, Field(ge=-10, le=10)] | None = None


def _pair(data: Dataset, settings: HybridSettings) -> tuple[str, str]:
    """Names of the weak and the strong model.

    Raises:
        BundleError: E4320.
    """
    for name in (settings.weak, settings.strong):
        if name is not None and name not in data.models:
            raise BundleError(
                f"the data know no model {name!r}", code="E4320", where="settings", mend=f"one of {', '.join(data.models)}"
            )
    means, _ = centred(data.scores, data.known)
    # `max` and `min` take the first of equals, and models are sorted by name.
    strong = settings.strong or max(
        (model for model in data.models if model != settings.weak), key=lambda model: means[data.models.index(model)]
    )
    price = means if data.costs is None else np.nan_to_num(np.nanmean(data.costs, axis=0), nan=np.inf)
    weak = settings.weak or min(
        (model for model in data.models if model != strong), key=lambda model: price[data.models.index(model)]
    )
    if weak == strong:
        raise BundleError("the weak and the strong model are the same", code="E4320", where="settings")
    return weak, strong


def _gains(data: Dataset, pair: tuple[str, str]) -> tuple[Matrix, NDArray[np.bool_]]:
    """Gain of the strong over the weak model and whether it is known, (n, 1) each.

    Raises:
        BundleError: E4320, no prompt has both scores.
    """
    weak, strong = (data.models.index(name) for name in pair)
    known = (data.known[:, weak] & data.known[:, strong])[:, None]
    if not known.any():
        raise BundleError(
            f"no prompt has a score of both {pair[0]!r} and {pair[1]!r}", code="E4320", where="data", mend="name another pair"
        )
    return np.where(known, (data.scores[:, strong] - data.scores[:, weak])[:, None], np.float32(0)), known


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: HybridSettings, groups: NDArray[np.intp]) -> HybridStrategy:
    """See `Fit`."""
    del seed, groups
    pair = _pair(data, settings)
    weights, bias = Ridge(vectors, *_gains(data, pair)).solve(settings.penalty or 1.0)
    layer = (np.ascontiguousarray(weights.T, np.float32), bias.astype(np.float32))
    return HybridStrategy(pair, (layer,), "identity", "gain", settings.threshold or 0.0)


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: HybridSettings, groups: NDArray[np.intp], progress: Progress
) -> HybridSettings:
    """See `Choose`: the penalty with the least squared error in a cross-validation, and the threshold on its predictions."""
    pair = _pair(data, settings)
    gains, known = _gains(data, pair)
    penalties = [settings.penalty] if settings.penalty else list(PENALTIES)
    share = SHARE if settings.share is None else settings.share

    def maps(rows: NDArray[np.intp]) -> list[Affine]:
        ridge = Ridge(vectors[rows], gains[rows], known[rows])
        return [ridge.solve(penalty) for penalty in penalties]

    predictions = cross_fit(maps, vectors, 1, groups, seed)
    if not predictions:
        predictions, penalties = [np.zeros(gains.shape)], penalties[-1:]
    missed = [np.where(known & np.isfinite(each), each - gains, 0.0) for each in predictions]
    errors = [float((each * each).sum()) for each in missed]
    best = min(range(len(penalties)), key=lambda number: (errors[number], -penalties[number]))
    seen = predictions[best][np.isfinite(predictions[best])]
    threshold = settings.threshold
    if threshold is None:
        # Ends, so that a share of 0 or 1 means it also for prompts that are unlike all of these.
        threshold = 10.0 if share == 0 else -10.0 if share == 1 else float(np.quantile(seen, 1 - share, method="higher"))
        threshold = round(threshold, 9)
    above = float((seen > threshold).mean())
    progress(f"{pair[0]} or {pair[1]}: penalty {penalties[best]:g}, threshold {threshold:.4f}, share {above:.2f} to the latter")
    return HybridSettings(weak=pair[0], strong=pair[1], share=share, penalty=penalties[best], threshold=threshold)


TRAINER = Trainer("hybrid", HybridSettings, fit, choose)
