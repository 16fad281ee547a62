"""mf, hybrid, graph, routerdc, personalized: formulas, bundles, one query like many, absurd numbers, hostile parts, users."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.strategies.base import Personal, Strategy
from pointsman.strategies.bundle import build_bundle, parse_bundle
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.graph import GraphStrategy
from pointsman.strategies.hybrid import HybridStrategy
from pointsman.strategies.kinds import STRATEGIES
from pointsman.strategies.manifest import Provenance
from pointsman.strategies.mf import MfStrategy
from pointsman.strategies.personalized import PersonalizedStrategy, user_hashes
from pointsman.strategies.routerdc import RouterDcStrategy

D = 16
SALT = "0123456789abcdef" * 2
USERS = ("ann", "bob", "cy")
Make = Callable[[np.random.Generator], Strategy]


def floats(random: np.random.Generator, *shape: int) -> Any:
    return random.standard_normal(shape).astype(np.float32)


def mf(random: np.random.Generator) -> Strategy:
    return MfStrategy(("a", "b", "c"), floats(random, 3, D), floats(random, 3), "unit")


def mf_imported(random: np.random.Generator) -> Strategy:
    return MfStrategy(("a", "b", "c"), floats(random, 3, D), np.zeros(3, np.float32), "identity")


def hybrid(random: np.random.Generator) -> Strategy:
    return HybridStrategy(("a", "b"), ((floats(random, D, 1), floats(random, 1)),), "identity", "gain", 0.1)


def hybrid_imported(random: np.random.Generator) -> Strategy:
    layers = ((floats(random, D, 8), floats(random, 8)), (floats(random, 8, 4), floats(random, 4)))
    return HybridStrategy(("a", "b"), (*layers, (floats(random, 4, 1), floats(random, 1))), "relu", "keep", 0.5)


def graph(random: np.random.Generator) -> Strategy:
    return GraphStrategy(("a", "b", "c"), floats(random, 3, D), floats(random, 3), "unit")


def graph_imported(random: np.random.Generator) -> Strategy:
    ends = np.stack((np.zeros(D), random.integers(0, 2, D))).astype(np.float32)  # some dimensions never varied
    return GraphStrategy(("a", "b", "c"), floats(random, 3, D), floats(random, 3), "logistic", ends)


def routerdc(random: np.random.Generator) -> Strategy:
    lines = np.abs(floats(random, 3)), floats(random, 3)
    return RouterDcStrategy(("a", "b", "c"), floats(random, 3, 5), *lines, link="unit", projection=floats(random, 5, D))


def routerdc_imported(random: np.random.Generator) -> Strategy:
    return RouterDcStrategy(("a", "b", "c"), floats(random, 3, D), np.ones(3, np.float32), np.zeros(3, np.float32))


def personalized(random: np.random.Generator) -> Strategy:
    parts = {
        "weights": floats(random, 3, D),
        "bias": floats(random, 3),
        "centre": np.full(3, 0.5, np.float32),
        "scales": np.abs(floats(random, 3)),
        "shifts": floats(random, 3, 3),
    }
    return PersonalizedStrategy(("a", "b", "c"), "shift", SALT, np.sort(user_hashes(SALT, USERS)), parts)


def personalized_imported(random: np.random.Generator) -> Strategy:
    parts = {"projection": floats(random, 4, D), "states": floats(random, 3, 3, 4), "bias": floats(random, 3, 3)}
    return PersonalizedStrategy(("a", "b", "c"), "graph", SALT, np.sort(user_hashes(SALT, USERS)), parts)


MAKERS: dict[str, Make] = {
    make.__name__: make
    for make in (
        mf,
        mf_imported,
        hybrid,
        hybrid_imported,
        graph,
        graph_imported,
        routerdc,
        routerdc_imported,
        personalized,
        personalized_imported,
    )
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def queries(random: np.random.Generator, count: int, *, raw: bool = False) -> Any:
    vectors = floats(random, count, D)
    return vectors if raw else (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def logistic(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


def by_formula(strategy: Strategy, x: Any) -> Any:
    """What the modules' texts say, in float64, a query at a time."""
    p = {name: array.astype(np.float64) for name, array in strategy.arrays().items()}
    params, x = strategy.params(), x.astype(np.float64)
    if strategy.kind == "mf":
        value = p["weights"] @ x + p["bias"]
        return np.clip(value, 0, 1) if params["link"] == "unit" else value
    if strategy.kind == "hybrid":
        for number in range(params["layers"]):
            x = x @ p[f"weights_{number}"] + p[f"bias_{number}"]
            x = np.maximum(x, 0) if params["activation"] == "relu" and number + 1 < params["layers"] else x
        t = params["threshold"]
        return [np.clip(x[0], 0, 1), t] if params["mode"] == "keep" else [0.5 - (x[0] - t) / 4, 0.5 + (x[0] - t) / 4]
    if strategy.kind == "graph":
        if params["scaled"]:
            low, high = np.minimum(p["ends"][0], x), np.maximum(p["ends"][1], x)
            x = (x - low) / np.where(high - low < 10 * np.finfo(np.float32).eps, 1, high - low)
            return logistic(p["weights"] @ x + p["bias"])
        return np.clip(p["weights"] @ x + p["bias"], 0, 1)
    if strategy.kind == "routerdc":
        z = p["projection"] @ x if params["projected"] else x
        cosine = p["embeddings"] @ z / np.linalg.norm(z) / np.linalg.norm(p["embeddings"], axis=1)
        value = p["slope"] * cosine + p["offset"]
        return np.clip(value, 0, 1) if params["link"] == "unit" else value
    if params["form"] == "graph":
        return logistic(p["states"].mean(axis=0) @ (p["projection"] @ x) + p["bias"].mean(axis=0))
    return np.clip(p["weights"] @ x + p["bias"], 0, 1)


