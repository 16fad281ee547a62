"""The `pointsman:` section: file, translation and environment over each other, validated, every problem given its place."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pointsman.litellm_config.problems import KeyPath, Problem
from pointsman.litellm_config.source import Source
from pointsman.litellm_config.strategies import Translation
from pointsman.overrides import Override, apply_overrides, closest, read_overrides
from pointsman.settings import PointsmanSettings

__all__ = ["read_settings"]


def read_settings(
    source: Source, translation: Translation, env: Mapping[str, str]
) -> tuple[PointsmanSettings | None, dict[str, dict[str, KeyPath]]]:
    """Validate the section; problems go to `source`.

    Returns:
        The settings with absolute paths, or None when they are not valid; and, for a translated strategy, where each of its
        keys stands in the file.
    """
    assert source.value is not None  # noqa: S101 - called for parsed files only
    given = source.value.get("pointsman")
    section: dict[str, Any] = copy.deepcopy(given) if isinstance(given, dict) else {}
    origins = _add_translation(source, section, translation)
    overrides, unknown = read_overrides(env, PointsmanSettings, section)
    for item in unknown:
        source.problems.append(Problem(source.path, None, item.variable, item.code, item.message, item.mend))
    section = apply_overrides(section, overrides)
    _make_absolute(source, section, origins)
    try:
        settings = PointsmanSettings.model_validate(section)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _report(source, detail, overrides, origins)
        return None, origins
    return (None if unknown else settings), origins


def _add_translation(source: Source, section: dict[str, Any], translation: Translation) -> dict[str, dict[str, KeyPath]]:
    name = translation.name
    if name is None:
        return {}
    strategies = section.setdefault("strategies", {})
    routing = section.setdefault("routing", {})
    if not isinstance(strategies, dict) or not isinstance(routing, dict):
        return {}  # validation tells
    if name in strategies:
        message = f"router_settings.routing_strategy already defines {name}"
        source.problem(("pointsman", "strategies", name), "E4203", message, "Keep one of the two.")
        return {}
    if routing.get("default") not in {None, name}:
        message = f"router_settings.routing_strategy says {name}"
        source.problem(("pointsman", "routing", "default"), "E4203", message, "Keep one of the two.")
    strategies[name] = translation.strategy
    routing["default"] = name
    return {name: translation.origins}


_PATHS = (("source",), ("llm_data_path",), ("llmrouter", "config"), ("llmrouter", "python"), ("process", "python"))
"""What is a path in a strategy's settings."""


def _make_absolute(source: Source, section: Mapping[str, Any], origins: Mapping[str, Mapping[str, KeyPath]]) -> None:
    """Relative paths count from the file that they stand in."""
    encoders = section.get("encoders_dir")
    if isinstance(encoders, str) and encoders and not encoders.startswith("/") and isinstance(section, dict):
        section["encoders_dir"] = str(source.mark(("pointsman", "encoders_dir")).path.parent / encoders)
    strategies = section.get("strategies")
    for name, strategy in strategies.items() if isinstance(strategies, dict) else ():
        if not isinstance(strategy, dict):
            continue
        for key, *rest in _PATHS:
            place = (*origins.get(name, {}).get(key, ("pointsman", "strategies", name, key)), *rest)
            holder, last = (strategy.get(key), rest[0]) if rest else (strategy, key)
            if not isinstance(holder, dict):
                continue
            value = holder.get(last)
            if isinstance(value, str) and value and "://" not in value and not value.startswith("/"):
                holder[last] = str(source.mark(place).path.parent / value)


def _report(
    source: Source, detail: ErrorDetails, overrides: list[Override], origins: Mapping[str, Mapping[str, KeyPath]]
) -> None:
    place: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
    code, message, mend = _explain(detail, place)
    variable = _variable(place, overrides)
    if variable is not None:
        source.problems.append(Problem(source.path, None, variable, code, message, mend))
        return
    key: KeyPath = ("pointsman", *place)
    if len(place) > 2 and place[0] == "strategies":
        moved = origins.get(str(place[1]), {}).get(str(place[2]))
        key = (*moved, *place[3:]) if moved is not None else key
    source.problem(key, code, message, mend)


def _variable(place: KeyPath, overrides: list[Override]) -> str | None:
    """The variable that set the value at `place`: the deepest one at it or above it; below it when it is missing something."""
    above = [item for item in overrides if place[: len(item.path)] == item.path]
    below = [item for item in overrides if item.path[: len(place) - 1] == place[:-1] and len(place) > 2]
    chosen = above or below
    return max(chosen, key=lambda item: len(item.path)).variable if chosen else None


def _explain(detail: ErrorDetails, place: KeyPath) -> tuple[str, str, str]:
    """Code, message and mend for one of pydantic's errors."""
    if detail["type"] == "extra_forbidden":
        known = list(_fields(PointsmanSettings, place[:-1]))
        word = str(place[-1])
        guess = closest(word, known)
        parent = ".".join(str(part) for part in ("pointsman", *place[:-1]))
        elsewhere = [path for path in _paths(PointsmanSettings, "pointsman") if path.rsplit(".", 1)[-1] == word]
        mend = f"Did you mean {guess}? " if guess else f"Did you mean {elsewhere[0]}? " if elsewhere else ""
        return "E4202", f"there is no setting {word!r} in {parent}", f"{mend}Known: {', '.join(sorted(known))}."
    if detail["type"] == "missing":
        return "E4204", "is missing", f"Add `{place[-1]}:`."
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = repr(value)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        message = f"{message[:1].lower()}{message[1:]}, and not {shown}"
    elif value is None:
        message = f"{message[:1].lower()}{message[1:]}, and not empty"
    return "E4203", message, "See docs/configuration.md for what it takes."


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section behind a type, and whether names of entries stand between."""
    if get_origin(annotation) in {Union, types.UnionType}:
        rest = [part for part in get_args(annotation) if part is not type(None)]
        annotation = rest[0] if len(rest) == 1 else annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is dict:
        inner = get_args(annotation)[1]
        return (inner, True) if isinstance(inner, type) and issubclass(inner, BaseModel) else (None, True)
    return None, False


def _fields(model: type[BaseModel], place: KeyPath) -> Iterator[str]:
    if not place:
        yield from model.model_fields
        return
    info = model.model_fields.get(str(place[0]))
    inner, named = _model_of(info.annotation) if info is not None else (None, False)
    if inner is not None:
        yield from _fields(inner, place[2:] if named else place[1:])


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}.{name}"
        inner, named = _model_of(info.annotation)
        if inner is not None:
            yield from _paths(inner, f"{prefix}.{name}.<name>" if named else f"{prefix}.{name}")
