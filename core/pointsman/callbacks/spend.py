"""How far LiteLLM is behind with writing what requests cost: rows of the request log that wait in this worker's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

__all__ = ["rows_waiting", "spend_waiting"]


def rows_waiting() -> Sequence[Mapping[str, Any]]:
    """LiteLLM's queue, the oldest first; empty without a database. To be read on the event loop, where LiteLLM changes it."""
    from litellm.proxy import proxy_server

    client = proxy_server.prisma_client
    return client.spend_log_transactions if client is not None else ()


def spend_waiting(rows: Sequence[Mapping[str, Any]], now: datetime) -> tuple[int, float]:
    """Number of rows, and seconds since the oldest one's request ended (0 where nothing waits, or its time cannot be read)."""
    ended = rows[0].get("endTime") if rows else None
    if isinstance(ended, str):
        try:
            ended = datetime.fromisoformat(ended)
        except ValueError:
            ended = None
    if not isinstance(ended, datetime):
        return len(rows), 0.0
    ended = ended if ended.tzinfo is not None else ended.replace(tzinfo=UTC)
    return len(rows), max(0.0, (now - ended).total_seconds())
