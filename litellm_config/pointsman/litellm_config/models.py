"""Checks of `model_list`: what LiteLLM would skip, refuse or only miss when the first request comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pointsman.backends.mock_settings import MockSettings
from pointsman.litellm_config.problems import KeyPath
from pointsman.litellm_config.source import Source
from pointsman.litellm_config.tables import DEPLOYMENT_KEYS, LITELLM_PARAMS, PROVIDERS
from pointsman.overrides import closest

__all__ = ["Deployment", "check_models", "near_miss"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """One usable entry of `model_list`."""

    index: int
    group: str
    model: str
    model_id: str | None
    params: Mapping[str, Any]
    base_model: str | None = None

    @property
    def provider(self) -> str | None:
        """The explicit provider, or the prefix of the model, if it has one."""
        explicit = self.params.get("custom_llm_provider")
        if isinstance(explicit, str):
            return explicit
        prefix, slash, _ = self.model.partition("/")
        return prefix if slash else None


def near_miss(source: Source, path: KeyPath, value: Mapping[str, Any], known: frozenset[str], others: frozenset[str]) -> None:
    """Warn of keys that look like a misspelt known one; LiteLLM passes every key on, so an unknown one alone is no problem."""
    for key in value:
        if key in known or key in others:
            continue
        guess = closest(key, known - set(value), 0.84)
        if guess is not None:
            source.warn((*path, key), "E4202", f"{key!r} is not what LiteLLM reads", f"Did you mean {guess}?")


def check_models(source: Source) -> list[Deployment]:
    """Note the problems of `model_list`; returns the entries that can be used."""
    assert source.value is not None  # noqa: S101 - called for parsed files only
    entries = source.value.get("model_list")
    if "model_list" not in source.value:
        mend = "Add it; `model_list: []` if all models are to come from the database."
        source.problem(("model_list",), "E4204", "there is no model_list", mend)
        return []
    if not isinstance(entries, list):
        source.problem(("model_list",), "E4203", "is not a list", "Begin each model with `- model_name:`.")
        return []
    found = [item for index, entry in enumerate(entries) if (item := _deployment(source, index, entry)) is not None]
    ids: dict[str, int] = {}
    for item in found:
        if item.model_id is None:
            continue
        if item.model_id in ids:
            first = source.mark(("model_list", ids[item.model_id], "model_info", "id"))
            message = f"{item.model_id!r} is taken by {first.path}:{first.line}"
            source.problem(("model_list", item.index, "model_info", "id"), "E4203", message, "Give each deployment its own id.")
        else:
            ids[item.model_id] = item.index
    custom = _custom_providers(source.value)
    for item in found:
        _check_provider(source, item, custom)
    return found


def _deployment(source: Source, index: int, entry: Any) -> Deployment | None:
    path: KeyPath = ("model_list", index)
    if not isinstance(entry, dict):
        source.problem(path, "E4203", "is not a mapping", "Write `- model_name: ...` with `litellm_params:` below.")
        return None
    near_miss(source, path, entry, DEPLOYMENT_KEYS, frozenset({"tpm", "rpm"}))
    group = _text(source, (*path, "model_name"), entry, "the name that clients ask for")
    model: str | None = None
    params = entry.get("litellm_params")
    if isinstance(params, dict):
        near_miss(source, (*path, "litellm_params"), params, LITELLM_PARAMS, frozenset({"mock"}))
        model = _text(source, (*path, "litellm_params", "model"), params, "provider/model, such as openai/gpt-4o-mini")
    elif "litellm_params" in entry:
        source.problem((*path, "litellm_params"), "E4203", "is not a mapping", "Write `litellm_params:` with `model:` below.")
    else:
        source.problem((*path, "litellm_params"), "E4204", "is missing", "Add `litellm_params:` with `model:` below.")
    model_id = _model_id(source, (*path, "model_info"), entry)
    if group is None or model is None or not isinstance(params, dict):
        return None
    if model.startswith("mock/") or params.get("custom_llm_provider") == "mock":
        _check_mock(source, (*path, "litellm_params", "mock"), params.get("mock"))
    info = entry.get("model_info")
    base = info.get("base_model") if isinstance(info, dict) else None
    return Deployment(index, group, model, model_id, params, base if isinstance(base, str) else None)


def _text(source: Source, path: KeyPath, mapping: Mapping[str, Any], what: str) -> str | None:
    key = str(path[-1])
    value = mapping.get(key)
    if isinstance(value, str) and value.strip():
        return value
    if key not in mapping:
        source.problem(path, "E4204", "is missing", f"Add `{key}:`, {what}.")
    else:
        source.problem(path, "E4203", "is not a name", f"Give {what}; quote a number.")
    return None


def _model_id(source: Source, path: KeyPath, entry: Mapping[str, Any]) -> str | None:
    info = entry.get("model_info")
    if info is None:
        return None
    if not isinstance(info, dict):
        source.problem(path, "E4203", "is not a mapping", "Write `model_info:` with `id:` below, or leave it out.")
        return None
    value = info.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        source.problem((*path, "id"), "E4203", "is no id", "Give a word.")
        return None
    return str(value)


def _check_mock(source: Source, path: KeyPath, value: Any) -> None:
    try:
        MockSettings.model_validate({} if value is None else value)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            known = MockSettings.model_fields
            guess = closest(str(item["loc"][-1]), known) if item["type"] == "extra_forbidden" else None
            mend = f"Did you mean {guess}?" if guess else f"A mock knows {', '.join(known)}."
            code = "E4202" if item["type"] == "extra_forbidden" else "E4203"
            source.problem((*path, *item["loc"]), code, str(item["msg"]), mend)


def _custom_providers(config: Mapping[str, Any]) -> set[str]:
    settings = config.get("litellm_settings")
    entries = settings.get("custom_provider_map") if isinstance(settings, dict) else None
    return {str(item.get("provider")) for item in entries if isinstance(item, dict)} if isinstance(entries, list) else set()


def _check_provider(source: Source, item: Deployment, custom: set[str]) -> None:
    provider = item.provider
    if provider is None or provider in PROVIDERS or provider in custom or provider in {"mock", "*"}:
        return
    guess = closest(provider, PROVIDERS, 0.75)
    if guess is not None:
        message = f"{provider!r} is no provider; LiteLLM would leave the deployment out"
        source.warn(("model_list", item.index, "litellm_params", "model"), "E4203", message, f"Did you mean {guess}/?")
