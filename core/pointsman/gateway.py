"""The ASGI application of a worker: LiteLLM's, with our routers inside and our middleware around it. An app is data: lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from pointsman.callbacks.red import Measured
from pointsman.http.anew import Anew
from pointsman.http.drain import InFlight
from pointsman.http.tickets import Tickets

if TYPE_CHECKING:
    from fastapi import APIRouter

    from pointsman.runtime import Runtime

__all__ = ["MIDDLEWARE", "ROUTERS", "build_app"]


def _admin(runtime: Runtime) -> APIRouter:
    from pointsman.http.admin import admin_router

    return admin_router(runtime)


def _queue(runtime: Runtime) -> APIRouter:
    from pointsman.http.queue import queue_router

    return queue_router(runtime)


def _providers(runtime: Runtime) -> APIRouter:
    from pointsman.http.providers import providers_router

    return providers_router(runtime)


def _feedback(runtime: Runtime) -> APIRouter:
    from pointsman.http.feedback import feedback_router

    return feedback_router(runtime)


def _breakers(runtime: Runtime) -> APIRouter:
    from pointsman.http.breakers import breakers_router

    return breakers_router(runtime)


ROUTERS: Sequence[Callable[[Runtime], APIRouter]] = (_admin, _queue, _providers, _feedback, _breakers)
"""Makers of routers, included in this order."""

MIDDLEWARE: Sequence[Callable[[ASGIApp], ASGIApp]] = (Tickets,)
"""Pure ASGI middleware, innermost first; `InFlight` goes around them all."""


def build_app(runtime: Runtime) -> InFlight:
    """LiteLLM's application with everything of ours; call it once a process, before the server starts.

    Importing LiteLLM's application reads no configuration; its lifespan does, from `CONFIG_FILE_PATH`.
    """
    from litellm.proxy.proxy_server import app

    from pointsman.http.admin import install_error_handler

    install_error_handler(app)
    for make_router in ROUTERS:
        app.include_router(make_router(runtime))
    wrapped: ASGIApp = Measured(Anew(app), runtime.metrics)
    for wrap in MIDDLEWARE:
        wrapped = wrap(wrapped)
    return InFlight(wrapped)
