"""The gateway's own questions to upstreams: idle ones are probed, local ones warmed up. Off unless the configuration says so.

Asked by one worker of the instance, the first, by LiteLLM's own health check of a deployment. LiteLLM's background health
checks are not it: they ask every deployment in each interval and in every worker, whether or not it has just answered, and
tell breakers and scores nothing. What came of a question goes to the breaker, so that one that is open closes without a user's
request, and to the score's success rate; latencies of such small questions say nothing of real ones, and are not counted.
LiteLLM books the cost on its own account for health checks: no key, team or user pays.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import litellm
from litellm.proxy.health_check import resolve_health_check_mode, update_litellm_params_for_health_check

from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.local import is_local
from pointsman.custom_router.request import candidate_of
from pointsman.custom_router.scores import Scores
from pointsman.custom_router.verdicts import retry_after_of, sink
from pointsman.decisions import Attempt, new_decision_id
from pointsman.resilience_settings import ProbeSettings, WarmUpSettings

__all__ = ["Prober", "Target", "targets"]

logger = logging.getLogger("pointsman.probes")

Kind: TypeAlias = Literal["probe", "warm_up"]
MODES = frozenset({None, "chat", "completion", "embedding", "responses"})
"""What is asked in words, cheaply; pictures, sound and the like are not asked for."""
TICK = 0.5
"""Seconds between two looks for who is due."""


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream, by a deployment of it.

    Attributes:
        deployment_id, upstream: see `request.Candidate`.
        groups: model groups that have a deployment of it.
        local: see `local.is_local`.
        params, info, mode: what LiteLLM's health check wants.
    """

    deployment_id: str
    upstream: str
    groups: frozenset[str]
    local: bool
    params: Mapping[str, Any]
    info: Mapping[str, Any]
    mode: str | None


def targets(deployments: Iterable[Mapping[str, Any]]) -> list[Target]:
    """One target for each upstream of LiteLLM's deployments that can be asked.

    Left out: wildcards, what is asked for pictures or sound, and what says `model_info.disable_background_health_check`.
    """
    found: dict[str, Target] = {}
    for deployment in deployments:
        params, info = deployment.get("litellm_params") or {}, deployment.get("model_info") or {}
        one = candidate_of(deployment)
        mode = resolve_health_check_mode(info, params)
        if "*" in one.model or mode not in MODES or info.get("disable_background_health_check"):
            continue
        group, known = frozenset({str(deployment.get("model_name"))}), found.get(one.upstream)
        if known is None:
            local = is_local(params, info)
            found[one.upstream] = Target(one.deployment_id, one.upstream, group, local, params, info, mode)
        else:
            found[one.upstream] = replace(known, groups=known.groups | group)
    return list(found.values())


