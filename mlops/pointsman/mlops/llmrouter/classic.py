"""Importers of LLMRouter's classifiers and constants: knn, svm, mlp, elo, smallest, largest."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointsman.mlops.llmrouter.base import Context, Imported, Importer, Scores, mismatch
from pointsman.strategies.base import Matrix
from pointsman.strategies.constant import LargestStrategy, SmallestStrategy
from pointsman.strategies.elo import POINTS, START, EloStrategy
from pointsman.strategies.knn_classifier import KnnClassifier, KnnClassifierParams, Metric
from pointsman.strategies.mlp import MlpStrategy
from pointsman.strategies.svm import SvmParams, SvmStrategy

__all__ = ["IMPORTERS"]

Users = Sequence[str | None] | None
_METRICS: Mapping[str, Metric] = {
    "euclidean": "euclidean",
    "l2": "euclidean",
    "manhattan": "manhattan",
    "l1": "manhattan",
    "cityblock": "manhattan",
    "chebyshev": "chebyshev",
    "infinity": "chebyshev",
    "minkowski": "minkowski",
    "cosine": "cosine",
}


def _refused(what: str) -> Exception:
    return mismatch(
        f"this artifact cannot be imported: {what}",
        "model_path.load_model_path",
        "train it with settings that are parameters, not code, or train it by `pointsman mlops train`",
    )


def _expected(artifact: Any, name: str) -> Any:
    """The artifact, if it is scikit-learn's class of that name."""
    if type(artifact).__name__ != name:
        raise _refused(f"it is a {type(artifact).__name__}, not a {name}")
    return artifact


def _exact(values: Any) -> Matrix:
    """As float32, if that loses nothing."""
    array = np.asarray(values)
    single: Matrix = array.astype(np.float32)
    if not np.array_equal(single.astype(np.float64), array.astype(np.float64)):
        raise _refused("its vectors are not of single precision")
    return np.ascontiguousarray(single)


