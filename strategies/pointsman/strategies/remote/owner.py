"""The owner of one process of its own: starts it when wanted, hands it one query at a time, ends it when it misbehaves.

It lives in the supervisor, once an instance. Whoever asks while the process is not ready is told so at once
(`UnavailableError`) and wakes it; nobody waits for a start. What ended it last is the reason that requests are told until it
is ready again:

- `worker_starting`: it was not wanted before, and is loading
- `worker_died`, `worker_deadline`, `worker_memory`, `worker_nonsense`: it ended, hung, grew past its limit, answered rubbish
- `worker_broken`: it cannot be loaded (an import that is missing, a configuration that is wrong)
- `worker_busy`: `max_queue` queries wait already; `error`: this query made the router raise, and the process goes on
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pointsman.errors import PointsmanError
from pointsman.settings import ProcessSettings
from pointsman.strategies.base import Scale, UnavailableError
from pointsman.strategies.remote.child import Child, FrameError, read_message
from pointsman.strategies.remote.serve import MAX_NAMES, PROTOCOL

__all__ = ["MAX_TEXT", "MAX_USER", "About", "Owner", "State", "pause_after"]

logger = logging.getLogger("pointsman.remote")

MAX_TEXT = 100_000
"""Characters of a prompt that the process is given; the rest is cut."""

MAX_USER = 1_000
"""Characters of the user's name that it is given."""

MIB = 2**20
PING_SECONDS, LOOK_SECONDS = 5.0, 0.25
FIRST_PAUSE, MAX_PAUSE, BROKEN_PAUSE = 0.5, 60.0, 300.0
DOUBLINGS = 7
"""From here on the pause is the longest; it grows no further, nor does the power."""
STEADY_SECONDS = 60.0
"""Ready for so long, its failures are forgotten."""

State = Literal["idle", "starting", "ready", "waiting", "broken", "stopped"]
Spec = Mapping[str, Any]
Load = Callable[[], Awaitable[Spec]]


@dataclass(frozen=True, slots=True)
class About:
    """What a process said of itself when it was ready."""

    version: str = ""
    models: tuple[str, ...] = ()
    scale: Scale = "rank"


@dataclass(slots=True)
class _Item:
    text: str
    user: str | None
    answer: asyncio.Future[Mapping[str, float]]


