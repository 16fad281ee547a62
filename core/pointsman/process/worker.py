"""A worker: LiteLLM's application with ours around it, on the instance's listening socket.

Forked by the preloader, which has everything imported. It catches up with the strategies in service before it accepts.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Any

import uvicorn

from pointsman.custom_router.hook import router_hook
from pointsman.gateway import build_app
from pointsman.http.drain import DrainingServer
from pointsman.process.channel import Channel, ChannelClosedError
from pointsman.process.models import ModelSync
from pointsman.runtime import Runtime
from pointsman.settings import PointsmanSettings

__all__ = ["run_worker"]

logger = logging.getLogger("pointsman.worker")

LIFESPAN_SECONDS = 20
"""What LiteLLM's own shutdown (flushing spend) may take after the last request."""


def run_worker(worker: int, control: str, listen_fd: int) -> int:
    """Run worker number `worker` until it is drained; returns the exit status."""
    _log_to_stderr()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(worker, control, listen_fd))


def _log_to_stderr() -> None:
    """Our records and uvicorn's. LiteLLM sets up its own; a handler at the root would print those twice."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("pointsman", "uvicorn"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)


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
    runtime = Runtime(worker, channel, settings, welcome["database_url"], welcome["aliases"])
    runtime.models = ModelSync(welcome["models"])
    runtime.metrics.know(welcome["models"])
    await runtime.decisions.start()
    await asyncio.gather(runtime.install(welcome["remote"]), *(runtime.apply(snapshot) for snapshot in welcome["snapshots"]))
    router_hook.bind(runtime)

    in_flight = build_app(runtime)
    config = uvicorn.Config(
        in_flight,
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
        runtime.tell(type="ready")

    server = DrainingServer(
        config,
        in_flight,
        not_ready=settings.shutdown.not_ready,
        grace=settings.shutdown.grace,
        on_started=started,
    )
    runtime.on_drain = server.drain
    listener = asyncio.create_task(runtime.listen(), name="pointsman-listen")
    try:
        await server.serve(sockets=[socket.socket(fileno=listen_fd)])
    except SystemExit as error:  # uvicorn's way to say that the lifespan failed
        return int(error.code or 1)
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        await runtime.close()
    return 0 if server.started else 1
