"""Importers of LLMRouter's routers that learn a space for prompts and models: mf, hybrid, graph, routerdc, personalized.

All of them end in few arrays, because what the routers learned does not move any more when a prompt is routed:

- `MFRouter`: one matrix; the projection of the text and the models' factors are multiplied out.
- `HybridLLMRouter`: the layers of scikit-learn's `MLPRegressor`, and the threshold. Its mode only made the labels.
- `GraphRouter`: the edges of the new prompt are hidden, so the models' states are those of the training graph: one affine map a
  model behind its scaler. See `pointsman.strategies.graph`.
- `PersonalizedRouter`: the same once for each user, because the asking user's features stand in every prompt's node.
- `DCRouter`: the models' embeddings; its text encoder becomes the bundle's.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pointsman.mlops.llmrouter.base import Context, Imported, Importer, Scores, mismatch
from pointsman.mlops.llmrouter.upstream import EMBEDDING
from pointsman.strategies.base import Encoder, Matrix
from pointsman.strategies.graph import GraphStrategy
from pointsman.strategies.hybrid import HybridStrategy
from pointsman.strategies.mf import MfStrategy
from pointsman.strategies.personalized import PersonalizedStrategy, user_hashes
from pointsman.strategies.routerdc import RouterDcStrategy

__all__ = ["IMPORTERS"]

_RETRAIN = "train it again with LLMRouter, or train it with `pointsman mlops train`"
Routes = Callable[[Matrix, Sequence[str | None] | None], Scores]


def _wide(tensor: Any) -> Scores:
    """A torch tensor as float64."""
    return np.asarray(tensor.detach().cpu().numpy(), np.float64)


def _state(context: Context) -> Any:
    """The artifact's tensors. This loader of torch's takes tensors and nothing that could run."""
    torch = importlib.import_module("torch")

    return torch.load(str(context.artifact), map_location="cpu", weights_only=True)


def _watched(context: Context, net: Any, query: Callable[[Matrix, str | None], dict[str, Any]]) -> Routes:
    """LLMRouter's own scores: what `net` gives inside `route_single`, a query at a time, each asked once."""
    known: dict[tuple[bytes, str | None], Scores] = {}

    def scores(vectors: Matrix, users: Sequence[str | None] | None) -> Scores:
        rows: list[Scores] = []
        for vector, user in zip(vectors, users or [None] * len(vectors), strict=True):
            key = vector.tobytes(), user
            if key not in known:
                seen: list[Scores] = []
                watch = net.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(_wide(output)))
                try:
                    with contextlib.redirect_stdout(sys.stderr):
                        context.router.route_single(query(vector, user))
                finally:
                    watch.remove()
                known[key] = seen[-1].reshape(-1)
            rows.append(known[key])
        return np.stack(rows)

    return scores


def _mf(context: Context) -> Imported:
    torch = importlib.import_module("torch")

    router, state = context.router, context.load()
    model = context.module.BilinearMF(router.dim, len(router.model_to_idx), router.text_dim)
    model.load_state_dict(state)
    model.eval()
    factors = _wide(torch.nn.functional.normalize(model.P.weight, p=2, dim=-1)) * _wide(model.classifier.weight)
    weights = factors @ _wide(model.text_proj.weight)
    models = tuple(str(router.idx_to_model[number]) for number in range(len(router.idx_to_model)))

    def own(vectors: Matrix, users: Sequence[str | None] | None) -> Scores:
        del users
        with torch.no_grad():
            return np.stack([_wide(model.score_all(model.project_text(torch.from_numpy(row.copy())))) for row in vectors])

    return Imported(MfStrategy(models, weights.astype(np.float32), np.zeros(len(models), np.float32), "identity"), own)


def _hybrid(context: Context) -> Imported:
    router, model = context.router, context.load()
    if model.out_activation_ != "identity" or model.n_outputs_ != 1:
        raise mismatch("the artifact is no regression of one value", str(context.artifact), _RETRAIN)
    layers = tuple(
        (np.ascontiguousarray(weights, np.float32), np.ascontiguousarray(bias, np.float32))
        for weights, bias in zip(model.coefs_, model.intercepts_, strict=True)
    )
    pair = (str(router.small_model_name), str(router.large_model_name))
    threshold = float(router.router_threshold)

    def own(vectors: Matrix, users: Sequence[str | None] | None) -> Scores:
        del users
        values = [max(0.0, min(1.0, float(model.predict([row])[0]))) for row in vectors]
        return np.array([[value, threshold] for value in values])

    strategy = HybridStrategy(pair, layers, model.activation, "keep", threshold)
    return Imported(strategy, own, note=f"router_mode {router.router_mode}; the pair is LLMRouter's smallest and largest model")


