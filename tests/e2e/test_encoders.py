"""Bundles whose encoder is a network of its own, or an embedding model of the gateway, in a live gateway."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import httpx
import numpy as np
import pytest

from pointsman.strategies.base import Encoder, Matrix
from pointsman.strategies.bundle import build_bundle
from pointsman.strategies.encoders.remote import RemoteEncoder, RemoteParams
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.manifest import Provenance
from support.encoders import encoder_bundle, save, tiny_onnx
from support.gateway import Gateway
from support.strategy import EASY, HARD, STRONG, WEAK
from support.topology import deployment, pair, routed_config
from support.upstreams import Upstreams

EMBEDDER = "embedder"


def vectors(texts: Sequence[str]) -> Matrix:
    """As the fake upstream makes them: by the text alone, 8 numbers."""
    raw = np.array([[byte - 127.5 for byte in hashlib.shake_256(text.encode()).digest(8)] for text in texts])
    result: Matrix = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return result


def bundle(name: str, encoder: Encoder) -> bytes:
    scores = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
    strategy = KnnStrategy((WEAK, STRONG), encoder.encode([EASY, HARD]), scores, np.ones((2, 2), np.uint8), 1)
    origin = Provenance(code_version="test", seed=0, rows=2)
    return build_bundle(name=name, version="1", encoder=encoder, strategy=strategy, provenance=origin, probe_texts=[EASY, HARD])


@pytest.fixture(scope="module")
def gateway(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("encoders")
    network, external = tiny_onnx(max_tokens=32), tiny_onnx(seed=1, max_tokens=32)
    remote = RemoteEncoder(RemoteParams(model=EMBEDDER, dimensions=8, timeout_ms=1_000.0), embed=vectors)
    (directory / "encoders").mkdir()
    bundles = {
        "network": bundle("network", network),
        "remote": bundle("remote", remote),
        "missing": encoder_bundle(external, name="missing", external=True),
    }
    strategies = {
        name: {"source": str(save(directory / f"{name}.zip", data)), "require_signature": False}
        for name, data in bundles.items()
    }
    entries = [entry for name in strategies for entry in pair(upstreams, f"to-{name}")]
    entries.append(deployment(EMBEDDER, EMBEDDER, "openai/embedding-model", upstreams.url(EMBEDDER)))
    groups = {f"to-{name}": name for name in strategies}
    config = routed_config(entries, strategies, groups, encoders_dir=str(directory / "encoders"))
    instance = Gateway(config, directory / "gateway", None, workers=1)  # a worker has a cache of its own
    instance.start()
    yield instance
    instance.stop()


def ask(gateway: Gateway, strategy: str, text: str) -> httpx.Response:
    body = {"model": f"to-{strategy}", "messages": [{"role": "user", "content": text}]}
    answer = gateway.admin.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("strategy", ["network", "remote"])
def test_the_encoder_decides(gateway: Gateway, strategy: str) -> None:
    for text, model in ((EASY, WEAK), (HARD, STRONG), (EASY, WEAK)):
        headers = ask(gateway, strategy, text).headers
        assert (headers["x-pointsman-strategy"], headers["x-pointsman-model"]) == (strategy, f"openai/{model}")


def test_an_embedding_is_asked_for_once_and_why_there_is_none_is_told(gateway: Gateway, upstreams: Upstreams) -> None:
    ask(gateway, "remote", HARD)
    ask(gateway, "remote", "What was never asked before?")
    ask(gateway, "remote", "What was never asked before?")
    assert len(upstreams.requests(EMBEDDER, contains="never asked before")) == 1
    upstreams.fault(EMBEDDER, status=400)  # a 500 LiteLLM's client asks twice more, whatever it is told: a second or two
    try:
        headers = ask(gateway, "remote", "What nobody can encode").headers
        assert (headers["x-pointsman-strategy"], headers["x-pointsman-fallback"]) == ("litellm", "remote_error")
        known = ask(gateway, "remote", HARD).headers
        assert known["x-pointsman-model"] == f"openai/{STRONG}", "what is in the cache needs nobody"
    finally:
        upstreams.clear(EMBEDDER)


def test_a_file_that_is_not_there_is_named(gateway: Gateway) -> None:
    assert ask(gateway, "missing", "hello").headers["x-pointsman-fallback"] == "no_bundle"
    assert gateway.strategy("missing")["last_error_code"] == "E4316"
    assert "encoder add" in gateway.strategy("missing")["last_error"]
