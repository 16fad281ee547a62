"""The other side of tests/slow/test_llmrouter_latent.py: runs where torch and LLMRouter are.

    python -m support.llmrouter_latent KIND DIRECTORY

For each order of rows in `ORDERS` it makes data, trains LLMRouter's router with its own trainer, asks that router for its
choices and raw scores on held-out queries, imports it with ours, and writes `<DIRECTORY>/<order>/result.json`.
"""

from __future__ import annotations

import csv
import importlib
import json
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.llmrouter_side import FILLER, TOPICS

__all__ = ["HELD", "ORDERS", "D", "main"]

ORDERS = ("alphabetical", "cheap", "best")
HELD, D, USERS = 240, 64, 3
MODELS: dict[str, dict[str, Any]] = {
    "zeta-small": {"size": "3B", "price": 0.1, "skill": {"math": 0.1, "prose": 0.9, "code": 0.2, "chat": 0.2}},
    "alpha-mid": {"size": "8B", "price": 0.5, "skill": {"math": 0.3, "prose": 0.5, "code": 0.4, "chat": 0.95}},
    "mid-code": {"size": "14B", "price": 1.0, "skill": {"math": 0.4, "prose": 0.4, "code": 0.95, "chat": 0.4}},
    "beta-large": {"size": "70B", "price": 5.0, "skill": {"math": 0.95, "prose": 0.3, "code": 0.5, "chat": 0.5}},
}
LIKES = (1.0, 0.8, 0.3)
"""How much each user cares for good answers; the rest goes to the price."""


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Topic and text of each query."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        topic = chance.choice(list(TOPICS))
        words = [*chance.choices(TOPICS[topic], k=5), *chance.choices(FILLER, k=5), f"nr{seed}x{number}"]
        chance.shuffle(words)
        found.append((topic, " ".join(words)))
    return found


def right(topic: str, text: str, model: str) -> float:
    """Whether the model answers it well: the same in every order of rows."""
    return float(random.Random(f"{text} {model}").random() < MODELS[model]["skill"][topic])


def ordered(order: str) -> list[str]:
    """Names of the models."""
    if order == "alphabetical":
        return sorted(MODELS)
    if order == "cheap":
        return sorted(MODELS, key=lambda name: MODELS[name]["price"])
    return sorted(MODELS, key=lambda name: -sum(MODELS[name]["skill"].values()))


def encoder() -> Any:
    """What stands for Longformer here."""
    from pointsman.strategies.encoders.hashing import HashingEncoder

    return HashingEncoder(D)


def prepare(directory: Path, order: str, rows: int, suffix: str, hparam: dict[str, Any], **more: Any) -> Path:
    """Data and configuration; the path of the latter."""
    import yaml

    torch = importlib.import_module("torch")
    directory.mkdir(parents=True)
    asked, names = texts(rows, 1), ordered(order)
    for file, part in (("train.jsonl", asked), ("test.jsonl", texts(60, 2))):
        with (directory / file).open("w") as stream:
            for number, (topic, text) in enumerate(part):
                for name in names:
                    row: dict[str, Any] = {
                        "task_name": topic,
                        "query": text,
                        "ground_truth": "",
                        "metric": "em",
                        "model_name": name,
                    }
                    row |= {"performance": right(topic, text, name), "response": "", "embedding_id": number, "token_num": 9}
                    stream.write(json.dumps(row) + "\n")
    with (directory / "held.jsonl").open("w") as stream:
        for number, (_, text) in enumerate(texts(HELD, 3)):
            stream.write(json.dumps({"query": text, "user": str(number % USERS)}) + "\n")
    vectors = encoder().encode([text for _, text in asked])
    torch.save({number: torch.from_numpy(vector.copy()) for number, vector in enumerate(vectors)}, directory / "embeddings.pt")
    sizes = {name: {"size": MODELS[name]["size"], "model": name} for name in names}
    (directory / "llm.json").write_text(json.dumps(sizes))
    artifact = str(directory / f"model{suffix}")
    config = {
        "data_path": {
            "query_embedding_data": str(directory / "embeddings.pt"),
            "routing_data_train": str(directory / "train.jsonl"),
            "routing_data_test": str(directory / "test.jsonl"),
            "llm_data": str(directory / "llm.json"),
        },
        "model_path": {"ini_model_path": "", "save_model_path": artifact, "load_model_path": artifact},
        "hparam": hparam,
        **more,
    }
    path = directory / "router.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def change(path: Path, **sections: dict[str, Any]) -> None:
    """Add to sections of the configuration."""
    import yaml

    config = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        config[name] = values if name == "data_path" else {**config[name], **values}
    path.write_text(yaml.safe_dump(config))


