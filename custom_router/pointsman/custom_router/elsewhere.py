"""Where a request goes when all deployments of its group rest: on to what LiteLLM would fall back to, without a dead attempt.

LiteLLM falls back when a group fails. So the hook, asked for a deployment, answers with an error: `RestingError`, which
LiteLLM's router neither retries nor takes for a deployment's failure. It is raised only where there is somewhere else to go, or
where this request has tried all of them itself already; a group that rests and is the only one to ask is tried all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from litellm.router_utils.fallback_event_handlers import (
    check_non_standard_fallback_format,
    fallbacks_disabled_for_request,
    get_fallback_model_group,
)
from litellm.utils import get_deployment_order

from pointsman.custom_router.kwargs import metadata_of, number_of
from pointsman.decisions.ticket import Ticket
from pointsman.errors import RoutingError

__all__ = ["RestingError", "has_elsewhere"]


class RestingError(Exception):
    """Told to LiteLLM's router in place of a deployment.

    Args:
        group: model group.
        seconds: until one of it may be tried again.
        last: class name of the last attempt's error in this request, or None.
    """

    status_code = 424
    """Of an answer of 500 and more, LiteLLM's router would ask for another deployment. No client sees this one."""
    num_retries = 0

    def __init__(self, group: str, seconds: float, last: str | None) -> None:
        self.message = f"all deployments of {group!r} rest" + (f"; the last attempt ended with {last}" if last else "")
        super().__init__(self.message)  # LiteLLM adds advice of its own to `message`
        self.seconds = max(1, round(seconds))

    def answer(self, tried: str = "") -> HTTPException:
        """What the client is told, where no fallback answered either; `tried`: a sentence on what this request has tried."""
        error = RoutingError(
            f"{self}. {tried}" if tried else str(self), code="E4702", mend="come again after the seconds of Retry-After"
        )
        return HTTPException(error.status, error.as_json()["error"], {"retry-after": str(self.seconds)})


async def has_elsewhere(
    group: str, deployments: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any], ticket: Ticket
) -> bool:
    """Whether LiteLLM goes on to other deployments when this group fails: those of a higher order, or of a fallback group.

    Args:
        group: the one that is asked.
        deployments: all of it that LiteLLM's hook was given.
        kwargs: of that hook.
        ticket: the request's.
    """
    from litellm.proxy import proxy_server

    router = proxy_server.llm_router
    if router is None or fallbacks_disabled_for_request(kwargs) or ticket.fallbacks is False:
        return False
    if number_of(kwargs.get("fallback_depth")) >= router.max_fallbacks:
        return False
    orders = sorted({order for one in deployments if (order := get_deployment_order(one)) is not None})
    current = kwargs.get("_target_order")
    if len(orders) > 1 and orders[-1] > (current if current is not None else orders[0]):
        return True
    for target in _targets(group, kwargs, ticket, router.fallbacks):
        asked = {"model": target, "request_kwargs": kwargs, "llm_router": router}
        if target in ticket.groups or not router.get_model_list(model_name=target):
            continue
        checks = (router.fallback_access_check, router.fallback_budget_check)
        if all([check is None or await check(**asked) for check in checks]):
            return True
    return False


def _targets(group: str, kwargs: Mapping[str, Any], ticket: Ticket, configured: object) -> Iterator[str]:
    """Groups that LiteLLM would fall back to, the request's own list before the configured one."""
    fallbacks = ticket.fallbacks if isinstance(ticket.fallbacks, list) else configured
    if not isinstance(fallbacks, list) or not fallbacks:
        return
    if check_non_standard_fallback_format(fallbacks):
        found: Sequence[Any] = fallbacks
    else:
        names = dict.fromkeys(name for name in (metadata_of(kwargs).get("model_group"), group) if isinstance(name, str))
        lists = (get_fallback_model_group(fallbacks=fallbacks, model_group=name)[0] for name in names)
        found = next((one for one in lists if one), ())
    for entry in found:
        target = entry.get("model") if isinstance(entry, Mapping) else entry
        if isinstance(target, str) and target != group:
            yield target
