"""What leaf records are as log lines: a decision one INFO line, a failed attempt one WARNING, an outcome one DEBUG line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pointsman.decisions.types import Attempt, Decision, Outcome

__all__ = ["level_of", "line_of"]


def level_of(record: Decision | Attempt | Outcome) -> int | None:
    """Level of its line; None: none is told of it."""
    if isinstance(record, Decision):
        return logging.INFO
    if isinstance(record, Attempt):
        return logging.WARNING if record.outcome == "error" else None
    return logging.DEBUG


def line_of(record: Decision | Attempt | Outcome) -> tuple[str, dict[str, Any]]:
    """Message, and fields besides the ids."""
    if isinstance(record, Decision):
        why = f" ({record.fallback})" if record.fallback else ""
        return f"{record.group} -> {record.model or '?'} by {record.strategy or 'litellm'}{why}", _decision(record)
    if isinstance(record, Attempt):
        return f"attempt {record.number} at {record.deployment_id} failed: {record.error}", _known(
            {
                "decision_id": record.decision_id,
                "attempt": record.number,
                "deployment": record.deployment_id,
                "model": record.model,
                "error_type": record.error,
                "status": record.status,
            }
        )
    return f"ended: {record.status}", _known(
        {
            "decision_id": record.decision_id,
            "outcome": record.status,
            "deployment": record.deployment_id,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "cost": record.cost,
            "duration_ms": record.latency_ms,
        }
    )


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _decision(decision: Decision) -> dict[str, Any]:
    fields = {
        "decision_id": decision.decision_id,
        "group": decision.group,
        "strategy": decision.strategy or "litellm",
        "strategy_version": decision.version,
        "variant": decision.variant,
        "model": decision.model,
        "deployment": decision.order[0] if decision.order else None,
        "policy": decision.policy if decision.strategy is not None else None,
        "chosen_by": decision.chosen_by,
        "fallback": decision.fallback,
        "propensity": decision.propensity,
        "scores": {name: round(score, 6) for name, score in decision.scores.items()} or None,
        "dropped": {item.deployment_id: item.reason for item in decision.dropped} or None,
        "microseconds": decision.microseconds,
        "prompt": decision.prompt,
    }
    return _known(fields)