def _graph(context: Context) -> Imported:
    torch = importlib.import_module("torch")
    functional = torch.nn.functional

    router = context.router
    net = router.gnn_predictor.model
    net.load_state_dict(_state(context))
    net.eval()
    data = router._build_graph_data(router.query_embedding_list, router.performance_list, is_train=False)
    with torch.no_grad():
        edges = functional.leaky_relu(net.edge_mlp(data.edge_attr))
        start = net.model_align(data.query_features, data.llm_features)
        states = functional.leaky_relu(net.bn1(net.encoder_conv_1(start, data.edge_index, edge_attr=edges)))
        states = net.bn2(net.encoder_conv_2(states, data.edge_index, edge_attr=edges))
    models = tuple(str(name) for name in router.model_names)
    held = _wide(states)[-len(models) :]
    place, shift = _wide(net.model_align.query_transform.weight), _wide(net.model_align.query_transform.bias)
    trained = np.asarray(router.query_embedding_list, np.float32)
    strategy = GraphStrategy(
        models,
        (held @ place / place.shape[0]).astype(np.float32),
        (held @ shift / place.shape[0]).astype(np.float32),
        "logistic",
        np.stack((trained.min(axis=0), trained.max(axis=0))),
    )

    def query(vector: Matrix, user: str | None) -> dict[str, Any]:
        del user
        setattr(context.module, EMBEDDING, lambda _: torch.from_numpy(vector.copy()))
        return {"query": ""}

    routes = _watched(context, net, query)

    def own(vectors: Matrix, users: Sequence[str | None] | None) -> Scores:
        previous = getattr(context.module, EMBEDDING)
        try:
            return routes(vectors, users)
        finally:
            setattr(context.module, EMBEDDING, previous)

    described = set(context.config.get("llm_data") or {}) >= set(models)
    note = "" if described else "LLMRouter drew the models' features by chance when it was started; they are in no artifact"
    return Imported(strategy, own, note=note)


def _personalized(context: Context) -> Imported:
    torch = importlib.import_module("torch")
    functional = torch.nn.functional

    router = context.router
    net = router.gnn_predictor.model
    net.load_state_dict(_state(context))
    net.eval()
    router._model_loaded = True
    _, _, data = router._get_cached_graph_data()
    align, size, count = net.model_align, router.embedding_dim, router.num_llms
    edges_of_prompts = len(router.edge_org_id)
    seen = torch.logical_or(data.train_mask.bool(), data.valide_mask.bool())
    between = data.edge_index[:, edges_of_prompts:]  # models of one family
    index = torch.cat([data.edge_index[:, :edges_of_prompts][:, seen], between], dim=1)
    weight = torch.cat([data.combined_edge[seen], torch.ones((between.size(1), net.in_edges))], dim=0)
    no_task = torch.zeros((1, router.llm_dim))
    place, shift = _wide(align.query_transform.weight), _wide(align.query_transform.bias)
    parts, biases = [], []
    with torch.no_grad():
        edges = functional.relu(net.edge_mlp(weight.reshape(-1, net.in_edges)))
        task = _wide(align.task_transform(no_task))[0]
        for user in range(router.num_users):
            mark = torch.from_numpy(router._make_user_feature(user))
            start = align(data.task_id, data.query_features, data.llm_features, mark)
            states = functional.relu(net.bn1(net.encoder_conv_1(start, index, edge_attr=edges)))
            held = _wide(net.bn2(net.encoder_conv_2(states, index, edge_attr=edges)))[-count:] / (3 * size)
            own_mark = _wide(align.user_transform(mark))[0]
            parts.append(held[:, size : 2 * size])
            biases.append(held[:, :size] @ task + held[:, size : 2 * size] @ shift + held[:, 2 * size :] @ own_mark)
    models = tuple(str(name) for name in router.llm_names)
    salt = "0" * 32  # users are numbers here: no salt could hide them
    hashes = user_hashes(salt, [str(user) for user in range(router.num_users)])
    order = np.argsort(hashes)
    strategy = PersonalizedStrategy(
        models,
        "graph",
        salt,
        hashes[order],
        {
            "projection": place.astype(np.float32),
            "states": np.stack(parts)[order].astype(np.float32),
            "bias": np.stack(biases)[order].astype(np.float32),
        },
    )

    def query(vector: Matrix, user: str | None) -> dict[str, Any]:
        if user is None or not user.isdecimal() or int(user) >= router.num_users:
            raise mismatch(
                f"user {user!r}: users are the numbers 0 to {router.num_users - 1}; others it takes for one of these",
                "held-out queries",
                "give each query one of these as `user`",
            )
        return {"query": "", "query_embedding": vector, "user_id": int(user)}

    note = f"users are the numbers 0 to {router.num_users - 1}; others get the mean, where LLMRouter takes the nearest number"
    return Imported(strategy, _watched(context, net, query), note=note)


