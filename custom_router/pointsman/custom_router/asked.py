"""What a decision may look at, gathered from the keywords of LiteLLM's router and the request's ticket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from opentelemetry import trace

from pointsman.custom_router.kwargs import limit_of, metadata_of, session_of, sessions_of
from pointsman.custom_router.override import Wish
from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.custom_router.text import text_of
from pointsman.decisions.ticket import Ticket

__all__ = ["request_of"]


def request_of(
    group: str,
    candidates: tuple[Candidate, ...],
    turns: Sequence[Mapping[str, Any]],
    kwargs: Mapping[str, Any],
    ticket: Ticket,
    *,
    wish: Wish,
    retries: tuple[int, int],
    continues: str | None,
    elsewhere: Callable[[], Awaitable[bool]],
) -> RoutingRequest:
    """The request as it is decided on.

    Args:
        group: model group that is asked now.
        candidates: its deployments that LiteLLM leaves.
        turns: the conversation, empty where there is none.
        kwargs: of LiteLLM's router.
        ticket: the request's.
        wish: what headers, key and team ask for.
        retries: LiteLLM's counts of retries and of fallbacks.
        continues: the deployment that keeps the response this one goes on from.
        elsewhere: tells whether LiteLLM goes on to another group when this one fails.
    """
    metadata = metadata_of(kwargs)
    sessions = sessions_of(kwargs, ticket.asked)
    key_user, asker = metadata.get("user_api_key_user_id"), kwargs.get("user")
    return RoutingRequest(
        group=group,
        text=text_of(turns),
        candidates=candidates,
        request_id=ticket.request_id or kwargs.get("litellm_call_id"),
        trace_id=_trace_id(),
        key_hash=metadata.get("user_api_key_hash") or metadata.get("user_api_key"),
        team_id=metadata.get("user_api_key_team_id"),
        user_id=key_user,
        retries=retries,
        excluded=frozenset(_ids(kwargs.get("_excluded_deployment_ids")) + _ids(kwargs.get("_retry_skipped_deployment_ids"))),
        endpoint=ticket.endpoint or "text",
        wish=wish,
        messages=turns,
        system=kwargs.get("system") or kwargs.get("instructions"),
        given=ticket.given,  # the router keeps it from its callbacks
        asker=asker if isinstance(asker, str) and asker else key_user,
        session=session_of(sessions),
        sessions=sessions,
        max_tokens=limit_of(kwargs),
        continues=continues,
        elsewhere=elsewhere,
    )


def _ids(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple | set | frozenset) else ()


def _trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None
