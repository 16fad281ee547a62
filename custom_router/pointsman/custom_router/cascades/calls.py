"""The calls that a cascade makes: LiteLLM's router, the same model group, one deployment each, on the caller's account.

Which deployment, says a context variable. It is set in a task of the call's own, so that neither a client nor another request
can set it. The hook finds it, sends the call there and begins no other cascade: the guard against recursion.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import litellm
from litellm.types.utils import StandardCallbackDynamicParams

from pointsman.custom_router.cascades.limits import Limits, Step
from pointsman.custom_router.cascades.money import Purse, spent_out
from pointsman.custom_router.cascades.types import FailedCallError, Level, Messages, Role, Said, StopError
from pointsman.custom_router.request import Prices
from pointsman.decisions.ticket import CURRENT, Ticket

__all__ = ["HANDED_ON", "Caller", "aimed", "gone", "handed_on", "inner_target", "narrow", "sinks_of", "spent"]

logger = logging.getLogger("pointsman.cascades")

_TARGET: ContextVar[tuple[str, ...] | None] = ContextVar("pointsman_cascade_target", default=None)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOT_HANDED_ON = _words(
    """pointsman_decision_id user_api_key_budget_reservation previous_models model_group model_group_alias model_group_size
    deployment deployment_model_name model_info api_base attempted_retries max_retries caching_groups"""
)
"""Of the request's metadata: what belongs to the call that answers. A reservation settled by two would be freed early."""

HANDED_ON = frozenset(StandardCallbackDynamicParams.__annotations__) | _words(
    "user litellm_trace_id litellm_session_id litellm_trusted_callback_vars litellm_disabled_callbacks"
)
"""Of the request's parameters: for whom and in which trace it is, how key and team want calls logged, and whether with text."""


def inner_target() -> tuple[str, ...] | None:
    """The deployments that the running call must go to, or None outside of a cascade's calls."""
    return _TARGET.get()


def narrow(deployments: list[dict[str, Any]], target: Sequence[str]) -> list[dict[str, Any]]:
    """Those that the call must go to; none when they rest by now, which fails the call."""
    return [item for item in deployments if str((item.get("model_info") or {}).get("id")) in target]


def aimed(deployments: tuple[str, ...], ticket: Ticket) -> contextvars.Context:
    """A context for a call of the router to these deployments, with a ticket of its own: what happens to it says nothing about
    the request's own attempts."""
    context = contextvars.copy_context()
    context.run(_TARGET.set, deployments)
    context.run(CURRENT.set, ticket)
    return context


