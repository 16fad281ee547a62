"""Cheap model answers -> a verifier judges -> the next stronger one, until one is believed or the strongest is left.

The idea is AutoMix's (Aggarwal, Madaan et al., arXiv:2310.12963): verify by few-shot self-verification, several samples, and
escalate on what they say. Two thresholds stand for its decision process: below `threshold` the answer is doubted, and below
`hopeless` the question is taken for one that no stronger model answers either, so that asking it would be money lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pointsman.cascade_settings import CascadeSettings
from pointsman.custom_router.cascades.limits import Limits
from pointsman.custom_router.cascades.parse import read_verdict
from pointsman.custom_router.cascades.prompts import new_id, verification
from pointsman.custom_router.cascades.types import Ask, Ending, FailedCallError, Level, Messages, Said, StopError

__all__ = ["Automix"]

VERDICT_TOKENS = 512
"""Enough for a model that thinks aloud before the one line."""

SAMPLING = 0.8
"""Temperature when several samples are drawn; one alone is drawn at 0."""


class Automix:
    """One cascade. `run` may be cut off at any await; `stopped` then tells the end that is left.

    Args:
        ask: asks a model.
        levels: weakest first, at least two.
        settings: `threshold`, `hopeless`, `samples`.
        limits: `calls_left` bounds the samples.
        verifier: who judges; None: the model that answered.
    """

    def __init__(
        self, ask: Ask, levels: Sequence[Level], settings: CascadeSettings, limits: Limits, verifier: Level | None = None
    ) -> None:
        self._ask, self._levels, self._settings, self._limits, self._verifier = ask, levels, settings, limits, verifier
        self._kept: Said | None = None
        self._trials: list[dict[str, Any]] = []

    async def run(self, messages: Messages) -> Ending:
        """Ask and judge.

        Raises:
            StopError: a limit was met; see `stopped`.
        """
        odd: str | None = None
        for level in self._levels[:-1]:
            try:
                said = await self._ask(level, messages, "answer")
            except FailedCallError as error:
                odd = "answer"
                self._trials.append({"model": level.model, "error": error.reason})
                continue
            self._kept = said
            confidence = await self._confidence(messages, said)
            self._trials.append({"model": level.model, "confidence": confidence})
            if confidence is None:
                odd = "verifier"
            elif confidence >= self._settings.threshold or confidence < self._settings.hopeless:
                return Ending(said=said, detail=self._detail())
        return Ending(level=self._levels[-1], fallback=odd, detail=self._detail())

    @property
    def spare(self) -> Said | None:
        """The last answer, believed or not."""
        return self._kept

    def stopped(self, reason: str) -> Ending:
        """The end when `run` was cut off: the answer that there is, where time or money is short; else the strongest model."""
        if self._kept is not None and reason != "max_calls":
            return Ending(said=self._kept, fallback=reason, detail=self._detail())
        level = None if reason == "budget" else self._levels[-1]
        return Ending(level=level, fallback=reason, detail=self._detail())

    def _detail(self) -> dict[str, Any]:
        return {"trials": self._trials, "threshold": self._settings.threshold}

    async def _confidence(self, messages: Messages, said: Said) -> float | None:
        """Mean of the samples that are verdicts, or None where none is."""
        count = min(self._settings.samples, self._limits.calls_left)
        if not count:
            raise StopError("max_calls")
        judge = self._verifier or said.level
        temperature = 0.0 if count == 1 else SAMPLING
        samples = [asyncio.ensure_future(self._sample(judge, messages, said, temperature)) for _ in range(count)]
        try:
            scores = [score for score in await asyncio.gather(*samples) if score is not None]
        finally:
            for sample in samples:
                sample.cancel()
            await asyncio.gather(*samples, return_exceptions=True)
        return sum(scores) / len(scores) if scores else None

    async def _sample(self, judge: Level, messages: Messages, said: Said, temperature: float) -> float | None:
        question = new_id()
        asked = verification(messages, said.text, question)
        try:
            reply = await self._ask(judge, asked, "verify", max_tokens=VERDICT_TOKENS, temperature=temperature)
        except FailedCallError:
            return None
        return read_verdict(reply.text, question)
