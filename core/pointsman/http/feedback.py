"""`POST /pointsman/feedback`: how good an answer was, said by whoever asked for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Request
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.types import Message

from pointsman.errors import RequestError

__all__ = ["FeedbackBody", "FeedbackOperations", "any_key", "feedback_router"]

logger = logging.getLogger("pointsman.feedback")

MAX_BODY = 16 * 1024
"""Bytes."""
MAX_COMMENT = 2_000
STANDS_FOR = "/v1/models"
"""What LiteLLM is told is asked for: what every key may that may ask a model."""
HEADERS = {
    "api_key": "authorization",
    "azure_api_key_header": "api-key",
    "anthropic_api_key_header": "x-api-key",
    "google_ai_studio_api_key_header": "x-goog-api-key",
    "azure_apim_header": "ocp-apim-subscription-key",
    "custom_litellm_key_header": "x-litellm-api-key",
}
"""Where a key may stand, as LiteLLM reads it."""


class FeedbackBody(BaseModel):
    """A score, or thumbs."""

    model_config = ConfigDict(extra="forbid")
    decision_id: str = Field(pattern="^dec_[0-9a-f]{32}$")
    score: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    thumbs: Annotated[str | None, Field(pattern="^(up|down)$")] = None
    comment: str | None = Field(None, max_length=MAX_COMMENT)

    @model_validator(mode="after")
    def _one(self) -> FeedbackBody:
        if (self.score is None) == (self.thumbs is None):
            raise ValueError("give a score or thumbs, one of them")
        return self

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return self.score if self.score is not None else float(self.thumbs == "up")


class FeedbackOperations(Protocol):
    """What the endpoint asks of the worker; `pointsman.runtime.Runtime`."""

    async def feedback(self, decision_id: str, key_hash: str, score: float) -> Mapping[str, Any]:
        """Keep it; raises `PointsmanError`."""

    @property
    def keeps_comments(self) -> bool:
        """Whether the texts of requests, and so comments, may be logged (`privacy.capture_prompts`)."""


async def any_key(request: Request) -> UserAPIKeyAuth:
    """Who asks, whatever key that is; LiteLLM refuses as it does for its list of models.

    LiteLLM lets only administrators call a path that it does not know, so it is asked about one that it does. The body is not
    shown to it: it would look there for a model and for tags.
    """

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    given = [(name, value) for name, value in request.scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    path = f"{request.scope.get('root_path', '')}{STANDS_FOR}"
    asked = {**request.scope, "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": given}
    for known in ("parsed_body", "route", "endpoint"):
        asked.pop(known, None)
    keys = {name: request.headers.get(header) for name, header in HEADERS.items()}
    answer: UserAPIKeyAuth = await user_api_key_auth(request=Request(asked, receive), **keys)
    return answer


async def _body(request: Request) -> FeedbackBody:
    """The body, of which no more is read than may be there.

    Raises:
        RequestError: E4011, it is too large; E4001, it is not what it should be.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise RequestError(f"the body has more than {MAX_BODY} bytes", code="E4011", mend="shorten the comment")
    try:
        return FeedbackBody.model_validate_json(bytes(raw))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        mend = "send decision_id, score (0 to 1) or thumbs (up, down), and a comment if you like"
        raise RequestError(f"{first['msg']}", code="E4001", where=where, mend=mend) from None


def feedback_router(operations: FeedbackOperations) -> APIRouter:
    """The endpoint, bound to `operations`."""
    router = APIRouter(tags=["pointsman"])

    @router.post(
        "/pointsman/feedback",
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": FeedbackBody.model_json_schema()}}}},
    )
    async def feedback(request: Request, auth: UserAPIKeyAuth = Depends(any_key)) -> Any:
        """Keep how good an answer was; of the same answer the last feedback counts. Only of answers that this key asked for."""
        body = await _body(request)
        await operations.feedback(body.decision_id, str(auth.api_key or ""), body.value)
        if body.comment and operations.keeps_comments:
            logger.info("comment on %s: %s", body.decision_id, body.comment)
        return {"decision_id": body.decision_id, "score": body.value}

    return router
