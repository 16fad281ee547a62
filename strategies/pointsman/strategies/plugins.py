"""A strategy of the operator's own: code that is installed beside the gateway and named by an entry point.

The entry point, in the group `pointsman.strategies`, is a factory. It is called once in each worker with the strategy's
`options` as keywords, and returns an object with

- `models`: the names of the candidates that it scores;
- `scale`: `quality` or `rank`, see `pointsman.strategies.base.Scale`;
- `score(texts, users)`: for texts, and for users (a name or None for each), either rows of scores (texts by models) or a
  mapping of model -> scores of the texts. It runs in a thread, on behalf of one request; the deadline of routing holds, and a
  thread that hangs is lost. Or, instead,
- `async score_async(query)`: for a `pointsman.strategies.base.Query`, model -> score;
- `version` (optional): text for the header `x-pointsman-version`.

Whatever it raises, and whatever is no finite score for one of its models, costs the request this strategy and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from pointsman.errors import ConfigError
from pointsman.overrides import closest
from pointsman.strategies.base import Query, Scale, UnavailableError
from pointsman.strategies.threads import in_thread

__all__ = ["GROUP", "BrokenPlugin", "PluginScorer", "installed", "load_plugin", "missing"]

logger = logging.getLogger("pointsman.plugins")

GROUP = "pointsman.strategies"
THREADS, MAX_WAITING = 4, 64
LOAD_SECONDS = 60.0

Report = Callable[[str | None], None]


def installed(besides: Sequence[str] = ()) -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of the group, by name; looked for on `sys.path` and in `besides`."""
    found = importlib.metadata.distributions(path=[*besides, *sys.path])
    return {point.name: point for one in found for point in one.entry_points if point.group == GROUP}


def missing(name: str, known: Sequence[str]) -> ConfigError:
    """What to say when there is no such entry point."""
    guess = closest(name, known)
    mend = f"Did you mean {guess}? " if guess else ""
    listed = f"installed: {', '.join(sorted(known))}" if known else "none is installed"
    return ConfigError(
        f"no installed package has an entry point {name!r} in the group {GROUP}",
        code="E4206",
        where="entry_point",
        mend=f"{mend}Install the package into the gateway's environment; {listed}.",
    )


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """An operator's code that asks for the end of the process does not get it: on the event loop that would be the worker's."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"it raised {type(error).__name__}") from error


class BrokenPlugin:
    """Stands where a plugin would: each request is told why there is none."""

    kind: str = "custom"
    scale: Scale = "rank"

    def __init__(self, message: str) -> None:
        self._message = message
        self.version = ""
        self.models: tuple[str, ...] = ()

    async def score_async(self, query: Query) -> Mapping[str, float]:
        """Refuse."""
        raise UnavailableError("plugin_broken", self._message)


class PluginScorer:
    """An `AsyncScorer` over the object that a factory made.

    Args:
        name: of the strategy.
        code: the object, see the module.
        report: told what went wrong, and None when it went well again; at each change only.

    Raises:
        ValueError, TypeError, AttributeError: the object is not what it should be.
    """

    kind: str = "custom"

    def __init__(self, name: str, code: Any, report: Report = lambda _: None) -> None:
        models, scale = tuple(code.models), code.scale
        if not models or not all(isinstance(model, str) for model in models) or len(set(models)) != len(models):
            raise ValueError("`models` is no list of different names")
        if scale not in ("quality", "rank"):
            raise ValueError(f"`scale` is 'quality' or 'rank', and not {scale!r}")
        self.models: tuple[str, ...] = models
        self.version = str(getattr(code, "version", ""))[:64]
        self._scale: Scale = scale
        self._name, self._report = name, report
        self._async = getattr(code, "score_async", None)
        self._score = None if self._async is not None else code.score
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pointsman-plugin")
        self._running: set[Future[Any]] = set()
        self._wrong: str | None = None

    @property
    def scale(self) -> Scale:
        """See `pointsman.strategies.base.Scale`."""
        return self._scale

    async def score_async(self, query: Query) -> Mapping[str, float]:
        """Scores of the plugin, checked."""
        try:
            scores = self._checked(await self._ask(query))
        except UnavailableError:
            raise
        except Exception as error:
            self._told(f"{type(error).__name__} while scoring")  # not its message: it may quote the prompt
            raise
        self._told(None)
        return scores

    def _told(self, wrong: str | None) -> None:
        if wrong != self._wrong:
            self._wrong = wrong
            self._report(wrong)

    async def _ask(self, query: Query) -> Any:
        if self._async is not None:
            with _contained():
                answer = self._async(query)
                return await answer if inspect.isawaitable(answer) else answer
        if len(self._running) >= THREADS + MAX_WAITING:
            raise UnavailableError("plugin_busy", f"{self._name}: {len(self._running)} queries run or wait")
        running = self._threads.submit(self._call, [query.text], [query.user])
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        answer = await asyncio.wrap_future(running)
        if isinstance(answer, Mapping):
            return {model: column[0] for model, column in answer.items()}
        if len(answer) != 1:
            raise ValueError(f"{len(answer)} rows of scores for one text")
        row = answer[0]
        return row if isinstance(row, Mapping) else dict(zip(self.models, row, strict=True))

    def _call(self, texts: Sequence[str], users: Sequence[str | None]) -> Any:
        assert self._score is not None  # noqa: S101 - narrows the type; one of the two is there
        with _contained():
            return self._score(texts, users)

    def _checked(self, answer: Any) -> Mapping[str, float]:
        scores = {model: float(value) for model, value in answer.items()}
        if not scores or not scores.keys() <= set(self.models):
            raise ValueError("it scored nothing, or a model that is none of its own")
        if not all(map(math.isfinite, scores.values())):
            raise ValueError("a score is not finite")
        return scores


def _make(point: importlib.metadata.EntryPoint, options: Mapping[str, Any]) -> Any:
    with _contained():
        return point.load()(**options)


async def load_plugin(
    name: str, entry_point: str, options: Mapping[str, Any], report: Report = lambda _: None
) -> PluginScorer | BrokenPlugin:
    """Load a plugin in a thread; what goes wrong is reported, and then each request is told.

    Args:
        name: of the strategy.
        entry_point: its name within `GROUP`.
        options: the factory's keywords.
        report: see `PluginScorer`.
    """
    known = installed()
    try:
        if (point := known.get(entry_point)) is None:
            raise missing(entry_point, list(known))
        async with asyncio.timeout(LOAD_SECONDS):
            code = await in_thread(partial(_make, point, options))
        return PluginScorer(name, code, report)
    except Exception as error:  # an operator's code may raise anything; the gateway serves without it (law 3)
        logger.exception("%s: the plugin %r cannot be loaded", name, entry_point)
        message = f"the plugin {entry_point!r} cannot be loaded: {type(error).__name__}: {error}"[:1000]
        report(message)
        return BrokenPlugin(message)