def handed_on(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Key, team, user, tags and trace of a request; not its reservation, which the call that answers settles."""
    kept = {key: value for key, value in metadata.items() if key not in _NOT_HANDED_ON}
    auth = kept.get("user_api_key_auth")
    if auth is not None and hasattr(auth, "model_copy"):
        kept["user_api_key_auth"] = auth.model_copy(update={"budget_reservation": None})
    return kept


def sinks_of(auth: Any) -> dict[str, list[str]]:
    """Names of the logging callbacks that the caller's key or team has of its own, as parameters of a call.

    LiteLLM takes them out of a request before its router sees it, and out of the copy of the caller in its metadata.

    Args:
        auth: LiteLLM's `UserAPIKeyAuth` as its hooks before a call are given it, or None.
    """
    if auth is None:
        return {}
    from litellm.proxy.litellm_pre_call_utils import get_dynamic_logging_metadata
    from litellm.proxy.proxy_server import proxy_config

    try:
        found = get_dynamic_logging_metadata(auth, proxy_config)
    except Exception:  # whatever stands in a key's or team's metadata, it must not fail the request
        logger.exception("the callbacks of a key or team cannot be read; the cascade's own calls are not told to them")
        return {}
    named = {name: getattr(found, name, None) for name in ("success_callback", "failure_callback")}
    return {name: list(value) for name, value in named.items() if value}


@dataclass(slots=True)
class Caller:
    """Asks models for one request; an `Ask`.

    Attributes:
        group: model group.
        metadata: of the request, LiteLLM's.
        params: the client's own, for calls that answer.
        extra: what goes with every call (`HANDED_ON`, `sinks_of`).
        limits: counts.
        purses: budgets.
        prices: deployment id -> prices, for providers whose answer LiteLLM cannot price.
    """

    group: str
    metadata: Mapping[str, Any]
    params: Mapping[str, Any]
    extra: Mapping[str, Any]
    limits: Limits
    purses: tuple[Purse, ...] = ()
    prices: Mapping[str, Prices] = field(default_factory=dict)

    async def __call__(
        self, level: Level, messages: Messages, role: Role, *, max_tokens: int | None = None, temperature: float | None = None
    ) -> Said:
        """See `Ask`."""
        self.limits.begin()
        try:
            await self.check_money()
        except StopError:
            self.limits.begun -= 1  # it was not made
            raise
        given = {"max_tokens": max_tokens, "temperature": temperature}
        params = dict(self.params) if role in ("answer", "part") else {k: v for k, v in given.items() if v is not None}
        started = time.monotonic()
        try:
            said = _said(await self._send(level, messages, params), level, self.prices)
        except asyncio.CancelledError:
            self.limits.steps.append(Step(role, level.model, (time.monotonic() - started) * 1000, error="cancelled"))
            raise
        except Exception as error:  # LiteLLM raises what its providers raise; another model may be asked
            name = error.reason if isinstance(error, FailedCallError) else type(error).__name__
            self.limits.steps.append(Step(role, level.model, (time.monotonic() - started) * 1000, error=name))
            raise FailedCallError(name) from error
        self.limits.steps.append(Step(role, level.model, (time.monotonic() - started) * 1000, said=said))
        return said

    async def check_money(self) -> None:
        """Raises `StopError` once a budget of the caller is spent."""
        if not self.purses:
            return
        from litellm.proxy.proxy_server import get_current_spend

        if await spent_out(self.purses, self.limits.cost, get_current_spend):
            raise StopError("budget")

    async def _send(self, level: Level, messages: Messages, params: Mapping[str, Any]) -> Any:
        from litellm.proxy import proxy_server

        router = proxy_server.llm_router
        if router is None:
            raise FailedCallError("NoRouter")
        call = router.acompletion(
            model=self.group,
            messages=[dict(message) for message in messages],
            metadata=handed_on(self.metadata),
            num_retries=0,  # another model is the cascade's answer to a failure
            disable_fallbacks=True,
            drop_params=True,
            # LiteLLM keeps answers by group and prompt: a doubted one would be given again in place of the stronger model's.
            cache={"no-cache": True, "no-store": True},
            timeout=self.limits.seconds_left,
            **{
                name: list(value) if isinstance(value, list) else value for name, value in self.extra.items()
            },  # it pops from them
            **params,
        )
        context = aimed(level.deployments, Ticket())
        return await asyncio.create_task(call, context=context, name="pointsman-cascade-call")


def _said(response: Any, level: Level, prices: Mapping[str, Prices]) -> Said:
    choice = response.choices[0] if getattr(response, "choices", None) else None
    text = getattr(getattr(choice, "message", None), "content", None)
    if not isinstance(text, str) or not text.strip():
        raise FailedCallError("EmptyAnswer")
    hidden: Mapping[str, Any] = getattr(response, "_hidden_params", None) or {}
    usage = getattr(response, "usage", None)
    prompt, completion = (int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
    deployment = str(hidden.get("model_id") or level.deployments[0])
    cost = hidden.get("response_cost")
    if not isinstance(cost, int | float):
        known = prices.get(deployment)
        cost = known.input * prompt + known.output * completion if known is not None else 0.0
    reason = str(getattr(choice, "finish_reason", None) or "stop")
    return Said(text, level, deployment, reason, prompt, completion, float(cost))


def spent() -> Exception:
    """What a request fails with whose budget was spent by the cascade's own calls."""
    message = "Budget has been exceeded! (by the calls of this request's cascade)"
    error: Exception = litellm.BudgetExceededError(current_cost=0.0, max_budget=0.0, message=message)
    return error


def gone() -> Exception:
    """What a request ends with whose client has left; nobody reads it, and LiteLLM frees what it holds for the request."""
    error: Exception = litellm.BadRequestError("the client has gone", model="", llm_provider="")
    return error
