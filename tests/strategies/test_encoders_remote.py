"""The encoder `remote`: verified without a network, served under a deadline, behind a bounded cache."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointsman.errors import BundleError
from pointsman.strategies.base import AsyncScorer, Matrix, Query, UnavailableError
from pointsman.strategies.bundle import parse_bundle
from pointsman.strategies.embedding import IN_FLIGHT, RemoteScorer
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.encoders.remote import RemoteEncoder, RemoteParams
from pointsman.strategies.registry import StrategyRegistry
from pointsman.strategies.snapshot import Snapshot
from support.encoders import encoder_bundle, save

PLAIN = HashingEncoder(8)


def provider(texts: Any) -> Matrix:
    """What the embedding model answers: of no particular length."""
    return PLAIN.encode(list(texts)) * 3


class Upstream:
    """Answers after it is let, and counts."""

    def __init__(self, answer: Callable[[str], Any] = lambda text: provider([text])[0].tolist()) -> None:
        self.answer, self.asked, self.users = answer, [], []  # type: ignore[var-annotated]
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, model: str, text: str, query: Query) -> Any:
        assert model == "embedder"
        self.asked.append(text)
        self.users.append(query.user)
        self.begun.put_nowait(text)
        await self.open.wait()
        return self.answer(text)


def bundle_bytes(**params: Any) -> bytes:
    settings = RemoteParams(**{"model": "embedder", "dimensions": 8, "max_characters": 100, **params})
    return encoder_bundle(RemoteEncoder(settings, embed=provider))


def scorer(upstream: Callable[[str, str, Query], Awaitable[Any]], **params: Any) -> RemoteScorer:
    return RemoteScorer(parse_bundle(bundle_bytes(**params), where="test"), upstream)


def test_a_bundle_is_verified_without_a_network() -> None:
    bundle = parse_bundle(bundle_bytes(), where="test")
    assert isinstance(bundle.encoder, RemoteEncoder)
    assert len(bundle.encoder.arrays()["keys"]) == 2, "its probes, and nothing else"
    with pytest.raises(UnavailableError) as caught:
        bundle.score("what nobody knows")
    assert caught.value.reason == "remote_only"


async def test_scores_are_those_of_the_vectors_and_are_asked_for_once() -> None:
    upstream = Upstream()
    remote = scorer(upstream)
    assert isinstance(remote, AsyncScorer)
    expected = remote.bundle.score_vectors(PLAIN.encode(["a new text"]))[0]
    for _ in range(3):
        scores = await remote.score_async(Query("a new text", user="ann"))
        assert list(scores.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert upstream.asked == ["a new text"]
    await remote.score_async(Query("x" * 5_000))
    assert upstream.asked[-1] == "x" * 100, "of a long text the beginning is sent"
    assert "a new text" not in repr(vars(remote)), "the cache holds no text"


async def test_who_asks_at_once_shares_a_request() -> None:
    upstream = Upstream()
    upstream.open.clear()
    remote = scorer(upstream)
    waiting = [asyncio.create_task(remote.score_async(Query("same"))) for _ in range(20)]
    await upstream.begun.get()
    waiting[0].cancel()
    upstream.open.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, dict) for result in results[1:]), "one that gave up takes nobody along"
    assert upstream.asked == ["same"]


async def test_late_for_one_decision_in_time_for_the_next() -> None:
    upstream = Upstream()
    upstream.open.clear()
    remote = scorer(upstream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await remote.score_async(Query("slow"))
    upstream.open.set()
    async with asyncio.timeout(5):
        await remote.score_async(Query("slow"))
    assert upstream.asked == ["slow"]


async def test_the_cache_is_bounded() -> None:
    upstream = Upstream()
    remote = scorer(upstream, cache=2)
    for text in ("one", "two", "one", "three", "one", "two"):
        await remote.score_async(Query(text))
    assert upstream.asked == ["one", "two", "three", "two"], "what was used last stays"
    assert len(remote._cache) == 2


def _raise(_: str) -> Any:
    raise ConnectionError("away")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_raise, "remote_error"),
        (lambda _: [0.0] * 7, "remote_answer"),
        (lambda _: [float("nan")] * 8, "remote_answer"),
        (lambda _: ["x"] * 8, "remote_answer"),
        (lambda _: None, "remote_answer"),
        (lambda _: [[1.0] * 8], "remote_answer"),
    ],
)
async def test_what_goes_wrong_is_told_and_not_kept(answer: Any, reason: str) -> None:
    upstream = Upstream(answer)
    remote = scorer(upstream)
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            await remote.score_async(Query("text"))
        assert caught.value.reason == reason
    assert len(upstream.asked) == 2, "a failure is not cached"
    upstream.answer = lambda text: provider([text])[0].tolist()
    assert await remote.score_async(Query("text"))


async def test_time_runs_out_and_crowds_are_turned_away() -> None:
    upstream = Upstream()
    upstream.open.clear()
    remote = scorer(upstream, timeout_ms=200.0)
    waiting = [asyncio.create_task(remote.score_async(Query(f"text {number}"))) for number in range(IN_FLIGHT)]
    for _ in waiting:
        await upstream.begun.get()
    with pytest.raises(UnavailableError) as caught:
        await remote.score_async(Query("one more"))
    assert caught.value.reason == "remote_busy"
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {getattr(result, "reason", None) for result in results} == {"remote_timeout"}


async def test_the_registry_serves_it_as_one_that_waits(tmp_path: Path) -> None:
    upstream = Upstream()
    registry = StrategyRegistry(embed=upstream)
    data = bundle_bytes()
    path = save(tmp_path / "bundle.zip", data)
    sha256 = parse_bundle(data, where="test").sha256
    snapshot = Snapshot(strategy="knn", generation=1, path=str(path), sha256=sha256, version="1", kind="knn")
    await registry.apply(snapshot)
    served = registry.get("knn")
    assert isinstance(served, RemoteScorer)
    await served.score_async(Query("text"))
    await registry.apply(Snapshot(**{**{k: getattr(snapshot, k) for k in snapshot.__slots__}, "generation": 2}))
    assert registry.get("knn") is served, "the same bundle keeps its cache"
    await registry.apply(Snapshot(strategy="knn", generation=3, path="", sha256="", version="", kind=""))
    assert registry.get("knn") is None


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.zeros((2, 31), np.uint8)},
        {"vectors": np.zeros((2, 9), np.float32)},
        {"vectors": np.full((2, 8), np.nan, np.float32)},
        {"keys": np.zeros((65, 32), np.uint8), "vectors": np.zeros((65, 8), np.float32)},
    ],
)
def test_arrays_that_do_not_do(change: dict[str, Any]) -> None:
    good = parse_bundle(bundle_bytes(), where="test").encoder
    with pytest.raises(BundleError):
        RemoteEncoder.from_parts(good.params(), {**good.arrays(), **change})