def _stored_personalized(context: Context, limit: int) -> tuple[list[str], Scores]:
    router = context.router
    chosen = np.unique(np.linspace(0, len(router.query_mapping) - 1, limit).astype(int))
    texts = list(router.query_mapping)
    return [str(texts[number]) for number in chosen], np.asarray(router.query_embedding_list, np.float64)[chosen]


def _routerdc(context: Context) -> Imported:
    torch = importlib.import_module("torch")

    router = context.router
    if router.train_dataset.router_node != router.test_dataset.router_node:
        raise mismatch(
            "training and test data list the models in different orders: LLMRouter then takes one model for another",
            "data_path.routing_data_test",
            "write both files with the models in the same order, and train it again",
        )
    router.model.load_state_dict(_state(context))
    router.model.eval()
    temperature = float(context.hparam.get("inference_temperature", 1.0))
    models = tuple(str(name) for name in router.test_dataset.router_node)
    strategy = RouterDcStrategy(
        models,
        router.model.embeddings.weight.detach().cpu().numpy().astype(np.float32),
        np.ones(len(models), np.float32),
        np.zeros(len(models), np.float32),
        similarity="cos" if router.model.similarity_function == "cos" else "inner",
        temperature=temperature,
    )

    def own(vectors: Matrix, users: Sequence[str | None] | None) -> Scores:
        del users
        with torch.no_grad():
            return _wide(
                router.model.compute_similarity(torch.from_numpy(vectors), router.model.embeddings.weight) / temperature
            )

    return Imported(strategy, own)


def _routerdc_encoder(context: Context) -> Encoder:
    """Its text encoder, which it trained together with the embeddings: the first token's state."""
    from pointsman.mlops.encoders import export_encoder

    router = context.router
    router.model.load_state_dict(_state(context))
    router.model.eval()
    return export_encoder(
        router.model.backbone,
        pooling="cls",
        unit=False,
        max_tokens=512,
        tokenizer=router.tokenizer.backend_tokenizer.to_str().encode(),
        pad_id=int(router.tokenizer.pad_token_id),
    )


def _stored_routerdc(context: Context, limit: int) -> tuple[list[str], Scores]:
    """Training queries and the states that its own text encoder gives them now, with the artifact loaded."""
    torch = importlib.import_module("torch")

    router = context.router
    router.model.load_state_dict(_state(context))
    router.model.eval()
    found = router.train_data_processed
    texts = [found[number]["question"] for number in np.unique(np.linspace(0, len(found) - 1, limit).astype(int))]
    with torch.no_grad():
        tokens = router.tokenizer(texts, max_length=512, padding=True, truncation=True, return_tensors="pt")
        states = router.model.backbone(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return texts, _wide(states["last_hidden_state"][:, 0, :])


IMPORTERS: tuple[Importer, ...] = (
    Importer("mf", "llmrouter.models.mfrouter.router", "MFRouter", _mf),
    Importer("hybrid", "llmrouter.models.hybrid_llm.router", "HybridLLMRouter", _hybrid),
    Importer("graph", "llmrouter.models.graphrouter.router", "GraphRouter", _graph),
    Importer(
        "personalized",
        "llmrouter.models.personalizedrouter.router",
        "PersonalizedRouter",
        _personalized,
        stored=_stored_personalized,
    ),
    Importer(
        "routerdc",
        "llmrouter.models.routerdc.router",
        "DCRouter",
        _routerdc,
        stored=_stored_routerdc,
        encoder=_routerdc_encoder,
    ),
)