def _names(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def knn(context: Context) -> Imported:
    """scikit-learn's KNeighborsClassifier."""
    model = _expected(context.load(), "KNeighborsClassifier")
    metric, more = str(model.effective_metric_), dict(model.effective_metric_params_)
    if metric not in _METRICS or callable(model.weights) or set(more) - {"p"}:
        raise _refused(f"metric {metric!r} with {sorted(more)}, weights {model.weights!r}")
    params = KnnClassifierParams(
        mode="classifier",
        k=int(model.n_neighbors),
        metric=_METRICS[metric],
        p=float(more.get("p", 2.0)),
        weights=model.weights or "uniform",
    )
    labels = np.asarray(model._y).astype(np.int32)
    strategy = KnnClassifier(_names(model.classes_), _exact(model._fit_X), labels, params)

    def own(vectors: Matrix, users: Users) -> Scores:
        del users
        shares: Scores = np.asarray(model.predict_proba(vectors), np.float64)
        return shares

    return Imported(strategy, own, note="scores are shares of votes")


def svm(context: Context) -> Imported:
    """scikit-learn's SVC. `probability` changes nothing: LLMRouter asks for `predict`, which counts votes."""
    model = _expected(context.load(), "SVC")
    if model.kernel not in {"linear", "poly", "rbf", "sigmoid"}:
        raise _refused(f"kernel {model.kernel!r}")
    params = SvmParams(
        mode="classifier",
        kernel=model.kernel,
        gamma=float(model._gamma),
        coef0=float(model.coef0),
        degree=int(model.degree),
        break_ties=bool(model.break_ties),
    )
    models = _names(model.classes_)

    def strategy(vectors: NDArray[Any]) -> SvmStrategy:
        coefficients, bias = np.asarray(model._dual_coef_, np.float64), np.asarray(model._intercept_, np.float64)
        support = np.asarray(model._n_support, np.int64)
        return SvmStrategy(models, vectors, coefficients, bias, support, params)

    def own(vectors: Matrix, users: Users) -> Scores:
        del users
        ovr = importlib.import_module("sklearn.utils.multiclass")._ovr_decision_function
        shape, model.decision_function_shape = model.decision_function_shape, "ovo"
        decisions = np.asarray(model.decision_function(vectors), np.float64)
        model.decision_function_shape = shape
        if decisions.ndim == 1:  # of two classes scikit-learn tells the second's
            decisions = -decisions[:, None]
        scores: Scores = ovr(decisions < 0, -decisions, len(models))
        if not params.break_ties:  # of equal votes libsvm takes the first
            place = {name: number for number, name in enumerate(models)}
            chosen = np.array([place[str(name)] for name in model.predict(vectors)])
            tied = scores.argmax(axis=1) != chosen
            scores[tied, chosen[tied]] = np.round(scores[tied, chosen[tied]]) + 0.5
        return scores

    stored = np.ascontiguousarray(model.support_vectors_)
    return Imported(
        strategy(stored.astype(np.float32)), own, precise=strategy(stored.astype(np.float64)), note="scores are votes"
    )


def mlp(context: Context) -> Imported:
    """LLMRouter's network; which output is which model stands in the order of its training rows."""
    torch = importlib.import_module("torch")
    router = context.router
    router.load_model_path = str(context.artifact)
    network, form = router._load_mlp_model()
    if form != "pytorch":
        raise _refused("it is of an older form, scikit-learn's MLPClassifier")
    state = {name: np.asarray(value.detach().cpu().numpy(), np.float32) for name, value in network.state_dict().items()}
    numbers = range(len(state) // 2)
    activation = context.hparam.get("activation", "relu")
    strategy = MlpStrategy(
        tuple(str(router.idx_to_model[number]) for number in range(router.num_classes)),
        [np.ascontiguousarray(state[f"layers.{number}.weight"]) for number in numbers],
        [state[f"layers.{number}.bias"] for number in numbers],
        activation if activation in {"tanh", "logistic", "identity"} else "relu",
        "logits",
    )

    def own(vectors: Matrix, users: Users) -> Scores:
        del users
        with torch.no_grad():
            logits: Scores = network(torch.from_numpy(vectors)).numpy().astype(np.float64)
        return logits

    return Imported(strategy, own, note="scores are logits")


def elo(context: Context) -> Imported:
    """Ratings, in the order of LLMRouter's: the first of equal ones is chosen."""
    context.router._load_elo_if_needed()
    ratings = {str(name): float(value) for name, value in context.router.elo_scores.items()}
    strategy = EloStrategy(tuple(ratings), np.array(list(ratings.values()), np.float64))

    def own(vectors: Matrix, users: Users) -> Scores:
        del users
        return np.array([[(value - START) / POINTS for value in context.router.elo_scores.values()]] * len(vectors))

    return Imported(strategy, own, note=f"scores are (rating - {START:g}) / {POINTS:g}")


def _by_size(context: Context, kind: type[SmallestStrategy | LargestStrategy], reverse: bool) -> Imported:
    """LLMRouter looks only at sizes that end in B. One that it cannot read counts as 0; of equal ones the first is taken."""
    known = {
        str(name): info["size"]
        for name, info in (context.router.llm_data or {}).items()
        if isinstance(info.get("size", ""), str) and info["size"].upper().endswith("B")
    }
    if not known:
        raise _refused("no model of llm_data has a size that ends in B")
    sizes = np.array([context.module.parse_size(size) for size in known.values()], np.float64)
    strategy = kind(tuple(known), sizes)

    def own(vectors: Matrix, users: Users) -> Scores:
        del users
        order = sorted(known, key=lambda name: context.module.parse_size(known[name]), reverse=reverse)
        return np.array([[1 - order.index(name) / len(known) for name in known]] * len(vectors))

    return Imported(strategy, own, note="scores are places in the order of sizes")


def smallest(context: Context) -> Imported:
    """See `_by_size`."""
    return _by_size(context, SmallestStrategy, reverse=False)


def largest(context: Context) -> Imported:
    """See `_by_size`."""
    return _by_size(context, LargestStrategy, reverse=True)


_MODELS = "llmrouter.models"
IMPORTERS: tuple[Importer, ...] = (
    Importer("knn", f"{_MODELS}.knnrouter.router", "KNNRouter", knn),
    Importer("svm", f"{_MODELS}.svmrouter.router", "SVMRouter", svm),
    Importer("mlp", f"{_MODELS}.mlprouter.router", "MLPRouter", mlp),
    Importer("elo", f"{_MODELS}.elorouter.router", "EloRouter", elo, text=False),
    Importer("smallest", f"{_MODELS}.smallest_llm.router", "SmallestLLM", smallest, text=False, artifact=False),
    Importer("largest", f"{_MODELS}.largest_llm.router", "LargestLLM", largest, text=False, artifact=False),
)
