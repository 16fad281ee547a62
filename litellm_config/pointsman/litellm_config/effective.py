"""The effective configuration: what LiteLLM is given in place of the user's file, which is never written to."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pointsman.errors import ProcessError
from pointsman.litellm_config.failing import check_windows, leave_rests_to_breakers, set_allowed_fails
from pointsman.litellm_config.tables import LITELLM_STRATEGIES

__all__ = [
    "DEFAULTS",
    "ENVIRONMENT",
    "HOOK",
    "MOCK_HANDLER",
    "REPLAY_HANDLER",
    "REPLAY_PROVIDER",
    "Default",
    "Variable",
    "deployment_id",
    "make_effective",
    "write_yaml",
]

HOOK = "pointsman.custom_router.hook.router_hook"
MOCK_HANDLER = "pointsman.backends.mock.handler"
REPLAY_PROVIDER = "pointsman-replay"
REPLAY_HANDLER = "pointsman.custom_router.cascades.replay.handler"


@dataclass(frozen=True, slots=True)
class Default:
    """One value that the effective configuration has where the user's file is silent.

    Attributes:
        section, key: where it stands.
        value: what it is.
        reason: why LiteLLM's own default will not do.
        unless: other places (`section.key`) that say the same thing; when one is given, this default is left out.
        enforced: the user's value does not count.
    """

    section: str
    key: str
    value: Any
    reason: str
    unless: tuple[str, ...] = ()
    enforced: bool = False


DEFAULTS: tuple[Default, ...] = (
    Default(
        "general_settings",
        "store_model_in_db",
        True,
        "With it off, several admin calls rewrite the configuration file with the master key in clear.",
        enforced=True,
    ),
    Default("general_settings", "master_key", "os.environ/LITELLM_MASTER_KEY", "Keys stay out of files."),
    Default(
        "litellm_settings",
        "request_correlation_in_logs",
        True,
        "Log lines carry the trace id and the call id; off, a line cannot be joined to its request.",
    ),
    Default(
        "litellm_settings",
        "prometheus_metrics_max_series_per_metric",
        2000,
        "LiteLLM has labels for keys, teams and whatever model name a client makes up, without a bound of its own.",
    ),
    Default(
        "litellm_settings", "budget_exceeded_status_code", 429, "LiteLLM answers 422, which clients do not take for a limit."
    ),
    Default(
        "litellm_settings",
        "disable_hf_tokenizer_download",
        True,
        "Counting the tokens of some models would fetch their tokenizer from a hub; nothing is downloaded unasked.",
    ),
    Default(
        "litellm_settings",
        "request_timeout",
        600,
        "LiteLLM waits 6000 s for an upstream that hangs, and does not fail over before.",
        unless=("router_settings.timeout",),
    ),
    Default(
        "router_settings",
        "num_retries",
        2,
        "Two other deployments are tried after a failure, said here so that no later default changes it.",
        unless=("litellm_settings.num_retries",),
    ),
    Default(
        "router_settings",
        "cooldown_time",
        15,
        "Seconds that a failing deployment rests by LiteLLM's own cooldown, where that is on; with its 5 s a dead one is tried "
        "three times as often. It is off while our breakers are on, unless the file says anything of cooldowns.",
    ),
    Default(
        "router_settings",
        "routing_strategy",
        "simple-shuffle",
        "Where no learned strategy decides; said here, the admin UI cannot change it behind the file's back.",
    ),
)
"""Every value that Pointsman adds, as data; `docs/configuration.md` lists it."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable that LiteLLM gets unless the user has set it."""

    name: str
    value: str
    reason: str