@pytest.mark.strategy("formula", "mf", "hybrid", "graph", "routerdc", "personalized")
@each
@given(seed=st.integers(0, 10_000), count=st.integers(0, 6), raw=st.booleans())
def test_it_is_the_formula_one_by_one_like_all_at_once(make: Make, seed: int, count: int, raw: bool) -> None:
    random = np.random.default_rng(seed)
    strategy, vectors = make(random), queries(random, count, raw=raw)
    batch = strategy.score(vectors)
    assert (batch.shape, batch.dtype) == ((count, len(strategy.models)), np.float32)
    if strategy.scale == "quality":
        assert ((batch >= 0) & (batch <= 1)).all()
    for number in range(count):
        np.testing.assert_allclose(batch[number], by_formula(strategy, vectors[number]), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(strategy.score(vectors[number : number + 1])[0], batch[number], rtol=1e-5, atol=2e-5)


@each
def test_it_survives_a_bundle(make: Make) -> None:
    random = np.random.default_rng(1)
    strategy = make(random)
    assert isinstance(strategy, Strategy)
    data = build_bundle(
        name="test",
        version="1",
        encoder=HashingEncoder(D),
        strategy=strategy,
        provenance=Provenance(code_version="0", seed=0, rows=0),
        probe_texts=["one text", "another one", ""],
    )
    bundle, vectors = parse_bundle(data, where="test"), queries(random, 50)
    assert np.array_equal(bundle.score_vectors(vectors), strategy.score(vectors))
    assert (bundle.scale, bundle.kind, bundle.models) == (strategy.scale, strategy.kind, strategy.models)
    if isinstance(strategy, Personal):
        users = [[*USERS, None, "eve"][number % 5] for number in range(50)]
        assert np.array_equal(bundle.score_vectors(vectors, users), strategy.score_for(vectors, users))


def test_they_are_all_known_by_their_kinds() -> None:
    for make in MAKERS.values():
        strategy = make(np.random.default_rng(0))
        assert STRATEGIES[strategy.kind] is type(strategy)


def mutate(random: np.random.Generator, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """One array of another shape, type or content, one too many, or one missing."""
    changed = {name: array.copy() for name, array in arrays.items()}
    name = str(random.choice(sorted(changed)))
    array = changed[name]
    if random.random() < 0.6:
        absurd = np.array([0, 1, -1, 1e38, -1e38, 1e-38, 1e-45, np.nan, np.inf])
        with np.errstate(all="ignore"):
            array.reshape(-1)[:] = random.choice(absurd, array.size).astype(array.dtype)
        return changed
    choice = int(random.integers(7))
    if choice == 0:
        del changed[name]
    elif choice == 1:
        changed[f"{name}x"] = array
    else:
        with np.errstate(all="ignore"):
            other = array.astype(random.choice(["int8", "float64", "float16"]))
        changed[name] = (
            array[..., :-1],
            np.concatenate((array, array)),
            array[None],
            array[:0],
            other,
        )[choice - 2]
    return changed


def load(strategy: Strategy, params: Mapping[str, Any], arrays: Mapping[str, Any]) -> Strategy | None:
    """The strategy, or None where it was refused for what it should be refused for."""
    try:
        return STRATEGIES[strategy.kind].from_parts(strategy.models, params, arrays)
    except BundleError as error:
        if error.code not in {"E4306", "E4307", "E4308"}:
            raise
        return None


@each
@given(seed=st.integers(0, 2**32 - 1))
def test_hostile_arrays_are_refused_or_harmless(make: Make, seed: int) -> None:
    """What loads gives finite scores, of whatever vectors; what does not is refused by name."""
    random = np.random.default_rng(seed)
    strategy = make(random)
    loaded = load(strategy, strategy.params(), mutate(random, strategy.arrays()))
    if loaded is None or loaded.dimensions != D:
        return  # the bundle's loader compares this with the encoder's
    vectors = queries(random, 3) * np.float32(random.choice([0, 1e-30, 1, 1e30]))
    scores = loaded.score_for(vectors, ["ann", None, "eve"]) if isinstance(loaded, Personal) else loaded.score(vectors)
    assert scores.shape == (3, len(loaded.models))
    assert np.isfinite(scores).all()


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=40), st.lists(st.integers())
)


