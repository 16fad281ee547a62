"""`GET /pointsman/providers`: how well each upstream does, for operators. LiteLLM's own `/health` stays as it is."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Depends
from litellm.proxy._types import UserAPIKeyAuth

from pointsman.http.admin import admin_only

__all__ = ["ProviderOperations", "providers_router"]


class ProviderOperations(Protocol):
    """What the endpoint asks of the worker; `pointsman.runtime.Runtime`."""

    def providers(self) -> dict[str, Any]:
        """What the instance knows of its upstreams."""


def providers_router(operations: ProviderOperations) -> APIRouter:
    """The endpoint, bound to `operations`."""
    router = APIRouter(tags=["pointsman"])

    @router.get("/pointsman/providers")
    async def providers(_: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """Breaker, success rate, latency, first token, speed, parity violations and feedback of each upstream.

        Each with the interval that holds it with 95%, and the weight of the samples behind it, which fade with time.
        """
        return operations.providers()

    return router
