"""Checks of LiteLLM's callbacks: what a sink needs and does not have, and teams' settings that LiteLLM would not follow.

LiteLLM starts without a sink's credentials. It then sends to the vendor's cloud without a key, or nowhere, and says so in a log
line or not at all; so it is told here, with the line that names the sink.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pointsman.litellm_config.problems import KeyPath
from pointsman.litellm_config.source import Source
from pointsman.overrides import closest

__all__ = ["CALLBACKS", "LANGFUSE_SDK", "LISTS", "NEEDS", "check_callbacks", "named_callbacks"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WITHOUT_TEXT = _words(
    """arize arize_phoenix datadog_metrics dynamic_rate_limiter dynamic_rate_limiter_v3 focus langfuse_otel langtrace levo
    mavvrik newrelic openmeter lago otel pagerduty prometheus resend_email sendgrid_email signoz smtp_email vantage weave_otel
    anthropic_cache_control_hook bitbucket cloudzero compression_interception dotprompt gitlab vector_store_pre_call_hook"""
)
"""Callbacks that send no prompts and answers: they know none, or their spans pass our exporters, which take them out."""

LISTS = ("callbacks", "success_callback", "failure_callback", "service_callback")
"""Settings of `litellm_settings` that name callbacks."""

LANGFUSE_SDK = ((4, 7), (5, 0))
"""Releases of Langfuse's SDK that LiteLLM's callback `langfuse` works with: from, up to and without."""

_LANGFUSE = (("LANGFUSE_PUBLIC_KEY",), ("LANGFUSE_SECRET_KEY",))

NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "arize": (("ARIZE_API_KEY",), ("ARIZE_SPACE_ID", "ARIZE_SPACE_KEY")),
    "braintrust": (("BRAINTRUST_API_KEY",),),
    "datadog": (("DD_API_KEY", "LITELLM_DD_AGENT_HOST"), ("DD_SITE", "LITELLM_DD_AGENT_HOST")),
    "datadog_llm_observability": (("DD_API_KEY", "LITELLM_DD_AGENT_HOST"), ("DD_SITE", "LITELLM_DD_AGENT_HOST")),
    "gcs_bucket": (("GCS_BUCKET_NAME",),),
    "helicone": (("HELICONE_API_KEY",),),
    "lago": (("LAGO_API_BASE",), ("LAGO_API_KEY",), ("LAGO_API_EVENT_CODE",)),
    "langfuse": _LANGFUSE,
    "langfuse_otel": _LANGFUSE,
    "langsmith": (("LANGSMITH_API_KEY",),),
    "logfire": (("LOGFIRE_TOKEN",),),
    "newrelic": (("NEW_RELIC_LICENSE_KEY",),),
    "openmeter": (("OPENMETER_API_KEY",),),
    "otel": (("OTEL_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL"),),
    "posthog": (("POSTHOG_API_KEY",),),
    "signoz": (("SIGNOZ_INGESTION_ENDPOINT",),),
    "weave_otel": (("WANDB_API_KEY",), ("WANDB_PROJECT_ID",)),
}
"""Callback -> what it needs; of each group one variable is enough."""

CALLBACKS = frozenset(NEEDS) | _words(
    """agentops anthropic_cache_control_hook argilla arize_phoenix aws_sqs azure_sentinel azure_storage bitbucket clickhouse
    cloudzero compression_interception datadog_metrics deepeval dotprompt dynamic_rate_limiter dynamic_rate_limiter_v3 focus
    galileo gcs_pubsub generic_api gitlab humanloop langtrace levo litellm_agent literalai mavvrik mlflow opik pagerduty
    pointfive prometheus resend_email s3_v2 sendgrid_email smtp_email vantage vector_store_pre_call_hook zerobus"""
)
"""Names that LiteLLM knows; others are dotted paths of a user's own, or older integrations."""

_HOOK = (
    "Name it in `callbacks`, and under `callback_settings.NAME` give `callback_type: generic_api`, `endpoint` and `headers`."
)
_PRINTED = "Without one every span is printed to standard output: "