@each
@given(data=st.data())
def test_hostile_parameters_are_refused_or_harmless(make: Make, data: st.DataObject) -> None:
    random = np.random.default_rng(0)
    strategy = make(random)
    params: dict[str, Any] = dict(strategy.params())
    params[data.draw(st.sampled_from([*params, "more"]))] = data.draw(JUNK)
    loaded = load(strategy, params, strategy.arrays())
    assert loaded is None or np.isfinite(loaded.score(queries(random, 2))).all()


@each
def test_threads_share_one(make: Make) -> None:
    random = np.random.default_rng(3)
    strategy, vectors = make(random), queries(random, 32)
    expected = strategy.score(vectors)
    with ThreadPoolExecutor(8) as pool:
        for number, got in enumerate(pool.map(lambda row: strategy.score(vectors[row % 32][None])[0], range(256))):
            np.testing.assert_allclose(got, expected[number % 32], rtol=1e-5, atol=2e-5)


def keep(value: float, threshold: float) -> Any:
    """Scores of LLMRouter's rule for a network that gives `value`."""
    layer = (np.zeros((D, 1), np.float32), np.array([value], np.float32))
    return HybridStrategy(("small", "large"), (layer,), "identity", "keep", threshold).score(np.zeros((1, D), np.float32))[0]