class Prober:
    """See the module. One event loop owns it; `run` is its only task, and what it starts ends with it.

    Args:
        probes, warm_up: the settings.
        breakers, scores: who is told what came of it.
        deployments: LiteLLM's, as they are now.
        told: is given kind and result of each question.
        clock: monotonic seconds.
        chance: a number in [0, 1) each time.
    """

    def __init__(
        self,
        probes: ProbeSettings,
        warm_up: WarmUpSettings,
        breakers: Breakers,
        scores: Scores,
        deployments: Callable[[], Iterable[Mapping[str, Any]]],
        told: Callable[[str, str], None],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._probes, self._warm_up, self._breakers, self._scores = probes, warm_up, breakers, scores
        self._deployments, self._told, self._clock, self._chance = deployments, told, clock, chance
        self._record = sink(breakers)
        self._due: dict[str, float] = {}
        self._states: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[bool]] = {}
        self._slots = asyncio.Semaphore(probes.concurrency)

    async def run(self, warmed: Callable[[Mapping[str, Any]], None] | None) -> None:
        """Until cancelled.

        Args:
            warmed: is told what came of the warm-up, once; None: there is to be none at the start.
        """
        try:
            if warmed is not None:
                warmed(await self.warm())
            while True:
                self.look()
                await asyncio.sleep(TICK)
        finally:
            tasks = list(self._asking.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def warm(self) -> dict[str, Any]:
        """Ask all local backends, for the setting's time at most; what came of it, as status and log tell it."""
        began, rules = self._clock(), self._warm_up
        local = [target for target in targets(self._deployments()) if target.local]
        slots = asyncio.Semaphore(rules.concurrency)

        async def ask(target: Target) -> bool:
            async with slots:
                return await self.ask(target, "warm_up", rules.timeout)

        asked = {asyncio.create_task(ask(target)): target for target in local}
        try:
            if asked:
                await asyncio.wait(asked, timeout=rules.timeout)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        done = {target.upstream: _result(task) for task, target in asked.items()}
        seconds = round(self._clock() - began, 3)
        well = all(result == "answered" for result in done.values())
        if done and well:
            logger.info("%d local backend(s) are warm after %g s", len(done), seconds)
        elif done:
            told = ", ".join(f"{name}: {result}" for name, result in done.items() if result != "answered")
            logger.warning("ready after %g s, though not all local backends are warm: %s", seconds, told)
        return {"state": "warm" if well else "incomplete", "seconds": seconds, "upstreams": done}

    def look(self) -> None:
        """Ask whoever is due now; returns at once."""
        states, now = self._breakers.states(), self._clock()
        before, self._states = self._states, states
        for target in targets(self._deployments()):
            state = states.get(target.upstream, "closed")
            if target.upstream in self._asking:
                continue
            closed = state == "closed" and before.get(target.upstream) in ("open", "half_open")
            if self._warm_up.enabled and target.local and closed:
                self._start(target, "warm_up", self._warm_up.timeout)
            elif self._probes.enabled and self._is_due(target, state, now):
                self._start(target, "probe", self._probes.timeout)

    def _is_due(self, target: Target, state: str, now: float) -> bool:
        rules = self._probes
        if state in ("open", "held_open") or (rules.groups is not None and target.groups.isdisjoint(rules.groups)):
            return False
        if state == "half_open":
            return True
        idle = self._scores.idle(target.upstream)
        due = self._due.get(target.upstream)
        if due is None:  # not all at once
            due = self._due[target.upstream] = now + rules.interval * (1 + rules.jitter * self._chance())
        if idle is not None and now - idle + rules.interval > due:  # somebody asked it since: from then on
            due = self._due[target.upstream] = now - idle + rules.interval * (1 + rules.jitter * self._chance())
        if now < due:
            return False
        del self._due[target.upstream]
        return True

    def _start(self, target: Target, kind: Kind, timeout: float) -> None:
        async def ask() -> bool:
            async with self._slots:
                return await self.ask(target, kind, timeout)

        task = asyncio.create_task(ask(), name=f"pointsman-{kind}")
        self._asking[target.upstream] = task
        task.add_done_callback(lambda _: self._asking.pop(target.upstream, None))

    async def ask(self, target: Target, kind: Kind, timeout: float) -> bool:
        """Ask one upstream, and tell breaker and score; whether it answered."""
        one = candidate_of({"litellm_params": dict(target.params), "model_info": {**target.info, "id": target.deployment_id}})
        self._scores.meet((one,))
        token = new_decision_id()
        dropped = self._breakers.admit((one,), (one,), token).dropped
        if dropped:  # as many probes as may are under way
            return False
        try:
            attempt = await self._ask(target, timeout, token)
        except BaseException:
            self._breakers.release(token)
            raise
        self._record(attempt)
        self._scores.record(attempt)
        answered = attempt.outcome == "ok"
        self._told(kind, "answered" if answered else "failed")
        if not answered:
            logger.info("%s of %s failed: %s", kind, target.upstream, attempt.error)
        return answered

    async def _ask(self, target: Target, timeout: float, token: str) -> Attempt:
        error: BaseException | None = None
        try:
            params = update_litellm_params_for_health_check(dict(target.info), copy.deepcopy(dict(target.params)))
            # One question is one question: the client's own retries would make three of it.
            params |= {"timeout": timeout, "max_retries": 0, "num_retries": 0}
            async with asyncio.timeout(timeout):
                said = await litellm.ahealth_check(params, mode=target.mode, prompt="test", input=["test"])
            if isinstance(said, Mapping) and "error" in said:
                error = said.get("exception") or RuntimeError("no answer")
        except TimeoutError as late:
            error = late
        except Exception as other:  # noqa: BLE001 - whatever LiteLLM or a provider raises, it is no answer
            error = other
        about = (token, 1, target.deployment_id, str(target.params.get("model") or ""))
        if error is None:
            return Attempt(*about, "ok", created_at=time.time())
        status = getattr(error, "status_code", None)
        return Attempt(
            *about,
            "error",
            error=type(error).__name__,
            status=status if isinstance(status, int) else None,
            retry_after=retry_after_of(error),
        )


def _result(task: asyncio.Task[bool]) -> str:
    if task.cancelled():
        return "late"
    return "answered" if task.exception() is None and task.result() else "failed"
