"""The names of OpenTelemetry's semantic conventions, as the installed package has them; and what of a span is not as told."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import opentelemetry.semconv._incubating.attributes as incubating
import opentelemetry.semconv._incubating.metrics as incubating_metrics
import opentelemetry.semconv.attributes as stable
import opentelemetry.semconv.metrics as stable_metrics

from pointsman.callbacks.names import ATTRIBUTES, SPANS

__all__ = ["attribute_names", "metric_names", "namespaces", "wrong_with"]

TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "double": lambda value: isinstance(value, float),
    "boolean": lambda value: isinstance(value, bool),
    "string[]": lambda value: isinstance(value, Sequence) and all(isinstance(item, str) for item in value),
    "double[]": lambda value: isinstance(value, Sequence) and all(isinstance(item, float) for item in value),
}
BAGGAGE = ("litellm.", "gen_ai.request.model")
"""What LiteLLM's own processor writes on every span of a request."""


def _names(*packages: ModuleType) -> Iterator[str]:
    for package in packages:
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            yield from (value for name, value in vars(module).items() if name.isupper() and isinstance(value, str))


@functools.cache
def attribute_names() -> frozenset[str]:
    """Every attribute, stable or not, deprecated ones too. A template (`http.request.header`) is there without its key."""
    return frozenset(_names(stable, incubating))


@functools.cache
def metric_names() -> frozenset[str]:
    """Every metric."""
    return frozenset(_names(stable_metrics, incubating_metrics))


@functools.cache
def namespaces() -> frozenset[str]:
    """First parts of the attributes' names (`http`, `gen_ai`): who begins a name so means a convention."""
    return frozenset(name.partition(".")[0] for name in attribute_names() if "." in name)


def wrong_with(name: str, kind: str, values: Mapping[str, Any]) -> list[str]:
    """What of a span of ours is not as the table says."""
    if name not in SPANS:
        return [f"{name} is in no table"]
    row, wrong = SPANS[name], []
    if row.kind != kind:
        wrong.append(f"{name} is {kind}, not {row.kind}")
    for attribute, value in values.items():
        if attribute in row.attributes:
            if not TYPES[ATTRIBUTES[attribute].type](value):
                wrong.append(f"{name} {attribute} is no {ATTRIBUTES[attribute].type}: {value!r}")
        elif not attribute.startswith(BAGGAGE):
            wrong.append(f"{attribute} stands on {name} and in no table")
    return wrong
