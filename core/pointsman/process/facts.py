"""Where the facts of an instance's workers come together: the supervisor merges them, and tells those who do not know.

A topic (`breakers`, `affinity`, ...) has a shelf, which keeps of each key the fact that holds. Workers send
`{"type": "facts", "topic": ..., "facts": [...]}`; what is news goes at once to the other workers and, where there is one, to
the store that instances share (`mirror`). A worker that joins is sent all that stands. Facts are such that their order,
repetition and loss do no harm; clocks never cross a process, so facts say how long ago and how long still, not when.

One event loop owns it; nothing here waits. Memory is bounded by each shelf, of what is on its way to a worker that does not
read by `MAX_UNREAD`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar

from pointsman.process.pool import Worker

__all__ = ["CHUNK", "Exchange", "Fact", "Kept", "Shelf", "chunks"]

logger = logging.getLogger("pointsman.facts")

Fact: TypeAlias = Mapping[str, Any]
"""A JSON object."""

CHUNK = 256
"""Facts in one message."""
CHUNK_BYTES = 2**20
"""Of their JSON; a quarter of what `channel.MAX_MESSAGE` takes."""
MAX_UNREAD = 2**20
"""Bytes that may wait for a worker to read them; with more it gets all that stands, once it reads again."""


class Kept(Protocol):
    """A fact as it is kept; immutable. Its times are monotonic seconds of the process that keeps it."""

    @property
    def key(self) -> str:
        """What it is about; one fact of a key holds."""

    @property
    def lasting(self) -> bool:
        """Whether it is the last to be forgotten where there are too many."""

    def over(self, known: Self) -> Self | None:
        """What holds now that it is told, where `known` held; None: it says nothing new."""

    def ended(self, now: float) -> bool:
        """Whether it means nothing any more."""

    def to_wire(self, now: float) -> dict[str, Any]:
        """As JSON."""


K = TypeVar("K", bound=Kept)


class Shelf(Generic[K]):
    """The facts of one topic.

    Args:
        read: makes a fact of JSON and the monotonic second at which it was true; raises ValueError where it is none.
        bound: facts that are kept; of more the one that was not heard of for the longest time goes.
        contradicted: whether who told the first has to hear that the second holds; None: nobody who has heard all can have
            told something that does not hold.
    """

    def __init__(
        self, read: Callable[[Fact, float], K], bound: int = 10_000, contradicted: Callable[[K, K], bool] | None = None
    ) -> None:
        self._read, self._bound, self._contradicted = read, bound, contradicted
        self._kept: dict[str, K] = {}
        self.corrected: list[str] = []
        """Keys of the last `hear` of which something else holds than was told."""
        self.refused = 0
        """What was no fact."""
        self.forgotten = 0
        """Facts that were lost over the bound."""

    def __len__(self) -> int:
        return len(self._kept)

    def keys(self) -> list[str]:
        """Of the facts that are kept."""
        return list(self._kept)

    def hear(self, said: Iterable[Fact], at: float) -> list[str]:
        """Take facts that were true at a monotonic second; gives back the keys of which something else holds now."""
        news: dict[str, None] = {}
        self.corrected = []
        for item in said:
            try:
                fact = self._read(item, at)
            except (ValueError, TypeError, AttributeError, OverflowError):  # from outside; whatever it is, it is no fact
                self.refused += 1
                continue
            known = self._kept.pop(fact.key, None)
            holds = fact if known is None else fact.over(known)
            if holds is not None:
                news[fact.key] = None
            kept = holds if holds is not None else known
            assert kept is not None  # noqa: S101 - narrows the type; one of the two is there
            self._kept[fact.key] = kept
            if self._contradicted is not None and self._contradicted(fact, kept):
                self.corrected.append(fact.key)
        while len(self._kept) > self._bound:
            self._forget()
        return [key for key in news if key in self._kept]

    def _forget(self) -> None:
        passing = (key for key, fact in self._kept.items() if not fact.lasting)
        del self._kept[next(passing, next(iter(self._kept)))]
        self.forgotten += 1

    def wire(self, now: float, keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Those of the keys that are kept, or all, as JSON; what has ended is dropped."""
        for key in [key for key, fact in self._kept.items() if fact.ended(now)] if keys is None else ():
            del self._kept[key]
        named = self._kept if keys is None else (key for key in keys if key in self._kept)
        return [self._kept[key].to_wire(now) for key in named]


