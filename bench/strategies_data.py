"""Routing data to judge strategies by: reading, splitting, money, and the arithmetic of the comparison.

A directory with `routing_train.jsonl.gz` and `llmrouter/{train,test,default_llm}.json.gz`, or a file in one of the shapes that
`pointsman mlops train` reads, with an `llm_data` file beside it or without.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointsman.mlops.data import Dataset, read_dataset
from pointsman.mlops.duplicates import group, split
from pointsman.mlops.evaluate import Prices, costs_of

__all__ = ["ORDERS", "RoutingSet", "generated", "paired", "picked", "ratio", "read_sets", "row_order", "weighted"]

ORDERS = ("alphabetical", "cheapest first", "best first")
"""Orders of a prompt's rows in LLMRouter's file; of equal scores its labels take the first."""

RESAMPLES = 2000
PUBLISHED = {"gpt-4-1106-preview": Prices(10, 30), "mixtral-8x7b-instruct": Prices(0.6, 0.6)}
SIZES = {"gpt-4-1106-preview": "1000B", "mixtral-8x7b-instruct": "47B"}
"""For LLMRouter's strategies that go by size; that of GPT-4 is not published and stands for "the larger one"."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RoutingSet:
    """One data set, split.

    Attributes:
        name: of the set.
        train, held: every score known, costs in US dollars for every prompt and model.
        train_groups, held_groups: of near-duplicates; none is on both sides.
        sizes: model -> e.g. `7B`.
        prices: model -> US dollars for a million tokens.
    """

    name: str
    train: Dataset
    held: Dataset
    train_groups: NDArray[np.intp]
    held_groups: NDArray[np.intp]
    sizes: Mapping[str, str]
    prices: Mapping[str, Prices]

    def costs(self, held: bool) -> Floats:
        """(rows, models), US dollars."""
        costs = (self.held if held else self.train).costs
        assert costs is not None
        return costs


def read_sets(place: Path | None, *, seed: int = 0, holdout: float = 0.2) -> list[RoutingSet]:
    """The sets at `place`; None: the one of the repository's generator."""
    if place is None:
        return [_split("generated", *generated(seed=seed), seed=seed, holdout=holdout)]
    if place.is_file():
        data = read_dataset(place)
        return [_split(place.name.split(".")[0], data, PUBLISHED, SIZES, seed=seed, holdout=holdout)]
    sets = [
        _split("routing_train", read_dataset(place / "routing_train.jsonl.gz"), PUBLISHED, SIZES, seed=seed, holdout=holdout)
    ]
    if (place / "llmrouter" / "train.json.gz").is_file():
        sets.append(_split("llmrouter", *_llmrouter(place / "llmrouter"), seed=seed, holdout=holdout))
    return sets


def _json(path: Path) -> Any:
    with gzip.open(path) as stream:
        return json.load(stream)


def _llmrouter(place: Path) -> tuple[Dataset, dict[str, Prices], dict[str, str]]:
    """LLMRouter's example questions: its training set, and those of its test set that are not in the training set as well."""
    train, test = _json(place / "train.json.gz"), _json(place / "test.json.gz")
    known = {row["question"] for row in train}
    rows = train + [row for row in test if row["question"] not in known]
    models = tuple(sorted(rows[0]["scores"]))
    llms = _json(place / "default_llm.json.gz")
    scores = np.array([[row["scores"][model] for model in models] for row in rows], np.float32)
    data = _dataset([row["question"] for row in rows], models, scores)
    prices = {model: Prices(llms[model]["input_price"], llms[model]["output_price"]) for model in models}
    return data, prices, {model: llms[model]["size"] for model in models}


def _dataset(queries: Sequence[str], models: tuple[str, ...], scores: NDArray[np.float32]) -> Dataset:
    known = np.ones(scores.shape, np.bool_)
    return Dataset(tuple(queries), ("",) * len(queries), models, np.clip(scores, 0, 1), known, None, "0" * 64)


