"""Serves a bundle whose encoder is `remote`: one embedding request to a model of the gateway, under a deadline, behind a cache.

Who asks at the same time for the same text shares a request. A request that is late for the decision it was made for goes on
and fills the cache, so that the next one is in time. The cache holds vectors under the text's SHA-256, never the text.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from pointsman.strategies.base import Matrix, Query, Scale, UnavailableError
from pointsman.strategies.bundle import Bundle
from pointsman.strategies.encoders.remote import RemoteEncoder

__all__ = ["Embed", "RemoteScorer"]

logger = logging.getLogger("pointsman.strategies")

Embed = Callable[[str, str, Query], Awaitable[Any]]
"""(model, text, query) -> the vector, a list of numbers. Handed in by the gateway; may raise anything."""

IN_FLIGHT = 64
"""Requests at once; past that a decision falls back at once instead of queueing."""


class RemoteScorer:
    """An `AsyncScorer`; see the module. Belongs to one event loop.

    Args:
        bundle: its encoder is a `RemoteEncoder`.
        embed: asks the gateway.
    """

    def __init__(self, bundle: Bundle, embed: Embed) -> None:
        encoder = bundle.encoder
        if not isinstance(encoder, RemoteEncoder):
            raise TypeError("the bundle's encoder is not remote")
        self.bundle = bundle
        self.version, self.kind, self.models = bundle.version, bundle.kind, bundle.models
        self._encoder, self._embed = encoder, embed
        self._cache: OrderedDict[bytes, Matrix] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Matrix]] = {}
        self.counters = dict.fromkeys(("hits", "asked", "failed"), 0)

    @property
    def scale(self) -> Scale:
        """See `Strategy.scale`."""
        return self.bundle.scale

    async def score_async(self, query: Query) -> Mapping[str, float]:
        """See `AsyncScorer.score_async`.

        Raises:
            UnavailableError: `remote_timeout`, `remote_error`, `remote_answer`, `remote_busy`.
        """
        vector = await self._vector(query)
        scores = self.bundle.score_vectors(vector, (query.user,))[0]
        return dict(zip(self.models, scores.tolist(), strict=True))

    async def _vector(self, query: Query) -> Matrix:
        text = self._encoder.sent(query.text)
        if not text:
            return np.zeros((1, self._encoder.dimensions), np.float32)
        key = hashlib.sha256(text.encode()).digest()
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self.counters["hits"] += 1
            return known
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= IN_FLIGHT:
                raise UnavailableError("remote_busy", f"{len(self._asking)} embedding requests are under way")
            task = asyncio.create_task(self._ask(key, text, query), name="pointsman-embed")
            self._asking[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)

    def _done(self, key: bytes, task: asyncio.Task[Matrix]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # looked at, so that nobody who waits no longer is missed in the log

    async def _ask(self, key: bytes, text: str, query: Query) -> Matrix:
        settings = self._encoder.settings
        self.counters["asked"] += 1
        try:
            async with asyncio.timeout(settings.timeout_ms / 1000):
                answer = await self._embed(settings.model, text, query)
            vector = self._encoder.checked([answer], 1)
        except TimeoutError:
            self.counters["failed"] += 1
            raise UnavailableError("remote_timeout", f"{settings.model} took more than {settings.timeout_ms:g} ms") from None
        except UnavailableError:
            self.counters["failed"] += 1
            raise
        except Exception as error:  # of any provider that LiteLLM knows: the decision is made without this strategy
            self.counters["failed"] += 1
            logger.warning("the encoder %s cannot be asked: %s", settings.model, type(error).__name__)
            raise UnavailableError("remote_error", f"{settings.model} cannot be asked: {type(error).__name__}") from error
        if settings.cache:
            self._cache[key] = vector
            while len(self._cache) > settings.cache:
                self._cache.popitem(last=False)
        return vector