class Outside(Protocol):
    """What takes news to other instances; `process.mirror.Mirror`."""

    def put(self, topic: str, keys: Iterable[str]) -> None:
        """Tell of them with the next round; never blocks."""


class Exchange:
    """See the module.

    Args:
        shelves: topic -> shelf.
        workers: the worker slots.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        shelves: Mapping[str, Shelf[Any]],
        workers: Callable[[], Sequence[Worker]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelves, self._workers, self._clock = shelves, workers, clock
        self._behind: dict[int, dict[str, None]] = {}
        self.outside: Outside | None = None
        self.unknown = 0
        """Messages and entries of no known topic or shape."""

    def heard(self, worker: Worker, message: Mapping[str, Any]) -> None:
        """A worker tells facts."""
        topic = message.get("topic")
        news = self._take(topic, message.get("facts"), 0.0, worker)
        if news and self.outside is not None:
            self.outside.put(str(topic), news)

    def deliver(self, topic: object, facts: object, age: float) -> None:
        """Another instance told facts, `age` seconds ago; they are not told outside again, but what holds in their stead is."""
        self._take(topic, facts, max(0.0, age), None)
        shelf = self._shelves.get(topic) if isinstance(topic, str) else None
        if shelf is not None and shelf.corrected and self.outside is not None:
            self.outside.put(str(topic), shelf.corrected)

    def joined(self, worker: Worker) -> None:
        """A worker has just been welcomed: it is told all that stands."""
        self._behind.pop(worker.index, None)
        for topic in self._shelves:
            self._all(worker, topic)

    def catch_up(self) -> None:
        """Send what stands to workers that did not read and do so again; every few seconds."""
        for worker in self._workers():
            if worker.index in self._behind and (worker.channel is None or worker.channel.unread < MAX_UNREAD // 2):
                for topic in self._behind.pop(worker.index):  # of them the first at least goes, however much it is
                    self._all(worker, topic)

    def everything(self, topic: str) -> list[dict[str, Any]]:
        """All that stands of a topic, as JSON."""
        return self._shelves[topic].wire(self._clock())

    def keys(self, topic: str) -> list[str]:
        """Of all that stands of a topic."""
        return self._shelves[topic].keys()

    def wire(self, topic: str, keys: Iterable[str]) -> list[dict[str, Any]]:
        """What holds of these keys now, as JSON."""
        return self._shelves[topic].wire(self._clock(), keys)

    @property
    def topics(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._shelves)

    def status(self) -> dict[str, Any]:
        """For operators: how many facts there are, and what was refused."""
        rows = {
            topic: {"facts": len(shelf), "refused": shelf.refused, "forgotten": shelf.forgotten}
            for topic, shelf in self._shelves.items()
        }
        return {"topics": rows, "unknown": self.unknown}

    def _take(self, topic: object, facts: object, age: float, teller: Worker | None) -> list[str]:
        shelf = self._shelves.get(topic) if isinstance(topic, str) else None
        if shelf is None or not isinstance(facts, list | tuple):
            if shelf is not None:
                shelf.corrected = []
            self.unknown += 1
            return []
        now = self._clock()
        news = shelf.hear(facts, now - age)
        if news:
            told = shelf.wire(now, news)
            for worker in self._workers():
                if worker is not teller:
                    self._send(worker, str(topic), told)
        if shelf.corrected and teller is not None:
            self._send(teller, str(topic), shelf.wire(now, shelf.corrected))
        return news

    def _all(self, worker: Worker, topic: str) -> None:
        if facts := self._shelves[topic].wire(self._clock()):
            self._send(worker, topic, facts)

    def _send(self, worker: Worker, topic: str, facts: Sequence[Fact]) -> None:
        if worker.channel is None:
            return
        if worker.channel.unread > MAX_UNREAD:
            self._behind.setdefault(worker.index, {})[topic] = None
            return
        for chunk in chunks(facts):
            worker.channel.send({"type": "facts", "topic": topic, "facts": chunk})


def chunks(facts: Sequence[Fact]) -> Iterable[Sequence[Fact]]:
    """In messages of at most `CHUNK` facts and about `CHUNK_BYTES`: those from outside may be large."""
    start = size = 0
    for end, fact in enumerate(facts):
        length = len(json.dumps(fact))
        if end > start and (end - start == CHUNK or size + length > CHUNK_BYTES):
            yield facts[start:end]
            start, size = end, 0
        size += length
    if start < len(facts):
        yield facts[start:]
