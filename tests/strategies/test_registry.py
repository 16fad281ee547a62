"""The worker's side: swaps are whole, late loads never win, readers are never in the way."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import PointsmanError
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.registry import StrategyRegistry
from pointsman.strategies.snapshot import Snapshot
from support.bundles import corrupt, make_bundle


def snapshot(path: Path, generation: int, strategy: str = "knn") -> Snapshot:
    bundle = load_bundle(path)
    return Snapshot(strategy, generation, str(path), bundle.sha256, bundle.version, bundle.kind)


EMPTY = Snapshot("knn", 9, "", "", "", "")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("versions")
    return [make_bundle(directory, str(number)) for number in range(4)]


async def test_swap_and_withdraw(versions: list[Path]) -> None:
    registry = StrategyRegistry()
    assert registry.get("knn") is None
    await registry.apply(snapshot(versions[0], 1))
    first = registry.get("knn")
    assert first is not None
    assert first.version == "0"
    await registry.apply(snapshot(versions[1], 2))
    second = registry.get("knn")
    assert second is not None
    assert second.version == "1"
    assert first.score("anything"), "who holds the old one may go on using it"
    await registry.apply(EMPTY)
    assert registry.get("knn") is None
    assert registry.generations == {"knn": 9}


async def test_the_same_bundle_is_not_loaded_twice(versions: list[Path]) -> None:
    registry = StrategyRegistry()
    await registry.apply(snapshot(versions[0], 1))
    loaded = registry.get("knn")
    await registry.apply(snapshot(versions[0], 2))
    assert registry.get("knn") is loaded
    assert registry.generations["knn"] == 2


async def test_what_cannot_be_loaded_changes_nothing(versions: list[Path], tmp_path: Path) -> None:
    registry = StrategyRegistry()
    await registry.apply(snapshot(versions[0], 1))
    good = snapshot(versions[1], 2)
    changed = tmp_path / "changed.zip"
    changed.write_bytes(corrupt(make_bundle(tmp_path, "7"), "bit_flip").read_bytes())
    for path in (changed, tmp_path / "none.zip"):
        with pytest.raises(PointsmanError):
            await registry.apply(Snapshot("knn", 2, str(path), good.sha256, good.version, good.kind))
    assert registry.generations == {"knn": 1}
    bundle = registry.get("knn")
    assert bundle is not None
    assert bundle.version == "0"


@settings(max_examples=30)
@given(order=st.permutations(range(4)))
def test_the_newest_generation_wins_in_whatever_order(versions: list[Path], order: list[int]) -> None:
    async def play() -> None:
        registry = StrategyRegistry()
        await asyncio.gather(*(registry.apply(snapshot(versions[number], number + 1)) for number in order))
        bundle = registry.get("knn")
        assert bundle is not None
        assert bundle.version == "3"
        assert registry.generations["knn"] == 4

    asyncio.run(play())


async def test_readers_in_threads_always_find_a_whole_bundle(versions: list[Path]) -> None:
    registry = StrategyRegistry()
    await registry.apply(snapshot(versions[0], 0))
    stop, problems = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            bundle = registry.get("knn")
            if bundle is None or set(bundle.score("anything")) != set(bundle.models):
                problems.append(bundle)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for generation in range(1, 40):
            await registry.apply(snapshot(versions[generation % 4], generation))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []


async def test_strategies_do_not_mix(versions: list[Path]) -> None:
    registry = StrategyRegistry()
    await asyncio.gather(registry.apply(snapshot(versions[0], 1, "one")), registry.apply(snapshot(versions[1], 5, "two")))
    one, two = registry.get("one"), registry.get("two")
    assert one is not None
    assert two is not None
    assert (one.version, two.version) == ("0", "1")