def mf(directory: Path, order: str) -> Path:
    return prepare(directory, order, 300, ".pkl", {"latent_dim": 32, "text_dim": D, "lr": 0.01, "epochs": 4})


def hybrid(directory: Path, order: str) -> Path:
    mode = {"alphabetical": "deterministic", "cheap": "probabilistic", "best": "transformed"}[order]
    activation = {"alphabetical": "relu", "cheap": "tanh", "best": "logistic"}[order]
    hparam = {"hidden_layer_sizes": [32, 16], "max_iter": 100, "random_state": 0, "activation": activation}
    return prepare(directory, order, 300, ".pkl", hparam, router_mode=mode, router_threshold=0.5)


def graph(directory: Path, order: str) -> Path:
    hparam = {"hidden_dim": 16, "learning_rate": 0.01, "train_epoch": 60, "batch_size": 4, "train_mask_rate": 0.3}
    chance = np.random.default_rng(7)
    # At the top level, where it looks for them; else it draws them anew at each start.
    features = {name: {"embedding": chance.standard_normal(D).tolist()} for name in ordered(order)}
    return prepare(directory, order, 400, ".pt", hparam, llm_data=features)


def personalized(directory: Path, order: str) -> Path:
    hparam = {"embedding_dim": 16, "edge_dim": 1, "user_num": USERS, "num_task": 1, "train_epoch": 100, "learning_rate": 0.003}
    family = {"alphabetical": [], "cheap": ["a"], "best": ["mid", "l"]}[order]  # edges between models
    path = prepare(directory, order, 120, ".pt", {**hparam, "batch_size": 4, "llm_family": family})
    asked, names = texts(120, 1), ordered(order)
    vectors, chance = encoder().encode([text for _, text in asked]), np.random.default_rng(8)

    def written(vector: Any) -> str:
        return "[[" + " ".join(f"{value:.9g}" for value in vector) + "]]"

    with (directory / "routing.csv").open("w", newline="") as stream:
        lines = csv.writer(stream)
        lines.writerow(["query", "query_embedding", "llm", "effect", "cost", "performance_preference"])
        for like in LIKES:
            for (topic, text), vector in zip(asked, vectors, strict=True):
                for name in names:
                    lines.writerow([text, written(vector), name, right(topic, text, name), MODELS[name]["price"] / 5, like])
    features = {name: chance.standard_normal(D).astype(np.float32) for name in names}
    (directory / "llm.pkl").write_bytes(pickle.dumps(features))
    data = {"routing_data_path": "routing.csv", "llm_data": "llm.json", "llm_embedding_data": "llm.pkl"}
    change(path, data_path={name: str(directory / file) for name, file in data.items()})
    return path


