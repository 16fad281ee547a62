"""One decision: filters, the strategy's scores within the deadline, the order. Knows nothing of LiteLLM."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType

from pointsman.custom_router.affinity import STICKY, Affinity, Waiting
from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.conversation import Conversations, Turn, conversation_id
from pointsman.custom_router.cost import AnswerLengths, Expected, expected_costs, switching_costs
from pointsman.custom_router.filters import CONTINUED, FILTERS, BreakerFilter, Filter, SuspectedFilter, apply_filters
from pointsman.custom_router.opinion import Opinion, encoded, refusal
from pointsman.custom_router.override import LITELLM, Choice, choose
from pointsman.custom_router.pick import match
from pointsman.custom_router.pins import KEPT, RETURNED, Pin
from pointsman.custom_router.policy import Chance, Costs, Ranking, explore, rank_by_cost, rank_by_target
from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.custom_router.rules import by_rule
from pointsman.custom_router.scores import Scores
from pointsman.custom_router.text import DEFAULT_TEXT, compose, estimate_tokens
from pointsman.decisions import Decision, Dropped
from pointsman.decisions.ticket import Ticket
from pointsman.policy_settings import PolicySettings
from pointsman.settings import RoutingSettings, StrategySettings
from pointsman.strategies.base import AsyncScorer, Query, UnavailableError
from pointsman.strategies.bundle import Bundle
from pointsman.strategies.registry import StrategyRegistry

__all__ = ["Decider"]

logger = logging.getLogger("pointsman.decide")

THREADS = 2
TIE = 1e-9
"""What health counts for among ranks: less than any difference that means something."""
RULE = "rule"
"""The strategy's name in a decision by a rule for embeddings."""
SESSION = "session"
"""Who chose, where a session's pin decided."""


