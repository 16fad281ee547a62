"""Where a request waits for its turn: from what the request, its key and its team say to a place in the queue."""

from __future__ import annotations

import time
from typing import Any

from pointsman.callbacks.spans import RequestSpans
from pointsman.custom_router.kwargs import EMBEDDING_CALLS, TEXT_CALLS
from pointsman.custom_router.priority import read_patience, read_priority
from pointsman.custom_router.queue import Priority
from pointsman.custom_router.turns import QueueRefusedError, Turns
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import QueueSettings

__all__ = ["QUEUED_CALLS", "Gate"]

QUEUED_CALLS = (
    TEXT_CALLS
    | EMBEDDING_CALLS
    | {"acompact_responses", "allm_passthrough_route"}
    | {
        prefix + name
        for prefix in ("", "a")
        for name in ("image_generation", "image_edit", "moderation", "speech", "transcription", "rerank", "ocr")
    }
    | {"avideo_generation", "avideo_remix", "avideo_edit", "avideo_extension"}
)
"""LiteLLM's call types that make a model work while the client waits. Not files, batches, lists, or what cancels or fetches."""


class Gate:
    """The way into a worker's queues.

    Args:
        turns: the queues.
        settings: `pointsman.resilience.queue`.
        spans: where waits are told; None: nowhere.
    """

    def __init__(self, turns: Turns, settings: QueueSettings, spans: RequestSpans | None = None) -> None:
        self._turns, self._spans = turns, spans
        self._default = Priority[settings.default.upper()]

    async def wait(self, ticket: Ticket, call: str, group: object, caller: Any, *, admin: bool) -> None:
        """Return when it is the request's turn. The place is given back by whoever issued the ticket, at the request's end.

        What asks no model, a websocket, and a further call within a request that has its turn do not wait.

        Args:
            ticket: the request's.
            call: LiteLLM's call type.
            group: model group that is asked for.
            caller: LiteLLM's `UserAPIKeyAuth`.
            admin: whether the key is an administrator's.

        Raises:
            PointsmanError: E4110 or E4010 for a header that may not be; E4720 to E4723, there is no turn for it.
        """
        if not group or call not in QUEUED_CALLS or ticket.place is not None or ticket.gone is None:
            return
        key, team = getattr(caller, "metadata", None), getattr(caller, "team_metadata", None)
        priority = read_priority(ticket.asked, key, team, admin=admin, default=self._default)
        # A hash of the key; who comes with a JWT has none.
        tenant = str(getattr(caller, "token", None) or getattr(caller, "user_id", None) or "")
        turn = self._turns.turn(str(group), priority, read_patience(ticket.asked), tenant)
        ticket.place = turn  # before the wait: a request that ends while it waits leaves the queue
        start = time.time_ns()
        error: str | None = "cancelled"
        try:
            await turn.take(ticket.gone)
            error = None
        except QueueRefusedError as refused:
            ticket.place = None
            ticket.retry_after = refused.retry_after
            error = refused.error.code
            raise refused.error from None
        finally:
            if self._spans is not None and (turn.waited or error is not None):
                self._spans.queued(ticket, str(group), priority.name.lower(), start, error)