def routerdc(directory: Path, order: str) -> Path:
    transformers = importlib.import_module("transformers")
    torch = importlib.import_module("torch")
    hparam: dict[str, Any] = {
        "hidden_state_dim": 32,
        "similarity_function": "inner" if order == "best" else "cos",
        "n_clusters": 3,
        "H": 3,
    }
    hparam |= {"source_max_token_len": 32, "target_max_token_len": 32, "top_k": 2, "last_k": 2, "temperature": 1.0}
    hparam |= {"sample_loss_weight": 0.0, "cluster_loss_weight": 1.0, "gradient_accumulation": 1, "batch_size": 32}
    hparam |= {"training_steps": 60, "learning_rate": 0.003, "eval_steps": 20, "device": "cpu"}
    hparam |= {"inference_temperature": 0.5 if order == "cheap" else 1.0}
    path = prepare(directory, order, 160, ".pth", hparam)
    words = sorted({word for found in TOPICS.values() for word in found} | set(FILLER))
    pieces = [(name, 0.0) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    pieces += [(f"\u2581{word}", -3.0) for word in words]
    pieces += [(letter, -8.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz0123456789"]
    transformers.DebertaV2Tokenizer(vocab=pieces).save_pretrained(directory / "backbone")
    torch.manual_seed(1)
    # mDeBERTa's architecture, with random weights and small: the real ones cannot be had without a network.
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    small |= {"relative_attention": True, "position_buckets": 32, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
    small |= {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0, "pad_token_id": 0}
    small |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.DebertaV2Config(vocab_size=len(pieces), max_position_embeddings=512, **small)
    transformers.DebertaV2Model(config).save_pretrained(directory / "backbone")
    saved = directory / "saved"
    paths = {"backbone_model": directory / "backbone", "save_model_path": saved / "last.pth"}
    paths["load_model_path"] = saved / "best_model.pth"  # the one that its route_single takes
    change(path, model_path={name: str(place) for name, place in paths.items()})
    return path


KINDS: dict[str, tuple[Callable[[Path, str], Path], str, str, str]] = {
    "mf": (mf, "mfrouter", "MFRouter", "MFRouterTrainer"),
    "hybrid": (hybrid, "hybrid_llm", "HybridLLMRouter", "HybridLLMTrainer"),
    "graph": (graph, "graphrouter", "GraphRouter", "GraphTrainer"),
    "personalized": (personalized, "personalizedrouter", "PersonalizedRouter", "PersonalizedRouterTrainer"),
    "routerdc": (routerdc, "routerdc", "DCRouter", "DCTrainer"),
}


def asked_for(kind: str, module: Any, router: Any, queries: list[tuple[str, str]]) -> tuple[list[str], list[dict[str, float]]]:
    """What LLMRouter's `route_single` chooses, and the raw scores that it had by then: read off its own networks."""
    torch = importlib.import_module("torch")
    own = encoder()
    if hasattr(module, "get_longformer_embedding"):
        vars(module)["get_longformer_embedding"] = lambda text: torch.from_numpy(own.encode([text])[0])
    choices, scores = [], []
    for text, user in queries:
        seen: list[Any] = []
        net = {"graph": "gnn_predictor", "personalized": "gnn_predictor"}.get(kind)
        watched = getattr(router, net).model if net else router.model if kind == "routerdc" else None
        watch = watched.register_forward_hook(lambda *parts, seen=seen: seen.append(parts[2])) if watched is not None else None
        if kind == "mf":  # its network is read anew for each query
            score_all = module.BilinearMF.score_all

            def spy(self: Any, projected: Any, seen: list[Any] = seen, score_all: Any = score_all) -> Any:
                seen.append(score_all(self, projected))
                return seen[-1]

            vars_of = module.BilinearMF
            vars_of.score_all = spy
        answer = router.route_single({"query": text, "user_id": int(user)})
        if watch is not None:
            watch.remove()
        if kind == "mf":
            module.BilinearMF.score_all = score_all
        choices.append(str(answer["model_name"]))
        if kind == "hybrid":
            pair = {router.small_model_name: answer["router_score"], router.large_model_name: router.router_threshold}
            scores.append({name: float(value) for name, value in pair.items()})
            continue
        raw = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
        columns: dict[str, Callable[[], list[Any]]] = {
            "mf": lambda: [router.idx_to_model[number] for number in range(len(router.idx_to_model))],
            "graph": lambda: router.model_names,
            "personalized": lambda: router.llm_names,
            "routerdc": lambda: router.test_dataset.router_node,
        }
        names = columns[kind]()
        scores.append({str(name): float(value) for name, value in zip(names, raw.detach().reshape(-1), strict=True)})
    return choices, scores


def run(kind: str, directory: Path, order: str) -> None:
    from pointsman.mlops.llmrouter.run import import_strategy
    from pointsman.strategies.encoders.nothing import NoEncoder

    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    make, package, name, trainer = KINDS[kind]
    config = make(directory, order)
    module = importlib.import_module(f"llmrouter.models.{package}.router")
    torch.manual_seed(0)
    np.random.seed(0)  # LLMRouter draws from this one
    getattr(importlib.import_module(f"llmrouter.models.{package}.trainer"), trainer)(getattr(module, name)(str(config))).train()
    held = [json.loads(line) for line in (directory / "held.jsonl").read_text().splitlines()]
    choices, scores = asked_for(kind, module, getattr(module, name)(str(config)), [(row["query"], row["user"]) for row in held])
    said: list[str] = []
    bundle = import_strategy(
        kind,
        config,
        directory / "held.jsonl",
        directory / "out",
        encoder=NoEncoder() if kind == "routerdc" else encoder(),
        trust_artifact=True,
        limit=HELD,
        progress=said.append,
    )
    result = {"bundle": str(bundle), "queries": held, "choices": choices, "scores": scores, "said": said}
    (directory / "result.json").write_text(json.dumps(result))


def main() -> None:
    """See the module."""
    kind, directory = sys.argv[1], Path(sys.argv[2])
    for order in ORDERS:
        run(kind, directory / order, order)


if __name__ == "__main__":
    main()