class Decider:
    """Decides for one worker.

    Scoring runs in a small thread pool, so that a slow bundle costs the request its deadline at most and never blocks the
    event loop; the hand-over costs some tens of microseconds, about 1% of a request.

    Args:
        settings: which strategy for which group, deadline, aliases.
        strategies: bundles in service.
        aliases: strategy -> (bundle's candidate name -> deployment's model), from LLMRouter's metadata.
        capture_prompts: keep the text in the decision.
        configured: each strategy's own settings; of them its policy and the text that it reads.
        chance: where exploration takes its numbers from.
        affinity: where sessions are; None: none stick.
        breakers: which upstreams rest; None: none does.
        health: how well upstreams do, for `policy.health_weight`; None: nothing is known of it.
    """

    def __init__(
        self,
        settings: RoutingSettings,
        strategies: StrategyRegistry,
        aliases: Mapping[str, Mapping[str, str]],
        *,
        capture_prompts: bool,
        configured: Mapping[str, StrategySettings] = MappingProxyType({}),
        chance: Chance | None = None,
        affinity: Affinity | None = None,
        breakers: Breakers | None = None,
        health: Scores | None = None,
    ) -> None:
        self._settings = settings
        self._strategies = strategies
        self._aliases = {name: {**known, **settings.candidates} for name, known in aliases.items()}
        self._capture_prompts = capture_prompts
        self._configured = configured
        self._chance = chance or random.Random()  # noqa: S311 - exploration, no secret; seeded by the system in each worker
        self._affinity = affinity
        self._breakers = breakers
        self._health = health
        filters = (BreakerFilter(breakers), SuspectedFilter(breakers)) if breakers is not None else ()
        self._breaker: Sequence[Filter] = filters
        self._lengths = AnswerLengths()
        self._conversations = Conversations()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pointsman-score")

    def close(self) -> None:
        """Give the threads back; a score under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def knows(self, name: str) -> bool:
        """Whether a strategy of that name is configured or in service."""
        return name in self._configured or self._strategies.get(name) is not None

    def answered(self, ticket: Ticket | None, deployment_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Remember how long answers of a deployment are, who served the conversation, and where the session is."""
        self._lengths.saw(deployment_id, completion_tokens, self._settings.policy.completion_tokens)
        if ticket is not None:
            self._conversations.served(ticket.conversation, Turn(deployment_id, prompt_tokens + completion_tokens))
            if self._affinity is not None and isinstance(ticket.session, Waiting):
                self._affinity.answered(ticket.session, deployment_id)

    async def decide(self, request: RoutingRequest, ticket: Ticket) -> Decision:
        """The decision for one attempt. An empty `order` means: LiteLLM's own choice among what the filters left, or nobody,
        where `fallback` is `RESTING`."""
        started = time.perf_counter_ns()
        remaining, dropped = apply_filters(request, ticket, FILTERS)
        if (resting := await self._all_rest(request, ticket, remaining)) is not None:
            return refusal(request, resting, started)
        remaining, more = apply_filters(request, ticket, self._breaker, remaining)
        dropped = (*dropped, *more)
        panicked = {"panic": True} if self._breakers is not None and self._breakers.panicked else {}
        choice = choose(request.wish, request.group, self._settings, self.knows)
        name, opinion = choice.name, Opinion()
        ruled = self._ruled(request, remaining)
        stay = self._session(request, choice, remaining, ticket)
        ticket.session = None
        kept: Ranking | None = None
        # One left is an order, too; several without scores are LiteLLM's to choose from.
        ranking = Ranking((remaining[0].deployment_id,) if len(remaining) == 1 else (), LITELLM)
        if ruled is not None:
            name, opinion, ranking = ruled
        elif name is not None and any(one.reason == CONTINUED for one in dropped):
            opinion = Opinion(fallback=CONTINUED)
        elif stay is not None and (kept := self._kept(stay, request, ticket)) is not None:
            ranking = kept
        elif name is not None and len(request.candidates) > 1:
            opinion = await self._consult(name, request, remaining)
            if opinion.scores:
                first = not any(request.retries) and not ticket.failed
                ranking = self._rank(name, request, remaining, opinion, ticket, stay, explores=first)
        elif name is not None and ticket.failed:
            opinion = Opinion(fallback="only_candidate")  # the others have failed and LiteLLM lets them rest
        if stay is not None and kept is None:
            ranking, kept = self._claim(stay, ranking, ticket)
        if kept is not None:
            others = (one.deployment_id for one in remaining if one.deployment_id != ranking.order[0])
            name, opinion = STICKY, Opinion(dropped=tuple(Dropped(one, STICKY) for one in others), text=opinion.text)
        decided = bool(opinion.scores) or kept is not None or (ruled is not None and bool(ranking.order))
        best = ranking.order[0] if ranking.order else None
        if self._breakers is not None and best is not None:
            self._breakers.settle(request.decision_id, best)
        return Decision(
            decision_id=request.decision_id,
            request_id=request.request_id,
            group=request.group,
            strategy=name if decided else None,
            version=opinion.version if decided else None,
            scores=opinion.scores,
            dropped=(*dropped, *opinion.dropped),
            order=ranking.order,
            model=next((one.model for one in remaining if one.deployment_id == best), None),
            policy=ranking.policy,
            microseconds=(time.perf_counter_ns() - started) // 1000,
            fallback=opinion.fallback or ("unknown_strategy" if choice.ignored else None),
            trace_id=request.trace_id,
            key_hash=request.key_hash,
            team_id=request.team_id,
            user_id=request.user_id,
            prompt=(opinion.text or request.text) if self._capture_prompts else None,
            propensity=ranking.propensity if decided and kept is None else None,
            chosen_by=SESSION if kept is not None else RULE if ruled is not None else choice.by,
            scale=opinion.scale if opinion.scores else None,
            detail={**ranking.detail, **({"ignored_strategies": list(choice.ignored)} if choice.ignored else {}), **panicked}
            or None,
            encoded=encoded(opinion, started),
        )

    async def _all_rest(
        self, request: RoutingRequest, ticket: Ticket, remaining: Sequence[Candidate]
    ) -> tuple[Dropped, ...] | None:
        """Why each of the candidates is not to be tried, where that is so and trying beats refusing no longer."""
        if self._breakers is None or not (resting := self._breakers.resting(remaining)):
            return None
        tried = {one.deployment_id for one in request.candidates} <= ticket.failed
        if any(one.deployment_id == request.continues for one in remaining) and not tried:
            return None  # nobody else knows the response that it goes on from
        if not tried and (request.elsewhere is None or not await request.elsewhere()):
            return None
        failed = (Dropped(one.deployment_id, "tried") for one in request.candidates if one.deployment_id not in resting)
        return (*(Dropped(name, reason) for name, reason in resting.items()), *failed)

    def _ruled(self, request: RoutingRequest, remaining: Sequence[Candidate]) -> tuple[str, Opinion, Ranking] | None:
        """What the rules for embeddings say, or None."""
        rules = self._settings.embeddings.get(request.group)
        if request.endpoint != "embedding" or not rules:
            return None
        found = by_rule(rules, request.given, remaining)
        if found is None:
            return None
        deployment, ids = found
        if not ids:
            return RULE, Opinion(fallback="rule_unavailable"), Ranking((), LITELLM)
        return RULE, Opinion(), Ranking(ids, RULE, detail={"rule": deployment})

    def _session(
        self, request: RoutingRequest, choice: Choice, remaining: Sequence[Candidate], ticket: Ticket
    ) -> Waiting | None:
        """The request's session and where it may stay; None where it has none that sticks.

        A strategy that the request's own header asks for is asked, and moves no session. Groups without a strategy are left to
        LiteLLM's own affinity.
        """
        if self._affinity is None or choice.name is None or choice.by == "header" or request.endpoint != "text":
            return None
        tenant = (request.key_hash, request.team_id, request.user_id)
        session = self._affinity.key(tenant, request.group, request.sessions)
        if session is None:
            return None
        ticket.conversation = _conversation(request)  # how much of it its provider has in its cache
        choices = frozenset(one.deployment_id for one in remaining)
        return Waiting(session, self._affinity.find(session), choices, choices - ticket.failed, choice.name)

    def _kept(self, stay: Waiting, request: RoutingRequest, ticket: Ticket) -> Ranking | None:
        """The session's deployment alone, if it is there; or the one that it goes back to."""
        assert self._affinity is not None  # noqa: S101 - narrows the type; there is a session
        if stay.seen is None or stay.seen.deployment_id not in stay.there:
            return None
        here = stay.seen.deployment_id

        def costs() -> Costs:
            expected, prompt = self._expected(request, self._policy(stay.strategy))
            # Turns that other workers served are not known here: then all of it counts as cached.
            last = self._conversations.last(ticket.conversation)
            cached = min(last.tokens, prompt) if last is not None and last.deployment_id == here else prompt
            priced = {one.deployment_id: expected[one.deployment_id] for one in request.candidates if one.prices is not None}
            return Costs(priced, switching_costs(request.candidates, here, cached))

        home = self._affinity.back(stay.session, stay.there, costs)
        if home is not None:
            return _stuck(home, RETURNED)
        pin, what = self._affinity.claim(stay.session, here, stay.there)
        return _stuck(pin, what)

    def _claim(self, stay: Waiting, ranking: Ranking, ticket: Ticket) -> tuple[Ranking, Ranking | None]:
        """The session goes where the ranking says, unless another request of it has settled that meanwhile (second value)."""
        assert self._affinity is not None  # noqa: S101 - narrows the type; there is a session
        if not ranking.order:
            ticket.session = stay
            return ranking, None
        pin, what = self._affinity.claim(stay.session, ranking.order[0], stay.there)
        if pin.deployment_id != ranking.order[0]:
            stuck = _stuck(pin, what)
            return stuck, stuck
        told = {"session": what, **({"left": pin.left} if what != KEPT and pin.left is not None else {})}
        return replace(ranking, detail={**ranking.detail, **told}), None

    async def _consult(self, name: str, request: RoutingRequest, remaining: Sequence[Candidate]) -> Opinion:
        if request.endpoint != "text":
            return Opinion(fallback="not_text")
        served = self._strategies.get(name)
        if served is None:
            return Opinion(fallback="no_bundle")
        own = self._configured.get(name)
        text = request.text
        if own is not None and own.text != DEFAULT_TEXT:
            text = compose(request.messages, own.text, request.system)
        if not text:
            return Opinion(fallback="no_text")
        aliases = self._aliases.get(name, self._settings.candidates)
        # Who has no names of its own is asked first and matched then.
        if served.models and not match(remaining, served.models, aliases)[0]:
            unmatched = tuple(Dropped(one.deployment_id, "no_score") for one in remaining)
            return Opinion(dropped=unmatched, fallback="no_candidate")
        by_name, fallback, times = await self._score(served, Query(text, request.asker, request.group), name)
        matched, unmatched_ids = match(remaining, served.models or tuple(by_name), aliases)
        scores = {deployment_id: by_name[known] for deployment_id, known in matched.items() if known in by_name}
        evaluation = served.manifest.evaluation if isinstance(served, Bundle) else None
        return Opinion(
            scores=scores,
            names=matched,
            version=served.version,
            scale=served.scale,
            table=evaluation.calibration if evaluation is not None else None,
            dropped=tuple(Dropped(deployment_id, "no_score") for deployment_id in unmatched_ids),
            fallback=fallback if scores or fallback else "no_candidate",
            text=text,
            encoded=(served.encoder.kind, served.encoder.dimensions, *times) if times and isinstance(served, Bundle) else None,
        )

    def _rank(
        self,
        name: str,
        request: RoutingRequest,
        remaining: Sequence[Candidate],
        opinion: Opinion,
        ticket: Ticket,
        stay: Waiting | None,
        *,
        explores: bool,
    ) -> Ranking:
        policy, session = self._policy(name), stay.session if stay is not None else None
        asked = request.wish.cost_weight
        weight = policy.cost_weight if asked is None else asked
        if policy.target is not None and asked is None:
            table, text = opinion.table, opinion.text
            ranking = rank_by_target(remaining, opinion.scores, opinion.names, policy.target, table, text, session)
        else:
            costs = self._costs(request, policy, ticket) if weight > 0 and opinion.scale == "quality" else Costs({})
            scores, health = self._weighed(policy, remaining, opinion)
            ranking = rank_by_cost(remaining, scores, opinion.scale, weight, costs, policy.reference_cost, session)
            if health:
                ranking = replace(ranking, detail={**ranking.detail, "health": health})
        return explore(ranking, opinion.scores, policy.explore, self._chance) if explores else ranking

    def _weighed(
        self, policy: PolicySettings, remaining: Sequence[Candidate], opinion: Opinion
    ) -> tuple[Mapping[str, float], dict[str, float]]:
        """The scores less what upstreams that fail lose, and the success rates that this was reckoned with."""
        if policy.health_weight <= 0 or self._health is None:
            return opinion.scores, {}
        health = {one.deployment_id: self._health.health(one.upstream or one.deployment_id).success for one in remaining}
        weight = policy.health_weight if opinion.scale == "quality" else TIE
        return {name: score - weight * (1.0 - health.get(name, 1.0)) for name, score in opinion.scores.items()}, health

    def _costs(self, request: RoutingRequest, policy: PolicySettings, ticket: Ticket) -> Costs:
        """Of all candidates, those that failed too: the dearest is the measure, and must not change with a retry."""
        expected, prompt = self._expected(request, policy)
        if not policy.switching:
            return Costs(expected)
        ticket.conversation = _conversation(request)
        last = self._conversations.last(ticket.conversation)
        if last is None:
            return Costs(expected)
        return Costs(expected, switching_costs(request.candidates, last.deployment_id, min(last.tokens, prompt)))

    def _expected(self, request: RoutingRequest, policy: PolicySettings) -> tuple[dict[str, float], int]:
        """What the request costs on each candidate, in US dollars, and its own tokens."""
        prompt = estimate_tokens(request.messages) + estimate_tokens(request.system)
        answers = self._lengths.expect(request.candidates, policy.completion_tokens, request.max_tokens)
        return expected_costs(request.candidates, Expected(prompt, answers)), prompt

    def _policy(self, name: str) -> PolicySettings:
        own = self._configured.get(name)
        return own.policy if own is not None and own.policy is not None else self._settings.policy

    async def _score(
        self, served: Bundle | AsyncScorer, query: Query, name: str
    ) -> tuple[Mapping[str, float], str | None, tuple[int, int] | None]:
        """Scores, or why there are none; and when a bundle's encoder began and ended."""
        try:
            async with asyncio.timeout(self._settings.deadline_ms / 1000):
                if isinstance(served, AsyncScorer):
                    return await served.score_async(query), None, None
                loop = asyncio.get_running_loop()
                scores, begin, end = await loop.run_in_executor(self._threads, served.score_timed, query.text, query.user)
                return scores, None, (begin, end)
        except TimeoutError:
            return {}, "deadline", None
        except UnavailableError as error:
            return {}, error.reason, None
        except Exception:  # law 3: a broken strategy must not fail the request
            logger.exception("strategy %s failed", name)
            return {}, "error", None


def _conversation(request: RoutingRequest) -> bytes | None:
    whose = (request.group, request.key_hash, request.team_id, request.user_id)
    return conversation_id(whose, request.session, request.messages)


def _stuck(pin: Pin, what: str) -> Ranking:
    return Ranking((pin.deployment_id,), STICKY, detail={"session": what})
