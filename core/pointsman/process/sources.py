"""A worker's side of the facts: what it has to tell goes to the supervisor, what others saw comes to who can use it.

See `process.facts` for the other side. One event loop owns it. Between an event in one worker and another worker's knowing of
it lie `INTERVAL` and two sockets: at most half a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

__all__ = ["Source", "Sources"]

logger = logging.getLogger("pointsman.facts")

INTERVAL = 0.2
"""Seconds between two looks for news."""
CHUNK = 256
"""Facts in one message."""
ROUNDS = 16
"""Chunks of one topic that are told at a time, so that a flood of one leaves room for the others."""


class Source(Protocol):
    """Who has facts to tell and can use those of others. Neither method blocks or raises."""

    def news(self) -> list[dict[str, Any]]:
        """What it has to tell, as JSON; told by being asked."""

    def adopt(self, said: Iterable[Mapping[str, Any]]) -> int:
        """What others told; gives back how many were no facts, and are passed over."""


class Sources:
    """By topic; see the module.

    Args:
        send: takes a message to the supervisor.
    """

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._send = send
        self._sources: dict[str, Source] = {}
        self._failed: set[str] = set()
        self.refused: dict[str, int] = {}
        """Topic -> what came and was no fact."""
        self.before: list[Callable[[], None]] = []
        """Called before each look for news; must neither block nor raise."""

    def add(self, topic: str, source: Source) -> None:
        """Tell and take facts of a topic; once each, before the worker serves."""
        self._sources[topic] = source

    def take(self, message: Mapping[str, Any]) -> None:
        """A message of the supervisor; a topic that this worker does not know is passed over."""
        topic = str(message.get("topic"))
        source, facts = self._sources.get(topic), message.get("facts")
        if source is not None and isinstance(facts, list):
            self.refused[topic] = self.refused.get(topic, 0) + source.adopt(facts)

    def tell(self) -> None:
        """Send what is new, now."""
        for topic, source in self._sources.items():
            try:
                self._tell(topic, source)
            except Exception:  # one source that is broken must not keep the others from telling
                if topic not in self._failed:
                    logger.exception("facts of %s cannot be told", topic)
                self._failed.add(topic)

    def _tell(self, topic: str, source: Source) -> None:
        for _ in range(ROUNDS):
            news = source.news()
            for start in range(0, len(news), CHUNK):
                self._send({"type": "facts", "topic": topic, "facts": news[start : start + CHUNK]})
            if len(news) < CHUNK:
                return

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            for look in self.before:
                look()
            self.tell()
            await asyncio.sleep(INTERVAL)
