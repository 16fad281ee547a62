"""How a configured strategy is served: from a bundle, by a process of its own, by installed code, or as a cascade."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pointsman.settings import StrategySettings
from pointsman.strategies.catalogue import CATALOGUE, PREFIX, Entry

__all__ = ["How", "entry_for", "how"]

How: TypeAlias = Literal["bundle", "cascade", "llmrouter", "plugin", "code"]
"""`code`: a signed wheel in a process of its own."""


def entry_for(name: str, strategy: StrategySettings) -> Entry | None:
    """The catalogue's entry, by `kind` or else by the strategy's name; None: it says neither."""
    return CATALOGUE.get((strategy.kind or name).removeprefix(PREFIX))


def how(name: str, strategy: StrategySettings) -> How:
    """What serves it. The configuration's check has seen to it that the settings fit."""
    entry = entry_for(name, strategy)
    if strategy.llmrouter is not None:
        return "llmrouter"
    if entry is not None and entry.serving == "plugin":
        return "plugin" if strategy.source is None else "code"
    return "cascade" if entry is not None and entry.serving == "cascade" else "bundle"
