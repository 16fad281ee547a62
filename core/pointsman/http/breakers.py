"""`GET /pointsman/breakers`: which upstreams rest, and why. `POST`: an administrator's word on one."""

from __future__ import annotations

import logging
from typing import Any, Literal, Protocol

from fastapi import APIRouter, Body, Depends
from litellm.proxy._types import UserAPIKeyAuth
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pointsman.errors import RequestError
from pointsman.http.admin import admin_only

__all__ = ["BreakerOperations", "HoldBody", "breakers_router"]

logger = logging.getLogger("pointsman.breakers")

MAX_SECONDS = 30 * 86_400.0


class HoldBody(BaseModel):
    """What is said of an upstream: `open` gives it no request, `close` gives it all, `free` ends either and begins anew."""

    model_config = ConfigDict(extra="forbid")
    upstream: str = Field(min_length=1, max_length=1024, description="As the list names it, or a deployment's id.")
    action: Literal["open", "close", "free"]
    reason: str = Field("", max_length=500)
    seconds: float | None = Field(None, gt=0, le=MAX_SECONDS, allow_inf_nan=False, description="None: until it is freed.")

    @model_validator(mode="after")
    def _told(self) -> HoldBody:
        if self.action != "free" and not self.reason.strip():
            raise ValueError("say a reason: others will wonder")
        if self.action == "free" and self.seconds is not None:
            raise ValueError("what is freed has no end")
        return self


class BreakerOperations(Protocol):
    """What the endpoints ask of the worker; `pointsman.runtime.Runtime`."""

    async def breaker_view(self) -> dict[str, Any]:
        """State of the breakers, and whether they are shared."""

    def hold_breaker(
        self, upstream: str, action: Literal["open", "close", "free"], reason: str, actor: str, seconds: float | None
    ) -> dict[str, Any]:
        """Do it, and give back the breaker's row; raises `PointsmanError`."""


def breakers_router(operations: BreakerOperations) -> APIRouter:
    """The endpoints, bound to `operations`."""
    router = APIRouter(tags=["pointsman"])

    @router.get("/pointsman/breakers")
    async def breakers(_: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """Each upstream's breaker, and whether workers and instances share what they see."""
        return await operations.breaker_view()

    @router.post("/pointsman/breakers")
    async def hold(body: Any = Body(None), auth: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """Hold a breaker open or closed, or free it; in all workers within half a second, in other instances within one."""
        said = _read(body)
        actor = auth.user_id or auth.key_alias or "admin"
        row = operations.hold_breaker(said.upstream, said.action, said.reason.strip(), actor, said.seconds)
        until = f" for {said.seconds:g} s" if said.seconds is not None else ""
        logger.warning("%s: the breaker of %s%s by %s: %s", said.action, row["upstream"], until, actor, said.reason or "-")
        return row

    return router


def _read(body: object) -> HoldBody:
    try:
        return HoldBody.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise RequestError(
            str(first["msg"]).removeprefix("Value error, "),
            code="E4001",
            where=".".join(map(str, first["loc"])) or "body",
            mend='send {"upstream": "...", "action": "open|close|free", "reason": "...", "seconds": 600}',
        ) from None
