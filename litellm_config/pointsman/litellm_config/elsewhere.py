"""Checks of strategies that are served from no bundle: LLMRouter in a process of its own, installed code, signed code."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pointsman.errors import ConfigError
from pointsman.litellm_config.problems import KeyPath
from pointsman.litellm_config.source import Source
from pointsman.settings import LLMRouterSettings, StrategySettings
from pointsman.strategies.catalogue import Entry
from pointsman.strategies.plugins import installed, missing
from pointsman.strategies.remote.prepare import read_config
from pointsman.strategies.serving import entry_for, how

__all__ = ["check_elsewhere"]

At = Callable[..., KeyPath]


def check_elsewhere(source: Source, name: str, strategy: StrategySettings, at: At) -> None:
    """Note the problems of one strategy; `at` tells where a key of it stands."""
    served, entry = how(name, strategy), entry_for(name, strategy)
    if strategy.llmrouter is not None and entry is not None and entry.broken is None:
        _check_llmrouter(source, entry, strategy.llmrouter, at)
    elif strategy.llmrouter is not None and entry is None:
        source.problem(
            at("llmrouter"), "E4206", "it is not said which of LLMRouter's strategies", "Add `kind:`, e.g. `causallm`."
        )
    if served == "plugin":
        _check_plugin(source, strategy.entry_point, at)
    elif served == "code":
        _check_code(source, strategy, at)
    elif strategy.entry_point is not None or strategy.allow_signed_code:
        key = "entry_point" if strategy.entry_point is not None else "allow_signed_code"
        source.problem(at(key), "E4206", "code of your own is a strategy of kind `custom`", "Add `kind: custom`, or remove it.")


def _check_llmrouter(source: Source, entry: Entry, settings: LLMRouterSettings, at: At) -> None:
    if entry.serving == "cascade":
        message = f"LLMRouter's {entry.llmrouter} calls models by itself, with keys of its own, past budgets and limits"
        source.problem(at("llmrouter"), "E4206", message, "Remove `llmrouter:`; it is rebuilt here as a cascade.")
        return
    if settings.python is None and importlib.util.find_spec("llmrouter") is None:
        message = "LLMRouter is not installed beside the gateway; LiteLLM's own choice holds"
        mend = "Install `pointsman[llmrouter]` into an environment and name its interpreter as `llmrouter.python`."
        source.warn(at("llmrouter"), "E4206", message, mend)
    _check_python(source, settings.python, at("llmrouter"), "python")
    path = Path(settings.config)
    key = (*at("llmrouter"), "config")
    try:
        value = read_config(path)
    except ConfigError as error:
        source.problem(key, "E4203", error.message, error.mend or "Name the YAML file that LLMRouter was trained with.")
        return
    for file in _files(value):
        if not (path.parent / file).exists():
            message = f"LLMRouter's file names {file}, which is not there"
            source.warn(key, "E4206", message, f"Relative paths count from {path.parent}.")


def _files(value: dict[str, Any]) -> list[str]:
    """The files that a router reads: all of its data, and of its models the one that it loads."""
    data, model = value.get("data_path"), value.get("model_path")
    found = list(data.values()) if isinstance(data, dict) else []
    if isinstance(model, dict):
        found.append(model.get("load_model_path"))
    return [item for item in found if isinstance(item, str) and item]


def _check_python(source: Source, python: str | None, section: KeyPath, key: str) -> None:
    if python is not None and not os.access(python, os.X_OK):
        source.problem(
            (*section, key), "E4203", f"{python} is no program that can be run", "Give an interpreter's absolute path."
        )


def _check_plugin(source: Source, entry_point: str | None, at: At) -> None:
    if entry_point is None:
        return  # that it lacks something is told already
    known = installed((str(source.path.parent),))
    if entry_point not in known:
        error = missing(entry_point, list(known))
        source.problem(at("entry_point"), error.code, error.message, error.mend or "")


def _check_code(source: Source, strategy: StrategySettings, at: At) -> None:
    if not strategy.allow_signed_code:
        message = "code is not taken from a source unless that is allowed"
        mend = (
            "Install it and name its `entry_point:` without a `source:`, or set `allow_signed_code: true` with `trusted_keys:`."
        )
        source.problem(at("source"), "E4205", message, mend)
        return
    if not strategy.trusted_keys:
        message = "no code will be taken: it is taken with a valid signature only, and no key is trusted"
        source.problem(at("allow_signed_code"), "E4206", message, "Add `trusted_keys:`.")
    if strategy.entry_point is None:
        source.problem(at("source"), "E4204", "is missing", "Add `entry_point:`, the name of the wheel's entry point.")
    if strategy.source is not None and strategy.source.lower().endswith(".zip"):
        source.problem(at("source"), "E4203", "is no pointer to a wheel", "Name what `pointsman mlops publish` wrote for it.")
    _check_python(source, strategy.process.python, at("process"), "python")
