"""Divide the request -> a model for each part -> work on them at once -> one model writes the answer.

The shape is that of LLMRouter's multi-round routers, whose wheel ships no prompts; prompts and code here are ours. A planner
that fails or says nonsense, or a part that fails, ends it: the strongest model answers the request as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pointsman.cascade_settings import CascadeSettings
from pointsman.custom_router.cascades.limits import Limits
from pointsman.custom_router.cascades.parse import Part, read_plan
from pointsman.custom_router.cascades.prompts import composing, new_id, part_question, planning
from pointsman.custom_router.cascades.types import Ask, Ending, FailedCallError, Level, Messages, Said, StopError

__all__ = ["Choose", "MultiRound"]

PLAN_TOKENS = 2_048

Choose = Callable[[str], Awaitable[Level | None]]
"""The model for a part's text (a bundle's choice), or None where there is nothing to choose by."""


class MultiRound:
    """One cascade. `run` may be cut off at any await; `stopped` then tells the end that is left.

    Args:
        ask: asks a model.
        levels: weakest first, at least two.
        settings: `max_parts`.
        limits: a plan with more parts than calls left is not begun.
        choose: chooses for each part; None: the planner does.
        planner, composer: who plans and who writes; None: the strongest.
    """

    def __init__(
        self,
        ask: Ask,
        levels: Sequence[Level],
        settings: CascadeSettings,
        limits: Limits,
        choose: Choose | None = None,
        planner: Level | None = None,
        composer: Level | None = None,
    ) -> None:
        self._ask, self._levels, self._settings, self._limits, self._choose = ask, levels, settings, limits, choose
        self._planner, self._composer = planner or levels[-1], composer or levels[-1]
        self._answers: list[Said] = []
        self._detail: dict[str, Any] = {}

    async def run(self, messages: Messages) -> Ending:
        """Plan, work, and tell who is to write the answer from what.

        Raises:
            StopError: a limit was met; see `stopped`.
        """
        parts = await self._plan(messages)
        if parts is None:
            return self._plainly("planner")
        chosen = [await self._level_of(part) for part in parts]
        levels = [level for level in chosen if level is not None]
        if len(levels) != len(parts):
            return self._plainly("no_candidate")
        self._detail["parts"] = [level.model for level in levels]
        if len(parts) == 1:  # one thing: whoever was chosen for it answers the request itself
            return Ending(level=levels[0], detail=self._detail)
        if len(parts) > self._limits.calls_left:
            raise StopError("max_calls")
        try:
            answers = await self._work(messages, parts, levels)
        except FailedCallError as error:
            self._detail["error"] = error.reason
            return self._plainly("part")
        self._answers = answers
        asked = composing(messages, parts, [said.text for said in answers])
        return Ending(level=self._composer, messages=asked, detail=self._detail)

    @property
    def spare(self) -> Said | None:
        """Parts are no answer."""
        return None

    def stopped(self, reason: str) -> Ending:
        """The end when `run` was cut off, or may not go on: the strongest model, as if nothing had been."""
        if reason != "budget":
            return self._plainly(reason)
        if not self._answers:
            return Ending(fallback=reason, detail=self._detail)
        last = self._answers[-1]
        joined = Said(
            "\n\n".join(said.text for said in self._answers),
            last.level,
            last.deployment_id,
            prompt_tokens=sum(said.prompt_tokens for said in self._answers),
            completion_tokens=sum(said.completion_tokens for said in self._answers),
        )
        return Ending(said=joined, fallback=reason, detail=self._detail)

    def _plainly(self, reason: str) -> Ending:
        return Ending(level=self._levels[-1], fallback=reason, detail=self._detail)

    async def _plan(self, messages: Messages) -> tuple[Part, ...] | None:
        question = new_id()
        models = None if self._choose is not None else tuple(level.model for level in self._levels)
        asked = planning(messages, question, self._settings.max_parts, models)
        try:
            reply = await self._ask(self._planner, asked, "plan", max_tokens=PLAN_TOKENS, temperature=0.0)
        except FailedCallError as error:
            self._detail["error"] = error.reason
            return None
        return read_plan(reply.text, question, max_parts=self._settings.max_parts, models=models)

    async def _level_of(self, part: Part) -> Level | None:
        if self._choose is not None:
            return await self._choose(part.task)
        return next((level for level in self._levels if level.model == part.model), None)

    async def _work(self, messages: Messages, parts: Sequence[Part], levels: Sequence[Level]) -> list[Said]:
        """All parts at once; the first that fails ends the others."""
        work = [
            asyncio.ensure_future(self._ask(level, part_question(messages, part), "part"))
            for part, level in zip(parts, levels, strict=True)
        ]
        try:
            return list(await asyncio.gather(*work))
        finally:
            for one in work:
                one.cancel()
            await asyncio.gather(*work, return_exceptions=True)
