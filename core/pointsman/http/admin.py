"""Our own endpoints for operators. Each wants an admin key; each asks the supervisor, which owns the state."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from pydantic import BaseModel, ConfigDict, Field

from pointsman.errors import AccessError, PointsmanError

__all__ = ["Operations", "admin_only", "admin_router", "install_error_handler"]


class Operations(Protocol):
    """What the endpoints ask of the instance; `pointsman.runtime.Runtime` in a worker."""

    async def call(self, method: str, **params: Any) -> Any:
        """Ask the supervisor; raises `PointsmanError`."""

    async def logging(self, level: str | None = None, library_level: str | None = None) -> Any:
        """State of the log lines, after a change of their levels where one is asked for."""


class LogLevels(BaseModel):
    """Body of a change of the least levels that are logged; what is absent stays."""

    model_config = ConfigDict(extra="forbid")
    level: Literal["debug", "info", "warning", "error"] | None = None
    library_level: Literal["debug", "info", "warning", "error"] | None = None


class RollbackRequest(BaseModel):
    """Body of a rollback; all of it optional."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field("", max_length=500)


async def admin_only(auth: UserAPIKeyAuth = Depends(user_api_key_auth)) -> UserAPIKeyAuth:
    """Who asks, where that is an administrator.

    Raises:
        AccessError: E4103, it is not.
    """
    if auth.user_role != LitellmUserRoles.PROXY_ADMIN.value:
        raise AccessError("this endpoint wants an admin key", code="E4103", mend="use the master key or an admin's key")
    return auth


def admin_router(operations: Operations) -> APIRouter:
    """The endpoints, bound to `operations`."""
    router = APIRouter(tags=["pointsman"])

    @router.get("/hot-reload/status")
    async def hot_reload_status(_: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """State of every strategy and of the configuration: desired and per-worker generations, last check, last error."""
        return await operations.call("status")

    @router.get("/pointsman/strategies")
    async def strategies(_: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """Every configured strategy."""
        return {"strategies": (await operations.call("status"))["strategies"]}

    @router.post("/pointsman/strategies/{name}/reload")
    async def reload(name: str, _: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """Check the source now and answer with the state after it."""
        return await operations.call("reload", name=name)

    @router.post("/pointsman/strategies/{name}/rollback")
    async def rollback(
        name: str,
        body: RollbackRequest = Body(default_factory=RollbackRequest),
        auth: UserAPIKeyAuth = Depends(admin_only),
    ) -> Any:
        """Return to the previous good bundle and block the present one for the whole fleet."""
        return await operations.call("rollback", name=name, actor=auth.user_id or "admin", reason=body.reason)

    @router.get("/pointsman/logs")
    async def logs(_: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """The least levels that are logged, and how many records this worker and the supervisor lost."""
        return await operations.logging()

    @router.post("/pointsman/logs")
    async def set_logs(body: LogLevels, _: UserAPIKeyAuth = Depends(admin_only)) -> Any:
        """Change the levels in every worker and in the supervisor, until the gateway ends."""
        return await operations.logging(level=body.level, library_level=body.library_level)

    return router


def install_error_handler(app: FastAPI) -> None:
    """Answer our errors as E4xxx JSON with their own status."""

    async def handler(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PointsmanError)  # noqa: S101 - narrows the type; registered for this class alone
        return JSONResponse(error.as_json(), status_code=error.status)

    app.add_exception_handler(PointsmanError, handler)