def generated(rows: int = 1200, seed: int = 0) -> tuple[Dataset, dict[str, Prices], dict[str, str]]:
    """Prompts of four topics; a cheap model that is good at two of them, a dear one that is good at all, one in between."""
    chance = random.Random(seed)  # noqa: S311 - prompts that pretend
    words_of = {
        "count": "sum prime divide fraction triangle angle integer equation",
        "cook": "bread butter salad recipe sugar dinner kitchen lemon",
        "code": "function loop compiler thread pointer module class array",
        "court": "contract judge appeal statute clause treaty verdict liability",
        "": "please tell me about the and of how what when which explain give some more today",
    }
    topics = {name: text.split() for name, text in words_of.items()}
    filler = topics.pop("")
    skill = {
        "cheap-7b": {"count": 0.2, "cook": 0.9, "code": 0.3, "court": 0.8},
        "dear-70b": {"count": 0.9, "cook": 0.9, "code": 0.9, "court": 0.85},
        "middle-13b": {"count": 0.4, "cook": 0.6, "code": 0.85, "court": 0.5},
    }
    models, queries, scores = tuple(sorted(skill)), [], []
    for number in range(rows):
        topic = chance.choice(list(topics))
        words = chance.choices(topics[topic], k=4) + chance.choices(filler, k=4) + [f"case{number}"]
        chance.shuffle(words)
        queries.append(" ".join(words))
        scores.append([float(chance.random() < skill[model][topic]) for model in models])
    prices = {"cheap-7b": Prices(0.2, 0.2), "dear-70b": Prices(2, 6), "middle-13b": Prices(0.5, 0.5)}
    return (
        _dataset(queries, models, np.array(scores, np.float32)),
        prices,
        {model: model[-3:].strip("-").upper() for model in models},
    )


def _split(
    name: str, data: Dataset, prices: Mapping[str, Prices], sizes: Mapping[str, str], *, seed: int, holdout: float
) -> RoutingSet:
    data = data.take(np.flatnonzero(data.known.all(axis=1)))
    costs = costs_of(data, dict(prices))
    if costs is None:
        raise SystemExit(f"{name}: no prices are known for {data.models}")
    data = replace(data, costs=costs)
    groups = group(data.queries)
    learn, held = split(groups, holdout, seed)
    return RoutingSet(name, data.take(learn), data.take(held), groups[learn], groups[held], dict(sizes), dict(prices))


def row_order(data: RoutingSet, order: str) -> list[int]:
    """Columns of `data.train` in one of `ORDERS`."""
    columns = range(len(data.train.models))
    if order == ORDERS[0]:
        return list(columns)
    key = data.costs(False).mean(axis=0) if order == ORDERS[1] else -data.train.scores.mean(axis=0, dtype=np.float64)
    return sorted(columns, key=lambda column: (float(key[column]), column))


def picked(data: RoutingSet, picks: NDArray[np.intp], rows: NDArray[np.intp] | None = None) -> tuple[Floats, Floats]:
    """Score and cost of each held-out prompt (of `rows`) under the models picked."""
    rows = np.arange(len(data.held)) if rows is None else rows
    return data.held.scores[rows, picks].astype(np.float64), data.costs(True)[rows, picks]


def paired(difference: Floats, groups: NDArray[np.intp], seed: int = 0) -> tuple[float, float, float]:
    """Mean of a difference a prompt, and its 95% interval by a bootstrap over groups of near-duplicates."""
    return ratio(difference, np.ones_like(difference), groups, seed)


def ratio(over: Floats, under: Floats, groups: NDArray[np.intp], seed: int = 0) -> tuple[float, float, float]:
    """Sum of `over` by the sum of `under`, (n,) each, and its 95% interval by a bootstrap over groups of near-duplicates."""
    names, index = np.unique(groups, return_inverse=True)
    count = len(names)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    sums, sizes = (np.bincount(index, weights=values, minlength=count) for values in (over, under))
    low, high = np.percentile((drawn @ sums) / (drawn @ sizes), (2.5, 97.5))
    return float(over.sum() / under.sum()), float(low), float(high)


def weighted(scores: NDArray[Any], costs: Floats, weight: float, reference: float) -> NDArray[np.intp]:
    """The pick of each row: the highest score - weight * cost / reference; of equals the cheaper, then the first."""
    value = scores.astype(np.float64) - weight * costs / reference
    best = value >= value.max(axis=1, keepdims=True)
    picks: NDArray[np.intp] = np.where(best, costs, np.inf).argmin(axis=1)
    return picks


def routing_rows(data: RoutingSet, order: str) -> Iterator[dict[str, Any]]:
    """LLMRouter's routing data: a line a prompt and model."""
    columns = row_order(data, order)
    for row, query in enumerate(data.train.queries):
        for column in columns:
            yield {
                "task_name": "bench",
                "query": query,
                "ground_truth": "",
                "metric": "em",
                "model_name": data.train.models[column],
                "response": "",
                "performance": float(data.train.scores[row, column]),
                "embedding_id": row,
                "token_num": 256,
            }
