"""Code of the operator's own: what an entry point's object must be, and what comes of one that is not."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointsman.strategies.base import AsyncScorer, Query, UnavailableError
from pointsman.strategies.plugins import MAX_WAITING, THREADS, BrokenPlugin, PluginScorer, installed, load_plugin
from support.wheels import example_wheel

MODELS = ("weak", "strong")


class Code:
    """A plugin that answers with what it was given."""

    def __init__(self, answer: Any, models: Any = MODELS, scale: str = "quality") -> None:
        self.answer, self.models, self.scale = answer, models, scale
        self.threads: set[str] = set()

    def score(self, texts: Sequence[str], users: Sequence[str | None]) -> Any:
        self.threads.add(threading.current_thread().name)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Waiting:
    """A plugin that waits by itself."""

    models, scale, version = MODELS, "rank", "7"

    async def score_async(self, query: Query) -> Mapping[str, float]:
        await asyncio.sleep(0)
        return {"weak": float(len(query.text)), "strong": float(query.user == "me")}


@pytest.mark.parametrize(
    "answer",
    [
        [[0.25, 1.0]],
        np.array([[0.25, 1.0]], np.float32),
        {"weak": [0.25], "strong": [1.0]},
        [{"weak": 0.25, "strong": 1}],
        {"weak": np.array([0.25]), "strong": np.array([1.0])},
    ],
)
async def test_every_shape_that_is_documented(answer: Any) -> None:
    code = Code(answer)
    scorer = PluginScorer("s", code)
    assert isinstance(scorer, AsyncScorer)
    assert await scorer.score_async(Query("text")) == {"weak": 0.25, "strong": 1.0}
    assert (scorer.models, scorer.scale, scorer.version) == (MODELS, "quality", "")
    assert all(name.startswith("pointsman-plugin") for name in code.threads), "never on the event loop"


async def test_one_that_waits_by_itself() -> None:
    scorer = PluginScorer("s", Waiting())
    assert await scorer.score_async(Query("four", "me")) == {"weak": 4.0, "strong": 1.0}
    assert (scorer.scale, scorer.version) == ("rank", "7")


@pytest.mark.parametrize(
    "answer",
    [
        [[0.5]],
        [[0.5, 1.0, 1.0]],
        [[0.5, 1.0], [0.5, 1.0]],
        [],
        [[math.nan, 1.0]],
        [[math.inf, 1.0]],
        [["high", 1.0]],
        {"weak": []},
        {"stranger": [1.0]},
        {},
        None,
        7,
        RuntimeError("about apple pie"),
        SystemExit("apple"),
        KeyboardInterrupt("apple"),
    ],
    ids=str,
)
async def test_what_is_wrong_raises_and_is_reported_once(answer: Any) -> None:
    told: list[str | None] = []
    code = Code(answer)
    scorer = PluginScorer("s", code, told.append)
    for _ in range(3):
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever: the decider takes it as `error`
            await scorer.score_async(Query("apple pie"))
    assert len(told) == 1
    assert "apple" not in str(told)
    code.answer = [[0.5, 1.0]]
    await scorer.score_async(Query("apple pie"))
    assert told[1:] == [None]


async def test_one_that_wants_to_end_the_process_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaving:
        models, scale = MODELS, "rank"

        async def score_async(self, query: Query) -> Mapping[str, float]:
            sys.exit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        await PluginScorer("s", Leaving()).score_async(Query("x"))

    with zipfile.ZipFile(example_wheel(tmp_path, module="raise SystemExit(3)")) as archive:
        archive.extractall(tmp_path / "leaving")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "leaving")])
    assert isinstance(await load_plugin("mine", "length", {}), BrokenPlugin)


@pytest.mark.parametrize(
    "code", [Code([], models=()), Code([], models=("a", "a")), Code([], models=(1,)), Code([], scale="percent"), object()]
)
def test_an_object_that_is_no_strategy(code: Any) -> None:
    with pytest.raises((ValueError, AttributeError)):
        PluginScorer("s", code)


async def test_one_that_hangs_takes_its_own_threads_and_no_more() -> None:
    release = threading.Event()

    class Hanging(Code):
        def score(self, texts: Sequence[str], users: Sequence[str | None]) -> Any:
            release.wait()
            return [[0.0, 1.0]]

    scorer = PluginScorer("s", Hanging(None))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scorer.score_async(Query("x")), 0.05)
    waiting = [asyncio.ensure_future(scorer.score_async(Query("x"))) for _ in range(THREADS + MAX_WAITING - 1)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError) as caught:
        await scorer.score_async(Query("x"))
    assert caught.value.reason == "plugin_busy"
    release.set()
    await asyncio.gather(*waiting)
    assert await scorer.score_async(Query("x")) == {"weak": 0.0, "strong": 1.0}


async def test_the_example_is_installed_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(example_wheel(tmp_path)) as archive:
        archive.extractall(tmp_path / "installed")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "installed")])
    assert "length" in installed()
    scorer = await load_plugin("mine", "length", {"models": ["weak", "middle", "strong"], "words": 10})
    assert isinstance(scorer, PluginScorer)
    for words, best in ((1, "weak"), (5, "middle"), (50, "strong")):
        scores = await scorer.score_async(Query("word " * words))
        assert max(scores, key=scores.__getitem__) == best
    sys.modules.pop("length_strategy", None)


@pytest.mark.parametrize(
    ("entry_point", "options", "words"),
    [("lenght", {}, "Did you mean length?"), ("length", {"models": ["one"]}, "two or more")],
)
async def test_one_that_cannot_be_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    entry_point: str,
    options: dict[str, Any],
    words: str,
) -> None:
    with zipfile.ZipFile(example_wheel(tmp_path)) as archive:
        archive.extractall(tmp_path / "installed")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "installed")])
    told: list[str | None] = []
    with caplog.at_level(logging.CRITICAL, "pointsman.plugins"):
        scorer = await load_plugin("mine", entry_point, options, told.append)
    assert isinstance(scorer, BrokenPlugin)
    assert isinstance(scorer, AsyncScorer)
    assert words in str(told)
    with pytest.raises(UnavailableError, match=words.replace("?", r"\?")) as caught:
        await scorer.score_async(Query("x"))
    assert caught.value.reason == "plugin_broken"
    sys.modules.pop("length_strategy", None)
