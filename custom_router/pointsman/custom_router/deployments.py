"""LiteLLM's deployments: which of them its own later filters would leave, what they cost, how much they read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import litellm
from litellm.responses.utils import ResponsesAPIRequestUtils
from litellm.router_strategy.tag_based_routing import get_deployments_for_tag
from litellm.utils import get_excluded_filtered_deployments, get_order_filtered_deployments

from pointsman.custom_router.request import Prices

__all__ = ["continued_from", "eligible", "map_prices", "streaming"]

PRICES_SECONDS = 300
"""How old a price of LiteLLM's map may be here; an administrator can load a new map while it runs."""


def map_prices(model: str) -> Prices | None:
    """A model's prices by LiteLLM's map, or None where it has none."""
    return _map_prices(model, int(time.monotonic() // PRICES_SECONDS))


@lru_cache(maxsize=4096)
def _map_prices(model: str, _: int) -> Prices | None:
    try:
        info = litellm.get_model_info(model)
    except Exception:  # noqa: BLE001 - LiteLLM raises a plain Exception for a model that is not in its map
        return None
    # The answer has 0 where the map says nothing; what is written there tells free from not known.
    entry = litellm.model_cost.get(info.get("key")) or {}
    values = [entry.get(key) for key in ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")]
    numbers = [float(value) if isinstance(value, int | float) else None for value in values]
    if numbers[0] is None:
        return None
    return Prices(numbers[0], numbers[1] or 0.0, numbers[2])


def continued_from(kwargs: Mapping[str, Any]) -> str | None:
    """The deployment that gave the response which a request of the Responses API goes on from, by LiteLLM's id of it."""
    previous = kwargs.get("previous_response_id")
    if not isinstance(previous, str):
        return None
    found = ResponsesAPIRequestUtils.get_model_id_from_response_id(previous)
    return found if isinstance(found, str) else None


async def eligible(
    group: str, deployments: list[dict[str, Any]], messages: list[dict[str, Any]] | None, kwargs: dict[str, Any]
) -> list[dict[str, Any]]:
    """What LiteLLM's later filters (context window, tags, order, its exclusions) would leave, by LiteLLM's own functions.

    They run after this hook and may empty a list of one, which would fail the request; so they are asked beforehand.
    """
    from litellm.proxy import proxy_server

    router = proxy_server.llm_router
    left: Sequence[dict[str, Any]] = deployments
    if router is not None:
        if messages and len(deployments) > 1:
            # LiteLLM's own check counts every prompt's tokens; this one those that may be too long, so it is always made.
            left = _fitting(deployments, messages) or deployments
        variable = "litellm_metadata" if "litellm_metadata" in kwargs else "metadata"
        left = await get_deployments_for_tag(router, group, list(left), kwargs, variable)
    left = get_order_filtered_deployments(list(left), target_order=kwargs.get("_target_order"))
    left = get_excluded_filtered_deployments(list(left), kwargs.get("_excluded_deployment_ids")) or left
    return list(left) or deployments


def _fitting(deployments: list[dict[str, Any]], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose context window takes the messages. Tokens are counted only when they might not all fit."""
    windows = [_window(deployment) for deployment in deployments]
    known = [window for window in windows if window is not None]
    # No token is shorter than a byte, and a message adds a handful of its own.
    if not known or len(str(messages).encode()) + 8 * len(messages) <= min(known):
        return deployments
    try:
        tokens = litellm.token_counter(messages=messages)
    except Exception:  # noqa: BLE001 - of messages that are none; LiteLLM's own filter passes over it as well
        return deployments
    return [item for item, window in zip(deployments, windows, strict=True) if window is None or tokens <= window]


def _window(deployment: Mapping[str, Any]) -> int | None:
    """Largest input in tokens, as the configuration or LiteLLM's model map tells."""
    info = deployment.get("model_info") or {}
    window = info.get("max_input_tokens")
    if window is None:
        model = info.get("base_model") or (deployment.get("litellm_params") or {}).get("model")
        window = _map_window(str(model), int(time.monotonic() // PRICES_SECONDS))
    return window if isinstance(window, int) else None


@lru_cache(maxsize=4096)
def _map_window(model: str, _: int) -> int | None:
    try:
        window = litellm.get_model_info(model).get("max_input_tokens")
    except Exception:  # noqa: BLE001 - LiteLLM raises a plain Exception for a model that is not in its map
        return None
    return window if isinstance(window, int) else None


def streaming(deployments: list[dict[str, Any]], kwargs: Mapping[str, Any], group: str) -> list[dict[str, Any]]:
    """Those that may serve the request: a streamed one not those whose `model_info.pointsman.streaming` is off.

    Raises:
        litellm.BadRequestError: none of them streams; LiteLLM falls back to another group, where there is one.
    """
    if not kwargs.get("stream"):
        return deployments
    left = [one for one in deployments if _streams(one)]
    if not left and deployments:
        message = f"E4012: streaming is switched off for {group!r}; ask without `stream`"
        raise litellm.BadRequestError(message, model=group, llm_provider="")
    return left


def _streams(deployment: Mapping[str, Any]) -> bool:
    ours = (deployment.get("model_info") or {}).get("pointsman")
    return not isinstance(ours, Mapping) or ours.get("streaming", True) not in (False, "off")
