"""`POINTSMAN__ROUTING__DEFAULT=knn` -> `{"routing": {"default": "knn"}}`: environment variables over a section of the YAML.

A part between two `__` names a field, in any case. Below a free mapping (`strategies`, `routing.groups`) it names an entry: the
one in the file that equals it without regard to case, `-` and `_` (so `LLMROUTER_KNN` meets `llmrouter-knn`), else a new one
in lower case. A mapping may also be given whole, as JSON; a deeper variable is laid over it. `null` clears an optional setting.
"""

from __future__ import annotations

import copy
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

__all__ = ["ENVIRONMENT_PREFIX", "Override", "OverrideProblem", "apply_overrides", "closest", "read_overrides"]

ENVIRONMENT_PREFIX = "POINTSMAN__"


@dataclass(frozen=True, slots=True)
class Override:
    """One variable, understood: `path` within the section, `value` as pydantic shall see it."""

    variable: str
    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class OverrideProblem:
    """One variable that could not be understood; `code` is E4202 (unknown) or E4203 (value)."""

    variable: str
    code: str
    message: str
    mend: str


class _UnknownNameError(Exception):
    """No field of that name at that place."""

    def __init__(self, part: str, where: tuple[str, ...], known: Iterable[str]) -> None:
        self.part, self.where, self.known = part, where, sorted(known)
        super().__init__(part)


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word most like `word`, or None when none is like it."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def _fold(name: str) -> str:
    return name.lower().replace("-", "_")


def _optional(annotation: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); anything else -> (itself, False)."""
    if get_origin(annotation) in {Union, types.UnionType}:
        rest = [part for part in get_args(annotation) if part is not type(None)]
        return (rest[0] if len(rest) == 1 else annotation), len(rest) < len(get_args(annotation))
    origin = get_origin(annotation)
    if origin is not None and hasattr(annotation, "__metadata__"):  # Annotated[X, ...]
        return _optional(get_args(annotation)[0])
    return annotation, False


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _locate(annotation: Any, parts: list[str], section: Any, done: tuple[str, ...]) -> tuple[tuple[str, ...], Any, bool]:
    """Follow `parts` down the types; returns the path, the type at its end and whether that may be None."""
    bare, nullable = _optional(annotation)
    if not parts:
        return done, bare, nullable
    part, rest = parts[0], parts[1:]
    here: Mapping[Any, Any] = section if isinstance(section, Mapping) else {}
    if _is_model(bare):
        if part.lower() not in bare.model_fields:
            raise _UnknownNameError(part, done, bare.model_fields)
        name, inner = part.lower(), bare.model_fields[part.lower()].annotation
    elif get_origin(bare) is dict and part:
        same = [key for key in here if isinstance(key, str) and _fold(key) == _fold(part)]
        name, inner = (same[0] if same else part.lower()), get_args(bare)[1]
    else:
        raise _UnknownNameError(part, done, ())
    return _locate(inner, rest, here.get(name), (*done, name))


def _value(text: str, annotation: Any, nullable: bool) -> Any:
    """Mappings are JSON; the rest stays text, which pydantic turns into numbers and truth values.

    Raises:
        ValueError: a mapping is wanted and the text is not a JSON object.
    """
    if nullable and text.strip().lower() == "null":
        return None
    if _is_model(annotation) or get_origin(annotation) is dict:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    return text


def read_overrides(
    env: Mapping[str, str], model: type[BaseModel], section: Mapping[str, Any]
) -> tuple[list[Override], list[OverrideProblem]]:
    """Find and understand every `POINTSMAN__` variable; shallow ones first, so that deeper ones are laid over them.

    Args:
        env: the environment.
        model: the section's type.
        section: the section as parsed, for the names of its entries.
    """
    overrides: list[Override] = []
    problems: list[OverrideProblem] = []
    for variable in sorted(name for name in env if name.upper().startswith(ENVIRONMENT_PREFIX)):
        parts = variable[len(ENVIRONMENT_PREFIX) :].split("__")
        try:
            path, annotation, nullable = _locate(model, parts, section, ())
            overrides.append(Override(variable, path, _value(env[variable], annotation, nullable)))
        except _UnknownNameError as unknown:
            place = ".".join(("pointsman", *unknown.where))
            guess = closest(unknown.part.lower(), unknown.known)
            valid = f"{place} knows {', '.join(unknown.known)}" if unknown.known else f"{place} has nothing below it"
            mend = f"Did you mean {guess.upper()}? {valid}." if guess else f"{valid}."
            problems.append(OverrideProblem(variable, "E4202", f"{unknown.part!r} is no setting of {place}", mend))
        except (ValueError, RecursionError):
            message = "The value of a mapping is JSON, and this is not a JSON object"
            problems.append(OverrideProblem(variable, "E4203", message, f"Write {variable}='{{\"name\": ...}}'."))
    overrides.sort(key=lambda item: (len(item.path), item.path))
    return overrides, problems


def apply_overrides(section: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of `section` with the overrides laid over it; mappings are merged, everything else is replaced.

    Where the section itself has no mapping on the way, it is left as it is: its own validation says what is wrong.
    """
    result: dict[str, Any] = copy.deepcopy(dict(section))
    for override in overrides:
        place: Any = result
        for name in override.path[:-1]:
            if isinstance(place, dict) and place.get(name) is None:
                place[name] = {}
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            last = override.path[-1]
            place[last] = _merged(place.get(last), copy.deepcopy(override.value))
    return result


def _merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