def check_callbacks(source: Source, env: Mapping[str, str]) -> None:
    """Note what is missing; called for files whose sections have the right shape."""
    assert source.value is not None  # noqa: S101 - called for parsed files only
    sections = {name: value for name, value in source.value.items() if isinstance(value, dict)}
    litellm = sections.get("litellm_settings", {})
    secret_manager = sections.get("general_settings", {}).get("key_management_system") is not None
    known = {name for name, value in env.items() if value} | set(sections.get("environment_variables", {}))
    told: set[str] = set()
    settings = sections.get("callback_settings", {})
    for path, name in _named(litellm):
        if name == "generic_api" or (path[1] != "callbacks" and _is_hook(settings.get(name))):
            source.warn(path, "E4204", "LiteLLM never calls it from here", _HOOK)
            continue
        guess = None if name in CALLBACKS or "." in name else closest(name, CALLBACKS, 0.8)
        if guess is not None and guess not in named_callbacks(litellm):
            source.warn(path, "E4204", f"LiteLLM has no callback {name!r}", f"Did you mean {guess}?")
        if name in told:
            continue
        told.add(name)
        if name in CALLBACKS - WITHOUT_TEXT and not _text_is_settled(litellm, sections.get("pointsman", {})):
            mend = "Say `turn_off_message_logging: true` (or `false`) under `litellm_settings`."
            source.warn(path, "E4204", f"{name} is sent prompts and answers, and nothing says that it may be", mend)
        if name == "langfuse":
            _check_sdk(source, path)
        missing = [] if secret_manager else _missing(name, known)
        if missing and not settings.get(name):
            wanted = " and ".join(" or ".join(group[:2]) for group in missing)
            hint = _PRINTED if name == "otel" else ""
            source.warn(
                path, "E4204", f"{name} is named, and {wanted} {_is(missing)} not set", f"{hint}export {missing[0][0]}=..."
            )
    _check_teams(source, litellm, known)


def _text_is_settled(litellm: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether the file says if callbacks may be sent prompts and answers; LiteLLM sends them where it is silent."""
    privacy = ours.get("privacy")
    capture = isinstance(privacy, dict) and privacy.get("capture_prompts") is True
    return capture or "turn_off_message_logging" in litellm


def _is_hook(settings: Any) -> bool:
    """Whether it is a web hook; LiteLLM puts such a one, named as success_callback, where nothing asynchronous is called."""
    return isinstance(settings, dict) and settings.get("callback_type") == "generic_api"


def _is(missing: list[tuple[str, ...]]) -> str:
    return "is" if len(missing) == 1 else "are"


def _missing(name: str, known: set[str]) -> list[tuple[str, ...]]:
    return [group for group in NEEDS.get(name, ()) if known.isdisjoint(group)]


def _named(settings: Mapping[str, Any], prefix: KeyPath = ("litellm_settings",)) -> Iterator[tuple[KeyPath, str]]:
    """Every callback that is named by text, with where; one alone may stand without a list."""
    for key in LISTS:
        value = settings.get(key)
        if isinstance(value, str):
            yield (*prefix, key), value
        elif isinstance(value, list):
            yield from (((*prefix, key, index), item) for index, item in enumerate(value) if isinstance(item, str))


def named_callbacks(settings: Mapping[str, Any]) -> set[str]:
    """Every callback that `litellm_settings` names by text."""
    return {name for _, name in _named(settings)}


def _check_sdk(source: Source, path: KeyPath) -> None:
    """LiteLLM leaves the sink out, with one line in the log, unless the right SDK is there."""
    low, high = LANGFUSE_SDK
    mend = "Name `langfuse_otel`, which needs no SDK, or install the extra `pointsman[langfuse]`."
    try:
        installed = version("langfuse")
    except PackageNotFoundError:
        source.warn(path, "E4204", "langfuse needs Langfuse's SDK, which is not installed", mend)
        return
    parts = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    if not low <= parts < high:
        source.warn(path, "E4204", f"langfuse works with Langfuse's SDK from 4.7 up to 5, and {installed} is installed", mend)


def _check_teams(source: Source, litellm: Mapping[str, Any], known: set[str]) -> None:
    """`default_team_settings`: keys that are not there, and a host that LiteLLM does not look at."""
    teams = litellm.get("default_team_settings")
    for index, team in enumerate(teams if isinstance(teams, list) else ()):
        if not isinstance(team, dict):
            continue
        path: KeyPath = ("litellm_settings", "default_team_settings", index)
        inner = team.get("callback_vars")
        given = inner if isinstance(inner, dict) else team
        for name in sorted({name for _, name in _named(team, path)} & {"langfuse", "langfuse_otel"}):
            secret = given.get("langfuse_secret_key") or given.get("langfuse_secret")
            if not (given.get("langfuse_public_key") and secret):
                message = f"{name} is named without langfuse_public_key and langfuse_secret_key"
                source.warn(path, "E4204", message, "Add the keys of the team's project, as `os.environ/NAME`.")
            elif name == "langfuse_otel" and given.get("langfuse_host") and name in named_callbacks(litellm):
                message = "LiteLLM sends to LANGFUSE_HOST instead where `langfuse_otel` is also the gateway's own callback"
                mend = "Use one Langfuse server for all teams of the file, or give this team its callback by the API."
                source.warn((*path, "langfuse_host"), "E4203", message, mend)
