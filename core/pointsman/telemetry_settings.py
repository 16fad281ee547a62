"""What the gateway tells of itself, and where to: the section `pointsman.telemetry`. Part of `pointsman.settings`.

Without the section it costs next to nothing: log lines go to standard output, and nothing leaves the machine.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["LogSettings", "MetricsOtlpSettings", "MetricsSettings", "OtlpSettings", "TelemetrySettings", "TraceSettings"]


def _valid_collector(value: str) -> str:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("a collector is an http:// or https:// URL")
    return value


Collector = Annotated[str, AfterValidator(_valid_collector)]
Level = Literal["debug", "info", "warning", "error"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OtlpSettings(_Part):
    """A collector that speaks OTLP, and how much may wait for it."""

    endpoint: Collector = Field(description="Base URL, as in `http://collector:4318` (HTTP) or `http://collector:4317` (gRPC).")
    protocol: Literal["http", "grpc"] = Field("http", description="OTLP over HTTP (protobuf) or over gRPC.")
    headers: dict[str, str] = Field(default_factory=dict, description="Sent with each export, e.g. the collector's key.")
    timeout: float = Field(5.0, gt=0, le=60, description="Seconds that one export may take.")
    queue_size: int = Field(
        10_000, gt=0, le=1_000_000, description="Records that may wait; the oldest are dropped, and counted."
    )
    batch_size: int = Field(512, gt=0, le=10_000, description="Records of one export.")
    interval: float = Field(1.0, gt=0, le=60, description="Seconds between two exports.")


class LogSettings(_Part):
    """Log lines: of the gateway, of LiteLLM and of the server, of workers and supervisor alike."""

    format: Literal["auto", "json", "text"] = Field(
        "auto", description="One JSON object a line, or text for people; `auto`: text of `pointsman up`, else JSON."
    )
    level: Level = Field("info", description="Least level of the gateway's own records. `POST /pointsman/logs` changes it.")
    library_level: Level = Field(
        "warning", description="Least level of LiteLLM's records and of other libraries'. `LITELLM_LOG` where not set."
    )
    provider_messages: bool = Field(
        False,
        description="Tell what libraries and providers say of a request that goes wrong. Without it their class, status and "
        "stack trace are told and their words are not, because they may quote the prompt.",
    )
    queue_size: int = Field(
        10_000, gt=0, le=1_000_000, description="Lines that may wait for standard output; the oldest are dropped, and counted."
    )
    otlp: OtlpSettings | None = Field(None, description="Send the records to a collector as well.")


class MetricsOtlpSettings(_Part):
    """A collector that takes our metrics by OTLP; one worker sends those of all."""

    endpoint: Collector = Field(description="Base URL, as in `http://collector:4318` (HTTP) or `http://collector:4317` (gRPC).")
    protocol: Literal["http", "grpc"] = Field("http", description="OTLP over HTTP (protobuf) or over gRPC.")
    headers: dict[str, str] = Field(default_factory=dict, description="Sent with each export, e.g. the collector's key.")
    timeout: float = Field(5.0, gt=0, le=60, description="Seconds that one export may take.")
    interval: float = Field(30.0, ge=1, le=3_600, description="Seconds between two exports.")


class MetricsSettings(_Part):
    """Metrics. The callback `prometheus` opens `/metrics`; this is for who wants them sent."""

    otlp: MetricsOtlpSettings | None = Field(None, description="Send our metrics to a collector as well.")


class TraceSettings(_Part):
    """Spans, where the callback `otel` (or an `OTEL_` variable) asks for them: which requests are told of."""

    ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the traces that begin here which is kept, by the trace id, so that every service of "
        "a trace decides alike. `OTEL_TRACES_SAMPLER` wins where it is set.",
    )
    parent: bool = Field(
        True, description="A client's `traceparent` decides whether its trace is kept; off: `ratio` decides for every request."
    )
    failures: bool = Field(
        False,
        description="Keep every trace with a failed attempt, a failed request or a strategy that could not decide, whatever "
        "`ratio` and parent say. Every request is recorded for it then, and held in memory until it ends.",
    )
    max_spans: int = Field(
        20_000,
        ge=100,
        le=1_000_000,
        description="Of `failures`: spans held in each worker; past that the oldest trace is decided on.",
    )
    max_age: float = Field(
        300.0, ge=1, le=86_400, description="Of `failures`: seconds after which a trace is decided on, though it goes on."
    )
    propagate: bool = Field(
        True, description="Send `traceparent` to the providers, so that their spans stand under the attempt."
    )


class TelemetrySettings(_Part):
    """What the gateway tells of itself."""

    traces: TraceSettings = Field(default_factory=TraceSettings, description="Spans.")

    metrics: MetricsSettings = Field(default_factory=MetricsSettings, description="Metrics.")
    logs: LogSettings = Field(default_factory=LogSettings, description="Log lines.")
    forward_request_id: bool = Field(
        True, description="Send `x-request-id` to the providers, with each call that LiteLLM gives headers to."
    )
