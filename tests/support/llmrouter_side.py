"""The other side of the tests against LLMRouter: runs in its environment, makes data, trains its routers by its own trainers,
imports them with ours, and writes down what its own `route_single` chose.

    python -m support.llmrouter_side JOBS.json

A job: `{"kind", "order": "alphabetical"|"cheap"|"best", "hparam": {...}, "encoder": "hashing:64", "directory": ...}`; what came
of it is written to `<directory>/result.json`.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

__all__ = ["MODELS", "TOPICS", "main", "queries", "routing_rows"]


def _words(text: str) -> list[str]:
    return text.split()


MODELS: dict[str, dict[str, Any]] = {
    "mid-m": {"size": "13B", "input_price": 0.5, "output_price": 0.5},
    "code-c": {"size": "34B", "input_price": 0.8, "output_price": 0.8},
    "tiny-z": {"size": "3B", "input_price": 0.1, "output_price": 0.1},
    "math-a": {"size": "70B", "input_price": 0.9, "output_price": 0.9},
    "prose-p": {"size": "3b", "input_price": 0.2, "output_price": 0.2},
    "vision-v": {"size": "512M", "input_price": 0.3, "output_price": 0.3},
    "closed-x": {"size": "unknown", "input_price": 5, "output_price": 9},
    "giant-y": {"size": "70B", "input_price": 1.9, "output_price": 2.9},
}
"""LLMRouter's candidate metadata. Sizes tie, differ in case, are not in billions, or not known."""

TOPICS = {
    "math": _words("integral theorem proof lemma manifold derivative tensor prime matrix vector kernel basis"),
    "code": _words("python function class compile thread socket queue parser loop recursion pointer stack"),
    "prose": _words("poem sonnet story novel hero chapter verse rhyme letter essay metaphor stanza"),
    "chat": _words("hello weather dinner holiday birthday friend movie music garden coffee weekend party"),
}
FILLER = _words("please tell me about the and of how what when which explain give some more can you")
_GOOD = {"math": "math-a", "code": "code-c", "prose": "prose-p", "chat": None}
_TRAINERS = {
    "knn": ("knnrouter", "KNNRouter", "KNNRouterTrainer", ".pkl"),
    "svm": ("svmrouter", "SVMRouter", "SVMRouterTrainer", ".pkl"),
    "mlp": ("mlprouter", "MLPRouter", "MLPTrainer", ".pkl"),
    "elo": ("elorouter", "EloRouter", "EloRouterTrainer", ".pkl"),
    "smallest": ("smallest_llm", "SmallestLLM", None, ".none"),
    "largest": ("largest_llm", "LargestLLM", None, ".none"),
}


def queries(count: int, seed: int) -> list[tuple[str, str]]:
    """Topic and text of each query."""
    chance = random.Random(seed)
    result = []
    for number in range(count):
        topic = chance.choice(list(TOPICS))
        words = [*chance.choices(TOPICS[topic], k=4), *chance.choices(FILLER, k=6), f"nr{number}"]
        chance.shuffle(words)
        result.append((topic, " ".join(words)))
    return result