ENVIRONMENT: tuple[Variable, ...] = (
    Variable(
        "LITELLM_LOCAL_MODEL_COST_MAP", "True", "Prices come with the package; LiteLLM fetches them from the internet at start."
    ),
    Variable("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True", "As above, for Anthropic's beta headers."),
    Variable("LITELLM_LOCAL_AUTOROUTER_PRESETS", "True", "As above, for the presets of its own routers."),
    Variable("LITELLM_LOCAL_BLOG_POSTS", "True", "As above, for news in the admin UI."),
    Variable("LITELLM_LOCAL_POLICY_TEMPLATES", "True", "As above, for policy templates in the admin UI."),
    Variable(
        "LITELLM_MODE", "PRODUCTION", "In its development mode LiteLLM reads a `.env` of the working directory by itself."
    ),
    Variable(
        "LITELLM_OTEL_V2",
        "true",
        "GenAI semantic conventions, one trace a request, no prompt text unless asked. "
        "Only where a callback or an `OTEL_` variable asks for traces: else every span would be printed.",
    ),
    Variable(
        "OTEL_SEMCONV_STABILITY_OPT_IN",
        "http",
        "Server spans say `http.response.status_code` and `url.path`, OpenTelemetry's stable names, and not the older ones. "
        "Only where traces are asked for.",
    ),
    Variable(
        "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
        "true",
        "OpenTelemetry's exporters count what they send and lose, for `pointsman_export_records_total`.",
    ),
    Variable(
        "OTEL_SERVICE_NAME",
        "pointsman",
        "`service.name` of the spans, the same one as of log records. Only where traces are asked for.",
    ),
    Variable("LITELLM_DONT_SHOW_FEEDBACK_BOX", "true", "No banner among the log lines."),
    Variable(
        "REDIS_CIRCUIT_BREAKER_RECOVERY_TIMEOUT",
        "5",
        "Seconds until a Redis that failed is tried again; for LiteLLM's 60 s the instances would not share limits.",
    ),
    Variable("DISABLE_SCHEMA_UPDATE", "true", "The supervisor migrates, once, before the workers start."),
    Variable(
        "STORE_MODEL_IN_DB", "True", "As `general_settings.store_model_in_db`, for code that asks before the file is read."
    ),
)
"""Every environment variable that Pointsman gives LiteLLM, as data; `docs/configuration.md` lists it."""


