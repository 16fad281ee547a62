"""Quality, cost and decision time of every strategy, beside simple baselines and LLMRouter's own implementation.

    python -m bench.strategies [--data PATH] [--llmrouter PYTHON] [--work FOLDER] [--json FILE] [--encoder NAME=FILE]

`--data`: see `bench.strategies_data`; by default POINTSMAN_ROUTING_DATA, else the repository's generator. `--llmrouter`: an
interpreter that has LLMRouter and torch; without it its columns are left out. What it picked is kept in FOLDER, and not asked
again; times are always taken anew. `--encoder`: an encoder's file or a bundle. Run from the repository's root.

How it is compared, so that it says something:

- Data are split by groups of near-duplicates; nothing of the held-out fifth is looked at before it judges.
- Both sides learn from the same rows and the same vectors (`tfidf`, fitted on the training rows): the algorithm is compared.
- LLMRouter learns from the best model's name, the first of equals, so the order of rows decides: it is trained in three orders
  (`bench.strategies_data.ORDERS`). Its best one on the held-out rows is what ours is compared with, to LLMRouter's advantage.
- Ours is told LLMRouter's mean cost as a budget, no score: the weight of cost is the smallest that keeps to the budget on the
  *training* rows, each predicted by a strategy that was fitted without its group. Of `hybrid`, whose scores only rank two
  models, the threshold is chosen so instead. One that is cheaper than LLMRouter's stays as it is.
- Differences are means over the same prompts, with 95% intervals by a bootstrap over groups. They tell what other prompts
  would change, not what other training rows would.
- Times: both sides decide about the same held-out prompts, one at a time, on one thread, one side right after the other.
  LLMRouter's embedding of the text is a look-up of the vector; ours are told without and with the encoding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the gateway's workers; before NumPy comes

import numpy as np
from bench.strategies_data import ORDERS, RoutingSet, paired, picked, ratio, read_sets, routing_rows, weighted
from bench.strategies_llmrouter import ROUTERS, timed_rows
from bench.strategies_tables import UNUSED, markdown
from numpy.typing import NDArray

from pointsman.mlops.lsa import fit_tfidf
from pointsman.mlops.trainers import TRAINERS, fit_strategy, folds, predict
from pointsman.settings import environment
from pointsman.strategies.base import Encoder, Matrix, Strategy
from pointsman.strategies.constant import LargestStrategy, SmallestStrategy
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.encoders.nothing import NoEncoder

__all__ = ["compare", "main", "threshold_for", "weight_for"]

HEAVIEST = 4.0
"""Largest weight of cost that is tried: cost decides alone."""
BUDGET_MARGIN = 0.9
"""Of LLMRouter's cost is aimed at: the held-out prompts are others than those that the operating point was chosen on.

With 0.98 the held-out cost was up to 8% above LLMRouter's.
"""

Floats = NDArray[np.float64]


def slug(order: str) -> str:
    return order.replace(" ", "-")


def prepare(data: RoutingSet, folder: Path) -> tuple[Encoder, Matrix, Matrix]:
    """The encoder and both sides' vectors; what LLMRouter's side reads."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = fit_tfidf(data.train.queries, min(192, len(data.train) // 4), seed=0)
    train, held = encoder.encode(data.train.queries), encoder.encode(data.held.queries)
    np.savez(folder / "vectors.npz", train=train, held=held)
    lines = "".join(json.dumps({"query": query}) + "\n" for query in data.held.queries)
    (folder / "held.jsonl").write_text(lines)
    llms = {
        model: {
            "size": data.sizes[model],
            "feature": model,
            "input_price": data.prices[model].input,
            "output_price": data.prices[model].output,
            "model": model,
        }
        for model in data.train.models
    }
    (folder / "llm.json").write_text(json.dumps(llms))
    for order in ORDERS:
        rows = "".join(json.dumps(row) + "\n" for row in routing_rows(data, order))
        (folder / f"train-{slug(order)}.jsonl").write_text(rows)
    return encoder, train, held


