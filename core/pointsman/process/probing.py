"""Who asks upstreams on the gateway's own account: the instance's first worker, and no other (`custom_router.probes`)."""

from __future__ import annotations

import random
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from pointsman.custom_router.hook import RouterHook
from pointsman.custom_router.probes import Prober
from pointsman.runtime import Runtime

__all__ = ["OWNER", "probing"]

OWNER = 0
"""Index of the worker; its slot is filled again when it dies."""


def probing(runtime: Runtime, hook: RouterHook, *, warm: bool) -> Coroutine[Any, Any, None] | None:
    """What the worker is to run until it ends, once LiteLLM's router is there; None: nothing, or another worker does.

    Args:
        runtime, hook: the worker's.
        warm: the local backends have been asked since the instance began.
    """
    rules = runtime.settings.resilience
    if runtime.worker != OWNER or hook.breakers is None or not (rules.probes.enabled or rules.warm_up.enabled):
        return None

    def deployments() -> Iterable[Mapping[str, Any]]:
        from litellm.proxy import proxy_server

        router = proxy_server.llm_router
        return (router.get_model_list() or ()) if router is not None else ()

    def warmed(state: Mapping[str, Any]) -> None:
        runtime.tell(type="warm", state=dict(state))
        runtime.warmed(state)

    prober = Prober(
        rules.probes,
        rules.warm_up,
        hook.breakers,
        runtime.scores,
        deployments,
        runtime.metrics.probed,
        time.monotonic,
        random.random,
    )
    return prober.run(None if warm or not rules.warm_up.enabled else warmed)