def deployment_id(model_name: str, litellm_params: Mapping[str, Any], occurrence: int = 0) -> str:
    """A stable `model_info.id`: 32 hexadecimal digits of a sha256 over the name and the parameters as written.

    References to the environment are hashed unresolved, so a rotated key changes no id; neither do other entries, their
    order, or the order of keys. `occurrence` tells equal entries apart: 0 for the first.
    """
    content = json.dumps([model_name, litellm_params, occurrence], sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def make_effective(
    config: Mapping[str, Any],
    extra: Iterable[Mapping[str, Any]],
    *,
    translated: bool,
    cascades: bool = False,
    breakers: bool = False,
) -> dict[str, Any]:
    """The effective configuration of a merged and checked one; the argument is not changed.

    Args:
        config: the user's sections, includes merged.
        extra: more entries for `model_list` (what was detected on the machine).
        translated: `router_settings` named a learned strategy, which LiteLLM must not see.
        cascades: a strategy calls models, or requests are hedged, so that an answer that is there already is to be given again.
        breakers: deployments that fail are given a rest by us.
    """
    effective: dict[str, Any] = copy.deepcopy({k: v for k, v in config.items() if k != "pointsman" and not k.startswith("x-")})
    effective["model_list"] = [*(effective.get("model_list") or []), *copy.deepcopy(list(extra))]
    router = _section(effective, "router_settings")
    if translated:
        del router["routing_strategy"]
        router.pop("routing_strategy_args", None)
    elif router.get("routing_strategy") not in LITELLM_STRATEGIES:
        router.pop("routing_strategy", None)
    if breakers:
        leave_rests_to_breakers(effective)
    _apply_defaults(effective)
    _section(effective, "litellm_settings").pop("json_logs", None)  # `telemetry.logs.format`: one writer of all lines
    _add_callback(_section(effective, "litellm_settings"))
    if any(_is_mock(entry) for entry in effective["model_list"]):
        _add_provider(_section(effective, "litellm_settings"), "mock", MOCK_HANDLER)
    if cascades:
        _add_provider(_section(effective, "litellm_settings"), REPLAY_PROVIDER, REPLAY_HANDLER)
    _set_ids(effective["model_list"])
    set_allowed_fails(effective)
    check_windows(effective)
    _move_prices(effective["model_list"], router)
    return effective


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(config.get(name), dict):
        config[name] = {}
    section: dict[str, Any] = config[name]
    return section


def _apply_defaults(effective: dict[str, Any]) -> None:
    given = {f"{name}.{key}" for name, section in effective.items() if isinstance(section, dict) for key in section}
    for default in DEFAULTS:
        section = _section(effective, default.section)
        silent = section.get(default.key) is None and given.isdisjoint(default.unless)
        if default.enforced or silent:
            section[default.key] = copy.deepcopy(default.value)


def _add_callback(settings: dict[str, Any]) -> None:
    """A single callback may stand as text; ours comes last, and once."""
    present = settings.get("callbacks")
    callbacks = list(present) if isinstance(present, list) else [present] if present else []
    settings["callbacks"] = [*(item for item in callbacks if item != HOOK), HOOK]


def _is_mock(entry: Any) -> bool:
    params = entry.get("litellm_params") if isinstance(entry, dict) else None
    if not isinstance(params, dict):
        return False
    return str(params.get("model")).startswith("mock/") or params.get("custom_llm_provider") == "mock"


def _add_provider(settings: dict[str, Any], name: str, handler: str) -> None:
    present = settings.get("custom_provider_map")
    entries = list(present) if isinstance(present, list) else []
    if not any(isinstance(item, dict) and item.get("provider") == name for item in entries):
        entries.append({"provider": name, "custom_handler": handler})
    settings["custom_provider_map"] = entries


def _set_ids(model_list: list[Any]) -> None:
    taken: set[str] = set()
    silent: list[dict[str, Any]] = []
    for entry in model_list:
        info = _section(entry, "model_info")
        if info.get("id") is None:
            silent.append(entry)
        else:
            info["id"] = str(info["id"])
            taken.add(info["id"])
    for entry in silent:
        occurrence = 0
        while (made := deployment_id(entry["model_name"], entry["litellm_params"], occurrence)) in taken:
            occurrence += 1
        taken.add(made)
        entry["model_info"]["id"] = made


def _move_prices(model_list: list[Any], router: Mapping[str, Any]) -> None:
    """Say prices in `model_info`: with prices in `litellm_params` LiteLLM counts no cost at all on messages and responses.

    But its own routing by cost reads them there, so they stay where that strategy is the router's or the model's group's.
    """
    by_cost = "cost-based-routing"
    if router["routing_strategy"] == by_cost:
        return
    given = router.get("routing_groups")
    groups = [group for group in given if isinstance(group, dict)] if isinstance(given, list) else []
    kept = {str(name) for group in groups if group.get("routing_strategy") == by_cost for name in group.get("models") or ()}
    for entry in model_list:
        if entry["model_name"] in kept:
            continue
        params = entry["litellm_params"]
        for key in [key for key in params if "_cost_per_" in key]:
            entry["model_info"].setdefault(key, params.pop(key))


class _Dumper(yaml.SafeDumper):
    """Writes every value out; no anchors, which would make two entries look like one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_yaml(value: Mapping[str, Any], path: Path, header: str) -> None:
    """Write a private file (0600) whole or not at all.

    Raises:
        ProcessError: E4602, the directory cannot be written to, or the disk is full; what was there stays.
    """
    text = "".join(f"# {line}\n" for line in header.splitlines())
    text += yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ProcessError(
            f"cannot write the effective configuration: {error.strerror or error}",
            code="E4602",
            where=str(path),
            mend="Free some space there, or check the directory's owner and mode.",
        ) from error