def upstream(folder: Path, python: str | None, kind: str, order: str, *, again: bool = False) -> dict[str, Any] | None:
    """What LLMRouter picked, and how long each answer took; None where it was not asked or cannot be."""
    if kind not in ROUTERS:
        return None
    path = folder / f"{'time' if again else 'llmrouter'}-{kind}-{slug(order)}.json"
    if python is not None and (again or not path.is_file()):
        command = [python, "-m", "bench.strategies_llmrouter", str(folder), kind, order, *(["again"] if again else [])]
        env = {**environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def fitted(kind: str, data: RoutingSet, vectors: Matrix) -> tuple[Strategy, dict[str, Any]]:
    """Our strategy, by our trainer."""
    models = data.train.models
    if kind in ("smallest", "largest"):
        sizes = np.array([float(data.sizes[model].rstrip("Bb")) for model in models])
        return (SmallestStrategy if kind == "smallest" else LargestStrategy)(models, sizes), {}
    return fit_strategy(TRAINERS[kind], vectors, data.train, seed=0, groups=data.train_groups)


def predicted_unseen(kind: str, data: RoutingSet, vectors: Matrix, settings: dict[str, Any]) -> Matrix:
    """Scores of the training rows, each by a strategy that was fitted without its group: (rows, models)."""
    scores = np.zeros(data.train.scores.shape, np.float32)
    for learn, check in folds(data.train_groups, 0):
        part = data.train.take(learn)
        strategy, _ = fit_strategy(
            TRAINERS[kind], vectors[learn], part, seed=0, settings=settings, groups=data.train_groups[learn]
        )
        scores[check] = predict(strategy, vectors[check], data.train.take(check))
    return scores


def weight_for(scores: Matrix, costs: Floats, budget: float, reference: float) -> float:
    """The smallest weight of cost under which the picks' mean cost is within the budget; `HEAVIEST` if none is.

    What a row's pick costs never rises with the weight, so that halving finds it.
    """

    def within(weight: float) -> bool:
        picks = weighted(scores, costs, weight, reference)
        return float(costs[np.arange(len(costs)), picks].mean()) <= budget

    if within(0.0):
        return 0.0
    low, high = 0.0, HEAVIEST
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high


def threshold_for(margins: Floats, weak: Floats, strong: Floats, budget: float) -> float:
    """From which margin on the strong one of two models is asked: the lowest that keeps the mean cost within the budget.

    Args:
        margins: (n,) score of the strong model less that of the weak one; the strong one is asked above the threshold.
        weak, strong: (n,) what either costs.
        budget: of the mean cost.
    """
    order = np.argsort(-margins, kind="stable")
    spent = np.maximum.accumulate(weak.mean() + (strong - weak)[order].cumsum() / len(order))
    count = int(np.searchsorted(spent, budget, side="right"))
    return float(margins[order[count]]) if count < len(order) else -np.inf


def baselines(data: RoutingSet) -> dict[str, tuple[float, float]]:
    """Name -> mean score and mean cost on the held-out rows; the constant ones are chosen on the training rows."""
    truth, costs = data.held.scores.astype(np.float64), data.costs(True)
    best = int(data.train.scores.mean(axis=0, dtype=np.float64).argmax())
    cheap = int(data.costs(False).mean(axis=0).argmin())
    oracle = np.where(truth >= truth.max(axis=1, keepdims=True), costs, np.inf).argmin(axis=1)
    rows = np.arange(len(truth))
    return {
        f"best single ({data.held.models[best]})": (truth[:, best].mean(), costs[:, best].mean()),
        f"cheapest ({data.held.models[cheap]})": (truth[:, cheap].mean(), costs[:, cheap].mean()),
        "random": (truth.mean(), costs.mean()),
        "oracle": (truth[rows, oracle].mean(), costs[rows, oracle].mean()),
    }


def within_budget(
    strategy: Strategy, scores: Matrix, seen: Matrix, data: RoutingSet, budget: float, reference: float
) -> tuple[NDArray[np.intp], str]:
    """Picks of the held-out rows at an operating point that keeps to the budget on the training rows, and what it is.

    Args:
        strategy: ours.
        scores: of the held-out rows.
        seen: of the training rows, by strategies that had not seen them.
        data: both.
        budget: US dollars a prompt, on average.
        reference: cost that a weight is measured by.
    """
    known = data.costs(False)
    if strategy.scale == "quality":
        weight = weight_for(seen, known, budget, reference)
        return weighted(scores, data.costs(True), weight, reference), f"weight of cost {weight:.4f}"
    if len(strategy.models) != 2:
        raise SystemExit(f"{strategy.models}: scores that rank more than two models cannot be held to a budget")
    weak, strong = (data.train.models.index(model) for model in strategy.models)
    threshold = threshold_for((seen[:, strong] - seen[:, weak]).astype(np.float64), known[:, weak], known[:, strong], budget)
    above = scores[:, strong] - scores[:, weak] > threshold
    return np.where(above, strong, weak), f"threshold {threshold:.4f}"


def compare(kind: str, data: RoutingSet, folder: Path, vectors: tuple[Matrix, Matrix], python: str | None) -> dict[str, Any]:
    """One strategy on one set, ours and LLMRouter's."""
    started = time.perf_counter()
    nothing = kind not in TRAINERS or TRAINERS[kind].encoder == "none"
    if nothing:
        empty = NoEncoder()
        vectors = empty.encode(data.train.queries), empty.encode(data.held.queries)
    strategy, settings = fitted(kind, data, vectors[0])
    scores, costs = predict(strategy, vectors[1], data.held), data.costs(True)
    reference = float(data.costs(False).mean(axis=0).max())
    plain = weighted(scores, costs, 0, reference)
    quality, cost = picked(data, plain)
    row: dict[str, Any] = {
        "kind": kind,
        "scale": strategy.scale,
        "seconds": time.perf_counter() - started,
        "quality": quality.mean(),
        "cost": cost.mean(),
        "upstream": {},
    }
    theirs: dict[str, tuple[NDArray[np.intp], Floats, Floats]] = {}
    for order in ORDERS:
        found = upstream(folder, python, kind, order)
        if found is not None:
            rows = np.array(found["rows"], np.intp)
            picks = np.array([data.held.models.index(model) for model in found["picks"]], np.intp)
            theirs[order] = rows, *picked(data, picks, rows)
            same = float((picks == plain[rows]).mean())
            own = theirs[order][1:]
            row["upstream"][order] = {"quality": own[0].mean(), "cost": own[1].mean(), "rows": len(rows), "same": same}
    if theirs:
        best = max(theirs, key=lambda order: (theirs[order][1].mean(), -theirs[order][2].mean()))
        rows, their_quality, their_cost = theirs[best]
        ours, how = quality[rows], "as it is"
        our_cost = cost[rows]
        if float(our_cost.mean()) > float(their_cost.mean()):
            seen = predicted_unseen(kind, data, vectors[0], settings)
            budget = BUDGET_MARGIN * float(their_cost.mean())
            picks, how = within_budget(strategy, scores, seen, data, budget, reference)
            ours, our_cost = picked(data, picks[rows], rows)
        groups = data.held_groups[rows]
        row["against"] = {
            "order": best,
            "how": how,
            "quality": ours.mean(),
            "cost": our_cost.mean(),
            "difference": paired(ours - their_quality, groups),
            "cost_ratio": ratio(our_cost, their_cost, groups),
        }
    return {**row, "strategy": strategy, "nothing": nothing}


def micros(work: Any, items: Sequence[Any]) -> tuple[float, float]:
    """The 50th and 99th percentile of the microseconds of one call, after a first one that does not count."""
    work(items[0])
    taken = []
    for item in items:
        started = time.perf_counter_ns()
        work(item)
        taken.append((time.perf_counter_ns() - started) / 1000)
    return float(np.percentile(taken, 50)), float(np.percentile(taken, 99))


def times(row: dict[str, Any], data: RoutingSet, encoder: Encoder, held: Matrix, folder: Path, python: str | None) -> None:
    """Decision times, ours and right after it LLMRouter's."""
    strategy = row.pop("strategy")
    own, vectors = (NoEncoder(), np.zeros((len(held), 1), np.float32)) if row.pop("nothing") else (encoder, held)
    numbers = timed_rows(len(held))
    row["us"] = micros(lambda number: strategy.score(vectors[number : number + 1]), numbers)
    row["us_with_text"] = micros(lambda number: strategy.score(own.encode((data.held.queries[number],))), numbers)
    found = upstream(folder, python, row["kind"], "best first", again=True) if python is not None else None
    if found is not None:
        row["upstream_us"] = tuple(float(np.percentile(found["us"], share)) for share in (50, 99))
        row["ratio"] = row["upstream_us"][0] / row["us"][0]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Everything; prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = environment().get("POINTSMAN_ROUTING_DATA")
    parser.add_argument("--data", type=Path, default=Path(place) if place else None)
    parser.add_argument("--llmrouter", help="interpreter of an environment that has LLMRouter")
    parser.add_argument("--work", type=Path, default=Path("build/strategies"))
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--no-times", action="store_true", help="quality and cost only")
    parser.add_argument("--encoder", action="append", default=[], metavar="NAME=FILE", help="time this one as well")
    parser.add_argument("--sets", nargs="*", help="only these data sets")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    options = parser.parse_args(arguments)
    results = []
    for data in read_sets(options.data, seed=options.seed):
        if options.sets and data.name not in options.sets:
            continue
        folder = options.work / data.name
        encoder, train, held = prepare(data, folder)
        kinds = options.kinds or [kind for kind in (*TRAINERS, "smallest", "largest") if kind not in UNUSED]
        rows = []
        for kind in dict.fromkeys(kinds):
            rows.append(compare(kind, data, folder, (train, held), options.llmrouter))
            print(kind, flush=True) if options.json else None
        for row in rows:
            if options.no_times:
                row.pop("strategy"), row.pop("nothing")
            else:
                times(row, data, encoder, held, folder, options.llmrouter)
        encoders: dict[str, Encoder] = {"hashing": HashingEncoder(), "tfidf": encoder}
        if options.encoder:
            from pointsman.mlops.vectors import encoder_from_bundle

            encoders |= {
                name: encoder_from_bundle(Path(path)) for name, _, path in (item.partition("=") for item in options.encoder)
            }
        texts = [data.held.queries[number] for number in timed_rows(len(data.held))]
        timed = (
            {}
            if options.no_times
            else {name: micros(lambda text, e=made: e.encode((text,)), texts) for name, made in encoders.items()}
        )
        results.append(
            {
                "name": data.name,
                "train": len(data.train),
                "held": len(data.held),
                "models": len(data.held.models),
                "baselines": baselines(data),
                "rows": rows,
                "encoders": timed,
            }
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=float))
    print(markdown(results))
    return results


if __name__ == "__main__":
    main()
