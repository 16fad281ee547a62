"""Trains a strategy: data, split, fit, honest evaluation, and a bundle with all of that in its manifest.

The same file, settings, seed and code give the same bytes on the same kind of machine, however many cores it has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError, SourceError
from pointsman.mlops.blas import one_thread
from pointsman.mlops.data import Dataset, read_dataset
from pointsman.mlops.duplicates import group, split
from pointsman.mlops.evaluate import Prices, evaluate, frontier
from pointsman.mlops.probes import stable
from pointsman.mlops.trainers import TRAINERS, Trainer, fit_strategy, in_order, predict
from pointsman.mlops.trainers.base import Progress, silent
from pointsman.mlops.vectors import Vectors
from pointsman.strategies.base import Encoder, Matrix
from pointsman.strategies.bundle import Bundle, build_bundle, save_bundle
from pointsman.strategies.catalogue import CATALOGUE
from pointsman.strategies.files import canonical_json, sha256_hex, strict_json, write_atomic
from pointsman.strategies.manifest import Provenance

__all__ = ["default_name", "read_prices", "train"]


TIMED = 500
"""Held-out prompts whose decisions are timed."""


def default_name(kind: str) -> str:
    """The name that a configuration uses for a kind: `llmrouter-knn`, `linear`."""
    return CATALOGUE[kind].name if kind in CATALOGUE else kind


@one_thread()
def train(
    kind: str,
    data: Path,
    out: Path,
    *,
    name: str | None = None,
    encoder: str | Encoder | None = None,
    version: str | None = None,
    settings: Mapping[str, Any] | None = None,
    dimensions: int | None = None,
    seed: int = 0,
    holdout: float = 0.2,
    refit: bool = True,
    prices: Mapping[str, Prices] | None = None,
    max_rows: int | None = None,
    progress: Progress = silent,
) -> Path:
    """Train a strategy and write `<out>/<name>-<version>.zip` and `<out>/card.json`.

    The order of the file's lines decides nothing: neither the split nor the strategy.

    Args:
        kind: one of `TRAINERS`.
        data: see `pointsman.mlops.data`.
        out: directory; made if it is not there.
        name: of the strategy in the gateways' configuration; by default the catalogue's.
        encoder: see `Vectors`; by default the trainer's.
        version: by default made from the digests of data and settings.
        settings: of the trainer; what is left out is chosen by a cross-validation of the training rows.
        dimensions: of the vectors; by default the encoder's.
        seed: of every random choice.
        holdout: share of the rows that judge, in (0, 0.5].
        refit: train again on all rows after the evaluation, with the settings that were chosen before it.
        prices: model -> US dollars for a million tokens, for the evaluation's costs.
        max_rows: of the training data; more are thinned out by chance. By default the trainer's.
        progress: told of each step.

    Returns:
        The bundle's path.

    Raises:
        BundleError: E4320, the data or an argument cannot be used.
        SourceError: E4410, nothing could be written; nothing is left behind.
    """
    trainer = TRAINERS.get(kind)
    if trainer is None or not 0 < holdout <= 0.5:
        raise BundleError(
            f"strategy={kind!r}, holdout={holdout!r}: use a holdout above 0 and up to 0.5, and one of {', '.join(TRAINERS)}",
            code="E4320",
            where="arguments",
        )
    trainer.parse(settings or {})  # a wrong one is told before the work, not after it
    make = Vectors(encoder if encoder is not None else trainer.encoder, dimensions, seed)
    dataset = read_dataset(data)
    dataset = dataset.take(in_order(dataset))
    progress(f"{len(dataset)} prompts, {len(dataset.models)} models")
    limit = trainer.max_rows if max_rows is None else max_rows
    if len(dataset) > limit:
        keep = np.sort(np.random.default_rng(seed).choice(len(dataset), limit, replace=False))
        dataset = dataset.take(keep)
        progress(f"thinned out to {limit} prompts")
    groups = group(dataset.queries)
    learn, held = split(groups, holdout, seed)
    progress(f"{len(np.unique(groups))} groups of near-duplicates; {len(learn)} rows to learn from, {len(held)} held out")
    learned, judge = dataset.take(learn), dataset.take(held)
    made, vectors = make(learned)
    strategy, chosen = fit_strategy(
        trainer, vectors, learned, seed=seed, settings=settings, groups=groups[learn], progress=progress
    )
    unseen = made.encode(judge.queries)
    predicted = predict(strategy, unseen, judge)
    evaluation = evaluate(
        predicted,
        judge,
        groups[held],
        learned,
        prices=dict(prices or {}),
        split=f"whole groups of near-duplicates (MinHash, Jaccard 0.75), share {holdout:g}, seed {seed}",
        refit=refit,
        seed=seed,
        knn=_baseline(trainer, made, vectors, learned, groups[learn], unseen, predicted, seed),
        scale=strategy.scale,
    )
    rows = len(learned)
    if refit:
        progress("training on all rows")
        rows = len(dataset)
        made, vectors = make(dataset)
        strategy, _ = fit_strategy(trainer, vectors, dataset, seed=seed, settings=chosen, groups=groups)
    used = {
        "strategy": kind,
        "encoder": made.kind,
        "dimensions": made.dimensions,
        "holdout": holdout,
        "refit": refit,
        **chosen,
    }
    code = installed_version("pointsman")
    called = name or default_name(kind)
    number = version or f"{dataset.sha256[:8]}-{sha256_hex(canonical_json([used, seed, code]))[:8]}"
    content = build_bundle(
        name=called,
        version=number,
        encoder=made,
        strategy=strategy,
        provenance=Provenance(data_sha256=dataset.sha256, code_version=code, seed=seed, rows=rows, settings=used),
        probe_texts=stable(made, strategy, seed),
        evaluation=evaluation,
    )
    path = out / f"{called}-{number}.zip"
    bundle = save_bundle(path, content)
    points = frontier(predicted, judge, dict(prices or {})) if strategy.scale == "quality" else []
    _write_card(out / "card.json", bundle, points, _decision_us(bundle, judge.queries))
    progress(f"{path}: {bundle.size} bytes, sha256 {bundle.sha256}")
    return path


def _baseline(
    trainer: Trainer[Any],
    encoder: Encoder,
    vectors: Matrix,
    learned: Dataset,
    groups: NDArray[np.intp],
    unseen: Matrix,
    predicted: Matrix,
    seed: int,
) -> Matrix | None:
    """What a kNN on the same vectors predicts; None where they say nothing."""
    if trainer.kind == "knn":
        return predicted
    if encoder.kind == "none":
        return None
    knn, _ = fit_strategy(TRAINERS["knn"], vectors, learned, seed=seed, groups=groups)
    return knn.score(unseen)


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


def _decision_us(bundle: Bundle, queries: Sequence[str]) -> dict[str, float]:
    """Microseconds of a decision on this machine, text to scores, on held-out prompts.

    It stands on the card and not in the bundle: the same data give the same bundle, but never the same microseconds.
    """
    if bundle.manifest.encoder.kind == "remote":  # a network's time is none of this machine's
        return {}
    taken = []
    for query in ("", *queries[:TIMED]):
        started = time.perf_counter_ns()
        bundle.score(query)
        taken.append((time.perf_counter_ns() - started) / 1000)
    p50, p99 = np.percentile(taken[1:], (50, 99))  # the first one makes tables that all others use
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


def _write_card(path: Path, bundle: Bundle, points: list[dict[str, float]], decision_us: dict[str, float]) -> None:
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
        "decision_us": decision_us,
    }
    if manifest.evaluation is None:
        card["note"] = "too few held-out rows with the scores of all models: this bundle is not evaluated"
    try:
        write_atomic(path, json.dumps(card, indent=2, ensure_ascii=False).encode() + b"\n", mode=0o644)
    except OSError as error:
        raise SourceError(
            f"the card cannot be written: {error.strerror or error}", code="E4410", where=str(path), mend="check the directory"
        ) from error
