"""Reading what a verifier or a planner said. Models say anything: what is not exactly what was asked for is nothing.

Each question carries an id that is drawn after the text to be judged was written, and the answer must repeat it; so a text that
holds a ready-made verdict (by accident or by intent) is never taken for one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

__all__ = ["MAX_REPLY", "MAX_SCORE", "Part", "read_plan", "read_verdict"]

MAX_SCORE = 10
MAX_REPLY = 65_536
"""Characters of a reply that are looked at; a longer one is nonsense."""

MAX_OBJECTS = 64
"""Opening braces that are tried."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a request: what is to be answered, and by whom (None: whoever is chosen)."""

    task: str
    model: str | None = None


def read_verdict(reply: str, question_id: str) -> float | None:
    """The confidence in [0, 1], or None where the reply holds no verdict on this question or two that differ.

    A verdict is a JSON object with exactly `id` (the question's) and `score`, a number from 0 to 10.
    """
    found: set[float] = set()
    for item in _objects(reply):
        if item.get("id") != question_id:
            continue
        score = item.get("score")
        if set(item) != {"id", "score"} or isinstance(score, bool) or not isinstance(score, int | float):
            return None
        if not math.isfinite(score) or not 0 <= score <= MAX_SCORE:
            return None
        found.add(score / MAX_SCORE)
    return found.pop() if len(found) == 1 else None


def read_plan(reply: str, question_id: str, *, max_parts: int, models: Collection[str] | None) -> tuple[Part, ...] | None:
    """The parts, at least one and at most `max_parts`, or None where the reply holds no such plan, or two.

    Args:
        reply: what the planner said.
        question_id: see the module.
        max_parts: a plan with more is none.
        models: names of which each part must bear one; None: parts bear none.
    """
    plans = [item for item in _objects(reply) if item.get("id") == question_id]
    if len(plans) != 1 or set(plans[0]) != {"id", "parts"}:
        return None
    given = plans[0]["parts"]
    if not isinstance(given, list) or not 1 <= len(given) <= max_parts:
        return None
    keys = {"task"} if models is None else {"task", "model"}
    parts = []
    for item in given:
        if not isinstance(item, dict) or set(item) != keys or not isinstance(item["task"], str) or not item["task"].strip():
            return None
        model = item.get("model")
        if models is not None and (not isinstance(model, str) or model not in models):
            return None
        parts.append(Part(item["task"].strip(), model))
    return tuple(parts)


def _objects(reply: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a reply; models like to put words or a fence of backquotes around them."""
    if len(reply) > MAX_REPLY:
        return []
    decoder, found, at = json.JSONDecoder(), [], 0
    for _ in range(MAX_OBJECTS):
        at = reply.find("{", at)
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(reply, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