def routing_rows(asked: list[tuple[str, str]], order: str, seed: int) -> list[dict[str, Any]]:
    """LLMRouter's routing data: a row for each query and model, the models in this order. Most queries have several best."""
    chance = random.Random(seed)
    names = sorted(name for name in MODELS if name not in {"closed-x", "vision-v"})
    right = {}
    for number, (topic, _) in enumerate(asked):
        for name in names:
            share = 0.95 if name == _GOOD[topic] else 0.6 if name == "giant-y" else 0.3
            right[number, name] = float(chance.random() < share)
    if order == "cheap":
        names.sort(key=lambda name: MODELS[name]["input_price"])
    elif order == "best":
        names.sort(key=lambda name: -sum(right[number, name] for number in range(len(asked))))
    return [
        {
            "task_name": topic,
            "query": text,
            "ground_truth": "",
            "metric": "em",
            "model_name": name,
            "response": "",
            "performance": right[number, name],
            "embedding_id": number,
            "token_num": 10,
        }
        for number, (topic, text) in enumerate(asked)
        for name in names
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(job: dict[str, Any], suffix: str) -> Path:
    """Data and configuration of a job; the path of the configuration."""
    import yaml

    from pointsman.mlops.vectors import ready_encoder

    directory = Path(job["directory"])
    directory.mkdir(parents=True, exist_ok=True)
    asked = queries(job.get("rows", 300), 1)
    write_lines(directory / "train.jsonl", routing_rows(asked, job["order"], 2))
    write_lines(directory / "held.jsonl", [{"query": text, "task": topic} for topic, text in queries(120, 3)])
    (directory / "llm.json").write_text(json.dumps(MODELS))
    vectors = ready_encoder(job["encoder"]).encode([text for _, text in asked])
    torch = importlib.import_module("torch")
    torch.save({number: torch.from_numpy(vector.copy()) for number, vector in enumerate(vectors)}, directory / "embeddings.pt")
    config = {
        "data_path": {
            "routing_data_train": str(directory / "train.jsonl"),
            "query_embedding_data": str(directory / "embeddings.pt"),
            "llm_data": str(directory / "llm.json"),
        },
        "model_path": {
            "ini_model_path": "",
            "save_model_path": str(directory / f"model{suffix}"),
            "load_model_path": str(directory / f"model{suffix}"),
        },
        "metric": {"weights": {"performance": 1, "cost": 0, "llm_judge": 0}},
        "hparam": job.get("hparam", {}),
    }
    path = directory / "router.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def tamper(kind: str) -> None:
    """From now on the importer of kNN gets one label wrong."""
    from pointsman.mlops.llmrouter import IMPORTERS
    from pointsman.mlops.llmrouter import run as importing
    from pointsman.strategies.knn_classifier import KnnClassifier, KnnClassifierParams

    def read(context: Any) -> Any:
        imported = IMPORTERS[kind].read(context)
        strategy = imported.strategy
        arrays = strategy.arrays()
        # Of the row that decides the first of the held-out queries.
        near = int((arrays["vectors"] @ context_vector).argmax())
        arrays["labels"][near] = (arrays["labels"][near] + 1) % len(strategy.models)
        params = KnnClassifierParams.model_validate(strategy.params())
        return replace(imported, strategy=KnnClassifier(strategy.models, arrays["vectors"], arrays["labels"], params))

    from pointsman.mlops.vectors import ready_encoder

    context_vector = ready_encoder("hashing:64").encode([queries(1, 3)[0][1]])[0]
    vars(importing)["IMPORTERS"] = {kind: replace(IMPORTERS[kind], read=read)}  # in this process, which does nothing else


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train, import, and ask LLMRouter."""
    from pointsman.commands.training import import_strategy
    from pointsman.errors import PointsmanError
    from pointsman.mlops.vectors import ready_encoder

    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    package, name, trainer, suffix = _TRAINERS[job["kind"]]
    config = prepare(job, suffix)
    directory = config.parent
    module = importlib.import_module(f"llmrouter.models.{package}.router")
    if trainer is not None:
        train = getattr(importlib.import_module(f"llmrouter.models.{package}.trainer"), trainer)
        train(getattr(module, name)(str(config)), device="cpu").train()
    encoder = ready_encoder(job["encoder"])
    vars(module)["get_longformer_embedding"] = lambda text: torch.from_numpy(encoder.encode([text])[0])
    router = getattr(module, name)(str(config))
    asked = [text for _, text in queries(120, 3)]
    chosen = [str(router.route_single({"query": text})["model_name"]) for text in asked]
    said: list[str] = []
    if job.get("tamper"):
        tamper(job["kind"])
    try:
        bundle = import_strategy(
            job["kind"],
            config,
            directory / "held.jsonl",
            directory / "out",
            encoder=job["encoder"],
            name=None,
            trust_artifact=job.get("trust", True),
            progress=said.append,
        )
    except PointsmanError as error:
        return {"error": error.code, "message": str(error), "choices": chosen, "said": said}
    return {"bundle": str(bundle), "queries": asked, "choices": chosen, "said": said}


def main() -> None:
    """See the module."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            result = run(job)
        except Exception:  # noqa: BLE001  # told to the test that waits for this job; the others go on
            result = {"error": "exception", "message": traceback.format_exc()}
        Path(job["directory"]).mkdir(parents=True, exist_ok=True)
        (Path(job["directory"]) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
