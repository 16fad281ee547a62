"""How well each upstream does, by what passed through: success, latency, first token, speed, flaws, feedback.

A worker's `Scores` takes attempts and feedback, tells its sums to the others (`score_facts`), and adds theirs to its own, so
that it can say what the instance knows, at most about two seconds late. All of it forgets (`estimates`); nothing here waits,
and nothing is kept over the end of the instance: after a start scores are empty until requests have come.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pointsman.custom_router.estimates import Decayed, Estimate, bucket, quantile, share
from pointsman.custom_router.score_facts import ScoreFact
from pointsman.custom_router.upstream import upstream_of
from pointsman.custom_router.verdicts import verdict_on
from pointsman.decisions import Attempt, Decision, Outcome
from pointsman.resilience_settings import ScoreSettings

__all__ = ["Health", "Score", "Scores"]

MAX_UPSTREAMS = 1_000
"""Models may be named by the caller; of more the one that was not heard of for the longest time is forgotten."""
MAX_FACTS = 10_000
HOLD_BACK = 1.0
"""Seconds between two facts of the same upstream."""
FRESH = 1.0
"""Seconds that `health` may be old."""
PRIOR = 2.0
"""Attempts that an upstream is credited with, all of them good, where it is weighed against others."""
TRIES, GOOD, ANSWERS, FLAWS, VOTES, PRAISE = "tries", "good", "answers", "flaws", "votes", "praise"
LATENCY, FIRST, SPEED = "l", "f", "s"


class Deployment(Protocol):
    """What is needed of a candidate."""

    @property
    def deployment_id(self) -> str: ...
    @property
    def upstream(self) -> str: ...


class Health(NamedTuple):
    """What a decision reckons with: the expected success rate, drawn towards 1 where little is known, and seconds (p50)."""

    success: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """One upstream, as the instance knows it. Estimates are None where there is nothing to tell by.

    Attributes:
        upstream: `upstream.upstream_of`.
        deployments: ids.
        success: share of the attempts that say something of the upstream (`verdicts`).
        latency: milliseconds of answered attempts, p50 and p95.
        first_token: milliseconds, of streamed ones.
        tokens_per_second: of the answer, over the attempt's whole time, p50.
        flaws: share of the answers that were none of the kind asked for (`flaws`).
        feedback: mean of the scores given.
        idle: seconds since the last attempt ended, or None.
    """

    upstream: str
    deployments: tuple[str, ...]
    success: Estimate | None
    latency: tuple[Estimate, Estimate] | None
    first_token: tuple[Estimate, Estimate] | None
    tokens_per_second: Estimate | None
    flaws: Estimate | None
    feedback: Estimate | None
    idle: float | None

    def to_json(self) -> dict[str, Any]:
        """As endpoints tell it."""

        def both(pair: tuple[Estimate, Estimate] | None) -> dict[str, Any]:
            return {"p50": _json(pair[0] if pair else None), "p95": _json(pair[1] if pair else None)}

        return {
            "upstream": self.upstream,
            "deployments": list(self.deployments),
            "success_rate": _json(self.success),
            "latency_ms": both(self.latency),
            "first_token_ms": both(self.first_token),
            "tokens_per_second": {"p50": _json(self.tokens_per_second)},
            "parity_violations": _json(self.flaws),
            "feedback": _json(self.feedback),
            "idle_seconds": None if self.idle is None else round(self.idle, 3),
        }


@dataclass(slots=True)
class _Own:
    """What this worker saw of an upstream."""

    traffic: Decayed
    feedback: Decayed
    last: float | None = None
    sequence: int = 0
    told: float | None = None


class Scores:
    """See the module. One event loop owns it.

    Args:
        rules: the settings.
        clock: monotonic seconds.
        origin: name of this worker's life; None: one by chance.
    """

    def __init__(self, rules: ScoreSettings, clock: Callable[[], float], origin: str | None = None) -> None:
        self._rules, self._clock = rules, clock
        self._began = clock()
        self._origin = origin or secrets.token_hex(8)
        self._upstreams: dict[str, str] = {}
        self._configured: dict[str, str] = {}
        self._own: dict[str, _Own] = {}
        self._others: dict[str, dict[str, ScoreFact]] = {}
        self._news: dict[str, None] = {}
        self._health: dict[str, tuple[float, Health]] = {}

    # Who is there.

    def know(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """The deployments of the configuration (entries of `model_list`); they are told of even before a request came."""
        self._configured = {}
        for entry in entries:
            params = entry.get("litellm_params") or {}
            name = str((entry.get("model_info") or {}).get("id") or params.get("model") or "")
            if name and "*" not in str(params.get("model")):
                self._configured[name] = upstream_of(params)

    def meet(self, candidates: Iterable[Deployment]) -> None:
        """Candidates of a request: which deployment is which upstream."""
        for one in candidates:
            self._upstreams[one.deployment_id] = one.upstream or one.deployment_id
        while len(self._upstreams) > MAX_UPSTREAMS:
            del self._upstreams[next(iter(self._upstreams))]

    def upstream(self, deployment_id: str) -> str | None:
        """The upstream of a deployment, where it is known."""
        return self._upstreams.get(deployment_id) or self._configured.get(deployment_id)

    # What passes through.

    def record(self, told: Decision | Attempt | Outcome) -> None:
        """Take an attempt; other records are passed over."""
        if isinstance(told, Attempt) and (upstream := self.upstream(told.deployment_id)) is not None:
            self.attempted(upstream, told)

    def attempted(self, upstream: str, attempt: Attempt) -> None:
        """An attempt at an upstream ended. What says nothing of it (`verdicts`) counts for nothing."""
        verdict = verdict_on(attempt)
        if verdict == "none" and not attempt.broken:
            return
        now, own = self._clock(), self._of(upstream)
        sums, good = own.traffic, verdict == "good" and not attempt.broken
        own.last = now
        sums.add(TRIES, 1.0, now)
        if good:
            sums.add(GOOD, 1.0, now)
            if (milliseconds := attempt.latency_ms) is not None and milliseconds > 0:
                sums.add(f"{LATENCY}{bucket(milliseconds)}", 1.0, now)
                if attempt.completion_tokens:
                    sums.add(f"{SPEED}{bucket(attempt.completion_tokens * 1000 / milliseconds)}", 1.0, now)
            if attempt.first_token_ms is not None and attempt.first_token_ms > 0:
                sums.add(f"{FIRST}{bucket(attempt.first_token_ms)}", 1.0, now)
        if good or attempt.flaw is not None:
            sums.add(ANSWERS, 1.0, now)
            sums.add(FLAWS, float(attempt.flaw is not None), now)

    def praised(self, deployment_id: str, score: float, instead: tuple[float, float] | None = None) -> None:
        """Feedback on an answer.

        Args:
            deployment_id: who gave it; one that is not known is passed over.
            score: in [0, 1].
            instead: what the same answer was given before, and seconds since then.
        """
        upstream = self.upstream(deployment_id)
        if upstream is None:
            return
        now, own = self._clock(), self._of(upstream)
        if instead is not None and instead[1] < now - self._began:  # what was given before the start is not in the sums
            weight = 2.0 ** -(max(0.0, instead[1]) / self._rules.feedback_half_life)
            own.feedback.add(VOTES, -weight, now)
            own.feedback.add(PRAISE, -weight * instead[0], now)
        own.feedback.add(VOTES, 1.0, now)
        own.feedback.add(PRAISE, score, now)

    # What is known.

    def usual(self, upstream: str) -> tuple[float | None, float | None]:
        """Seconds within which nearly all answers come, and nearly all streams' first tokens: p95, as high as it may be."""
        traffic, _, _ = self._sums(upstream, self._clock())
        pairs = _pair(traffic, LATENCY), _pair(traffic, FIRST)
        plain, first = (pair[1].high / 1000 if pair is not None else None for pair in pairs)
        return plain, first

    def score(self, upstream: str) -> Score:
        """What the instance knows of one upstream."""
        now = self._clock()
        traffic, feedback, lasts = self._sums(upstream, now)
        deployments = {**self._configured, **self._upstreams}
        return Score(
            upstream,
            tuple(sorted(name for name, of in deployments.items() if of == upstream)),
            share(traffic.get(GOOD, 0.0), traffic.get(TRIES, 0.0)),
            _pair(traffic, LATENCY),
            _pair(traffic, FIRST),
            quantile(_counts(traffic, SPEED), 0.5),
            share(traffic.get(FLAWS, 0.0), traffic.get(ANSWERS, 0.0)),
            share(feedback.get(PRAISE, 0.0), feedback.get(VOTES, 0.0)),
            max(0.0, now - max(lasts)) if lasts else None,
        )

    def scores(self) -> list[Score]:
        """All upstreams that are configured, were candidates or were told of, by name."""
        known = {*self._configured.values(), *self._upstreams.values(), *self._own, *self._others}
        return [self.score(upstream) for upstream in sorted(known)]

    def configured(self) -> list[Score]:
        """Those that the configuration names."""
        return [self.score(upstream) for upstream in sorted(set(self._configured.values()))]

    def idle(self, upstream: str) -> float | None:
        """Seconds since the last attempt at an upstream ended, anywhere; None: there was none."""
        lasts = self._lasts(upstream)
        return max(0.0, self._clock() - max(lasts)) if lasts else None

    def health(self, upstream: str) -> Health:
        """What a decision reckons with, at most a second old."""
        now = self._clock()
        known = self._health.get(upstream)
        if known is not None and now - known[0] < FRESH:
            return known[1]
        traffic, _, _ = self._sums(upstream, now)
        tries, good = max(0.0, traffic.get(TRIES, 0.0)), max(0.0, traffic.get(GOOD, 0.0))
        half = quantile(_counts(traffic, LATENCY), 0.5)
        found = Health(min(1.0, (good + PRIOR) / (tries + PRIOR)), half.value / 1000 if half is not None else None)
        if len(self._health) >= MAX_UPSTREAMS:
            self._health.clear()
        self._health[upstream] = (now, found)
        return found

    # For the supervisor and what it hears (`process.sources.Source`).

    def news(self) -> list[dict[str, Any]]:
        """Sums that changed, as JSON; of each upstream once a second at most."""
        now = self._clock()
        due = [name for name in self._news if (told := self._own[name].told) is None or now - told >= HOLD_BACK]
        for name in due:
            del self._news[name]
            self._own[name].told = now
        return [self._fact(name, now).to_wire(now) for name in due]

    def adopt(self, said: Iterable[Mapping[str, Any]]) -> int:
        """Take up what others saw; gives back how many were no facts, and are passed over."""
        now, refused = self._clock(), 0
        for item in said:
            try:
                fact = ScoreFact.from_wire(item, now)
            except (ValueError, TypeError, AttributeError):
                refused += 1
                continue
            if fact.origin == self._origin:
                continue
            of = self._others.setdefault(fact.upstream, {})
            known = of.get(fact.origin)
            if known is None or fact.over(known) is not None:
                of[fact.origin] = fact
        self._forget(now)
        return refused

    # Within.

    def _of(self, upstream: str) -> _Own:
        own = self._own.pop(upstream, None)
        if own is None:
            now = self._clock()
            own = _Own(Decayed(self._rules.half_life, now), Decayed(self._rules.feedback_half_life, now))
        self._own[upstream] = own  # at the end: the others are those not heard of for longer
        own.sequence += 1
        self._news[upstream] = None
        if len(self._own) > MAX_UPSTREAMS:
            gone = next(iter(self._own))
            del self._own[gone]
            self._news.pop(gone, None)
        return own

    def _fact(self, upstream: str, now: float) -> ScoreFact:
        own = self._own[upstream]
        lives = (self._rules.half_life, self._rules.feedback_half_life)
        sums = own.traffic.at(now), own.feedback.at(now)
        return ScoreFact(upstream, self._origin, own.sequence, now, own.last, *sums, lives)

    def _sums(self, upstream: str, now: float) -> tuple[dict[str, float], dict[str, float], list[float]]:
        traffic: dict[str, float] = {}
        feedback: dict[str, float] = {}
        if (own := self._own.get(upstream)) is not None:
            own.traffic.into(traffic, now)
            own.feedback.into(feedback, now)
        for fact in self._others.get(upstream, {}).values():
            for part, total in zip(fact.parts(), (traffic, feedback), strict=True):
                part.into(total, now)
        return traffic, feedback, self._lasts(upstream)

    def _lasts(self, upstream: str) -> list[float]:
        own = self._own.get(upstream)
        told = [own.last if own is not None else None, *(fact.last for fact in self._others.get(upstream, {}).values())]
        return [last for last in told if last is not None]

    def _forget(self, now: float) -> None:
        if sum(map(len, self._others.values())) <= MAX_FACTS and len(self._others) <= MAX_UPSTREAMS:
            return
        for upstream in list(self._others):
            kept = {origin: fact for origin, fact in self._others[upstream].items() if not fact.ended(now)}
            if kept:
                self._others[upstream] = kept
            else:
                del self._others[upstream]
        while sum(map(len, self._others.values())) > MAX_FACTS or len(self._others) > MAX_UPSTREAMS:
            del self._others[next(iter(self._others))]


def _counts(sums: Mapping[str, float], kind: str) -> Iterable[tuple[int, float]]:
    for name, count in sums.items():
        if name[0] == kind and (number := name[1:]).lstrip("-").isdecimal():
            yield int(number), count


def _pair(sums: Mapping[str, float], kind: str) -> tuple[Estimate, Estimate] | None:
    counts = list(_counts(sums, kind))
    half, late = quantile(counts, 0.5), quantile(counts, 0.95)
    return (half, late) if half is not None and late is not None else None


def _json(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {name: round(value, 4) for name, value in estimate._asdict().items()}
