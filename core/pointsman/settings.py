"""The typed `pointsman:` section of the YAML, with environment overrides, and the only place that reads the environment.

`POINTSMAN__SHUTDOWN__GRACE=5` overrides `pointsman.shutdown.grace`. Precedence: environment, then file, then default.
Unknown keys are refused here (`extra="forbid"`); `pointsman.litellm_config` turns that into a suggestion with file and line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

__all__ = [
    "ENVIRONMENT_PREFIX",
    "DecisionSettings",
    "PointsmanSettings",
    "PrivacySettings",
    "RoutingSettings",
    "S3Settings",
    "ShutdownSettings",
    "StrategySettings",
    "default_data_dir",
    "environment",
    "update_environment",
]

ENVIRONMENT_PREFIX = "POINTSMAN__"

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class S3Settings(_Section):
    """How to reach an S3 API. Credentials come from boto3's usual chain (environment, profile, role)."""

    endpoint_url: str | None = Field(None, description="URL of an S3-compatible store; AWS itself when absent.")
    region: str | None = Field(None, description="Region name.")
    connect_timeout: Seconds = Field(3.0, description="Seconds to wait for a connection.")
    read_timeout: Seconds = Field(10.0, description="Seconds to wait for bytes.")


class StrategySettings(_Section):
    """One learned strategy: where its bundle comes from and how it is checked."""

    source: str = Field(description="`s3://bucket/key` or a path / `file://` URL of a pointer (.json) or bundle (.zip).")
    kind: str | None = Field(None, description="Refuse bundles of another kind, e.g. `knn`.")
    hot_reload: bool = Field(True, description="Poll the source; off means: load once at start.")
    reload_interval: Seconds = Field(30.0, description="Seconds between two polls.")
    require_signature: bool = Field(True, description="Refuse pointers without a valid Ed25519 signature.")
    trusted_keys: dict[str, str] = Field(default_factory=dict, description="Key id -> base64 of the Ed25519 public key.")
    max_bytes: int = Field(256 * 2**20, gt=0, description="Largest bundle in bytes, checked before and while downloading.")
    llm_data_path: str | None = Field(None, description="LLMRouter's candidate metadata (JSON): name -> model, prices.")
    s3: S3Settings = S3Settings()


class RoutingSettings(_Section):
    """Which strategy decides for which model group."""

    default: str | None = Field(None, description="Strategy for every group of two or more deployments; none: LiteLLM's own.")
    groups: dict[str, str | None] = Field(default_factory=dict, description="Model group -> strategy, over the default.")
    deadline_ms: float = Field(50.0, gt=0, le=10_000, description="Past this a strategy is too slow and LiteLLM's choice holds.")
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
    queue_size: int = Field(10_000, gt=0, description="Records held in memory; more are dropped and counted.")
    batch_size: int = Field(500, gt=0, description="Rows a write.")
    flush_interval: Seconds = Field(1.0, description="Seconds between two writes.")
    retention_days: int = Field(30, gt=0, description="Daily partitions older than this are dropped.")


class PrivacySettings(_Section):
    """What may be remembered of a request."""

    capture_prompts: bool = Field(False, description="Keep prompt text in decision records.")


class PointsmanSettings(BaseSettings):
    """The whole section. Build it with `PointsmanSettings.load(section)`; environment variables override the file."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", nested_model_default_partial_update=True
    )

    strategies: dict[str, StrategySettings] = Field(default_factory=dict, description="Learned strategies by name.")
    routing: RoutingSettings = RoutingSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    decisions: DecisionSettings = DecisionSettings()
    privacy: PrivacySettings = PrivacySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over file; no .env here (`up` alone reads one, before this)."""
        return env_settings, init_settings

    @classmethod
    def load(cls, section: Mapping[str, Any] | None) -> PointsmanSettings:
        """Build the settings from the parsed `pointsman:` section.

        Raises:
            pydantic.ValidationError: with the location of each problem; callers that know the file add line numbers.
        """
        return cls(**dict(section or {}))


def environment() -> dict[str, str]:
    """A copy of the process environment; everything else in the package takes it as an argument."""
    return dict(os.environ)


def default_data_dir(env: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/pointsman`, by default `~/.local/share/pointsman` (XDG Base Directory Specification)."""
    base = env.get("XDG_DATA_HOME") or ""
    root = Path(base) if base.startswith("/") else Path(env.get("HOME") or "~").expanduser() / ".local" / "share"
    return root / "pointsman"


def update_environment(values: Mapping[str, str]) -> None:
    """Set variables of this process; a worker does it once, before LiteLLM reads its configuration."""
    os.environ.update(values)
