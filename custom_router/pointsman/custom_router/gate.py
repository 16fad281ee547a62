"""Where a request waits for its turn: from what the request, its key and its team say to a place in the queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointsman.custom_router.priority import read_patience, read_priority
from pointsman.custom_router.queue import Priority
from pointsman.custom_router.turns import QueueRefusedError, Turns
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import QueueSettings

__all__ = ["Gate"]


class Gate:
    """The way into a worker's queues.

    Args:
        turns: the queues.
        settings: `pointsman.resilience.queue`.
    """

    def __init__(self, turns: Turns, settings: QueueSettings) -> None:
        self._turns = turns
        self._default = Priority[settings.default.upper()]

    async def wait(self, ticket: Ticket, group: object, key: Any, team: Any, *, admin: bool) -> None:
        """Return when it is the request's turn. The place is given back by whoever issued the ticket, at the request's end.

        What asks no model, a websocket, and a further call within a request that has its turn do not wait.

        Args:
            ticket: the request's.
            group: model group that is asked for.
            key, team: LiteLLM's metadata of the key and of its team.
            admin: whether the key is an administrator's.

        Raises:
            PointsmanError: E4110 or E4010 for a header that may not be; E4720 to E4723, there is no turn for it.
        """
        if not group or ticket.place is not None or ticket.gone is None:
            return
        asked: Mapping[str, str] = ticket.asked
        priority = read_priority(asked, key, team, admin=admin, default=self._default)
        turn = self._turns.turn(str(group), priority, read_patience(asked))
        ticket.place = turn  # before the wait: a request that ends while it waits leaves the queue
        try:
            await turn.take(ticket.gone)
        except QueueRefusedError as refused:
            ticket.place = None
            ticket.retry_after = refused.retry_after
            raise refused.error from None