@given(st.floats(-2, 3, width=32), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_hybrid_keeps_to_the_weak_model_from_the_threshold_on(value: float, threshold: float) -> None:
    """A threshold of 0 is met by all that was cut to 0, one of 1 by all that was cut to 1."""
    small, large = keep(value, threshold)
    assert (small > large) == (np.clip(np.float32(value), 0, 1) >= np.float32(threshold))
    assert abs(large - threshold) < 2e-6


def test_hybrid_wants_two_models() -> None:
    strategy = hybrid(np.random.default_rng(0))
    for models in (("a",), ("a", "b", "c")):
        with pytest.raises(BundleError) as caught:
            HybridStrategy.from_parts(models, strategy.params(), strategy.arrays())
        assert caught.value.code == "E4306"


def test_a_dimension_that_never_varied_is_scaled_as_scikit_learn_does() -> None:
    """Against its own MinMaxScaler, fitted as LLMRouter fits it: on the training vectors and the new one."""
    from sklearn.preprocessing import MinMaxScaler

    random = np.random.default_rng(5)
    raw = floats(random, 40, D)
    raw[:, 3], raw[:, 7] = 0.25, 0.0
    trained = MinMaxScaler().fit_transform(raw)
    ends = np.stack((trained.min(axis=0), trained.max(axis=0)))
    weights = floats(random, 2, D)
    strategy = GraphStrategy(("a", "b"), weights, np.zeros(2, np.float32), "logistic", ends)
    vectors = floats(random, 200, D)
    vectors[0, 3], vectors[1, 3], vectors[2, 7] = 0.0, 1e-8, -1e-8
    for vector in vectors:
        scaler = MinMaxScaler().fit(np.vstack((trained, vector)))
        wanted = logistic(weights.astype(np.float64) @ scaler.transform(vector[None])[0])
        np.testing.assert_allclose(strategy.score(vector[None])[0], wanted, atol=1e-6)


@pytest.mark.parametrize("make", [personalized, personalized_imported])
def test_users_have_answers_of_their_own_and_strangers_the_populations(make: Make) -> None:
    random = np.random.default_rng(6)
    strategy, vectors = make(random), queries(random, 60)
    assert isinstance(strategy, PersonalizedStrategy)
    asked = [*USERS, None, "eve", "", "\ud800"]
    users = [asked[number % len(asked)] for number in range(60)]
    got, common = strategy.score_for(vectors, users), strategy.score(vectors)
    for number, user in enumerate(users):
        alone = strategy.score_for(vectors[number : number + 1], [user])[0]
        np.testing.assert_allclose(got[number], alone, rtol=1e-5, atol=1e-5)
        if user in USERS:
            row = int(np.flatnonzero(strategy.arrays()["users"] == user_hashes(SALT, [user])[0])[0])
            parts = strategy.arrays()
            if strategy.params()["form"] == "graph":
                wanted = logistic(parts["states"][row] @ (parts["projection"] @ vectors[number]) + parts["bias"][row])
            else:
                common_score = parts["weights"] @ vectors[number] + parts["bias"]
                wanted = parts["centre"] + parts["scales"][row] * (common_score - parts["centre"]) + parts["shifts"][row]
                wanted = np.clip(wanted, 0, 1)
            np.testing.assert_allclose(got[number], wanted, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_allclose(got[number], common[number], rtol=1e-5, atol=1e-5)
    assert not np.allclose(strategy.score_for(vectors, ["ann"] * 60), strategy.score_for(vectors, ["bob"] * 60))


def test_a_bundle_names_no_user() -> None:
    """But with the salt in it a name can be tried: that is said in the module, and here."""
    names = ["ann.alpha@example.com", "bob-beta", "Ünïcode Ün"]
    users = np.sort(user_hashes(SALT, names))
    assert user_hashes(SALT, names[:1])[0] == int.from_bytes(
        hashlib.sha256(bytes.fromhex(SALT) + names[0].encode()).digest()[:8], "big"
    )
    parts = {
        "weights": np.zeros((2, D), np.float32),
        "bias": np.zeros(2, np.float32),
        "centre": np.zeros(2, np.float32),
        "scales": np.ones(3, np.float32),
        "shifts": np.zeros((3, 2), np.float32),
    }
    data = build_bundle(
        name="test",
        version="1",
        encoder=HashingEncoder(D),
        strategy=PersonalizedStrategy(("a", "b"), "shift", SALT, users, parts),
        provenance=Provenance(code_version="0", seed=0, rows=0),
        probe_texts=["text"],
    )
    for name in names:
        for part in (name, name.split("@")[0].split()[0]):
            assert part.encode() not in data
    assert user_hashes("f" * 32, names).tolist() != user_hashes(SALT, names).tolist(), "another salt, other hashes"


@pytest.mark.parametrize("users", [[2, 1, 3], [1, 1, 2], []])
def test_users_must_stand_in_order_and_once(users: list[int]) -> None:
    strategy = personalized(np.random.default_rng(0))
    arrays = {name: array[: len(users)] if name in {"scales", "shifts"} else array for name, array in strategy.arrays().items()}
    with pytest.raises(BundleError) as caught:
        PersonalizedStrategy.from_parts(strategy.models, strategy.params(), {**arrays, "users": np.array(users, np.uint64)})
    assert caught.value.code == "E4307"


def test_nothing_similar_is_no_error() -> None:
    """A text that says nothing is a vector of zeros."""
    for make in MAKERS.values():
        assert np.isfinite(make(np.random.default_rng(0)).score(np.zeros((2, D), np.float32))).all()
