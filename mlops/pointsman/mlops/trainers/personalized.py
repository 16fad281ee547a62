"""Trains `personalized`: one regression for everybody, and how each user differs, shrunk by how little is known of them.

With q_m(x) the common ridge regression, predicted for rows that it was fitted without, and r = y - q the residuals of a user:

- shift of a model: the mean residual over the user's n rows, times n / (n + noise / spread) (James and Stein, 1961; Efron and
  Morris, 1975). `noise` is the residuals' variance within users, `spread` that of users' true shifts, by the method of moments;
- scale: how much steeper than everybody's the user's scores follow q, shrunk towards 1 in the same way.

With no difference between users both spreads are 0, and everybody gets the common answer. Users with fewer than `min_rows` rows
are not stored.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.affine import PENALTIES, Affine, Ridge, Wide, centred, cross_fit, squared_error
from pointsman.mlops.trainers.base import Progress, Settings, Trainer
from pointsman.strategies.base import Matrix
from pointsman.strategies.personalized import PersonalizedStrategy, user_hashes

__all__ = ["TRAINER", "PersonalizedSettings", "shrunk"]

MIN_ROWS = 3
FARTHEST = 2.0
"""Largest difference of a user's scale from 1."""


class PersonalizedSettings(Settings):
    """`penalty`: of the common regression. `min_rows`: users with fewer rows are left out."""

    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    min_rows: Annotated[int, Field(ge=1, le=1_000_000)] = MIN_ROWS


def shrunk(values: Wide, variances: Wide) -> Wide:
    """Estimates drawn towards 0 by empirical Bayes; the same shape. Infinite variance: nothing was seen, so 0.

    The spread of the true values is the mean of value^2 - variance, weighted by precision, or 0 where that is negative
    (DerSimonian and Laird's moment estimate, 1986, around a mean of 0).
    """
    precise = np.isfinite(variances)
    weights = np.divide(1.0, variances, out=np.zeros_like(variances), where=precise & (variances > 0))
    if not weights.any():
        return np.where(precise, values, 0.0)
    excess = np.where(precise, values * values - np.where(precise, variances, 0.0), 0.0)
    spread = max(float((weights * excess).sum() / weights.sum()), 0.0)
    return np.where(precise, values * spread / (spread + np.where(precise, variances, 1.0)), 0.0) if spread > 0 else 0 * values


def _users(data: Dataset, least: int) -> tuple[list[str], NDArray[np.intp]]:
    """Users with enough rows, sorted, and each row's, or -1.

    Raises:
        BundleError: E4320.
    """
    names, counts = np.unique([user for user in data.users or () if user is not None], return_counts=True)
    kept = [str(name) for name, count in zip(names, counts, strict=True) if count >= least]
    if not kept:
        raise BundleError(
            f"no user has {least} rows or more",
            code="E4320",
            where="data",
            mend="give each line the `user` whose scores it has; without users train `mf` or `linear`",
        )
    number = {name: index for index, name in enumerate(kept)}
    return kept, np.array([-1 if user is None else number.get(user, -1) for user in data.users or ()], np.intp)


def _differences(
    scores: Matrix, known: NDArray[np.bool_], common: Wide, centre: Wide, rows: NDArray[np.intp], users: int
) -> tuple[Wide, Wide]:
    """Scales (u,) and shifts (u, m); see the module. `rows`: each row's user, or -1."""
    mine = rows >= 0
    rows, common = rows[mine], common[mine]
    seen = known[mine] & np.isfinite(common)
    residuals = np.where(seen, scores[mine] - common, 0.0)
    count, total = np.zeros((users, scores.shape[1])), np.zeros((users, scores.shape[1]))
    np.add.at(count, rows, seen)
    np.add.at(total, rows, residuals)
    means = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    within = np.where(seen, residuals - means[rows], 0.0)
    free = max(float((np.maximum(count - 1, 0)).sum()), 1.0)
    noise = max(float((within * within).sum()) / free, 1e-9)
    shifts = shrunk(means, np.divide(noise, count, out=np.full_like(count, np.inf), where=count > 0))
    left = np.where(seen, residuals - shifts[rows], 0.0)
    lean = np.where(seen, common - centre, 0.0)
    power, product = np.zeros(users), np.zeros(users)
    np.add.at(power, rows, (lean * lean).sum(axis=1))
    np.add.at(product, rows, (lean * left).sum(axis=1))
    steeper = np.divide(product, power, out=np.zeros(users), where=power > 1e-9)
    steeper = shrunk(steeper, np.divide(noise, power, out=np.full(users, np.inf), where=power > 1e-9))
    return 1.0 + np.clip(steeper, -FARTHEST, FARTHEST), shifts


def fit(
    vectors: Matrix, data: Dataset, *, seed: int, settings: PersonalizedSettings, groups: NDArray[np.intp]
) -> PersonalizedStrategy:
    """See `Fit`."""
    penalty = settings.penalty or 1.0
    names, rows = _users(data, settings.min_rows)
    centre, _ = centred(data.scores, data.known)

    def maps(learn: NDArray[np.intp]) -> list[Affine]:
        return [Ridge(vectors[learn], data.scores[learn], data.known[learn]).solve(penalty)]

    weights, bias = Ridge(vectors, data.scores, data.known).solve(penalty)
    unseen = cross_fit(maps, vectors, len(data.models), groups, seed)
    common = unseen[0] if unseen else vectors @ weights.T + bias
    scales, shifts = _differences(data.scores, data.known, common, centre, rows, len(names))
    # Of the data, so that the same arguments give the same bytes; another file's bundle has other hashes of the same users.
    salt = hashlib.sha256(f"pointsman/users/1 {seed} {data.sha256}".encode()).hexdigest()[:32]
    hashes = user_hashes(salt, names)
    order = np.argsort(hashes)
    parts = {
        "weights": weights.astype(np.float32),
        "bias": bias.astype(np.float32),
        "centre": centre.astype(np.float32),
        "scales": scales[order].astype(np.float32),
        "shifts": shifts[order].astype(np.float32),
    }
    return PersonalizedStrategy(data.models, "shift", salt, hashes[order], parts)


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: PersonalizedSettings, groups: NDArray[np.intp], progress: Progress
) -> PersonalizedSettings:
    """See `Choose`: the common regression's penalty, by the least squared error in a cross-validation."""
    names, _ = _users(data, settings.min_rows)
    penalties = [settings.penalty] if settings.penalty else list(PENALTIES)

    def maps(rows: NDArray[np.intp]) -> list[Affine]:
        ridge = Ridge(vectors[rows], data.scores[rows], data.known[rows])
        return [ridge.solve(penalty) for penalty in penalties]

    predictions = cross_fit(maps, vectors, len(data.models), groups, seed)
    errors = [squared_error(each, data.scores, data.known & np.isfinite(each)) for each in predictions] or [0.0]
    best = penalties[min(range(len(errors)), key=lambda number: (errors[number], -penalties[number]))]
    progress(f"{len(names)} users, penalty {best:g}")
    return settings.model_copy(update={"penalty": best})


TRAINER = Trainer("personalized", PersonalizedSettings, fit, choose)
