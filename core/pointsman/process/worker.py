"""A worker: LiteLLM's application with ours around it, on the instance's listening socket.

Forked by the preloader, which has everything imported. It catches up with the strategies in service before it accepts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from pointsman.callbacks.exports import attach
from pointsman.callbacks.logs import Logs
from pointsman.callbacks.metric_export import MetricExport
from pointsman.callbacks.privacy import Redactor
from pointsman.callbacks.span_export import close_spans, install
from pointsman.custom_router.hook import router_hook
from pointsman.gateway import build_app
from pointsman.http.drain import DrainingServer
from pointsman.http.request_ids import RequestIds
from pointsman.process.channel import Channel, ChannelClosedError
from pointsman.process.models import ModelSync
from pointsman.process.probing import probing
from pointsman.runtime import Runtime
from pointsman.settings import PointsmanSettings
from pointsman.spend_journal.keeper import JournalKeeper

__all__ = ["run_worker"]

logger = logging.getLogger("pointsman.worker")

LIFESPAN_SECONDS = 20
"""What LiteLLM's own shutdown (flushing spend) may take after the last request."""
QUEUE_SECONDS = 1.0
"""Before requests are cut, those that still wait for a turn are told to come again."""
WARM_SECONDS = 2.0
"""Beyond the warm-up's time-out, after which a worker is ready that nobody told that it is over."""
METRICS_SECONDS = 3.0
"""What sending the last metrics may take."""
SPANS_SECONDS = 5.0
"""What the last export of spans may take."""


def run_worker(worker: int, control: str, listen_fd: int) -> int:
    """Run worker number `worker` until it is drained; returns the exit status."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(worker, control, listen_fd))


def _loop_factory() -> Any:
    import uvloop

    return uvloop.new_event_loop


async def _serve(worker: int, control: str, listen_fd: int) -> int:
    channel = await Channel.connect(control)
    channel.send({"type": "hello", "worker": worker})
    try:
        welcome = await channel.receive()
    except ChannelClosedError:
        return 1
    sys.path.extend(welcome["python_path"])  # callbacks that the user keeps beside the YAML; last, so that they shadow nothing
    settings = PointsmanSettings.model_validate_json(welcome["settings"])
    logs = _logs(settings, worker, welcome["logs"])
    try:
        return await _run(worker, channel, settings, welcome, listen_fd, logs)
    except Exception:  # whatever it is; the log is the place to look
        logger.critical("the worker failed", exc_info=True)
        return 1
    finally:
        await asyncio.to_thread(logs.close)


def _logs(settings: PointsmanSettings, worker: int, told: Mapping[str, Any]) -> Logs:
    logs = Logs(settings, f"worker-{worker}", text=told["text"], secrets=told["secrets"], levels=tuple(told["levels"]))
    logs.output.share(Path(told["lock"]))
    logs.install()
    logs.redirect()
    return logs


def _share(runtime: Runtime, models: list[dict[str, Any]]) -> None:
    """Who is told facts by other workers, and tells them some."""
    sources = (("breakers", router_hook.breakers), ("affinity", router_hook.affinity), ("scores", runtime.scores))
    if (breakers := router_hook.breakers) is not None:
        runtime.breakers = breakers
        breakers.know(models)
        breakers.listeners.append(runtime.breaker_changed)
    for topic, source in sources:
        if source is not None:
            runtime.facts.add(topic, source)


async def _run(
    worker: int, channel: Channel, settings: PointsmanSettings, welcome: Mapping[str, Any], listen_fd: int, logs: Logs
) -> int:
    runtime = Runtime(worker, channel, settings, welcome["database_url"], welcome["aliases"], logs, workers=welcome["workers"])
    runtime.models = ModelSync(welcome["models"])
    runtime.metrics.know(welcome["models"])
    runtime.scores.know(welcome["models"])
    await runtime.decisions.start()
    await asyncio.gather(runtime.install(welcome["remote"]), *(runtime.apply(snapshot) for snapshot in welcome["snapshots"]))
    router_hook.bind(runtime, bytes.fromhex(welcome["sessions"]))
    _share(runtime, welcome["models"])
    install(
        settings.telemetry.traces,
        content=settings.privacy.capture_prompts,
        messages=settings.telemetry.logs.provider_messages,
        redactor=Redactor(welcome["logs"]["secrets"], settings.privacy.redact),
    )
    in_flight = build_app(runtime)
    warm_up = settings.resilience.warm_up
    in_flight.warming = warm_up.enabled and warm_up.wait
    runtime.on_warm = in_flight.warm
    if (warm := welcome["warm"]) is not None:
        runtime.warmed(warm)
    runtime.in_flight = lambda: in_flight.count
    journal = JournalKeeper(welcome["spend_journal"], settings.spend)
    config = uvicorn.Config(
        journal.around(RequestIds(in_flight)),
        http="httptools",
        loop="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.shutdown.grace) + LIFESPAN_SECONDS,
    )

    def started() -> None:
        router_hook.come_last()
        journal.begin()
        logs.install()  # LiteLLM has read its configuration, which may have added handlers and changed levels
        attach(runtime.exports)
        runtime.tell(type="ready")
        if in_flight.warming:  # should the worker that asks come to grief
            asyncio.get_running_loop().call_later(warm_up.timeout + WARM_SECONDS, in_flight.warm)
        if (asking := probing(runtime, router_hook, warm=welcome["warm"] is not None)) is not None:
            background.append(asyncio.create_task(asking, name="pointsman-probes"))

    export = None
    if worker == 0 and (collector := settings.telemetry.metrics.otlp) is not None:  # the files are of all workers
        export = MetricExport(collector, f"{os.getppid()}", welcome["started"])

    server = DrainingServer(
        config,
        in_flight,
        not_ready=settings.shutdown.not_ready,
        grace=settings.shutdown.grace,
        on_started=started,
        on_drain=lambda seconds: runtime.turns.drain(max(0.0, seconds - QUEUE_SECONDS)),
    )
    runtime.on_drain = server.drain
    background = [
        asyncio.create_task(runtime.listen(), name="pointsman-listen"),
        asyncio.create_task(runtime.facts.run(), name="pointsman-facts"),
    ]
    try:
        await server.serve(sockets=[socket.socket(fileno=listen_fd)])
    except SystemExit as error:  # uvicorn's way to say that the lifespan failed
        return int(error.code or 1)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await journal.close()
        await runtime.close()
        if export is not None:
            await asyncio.to_thread(export.close, METRICS_SECONDS)
        if not await close_spans(SPANS_SECONDS):
            logger.warning("spans could not be sent within %g s of the end, and are lost", SPANS_SECONDS)
    return 0 if server.started else 1
