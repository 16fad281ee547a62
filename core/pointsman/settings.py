"""The typed `pointsman:` section of the YAML, with environment overrides, and the only place that reads the environment.

`POINTSMAN__SHUTDOWN__GRACE=5` overrides `pointsman.shutdown.grace`. Precedence: environment, then file, then default.
Unknown keys are refused here (`extra="forbid"`); `pointsman.litellm_config` turns that into a suggestion with file and line,
or with the variable's name. Every field has a description: `docs/configuration.md` is generated from them.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pointsman.cascade_settings import SOURCELESS_KINDS, CascadeSettings
from pointsman.errors import ConfigError
from pointsman.overrides import ENVIRONMENT_PREFIX, apply_overrides, read_overrides
from pointsman.policy_settings import EmbeddingRule, PolicySettings, TextSettings
from pointsman.resilience_settings import ResilienceSettings
from pointsman.telemetry_settings import TelemetrySettings

__all__ = [
    "ENVIRONMENT_PREFIX",
    "STRATEGY_NAME",
    "ConfigReloadSettings",
    "DecisionSettings",
    "LLMRouterSettings",
    "PointsmanSettings",
    "PrivacySettings",
    "ProcessSettings",
    "RoutingSettings",
    "S3Settings",
    "ShutdownSettings",
    "SpendSettings",
    "StrategySettings",
    "default_data_dir",
    "environment",
    "one_thread",
]

STRATEGY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A strategy's name stands in URLs, headers, metrics and file names."""


def _valid_source(value: str) -> str:
    """Check the shape only; whether something is there is the reloader's business, since it may come later."""
    if not value or value != value.strip() or "\0" in value:
        raise ValueError("a source is a path, a file:// URL or s3://bucket/key")
    scheme, separator, rest = value.partition("://")
    if not separator:
        return value
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        if not bucket or not key or key.endswith("/"):
            raise ValueError("an S3 source is s3://bucket/key, with the key of a pointer (.json) or bundle (.zip)")
    elif scheme == "file":
        if not rest.startswith("/"):
            raise ValueError("a file URL has three slashes and an absolute path: file:///srv/current.json")
    else:
        raise ValueError(f"{scheme}:// is not a source; use a path, a file:// URL or s3://bucket/key")
    return value


def _valid_public_key(value: str) -> str:
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise ValueError("a trusted key is the base64 of an Ed25519 public key, 32 bytes")
    return value


def _valid_endpoint(value: str) -> str:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("an endpoint is an http:// or https:// URL")
    return value


