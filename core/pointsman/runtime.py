"""What a worker holds besides LiteLLM: the strategies in service, the routes, the decision store, the line to the supervisor.

One event loop owns it. Strategies are immutable; a snapshot from the supervisor is loaded in a thread and then one reference
is swapped. A request therefore sees one version from start to end of its decision, at most one load behind the supervisor.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pointsman.callbacks.exports import ExportWatch
from pointsman.callbacks.logs import Logs
from pointsman.callbacks.metrics import Metrics
from pointsman.callbacks.spans import RequestSpans
from pointsman.callbacks.spend import rows_waiting, spend_waiting
from pointsman.custom_router.breakers import Breakers, Transition
from pointsman.custom_router.embed import embed
from pointsman.custom_router.scores import Scores
from pointsman.custom_router.turns import Turns
from pointsman.decisions.store import DecisionStore
from pointsman.decisions.types import Attempt, Decision, Outcome
from pointsman.errors import CATALOGUE, PointsmanError, ProcessError, RequestError
from pointsman.process.channel import Channel, ChannelClosedError
from pointsman.process.models import MODELS, ModelSync
from pointsman.process.sources import Sources
from pointsman.settings import PointsmanSettings
from pointsman.strategies.plugins import BrokenPlugin, load_plugin
from pointsman.strategies.registry import StrategyRegistry
from pointsman.strategies.reloader import Snapshot
from pointsman.strategies.remote.scorer import Line
from pointsman.strategies.serving import entry_for, how

__all__ = ["Runtime"]

logger = logging.getLogger("pointsman.runtime")

CALL_TIMEOUT = 30.0
"""Seconds that an endpoint waits for the supervisor."""


class Runtime:
    """One worker's state.

    Args:
        worker: index of the worker, from 0.
        channel: line to the supervisor; this object is its only receiver.
        settings: the instance's settings.
        database_url: where decisions are kept, or None.
        aliases: strategy -> (bundle's candidate name -> deployment's model).
        logs: log lines of this process.
        workers: how many the instance has.
    """

    def __init__(
        self,
        worker: int,
        channel: Channel,
        settings: PointsmanSettings,
        database_url: str | None,
        aliases: Mapping[str, Mapping[str, str]],
        logs: Logs,
        *,
        workers: int = 1,
    ) -> None:
        self.worker, self.workers = worker, workers
        self.settings = settings
        self.aliases = aliases
        self.strategies = StrategyRegistry(Path(settings.encoders_dir) if settings.encoders_dir else None, embed)
        self.decisions = DecisionStore(database_url, settings.decisions)
        self.metrics = Metrics(settings.strategies)
        self.exports = ExportWatch(self.metrics.exported)
        self.turns = Turns(settings.resilience.queue.share(worker, workers), self.metrics)
        self.scores = Scores(settings.resilience.scores, time.monotonic)
        self.spans = RequestSpans(propagate=settings.telemetry.traces.propagate)
        self.sinks: tuple[Callable[[Decision | Attempt | Outcome], None], ...] = (
            logs.record,
            self.decisions.put,
            self.metrics.record,
            self.spans.record,
            self.scores.record,
        )
        """Where leaf records go; each call neither blocks nor raises."""
        self.logs = logs
        self.on_drain: Callable[[bool], None] = lambda everybody: None
        self.in_flight: Callable[[], int] = lambda: 0
        self.on_warm: Callable[[], None] = lambda: None
        self.breakers: Breakers | None = None
        self.warm_up: Mapping[str, Any] = {"state": "pending" if settings.resilience.warm_up.enabled else "off"}
        self.models: ModelSync | None = None
        self.facts = Sources(channel.send)
        """What is told to the other workers, and heard of them; who has or wants facts adds itself before the worker serves."""
        self._channel = channel
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._loads: set[asyncio.Task[None]] = set()
        self._order: dict[str, asyncio.Lock] = {}
        self._line: Line | None = None

    async def install(self, remote: str | None) -> None:
        """Put the strategies in service that have no bundle.

        Args:
            remote: socket of the owner of those that run in processes of their own; None: there are none.
        """
        for name, strategy in self.settings.strategies.items():
            served, entry = how(name, strategy), entry_for(name, strategy)
            if served == "plugin":
                report = partial(self._report, name)
                scorer = await load_plugin(name, strategy.entry_point or "", strategy.options, report)
                self.strategies.install(name, scorer)
                if not isinstance(scorer, BrokenPlugin):
                    self._report(name, None)
            elif served in ("llmrouter", "code") and remote is not None:
                self._line = self._line or Line(Path(remote))
                self.strategies.install(name, self._line.scorer(name, entry.kind if entry is not None else served))
        if self._line is not None:
            try:
                await self._line.connect()  # so that it knows their models and versions before the first request
            except OSError as error:
                logger.warning("the owner of the processes cannot be reached yet: %s", error)

    def _report(self, strategy: str, error: str | None) -> None:
        """Tell the supervisor what is wrong with a plugin here, or that it is well."""
        self._channel.send({"type": "ack", "strategy": strategy, "generation": 1} | ({"error": error} if error else {}))

    async def apply(self, message: Mapping[str, Any]) -> None:
        """Load one snapshot and tell the supervisor; a failure is told too and the version in service stays."""
        snapshot = Snapshot(**message)
        ack: dict[str, Any] = {"type": "ack", "strategy": snapshot.strategy, "generation": snapshot.generation}
        async with self._order.setdefault(snapshot.strategy, asyncio.Lock()):
            try:
                await self.strategies.apply(snapshot)
            except PointsmanError as error:
                logger.error("cannot load %s generation %d: %s", snapshot.strategy, snapshot.generation, error)
                ack |= {"error": str(error)}
            except Exception as error:  # whatever it is, the version in service stays and the supervisor is told
                logger.exception("cannot load %s generation %d", snapshot.strategy, snapshot.generation)
                ack |= {"error": type(error).__name__}
        self._channel.send(ack)

    async def listen(self) -> None:
        """Serve the supervisor's messages until the line closes, which starts the drain."""
        try:
            while True:
                message = await self._channel.receive()
                try:
                    self._handle(message)
                except Exception:  # one message that cannot be handled must not make the worker deaf
                    logger.exception("message %r of the supervisor failed", message.get("type"))
        except ChannelClosedError:
            logger.warning("the supervisor is gone; draining")
            self.on_drain(False)  # or this line alone is broken, and the others go on
            for call in self._calls.values():
                if not call.done():
                    call.set_exception(ProcessError("the supervisor is gone", code="E4605"))

    def _handle(self, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if kind == "snapshot":
            task = asyncio.create_task(self.apply(message["snapshot"]))
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
        elif kind == "reply":
            call = self._calls.pop(message["id"], None)
            if call is not None and not call.done():
                if (error := message.get("error")) is not None:
                    call.set_exception(_error_from(error))
                else:
                    call.set_result(message.get("result"))
        elif kind == "facts":
            self.facts.take(message)
        elif kind == "models":
            self._apply_models(message)
        elif kind == "metrics":
            self._sample(message)
        elif kind == "warm":
            self.warmed(message["state"])
        elif kind == "logs":
            self.logs.set_levels(*message["levels"])
        elif kind == "drain":
            self.on_drain(True)

    def _sample(self, message: Mapping[str, Any]) -> None:
        """Put the state of this worker, and what the supervisor tells of the instance's, into the metrics."""
        self.metrics.told(message)
        self.metrics.sample(self.decisions.pending, self.decisions.written, self.decisions.dropped, self._serving())
        self.metrics.spend(*spend_waiting(rows_waiting(), datetime.now(UTC)))
        self.metrics.in_flight(self.in_flight())
        if self.settings.resilience.queue.enabled:
            self.metrics.queues(self.turns.status()["queues"])
        self.metrics.upstreams(self.scores.configured())
        if self.breakers is not None:
            self.metrics.breakers(self.breakers.states())
        self.exports.collect()
        for destination, lost in self.logs.lost().items():
            self.metrics.exported("logs", destination, "dropped", lost)

    def _serving(self) -> dict[str, tuple[int, str, str]]:
        """Strategy -> generation, kind and version in service here."""
        found = ((name, self.strategies.get(name)) for name in self.settings.strategies)
        generations = self.strategies.generations
        return {name: (generations.get(name, 0), one.kind, one.version) for name, one in found if one is not None}

    def _apply_models(self, message: Mapping[str, Any]) -> None:
        ack: dict[str, Any] = {"type": "ack", "strategy": MODELS, "generation": message["generation"]}
        try:
            assert self.models is not None  # noqa: S101 - narrows the type; set before the worker listens
            self.models.apply(message["models"])
            self.metrics.know(message["models"])
            self.scores.know(message["models"])
            if self.breakers is not None:
                self.breakers.know(message["models"])
        except PointsmanError as error:
            logger.error("cannot take up the changed model list: %s", error)
            ack |= {"error": str(error)}
        except Exception as error:  # as above
            logger.exception("cannot take up the changed model list")
            ack |= {"error": type(error).__name__}
        self._channel.send(ack)

    def tell(self, **message: Any) -> None:
        """Tell the supervisor something that wants no answer."""
        self._channel.send(message)

    async def call(self, method: str, **params: Any) -> Any:
        """Ask the supervisor.

        Raises:
            PointsmanError: what the supervisor raised; E4606 when it does not answer in time.
        """
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self._channel.send({"type": "call", "id": number, "method": method, "params": params})
        try:
            return await asyncio.wait_for(future, CALL_TIMEOUT)
        except TimeoutError:
            raise ProcessError(f"no answer to {method!r} within {CALL_TIMEOUT:g} s", code="E4606") from None
        finally:
            self._calls.pop(number, None)

    async def logging(self, level: str | None = None, library_level: str | None = None) -> Any:
        """State of the log lines, after a change of their levels in all processes where one is asked for."""
        state = await self.call("logs", level=level, library_level=library_level)
        state["dropped"][self.logs.process] = self.logs.dropped
        return state

    def queue(self) -> dict[str, Any]:
        """State of this worker's queues; each worker has its own, with its share of the limits."""
        return {"worker": self.worker, "workers": self.workers, **self.turns.status()}

    def breaker_changed(self, change: Transition) -> None:
        """Count it, where it came about."""
        if not change.heard:
            self.metrics.breaker(change.upstream, change.after, change.cause)

    async def breaker_view(self) -> dict[str, Any]:
        """What this worker knows of the breakers, which is what all know within half a second, and whether it is shared."""
        rows = self.breakers.describe() if self.breakers is not None else []
        enabled = self.settings.resilience.breaker.enabled
        return {"worker": self.worker, "enabled": enabled, "breakers": rows, "sharing": await self.call("sharing")}

    def hold_breaker(
        self, upstream: str, action: Literal["open", "close", "free"], reason: str, actor: str, seconds: float | None
    ) -> dict[str, Any]:
        """An administrator's word on a breaker; the other workers and instances are told at once.

        Raises:
            RequestError: E4009, breakers are off; E4001, no configured upstream or deployment is called so.
        """
        if self.breakers is None or not self.settings.resilience.breaker.enabled:
            mend = "set pointsman.resilience.breaker.enabled: true"
            raise RequestError("there are no circuit breakers", code="E4009", where="pointsman.resilience.breaker", mend=mend)
        name = self.breakers.find(upstream)
        if name is None:
            mend = "GET /pointsman/breakers lists the upstreams and their deployments"
            raise RequestError(f"no upstream or deployment {upstream!r}", code="E4001", where="upstream", mend=mend)
        if action == "free":
            self.breakers.free(name)
        else:
            self.breakers.hold(name, open=action == "open", reason=reason, seconds=seconds, actor=actor)
        self.facts.tell()
        return next(row for row in self.breakers.describe() if row["upstream"] == name)

    def providers(self) -> dict[str, Any]:
        """What the instance knows of its upstreams, and whether its local backends are warm."""
        states = self.breakers.states() if self.breakers is not None else {}
        rows = [{**score.to_json(), "breaker": states.get(score.upstream, "closed")} for score in self.scores.scores()]
        return {"worker": self.worker, "providers": rows, "warm_up": dict(self.warm_up)}

    async def feedback(self, decision_id: str, key_hash: str, score: float) -> Mapping[str, Any]:
        """Keep feedback of a key on an answer, and let the score of who gave that answer feel it."""
        kept: Mapping[str, Any] = await self.call("feedback", decision_id=decision_id, key_hash=key_hash, score=score)
        if kept["answered"] and kept["deployment_id"] is not None:
            before = None if kept["before"] is None else (float(kept["before"]), float(kept["age"]))
            self.scores.praised(str(kept["deployment_id"]), score, before)
        return kept

    @property
    def keeps_comments(self) -> bool:
        """Whether texts of clients may be logged."""
        return self.settings.privacy.capture_prompts

    def warmed(self, state: Mapping[str, Any]) -> None:
        """The local backends are warm, or are not waited for any longer; this worker may be ready."""
        self.warm_up = state
        self.on_warm()

    async def close(self) -> None:
        """Write what is still to be written and close the line."""
        for task in list(self._loads):
            task.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)
        if self._line is not None:
            await self._line.close()
        await self.decisions.close(timeout=5.0)
        await self._channel.close()


def _error_from(body: Mapping[str, Any]) -> PointsmanError:
    code = body.get("code")
    return PointsmanError(
        str(body.get("message")),
        code=code if code in CATALOGUE else "E4600",
        where=body.get("where"),
        mend=body.get("mend"),
    )
