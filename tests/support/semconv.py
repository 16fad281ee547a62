"""The names of OpenTelemetry's semantic conventions, as the installed package has them."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import opentelemetry.semconv._incubating.attributes as incubating
import opentelemetry.semconv._incubating.metrics as incubating_metrics
import opentelemetry.semconv.attributes as stable
import opentelemetry.semconv.metrics as stable_metrics

__all__ = ["attribute_names", "metric_names", "namespaces"]


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