def _valid_strategy_name(value: str) -> str:
    if not STRATEGY_NAME.fullmatch(value):
        raise ValueError("a strategy's name is up to 64 letters, digits, dots, dashes and underscores")
    return value


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Source = Annotated[str, AfterValidator(_valid_source)]
PublicKey = Annotated[str, AfterValidator(_valid_public_key)]
Endpoint = Annotated[str, AfterValidator(_valid_endpoint)]
StrategyName = Annotated[str, AfterValidator(_valid_strategy_name)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class S3Settings(_Section):
    """How to reach an S3 API. Credentials come from boto3's usual chain (environment, profile, role)."""

    endpoint_url: Endpoint | None = Field(None, description="URL of an S3-compatible store; AWS itself when absent.")
    region: str | None = Field(None, description="Region name.")
    connect_timeout: Seconds = Field(3.0, description="Seconds to wait for a connection.")
    read_timeout: Seconds = Field(10.0, description="Seconds to wait for bytes.")


class ProcessSettings(_Section):
    """The process of its own in which a strategy runs that is not part of the gateway."""

    python: str | None = Field(
        None, description="Interpreter to run it with, e.g. of an environment that has torch; none: the gateway's own."
    )
    memory_mb: int = Field(
        8_192, ge=64, le=4_194_304, description="MiB that it may have resident, its children counted; past this it is killed."
    )
    deadline_ms: float = Field(
        2_000.0, gt=0, le=600_000, description="Milliseconds that one query may take it; past this it hangs, and is killed."
    )
    start_s: Seconds = Field(300.0, description="Seconds that it may take to load.")
    idle_s: Seconds | None = Field(None, description="Seconds without a query after which it is stopped; none: never.")
    max_queue: int = Field(64, gt=0, le=10_000, description="Queries that may wait for it; more fall back at once.")
    warm_up: bool = Field(True, description="Start it with the gateway; off: at the first query.")


class LLMRouterSettings(ProcessSettings):
    """LLMRouter itself, in a process of its own: its code, its files, its loader of pickles; nothing of it in the gateway."""

    config: str = Field(
        min_length=1,
        description="LLMRouter's YAML file for the router. Relative paths in it count from its own directory.",
    )


class StrategySettings(_Section):
    """One learned strategy: where its bundle comes from and how it is checked, or how else it is served."""

    source: Source | None = Field(
        None,
        description="`s3://bucket/key` or a path / `file://` URL of a pointer (.json) or bundle (.zip). "
        "A relative path counts from the YAML file's directory. Needed where a strategy is served from a bundle.",
    )
    kind: str | None = Field(None, description="Refuse bundles of another kind, e.g. `knn`.")
    hot_reload: bool = Field(True, description="Poll the source; off means: load once at start.")
    reload_interval: Seconds = Field(30.0, description="Seconds between two polls.")
    require_signature: bool = Field(
        True,
        description="Refuse pointers without a valid Ed25519 signature. Where absent: `pointsman.require_signature`.",
    )
    trusted_keys: dict[str, PublicKey] = Field(default_factory=dict, description="Key id -> base64 of the Ed25519 public key.")
    max_bytes: int = Field(
        256 * 2**20, gt=0, le=64 * 2**30, description="Largest bundle in bytes, checked before and while downloading."
    )
    llm_data_path: str | None = Field(None, description="LLMRouter's candidate metadata (JSON): name -> model, prices.")
    llmrouter: LLMRouterSettings | None = Field(
        None, description="Serve it by LLMRouter itself, in a process of its own, and from no bundle."
    )
    entry_point: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Of kind `custom`: name of an entry point in the group `pointsman.strategies`.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Of kind `custom`: what its factory is called with.")
    allow_signed_code: bool = Field(
        False, description="Of kind `custom`: take code from `source`, as a signed wheel that runs in a process of its own."
    )
    process: ProcessSettings = Field(
        default_factory=ProcessSettings, description="Of kind `custom` from a signed wheel: the process that it runs in."
    )
    s3: S3Settings = Field(default_factory=S3Settings, description="How to reach the S3 API.")
    policy: PolicySettings | None = Field(None, description="How its scores become a choice; none: `routing.policy`.")
    text: TextSettings = Field(default_factory=TextSettings, description="What of a request it reads.")
    cascade: CascadeSettings = Field(
        default_factory=CascadeSettings, description="For the kinds that call models: `automix` and `*-multiround`."
    )

    @model_validator(mode="after")
    def _source_by_kind(self) -> Self:
        """A bundle comes from somewhere; what is served otherwise comes from nowhere."""
        otherwise = self.kind in SOURCELESS_KINDS or self.llmrouter is not None or self.entry_point is not None
        if self.source is None and not otherwise:
            missing = InitErrorDetails(type="missing", loc=("source",), input=None)
            raise ValidationError.from_exception_data(type(self).__name__, [missing])
        if self.source is not None and self.kind in SOURCELESS_KINDS:
            reason = PydanticCustomError("value_error", "a strategy of this kind has no bundle, so it takes no source")
            extra = InitErrorDetails(type=reason, loc=("source",), input=self.source)
            raise ValidationError.from_exception_data(type(self).__name__, [extra])
        return self


class RoutingSettings(_Section):
    """Which strategy decides for which model group."""

    default: str | None = Field(None, description="Strategy for every group of two or more deployments; none: LiteLLM's own.")
    groups: dict[str, str | None] = Field(
        default_factory=dict, description="Model group -> strategy, over the default; `null`: LiteLLM's own choice."
    )
    deadline_ms: float = Field(
        50.0, gt=0, le=10_000, description="Milliseconds; past this a strategy is too slow and LiteLLM's choice holds."
    )
    policy: PolicySettings = Field(
        default_factory=PolicySettings, description="How scores become a choice, for strategies that do not say."
    )
    embeddings: dict[str, tuple[EmbeddingRule, ...]] = Field(
        default_factory=dict,
        description="Model group -> rules for embeddings, the first that holds: `{deployment, over_tokens, script}`.",
    )
    candidates: dict[str, str] = Field(
        default_factory=dict, description="Bundle's candidate name -> deployment's `litellm_params.model` or `model_info.id`."
    )


class ShutdownSettings(_Section):
    """How the gateway stops."""

    not_ready: float = Field(1.0, ge=0, le=600, description="Seconds of answering 503 on readiness while still accepting.")
    grace: float = Field(30.0, ge=0, le=3_600, description="Seconds in which requests in flight may finish; then they are cut.")


class DecisionSettings(_Section):
    """The store of decisions, attempts and outcomes."""

    enabled: bool = Field(True, description="Keep them in Postgres (needs a database).")
    queue_size: int = Field(10_000, gt=0, le=10_000_000, description="Records held in memory; more are dropped and counted.")
    batch_size: int = Field(500, gt=0, le=10_000, description="Rows a write.")
    flush_interval: Seconds = Field(1.0, description="Seconds between two writes.")
    retention_days: int = Field(30, gt=0, le=3_650, description="Daily partitions older than this are dropped.")


class SpendSettings(_Section):
    """What LiteLLM was told to book and has not written yet."""

    journal: bool = Field(
        True,
        description="Keep it in the data directory too, so that a worker that is killed loses nothing (needs a database).",
    )
    journal_mb: int = Field(64, ge=1, le=65_536, description="MiB of it that a worker keeps; what comes past that is not kept.")


class PrivacySettings(_Section):
    """What may be remembered of a request."""

    capture_prompts: bool = Field(False, description="Keep prompt text in decision records and log lines.")
    redact: tuple[str, ...] = Field(
        (), description="Regular expressions; what fits one is replaced in every log record, as secrets always are."
    )

    @field_validator("redact")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                empty = re.compile(pattern).fullmatch("") is not None
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
            if empty:
                raise ValueError(f"{pattern!r} fits the empty text, and so everywhere")
        return value


class ConfigReloadSettings(_Section):
    """Whether a changed YAML file is taken up while running."""

    enabled: bool = Field(True, description="Watch the YAML file and its includes for changed models.")
    interval: Seconds = Field(2.0, description="Seconds between two looks at the files.")


class PointsmanSettings(_Section):
    """The whole section. Build it with `PointsmanSettings.load(section, env)`; environment variables override the file."""

    require_signature: bool = Field(
        True, description="What `require_signature` is for every strategy that does not say. Off in the profile `local` only."
    )
    encoders_dir: str | None = Field(
        None,
        description="Directory of encoders' files that bundles name and do not hold; each is called by its sha256. "
        "A relative path counts from the YAML file's directory.",
    )
    strategies: dict[StrategyName, StrategySettings] = Field(default_factory=dict, description="Learned strategies by name.")
    routing: RoutingSettings = Field(default_factory=RoutingSettings, description="Which strategy decides for which group.")
    resilience: ResilienceSettings = Field(
        default_factory=ResilienceSettings, description="What keeps it answering while upstreams fail."
    )
    shutdown: ShutdownSettings = Field(default_factory=ShutdownSettings, description="How the gateway stops.")
    decisions: DecisionSettings = Field(default_factory=DecisionSettings, description="The store of decisions.")
    spend: SpendSettings = Field(default_factory=SpendSettings, description="What requests cost, until it is written.")
    privacy: PrivacySettings = Field(default_factory=PrivacySettings, description="What may be remembered of a request.")
    config_reload: ConfigReloadSettings = Field(
        default_factory=ConfigReloadSettings, description="Taking up a changed YAML file while running."
    )
    telemetry: TelemetrySettings = Field(
        default_factory=TelemetrySettings, description="What the gateway tells of itself, and where to."
    )

    @model_validator(mode="before")
    @classmethod
    def _signature_default(cls, data: Any) -> Any:
        """Give each silent strategy the section's `require_signature`, so that readers of a strategy need not know of it."""
        if not isinstance(data, Mapping) or "require_signature" not in data:
            return data
        strategies = data.get("strategies")
        if not isinstance(strategies, Mapping):
            return data
        default = {"require_signature": data["require_signature"]}
        filled = {name: {**default, **item} if isinstance(item, Mapping) else item for name, item in strategies.items()}
        return {**data, "strategies": filled}

    @classmethod
    def load(cls, section: Mapping[str, Any] | None, env: Mapping[str, str] | None = None) -> PointsmanSettings:
        """Build the settings from the parsed `pointsman:` section and the environment's overrides.

        Args:
            section: as parsed from YAML; None counts as empty.
            env: variables beginning with `POINTSMAN__` override the section; others are ignored.

        Raises:
            ConfigError: E4202, E4203: a variable names no setting or has no usable form.
            pydantic.ValidationError: with the location of each problem; callers that know the file add line numbers.
        """
        overrides, problems = read_overrides(env or {}, cls, section or {})
        for problem in problems:
            raise ConfigError(problem.message, code=problem.code, where=problem.variable, mend=problem.mend)
        return cls.model_validate(apply_overrides(section or {}, overrides))


def environment(dotenv: Path | None = None) -> dict[str, str]:
    """A copy of the process environment; everything else in the package takes it as an argument.

    Args:
        dotenv: a `.env` file to read into the environment first, where there is one; what is set already wins. Into the
            environment itself, because libraries (boto3's credentials) look there.
    """
    if dotenv is not None and dotenv.is_file():
        from dotenv import load_dotenv

        load_dotenv(dotenv, override=False)
    return dict(os.environ)


def one_thread() -> None:
    """Let linear algebra use one thread, as the gateway's workers do. Of use only before NumPy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def default_data_dir(env: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/pointsman`, by default `~/.local/share/pointsman` (XDG Base Directory Specification)."""
    base = env.get("XDG_DATA_HOME") or ""
    root = Path(base) if base.startswith("/") else Path(env.get("HOME") or "~").expanduser() / ".local" / "share"
    return root / "pointsman"
