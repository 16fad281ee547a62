"""One decision: filters, the strategy's scores within the deadline, the order. Knows nothing of LiteLLM."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pointsman.custom_router.filters import apply_filters
from pointsman.custom_router.pick import POLICY, match, order
from pointsman.custom_router.request import RoutingRequest
from pointsman.decisions import Decision, Dropped, new_decision_id
from pointsman.decisions.ticket import Ticket
from pointsman.settings import RoutingSettings
from pointsman.strategies.base import AsyncScorer, Query, UnavailableError
from pointsman.strategies.bundle import Bundle
from pointsman.strategies.registry import StrategyRegistry

__all__ = ["Decider"]

logger = logging.getLogger("pointsman.decide")

THREADS = 2


class Decider:
    """Decides for one worker.

    Scoring runs in a small thread pool, so that a slow bundle costs the request its deadline at most and never blocks the
    event loop; the hand-over costs some tens of microseconds, about 1% of a request.

    Args:
        settings: which strategy for which group, deadline, aliases.
        strategies: bundles in service.
        aliases: strategy -> (bundle's candidate name -> deployment's model), from LLMRouter's metadata.
        capture_prompts: keep the text in the decision.
    """

    def __init__(
        self,
        settings: RoutingSettings,
        strategies: StrategyRegistry,
        aliases: Mapping[str, Mapping[str, str]],
        *,
        capture_prompts: bool,
    ) -> None:
        self._settings = settings
        self._strategies = strategies
        self._aliases = {name: {**known, **settings.candidates} for name, known in aliases.items()}
        self._capture_prompts = capture_prompts
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pointsman-score")

    def close(self) -> None:
        """Give the threads back; a score under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def strategy_of(self, group: str) -> str | None:
        """Name of the strategy for a model group, or None for LiteLLM's own choice."""
        return self._settings.groups.get(group, self._settings.default)

    async def decide(self, request: RoutingRequest, ticket: Ticket) -> Decision:
        """The decision for one attempt. An empty `order` means: LiteLLM's own choice among what the filters left."""
        started = time.perf_counter_ns()
        remaining, dropped = apply_filters(request, ticket)
        name = self.strategy_of(request.group)
        scores: dict[str, float] = {}
        version: str | None = None
        fallback: str | None = None
        if name is not None and len(request.candidates) > 1:
            bundle = self._strategies.get(name)
            if bundle is None:
                fallback = "no_bundle"
            elif not request.text:
                fallback = "no_text"
            else:
                version = bundle.version
                aliases = self._aliases.get(name, self._settings.candidates)
                matched, unmatched = match(remaining, bundle.models, aliases)
                dropped += tuple(Dropped(deployment_id, "no_score") for deployment_id in unmatched)
                if not matched:
                    fallback = "no_candidate"
                else:
                    by_name, fallback = await self._score(bundle, Query(request.text, request.user_id, request.group), name)
                    scores = {deployment_id: by_name[known] for deployment_id, known in matched.items() if known in by_name}
        elif name is not None and ticket.failed:
            fallback = "only_candidate"  # the others have failed and LiteLLM lets them rest
        # One left is an order, too; several without scores are LiteLLM's to choose from.
        ranked = order(remaining, scores) if scores or len(remaining) == 1 else ()
        chosen = next((candidate.model for candidate in remaining if ranked and candidate.deployment_id == ranked[0]), None)
        return Decision(
            decision_id=new_decision_id(),
            request_id=request.request_id,
            group=request.group,
            strategy=name if scores else None,
            version=version if scores else None,
            scores=scores,
            dropped=dropped,
            order=ranked,
            model=chosen,
            policy=POLICY if scores else "litellm",
            microseconds=(time.perf_counter_ns() - started) // 1000,
            fallback=fallback,
            trace_id=request.trace_id,
            key_hash=request.key_hash,
            team_id=request.team_id,
            user_id=request.user_id,
            prompt=request.text if self._capture_prompts else None,
        )

    async def _score(self, served: Bundle | AsyncScorer, query: Query, name: str) -> tuple[Mapping[str, float], str | None]:
        try:
            async with asyncio.timeout(self._settings.deadline_ms / 1000):
                if isinstance(served, AsyncScorer):
                    return await served.score_async(query), None
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, served.score, query.text, query.user), None
        except TimeoutError:
            return {}, "deadline"
        except UnavailableError as error:
            return {}, error.reason
        except Exception:  # law 3: a broken strategy must not fail the request
            logger.exception("strategy %s failed", name)
            return {}, "error"