class _Ended(Exception):
    """The process has to go; `reason` as in the module's list."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class Owner:
    """See the module.

    Args:
        name: of the strategy.
        settings: limits.
        env: the instance's environment; the process sees little of it.
        scratch: an empty directory, its home and working directory.
        load: makes what the process is told to load; may raise `PointsmanError`, then it is broken.
    """

    def __init__(self, name: str, settings: ProcessSettings, env: Mapping[str, str], scratch: Path, load: Load) -> None:
        self.name = name
        self.about = About()
        self.on_ready: Callable[[Owner], None] = lambda _: None
        self.on_loaded: Callable[[], None] = lambda: None
        self.on_unloadable: Callable[[str], None] = lambda _: None
        self._settings, self._env, self._scratch, self._load = settings, env, scratch, load
        self._state: State = "idle"
        self._failure: _Ended | None = None
        self._last: _Ended | None = None
        self._failed_at: float | None = None
        self._failures = 0
        self._queue: deque[_Item] = deque()
        self._wanted, self._arrived, self._again = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._ids = itertools.count(1)
        self._child: Child | None = None
        self._starts, self._answered = 0, 0
        self._refused: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to own; the process itself starts now (`warm_up`) or with the first query."""
        if self._settings.warm_up:
            self._wanted.set()
        self._task = asyncio.create_task(self._run(), name=f"own-{self.name}")

    async def stop(self) -> None:
        """End the process; idempotent."""
        self._state = "stopped"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def restart(self) -> None:
        """Replace the process now, whatever state it is in, e.g. since what it loads has changed."""
        self._failures = 0
        self._wanted.set()
        self._again.set()

    async def ask(self, text: str, user: str | None) -> Mapping[str, float]:
        """Scores for a text. A caller that is cancelled frees its place in the queue.

        Raises:
            UnavailableError: see the module.
        """
        if self._state != "ready":
            self._wanted.set()
            failure = self._failure
            if failure is None:
                raise self._refusal("worker_starting", "it is being started")
            raise self._refusal(failure.reason, failure.message)
        if len(self._queue) >= self._settings.max_queue:  # who has left needs no place
            self._queue = deque(item for item in self._queue if not item.answer.done())
        if len(self._queue) >= self._settings.max_queue:
            raise self._refusal("worker_busy", f"{len(self._queue)} queries wait already")
        item = _Item(text[:MAX_TEXT], user[:MAX_USER] if user is not None else None, asyncio.get_running_loop().create_future())
        self._queue.append(item)
        self._arrived.set()
        return await item.answer

    def _refusal(self, reason: str, message: str) -> UnavailableError:
        self._refused[reason] += 1
        return UnavailableError(reason, f"{self.name}: {message}")

    def status(self) -> dict[str, Any]:
        """JSON-able: `state`, `pid`, `rss_mb`, `starts`, `restarts`, `answered`, `queued`, `refused` (reason -> count),
        `last_error` while it is not ready, `last_failure` (`reason`, Unix time `at`) of the last process that had to go."""
        child, failure, last = self._child, self._failure, self._last
        if child is not None and child.process.returncode is not None:
            child = None
        return {
            "state": self._state,
            "pid": child.pid if child is not None else None,
            "rss_mb": round(child.resident() / MIB, 1) if child is not None else None,
            "starts": self._starts,
            "restarts": max(0, self._starts - 1),
            "answered": self._answered,
            "queued": len(self._queue),
            "refused": dict(self._refused),
            "last_error": failure.message if failure is not None else None,
            "last_failure": {"reason": last.reason, "at": self._failed_at} if last is not None else None,
        }

    @property
    def ready(self) -> bool:
        """Whether a query would be put to the process now."""
        return self._state == "ready"

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._again.clear()
            began = time.monotonic()
            try:
                await self._live()
                self._state = "idle"
                continue
            except _Ended as ended:
                self._note(ended, steady=self._state == "ready" and time.monotonic() - began > STEADY_SECONDS)
            except Exception as error:  # a mistake of ours; without this nothing would ever start it again
                logger.exception("%s: its owner failed", self.name)
                self._note(_Ended("worker_broken", f"its owner failed: {error!r}"), steady=False)
            if self._again.is_set():
                continue
            self._wanted.set()  # it was wanted, and shall come back by itself
            pause = BROKEN_PAUSE if self._state == "broken" else pause_after(self._failures)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), pause)

    def _note(self, ended: _Ended, *, steady: bool) -> None:
        loaded = self._state == "ready"
        self._failures = 1 if steady else self._failures + 1
        self._failure = self._last = ended
        self._failed_at = time.time()
        self._state = "broken" if ended.reason == "worker_broken" else "waiting"
        logger.error("%s: %s: %s", self.name, ended.reason, ended.message)
        while self._queue:
            item = self._queue.popleft()
            if not item.answer.done():
                item.answer.set_exception(self._refusal(ended.reason, ended.message))
        if not loaded:
            self.on_unloadable(ended.message)

    async def _live(self) -> None:
        """One process from start to end; returns when it was stopped for want of queries or is to be replaced.

        Raises:
            _Ended: it had to go.
        """
        self._state = "starting"
        try:
            spec = dict(await self._load())
            child = await Child.start(self.name, self._settings.python, self._env, self._scratch)
        except (PointsmanError, OSError) as error:
            raise _Ended("worker_broken", str(error)) from error
        self._child, self._starts = child, self._starts + 1
        work = [
            asyncio.create_task(self._talk(child, spec)),
            asyncio.create_task(self._watch(child)),
            asyncio.create_task(self._again.wait()),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            failures = [failure for task in work if task in done and (failure := task.exception()) is not None]
            if failures:  # that it grew too large is the better reason, when there are two
                raise next((one for one in failures if isinstance(one, _Ended)), failures[0])
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            with contextlib.suppress(TimeoutError):  # it may be on its way out
                await asyncio.wait_for(child.process.wait(), 1)
            raise _Ended("worker_died", f"it ended with {_told(await child.end())}{_tail(child)}") from error
        except FrameError as error:
            raise _Ended("worker_nonsense", str(error)) from error
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await child.end()
            self._child = None

    async def _watch(self, child: Child) -> None:
        limit = self._settings.memory_mb * MIB
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if child.process.returncode is not None:
                raise ConnectionResetError("it has ended")
            if (resident := child.resident()) > limit:
                raise _Ended("worker_memory", f"{resident // MIB} MiB are resident, {self._settings.memory_mb} are allowed")

    async def _talk(self, child: Child, spec: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._settings.start_s):
                await self._greet(child, spec)
        except TimeoutError:
            raise _Ended("worker_deadline", f"it did not load within {self._settings.start_s:g} s") from None
        self._state, self._failure = "ready", None
        logger.info("%s: process %d is ready", self.name, child.pid)
        self.on_ready(self)
        self.on_loaded()
        last = time.monotonic()
        while True:
            item = await self._next()
            if item is not None:
                await self._put(child, item)
                last = time.monotonic()
            elif self._settings.idle_s is not None and time.monotonic() - last >= self._settings.idle_s:
                self._state = "idle"
                return
            else:
                await self._exchange(child, {"type": "ping"}, "pong", PING_SECONDS)

    async def _greet(self, child: Child, spec: dict[str, Any]) -> None:
        hello = await read_message(child.reader)
        if hello.get("type") != "hello" or hello.get("protocol") != PROTOCOL:
            raise _Ended("worker_nonsense", "it did not say hello as it should")
        child.named(hello.get("pid"))
        await child.send({"type": "load", "data_bytes": 2 * self._settings.memory_mb * MIB, **spec})
        told = await read_message(child.reader)
        if told.get("type") == "failed":
            raise _Ended("worker_memory", "there was not enough memory to load it")
        if told.get("type") == "broken":
            raise _Ended("worker_broken", str(told.get("message"))[:2000])
        models, scale = told.get("models"), told.get("scale")
        if told.get("type") != "ready" or not isinstance(models, list) or scale not in ("rank", "quality"):
            raise _Ended("worker_nonsense", "it did not say what it is when it was ready")
        self.about = About(str(told.get("version")), tuple(map(str, models)), scale)

    async def _next(self) -> _Item | None:
        """The next query that somebody still waits for; None: none came for a while."""
        wait = PING_SECONDS if self._settings.idle_s is None else min(PING_SECONDS, self._settings.idle_s)
        while True:
            while self._queue:
                item = self._queue.popleft()
                if not item.answer.done():
                    return item
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), wait)
            except TimeoutError:
                if not self._queue:  # one may have come at that moment
                    return None

    async def _put(self, child: Child, item: _Item) -> None:
        message = {"type": "score", "text": item.text, "user": item.user}
        try:
            answer = await self._exchange(child, message, "answer", self._settings.deadline_ms / 1000)
            scores = self._judge(answer)
        except UnavailableError as error:  # this query's own
            if not item.answer.done():
                item.answer.set_exception(error)
            return
        except BaseException:
            self._queue.appendleft(item)  # it is told with those that wait
            raise
        self._answered += 1
        if not item.answer.done():
            item.answer.set_result(scores)

    async def _exchange(self, child: Child, message: dict[str, Any], kind: str, seconds: float) -> dict[str, Any]:
        number = next(self._ids)
        try:
            async with asyncio.timeout(seconds):
                await child.send({**message, "id": number})
                answer = await read_message(child.reader)
        except TimeoutError:
            raise _Ended("worker_deadline", f"no {kind} within {seconds:g} s") from None
        if answer.get("type") != kind or answer.get("id") != number:
            raise _Ended("worker_nonsense", f"it was asked for {kind} {number} and said something else")
        return answer

    def _judge(self, answer: Mapping[str, Any]) -> Mapping[str, float]:
        if answer.get("memory"):
            raise _Ended("worker_memory", f"it ran out of the {2 * self._settings.memory_mb} MiB that it may write to")
        if "broken" in answer:
            raise _Ended("worker_broken", str(answer["broken"]))
        if "nonsense" in answer:
            raise _Ended("worker_nonsense", str(answer["nonsense"])[:500])
        if "error" in answer:
            raise self._refusal("error", f"the router raised {str(answer['error'])[:100]}")
        scores = answer.get("scores")
        if isinstance(scores, dict) and len(scores) > MAX_NAMES:
            raise _Ended("worker_nonsense", f"it scored {len(scores)} models; at most {MAX_NAMES} are allowed")
        if not isinstance(scores, dict) or not scores or not all(_finite(value) for value in scores.values()):
            raise _Ended("worker_nonsense", "its scores are no finite numbers by model")
        if self.about.models and (unknown := [name for name in scores if name not in self.about.models]):
            raise _Ended("worker_nonsense", f"it named {unknown[0][:100]!r}, which is none of its models")
        return {str(name): float(value) for name, value in scores.items()}


def pause_after(failures: int) -> float:
    """Seconds until it is started again, after so many failures in a row (1 or more)."""
    return min(FIRST_PAUSE * (1 << min(failures - 1, DOUBLINGS)), MAX_PAUSE)


def _finite(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is no float
        return False


def _told(status: int | None) -> str:
    return f"signal {-status}" if status is not None and status < 0 else f"status {status}"


def _tail(child: Child) -> str:
    """The last thing it said, while it loaded: later output may quote a prompt, and is not kept."""
    return f"; it said: {child.output[-1][:300]}" if child.output else ""
