"""The routing hook bound to a worker that has just what a test gives it, and LiteLLM that calls nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import litellm
import pytest

from pointsman.custom_router.hook import RouterHook
from pointsman.settings import PointsmanSettings

__all__ = ["bound", "listens"]


def bound(
    settings: Mapping[str, Any], told: Callable[[Any], None] | None = None, *, strategy: Any = None, turns: Any = None
) -> RouterHook:
    """A hook.

    Args:
        settings: `pointsman:` of the YAML.
        told: is given every record.
        strategy: what the name `s` stands for; None: there is no strategy.
        turns: the worker's queues.
    """
    hook = RouterHook()
    runtime = SimpleNamespace(
        settings=PointsmanSettings.load(dict(settings)),
        strategies=SimpleNamespace(get=lambda name: strategy if name == "s" else None),
        aliases={},
        sinks=() if told is None else (told,),
        spans=None,
        turns=turns,
        scores=None,
    )
    hook.bind(runtime)  # type: ignore[arg-type]
    return hook


def listens(monkeypatch: pytest.MonkeyPatch, hook: RouterHook) -> None:
    """LiteLLM tells this one; of a class it keeps the first, which would be another test's."""
    monkeypatch.setattr(litellm, "callbacks", [hook])
    for name in ("success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback"):
        monkeypatch.setattr(litellm, name, [])
