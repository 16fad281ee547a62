"""Trains a strategy: data, split, fit, honest evaluation, and a bundle with all of that in its manifest.

The same file, settings, seed and code give the same bytes on the same kind of machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError, SourceError
from pointsman.mlops.data import Dataset, read_dataset
from pointsman.mlops.duplicates import group, split
from pointsman.mlops.evaluate import Prices, evaluate, frontier
from pointsman.mlops.lsa import fit_tfidf
from pointsman.mlops.probes import stable
from pointsman.strategies.base import Encoder
from pointsman.strategies.bundle import Bundle, build_bundle, save_bundle
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.files import canonical_json, sha256_hex, strict_json, write_atomic
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.manifest import Provenance

__all__ = ["read_prices", "train_knn"]

MAX_ROWS = 20_000
"""Rows of a kNN; more are thinned out by chance, because each is compared with each prompt (about 0.1 ms for a thousand)."""
NEIGHBOURS = (5, 10, 20, 50, 100, 200)
FOLDS = 5
DIMENSIONS = {"tfidf": 192, "hashing": 1024}

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def train_knn(
    data: Path,
    out: Path,
    *,
    name: str,
    encoder: Literal["tfidf", "hashing"] | str = "tfidf",
    version: str | None = None,
    k: int | None = None,
    dimensions: int | None = None,
    seed: int = 0,
    holdout: float = 0.2,
    refit: bool = True,
    prices: Mapping[str, Prices] | None = None,
    max_rows: int = MAX_ROWS,
    progress: Progress = _silent,
) -> Path:
    """Train a kNN and write `<out>/<name>-<version>.zip` and `<out>/card.json`.

    Args:
        data: see `pointsman.mlops.data`.
        out: directory; made if it is not there.
        name: of the strategy in the gateways' configuration.
        encoder: `tfidf` (fitted on the data) or `hashing`.
        version: by default made from the digests of data and settings.
        k: neighbours; by default the number with the least squared error in a cross-validation of the training rows.
        dimensions: of the vectors; by default 192 (`tfidf`) or 1024 (`hashing`).
        seed: of every random choice.
        holdout: share of the rows that judge, in (0, 0.5].
        refit: train again on all rows after the evaluation.
        prices: model -> US dollars for a million tokens, for the evaluation's costs.
        max_rows: of the bundle.
        progress: told of each step.

    Returns:
        The bundle's path.

    Raises:
        BundleError: E4320, the data or an argument cannot be used.
        SourceError: E4410, nothing could be written; nothing is left behind.
    """
    if encoder not in DIMENSIONS or not 0 < holdout <= 0.5:
        raise BundleError(
            f"encoder={encoder!r}, holdout={holdout!r}: use tfidf or hashing, and a holdout above 0 and up to 0.5",
            code="E4320",
            where="arguments",
        )
    dataset = read_dataset(data)
    progress(f"{len(dataset)} prompts, {len(dataset.models)} models")
    if len(dataset) > max_rows:
        keep = np.sort(np.random.default_rng(seed).choice(len(dataset), max_rows, replace=False))
        dataset = dataset.take(keep)
        progress(f"thinned out to {max_rows} prompts")
    groups = group(dataset.queries)
    learn, held = split(groups, holdout, seed)
    progress(f"{len(np.unique(groups))} groups of near-duplicates; {len(learn)} rows to learn from, {len(held)} held out")
    fit = _Fit(encoder, dimensions or DIMENSIONS[encoder], seed)
    train, judge = dataset.take(learn), dataset.take(held)
    neighbours = k or _choose_k(train, groups[learn], fit, seed, progress)
    made, vectors = fit(train)
    predicted = _knn(train, vectors, neighbours).score(made.encode(judge.queries))
    evaluation = evaluate(
        predicted,
        judge,
        groups[held],
        train,
        prices=dict(prices or {}),
        split=f"whole groups of near-duplicates (MinHash, Jaccard 0.75), share {holdout:g}, seed {seed}",
        refit=refit,
        seed=seed,
    )
    if refit:
        progress("training on all rows")
        train = dataset
        made, vectors = fit(train)
    strategy = _knn(train, vectors, neighbours)
    settings = {"encoder": encoder, "k": neighbours, "dimensions": made.dimensions, "holdout": holdout, "refit": refit}
    code = installed_version("pointsman")
    number = version or f"{dataset.sha256[:8]}-{sha256_hex(canonical_json([settings, seed, code]))[:8]}"
    content = build_bundle(
        name=name,
        version=number,
        encoder=made,
        strategy=strategy,
        provenance=Provenance(data_sha256=dataset.sha256, code_version=code, seed=seed, rows=len(train), settings=settings),
        probe_texts=stable(made, strategy, seed),
        evaluation=evaluation,
    )
    path = out / f"{name}-{number}.zip"
    bundle = save_bundle(path, content)
    _write_card(out / "card.json", bundle, frontier(predicted, judge, dict(prices or {})))
    progress(f"{path}: {bundle.size} bytes, sha256 {bundle.sha256}")
    return path


def read_prices(path: Path) -> dict[str, Prices]:
    """Prices from LLMRouter's candidate metadata: `{name: {"input_price": dollars, "output_price": dollars, ...}}`.

    Prices are US dollars for a million tokens; candidates without any are passed over.

    Raises:
        BundleError: E4320.
    """
    try:
        value = strict_json(path.read_bytes())
        items = {name: item for name, item in value.items() if "input_price" in item and "output_price" in item}
        return {name: Prices(float(item["input_price"]), float(item["output_price"])) for name, item in items.items()}
    except OSError as error:
        raise BundleError(f"the prices cannot be read: {error.strerror or error}", code="E4320", where=str(path)) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"the prices are not LLMRouter's metadata: {error}", code="E4320", where=str(path)) from error


class _Fit:
    """Makes an encoder for some rows, and their vectors as the bundle keeps them."""

    def __init__(self, kind: str, dimensions: int, seed: int) -> None:
        self._kind, self._dimensions, self._seed = kind, dimensions, seed

    def __call__(self, data: Dataset) -> tuple[Encoder, NDArray[np.float16]]:
        encoder: Encoder
        if self._kind == "hashing":
            encoder = HashingEncoder(self._dimensions)
        else:
            try:
                encoder = fit_tfidf(data.queries, self._dimensions, seed=self._seed)
            except ValueError as error:
                raise BundleError(str(error), code="E4320", where="queries") from error
        return encoder, encoder.encode(data.queries).astype(np.float16)


def _knn(data: Dataset, vectors: NDArray[np.float16], k: int) -> KnnStrategy:
    return KnnStrategy(data.models, vectors, data.scores, data.known.astype(np.uint8), min(k, len(data)))


def _choose_k(train: Dataset, groups: NDArray[np.intp], fit: _Fit, seed: int, progress: Progress) -> int:
    """The number of neighbours with the least squared error in a cross-validation by whole groups.

    The encoder is fitted once on all of these rows: it sees texts, never scores.
    """
    names, index = np.unique(groups, return_inverse=True)
    fold_of = np.random.default_rng(seed + 1).integers(FOLDS, size=len(names))[index]
    options = [k for k in NEIGHBOURS if k <= len(train) // 2]
    if len(options) < 2:
        return options[0] if options else 1
    encoder, vectors = fit(train)
    queries = encoder.encode(train.queries)
    squared = dict.fromkeys(options, 0.0)
    for fold in range(FOLDS):
        learn, check = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        part, judge = train.take(learn), train.take(check)
        for k in options:
            errors = (_knn(part, vectors[learn], k).score(queries[check]) - judge.scores) ** 2
            squared[k] += float(errors[judge.known].sum(dtype=np.float64))
    total = float(train.known.sum())
    best = min(options, key=lambda k: (squared[k], k))
    progress(f"k = {best}; squared errors: " + ", ".join(f"{k}: {error / total:.4f}" for k, error in squared.items()))
    return best


def _write_card(path: Path, bundle: Bundle, points: list[dict[str, float]]) -> None:
    """What a person wants to see before publishing."""
    manifest = bundle.manifest
    card: dict[str, Any] = {
        "bundle": f"{bundle.name}-{bundle.version}.zip",
        "sha256": bundle.sha256,
        "size": bundle.size,
        "models": list(bundle.models),
        "encoder": {"kind": manifest.encoder.kind, "dimensions": manifest.encoder.dimensions},
        "params": manifest.params,
        "provenance": manifest.provenance.model_dump(mode="json"),
        "evaluation": manifest.evaluation.model_dump(mode="json") if manifest.evaluation else None,
        "cost_weights": points,
    }
    if manifest.evaluation is None:
        card["note"] = "too few held-out rows with the scores of all models: this bundle is not evaluated"
    try:
        write_atomic(path, json.dumps(card, indent=2, ensure_ascii=False).encode() + b"\n", mode=0o644)
    except OSError as error:
        raise SourceError(
            f"the card cannot be written: {error.strerror or error}", code="E4410", where=str(path), mend="check the directory"
        ) from error
