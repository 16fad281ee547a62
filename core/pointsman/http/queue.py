"""`GET /pointsman/queue`: who runs and who waits, for operators."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Depends
from litellm.proxy._types import UserAPIKeyAuth

from pointsman.http.admin import admin_only

__all__ = ["QueueOperations", "queue_router"]


class QueueOperations(Protocol):
    """What the endpoint asks of the worker; `pointsman.runtime.Runtime`."""

    def queue(self) -> dict[str, Any]:
        """State of this worker's queues."""


def queue_router(operations: QueueOperations) -> APIRouter:
    """The endpoint, bound to `operations`."""
    router = APIRouter(tags=["pointsman"])

    @router.get("/pointsman/queue")
    async def queue(_: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """Limit, running and waiting requests by class, and counts since the start, of the worker that answers."""
        return operations.queue()

    return router
