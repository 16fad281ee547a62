"""LLMRouter's side of the comparison: trains one of its routers, asks `route_single`, writes what it picked, and how fast.

    python -m bench.strategies_llmrouter FOLDER KIND ORDER [again]       in an environment that has LLMRouter and torch

With `again` what was trained before is asked `timed_rows` again for the time they take; `time-KIND-ORDER.json` says it.
Reads what `bench.strategies` prepared in FOLDER (`train-ORDER.jsonl`, `vectors.npz`, `held.jsonl`, `llm.json`) and writes
`llmrouter-KIND-ORDER.json` beside it. The function that embeds a text is replaced by a look-up of the same vectors that ours
learns from, so its times are without any encoding. Hyperparameters are LLMRouter's defaults, but for `svm` without its
calibration of probabilities, which takes minutes and changes no pick of `route_single`. `graph` is trained and asked in one
process, because it draws its models' features anew at each start.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROUTERS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "knn": ("knnrouter", "KNNRouter", "KNNRouterTrainer", "pkl", {}),
    "svm": ("svmrouter", "SVMRouter", "SVMRouterTrainer", "pkl", {}),
    "mlp": ("mlprouter", "MLPRouter", "MLPTrainer", "pkl", {}),
    "mf": ("mfrouter", "MFRouter", "MFRouterTrainer", "pkl", {}),
    "elo": ("elorouter", "EloRouter", "EloRouterTrainer", "pkl", {}),
    "hybrid": ("hybrid_llm", "HybridLLMRouter", "HybridLLMTrainer", "pkl", {"random_state": 0}),
    "graph": ("graphrouter", "GraphRouter", "GraphTrainer", "pt", {}),
    "smallest": ("smallest_llm", "SmallestLLM", "", "", {}),
    "largest": ("largest_llm", "LargestLLM", "", "", {}),
}
"""Kind -> package, class, trainer, suffix of its artifact, hyperparameters."""

TIMED = 400


def timed_rows(held: int) -> list[int]:
    """Held-out rows whose decisions are timed, on both sides: at most `TIMED`, evenly spread."""
    count = min(TIMED, held)
    return [number * held // count for number in range(count)]


def main(folder: Path, kind: str, order: str, *, again: bool = False) -> None:
    """Train and ask one router."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import numpy as np
    import torch
    import yaml

    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # LLMRouter draws from it
    vectors = np.load(folder / "vectors.npz")
    queries = [json.loads(line)["query"] for line in (folder / "held.jsonl").read_text().splitlines()]
    work = folder / f"work-{kind}-{order.replace(' ', '-')}"
    work.mkdir(exist_ok=True)
    rows = folder / f"train-{order.replace(' ', '-')}.jsonl"
    (work / "train.jsonl").write_bytes(rows.read_bytes())  # a CSV is written beside it
    torch.save({row: torch.from_numpy(vector) for row, vector in enumerate(vectors["train"])}, work / "embeddings.pt")
    package, class_name, trainer_name, suffix, hparam = ROUTERS[kind]
    if kind == "mf":
        hparam = {**hparam, "text_dim": int(vectors["train"].shape[1])}
    artifact = str(work / f"model.{suffix}") if suffix else ""
    config = {
        "data_path": {
            "query_embedding_data": str(work / "embeddings.pt"),
            "routing_data_train": str(work / "train.jsonl"),
            "llm_data": str(folder / "llm.json"),
        },
        "model_path": {"ini_model_path": "", "save_model_path": artifact, "load_model_path": artifact},
        "metric": {"weights": {"performance": 1}},
        "hparam": hparam,
    }
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    module = importlib.import_module(f"llmrouter.models.{package}.router")
    router = getattr(module, class_name)(str(work / "config.yaml"))
    started = time.perf_counter()
    if trainer_name and not again:
        trainers = importlib.import_module(f"llmrouter.models.{package}.trainer")
        getattr(trainers, trainer_name)(router=router, device="cpu").train()
    trained = time.perf_counter() - started
    held = {query: torch.from_numpy(vector) for query, vector in zip(queries, vectors["held"], strict=True)}
    if hasattr(module, "get_longformer_embedding"):
        setattr(module, "get_longformer_embedding", lambda text: held[text])  # noqa: B010 - mypy knows no module's attributes
    asked = timed_rows(len(queries)) if again else list(range(len(queries)))
    picks, micros = [], []
    router.route_single({"query": queries[0]})  # the first one does not count
    for row in asked:
        started = time.perf_counter_ns()
        answer = router.route_single({"query": queries[row]})
        micros.append((time.perf_counter_ns() - started) / 1000)
        picks.append(str(answer["model_name"]))
    result = {"kind": kind, "order": order, "rows": asked, "picks": picks, "us": micros, "train_seconds": trained}
    (folder / f"{'time' if again else 'llmrouter'}-{kind}-{order.replace(' ', '-')}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3], again=sys.argv[4:] == ["again"])
