"""The fields of a log line: the part of the table of telemetry (`pointsman.callbacks.names`) that lines are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["LOG_FIELDS", "Field", "FieldType"]

FieldType = Literal["string", "int", "double", "mapping"]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a JSON log line, and an attribute of the same name over OTLP where it is no part of the record itself.

    Attributes:
        name: key in the line.
        type: see `FieldType`.
        meaning: one sentence.
    """

    name: str
    type: FieldType
    meaning: str


def _by_name(*rows: Field) -> Mapping[str, Field]:
    return {row.name: row for row in rows}


LOG_FIELDS: Mapping[str, Field] = _by_name(
    Field("timestamp", "string", "When, RFC 3339 in UTC."),
    Field("level", "string", "`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`."),
    Field("logger", "string", "Who says it, e.g. `pointsman.reloader`, `LiteLLM Proxy`; `printed`: written to the terminal."),
    Field("message", "string", "What it says. Of a library within a request the constant part alone, `…` for the rest."),
    Field("trace_id", "string", "Trace that it belongs to, 32 hexadecimal digits."),
    Field("span_id", "string", "Span that was open, 16 hexadecimal digits."),
    Field("request_id", "string", "The request's id, as in `x-request-id`."),
    Field("decision_id", "string", "The request's routing decision, as in `x-pointsman-decision-id`."),
    Field("key_alias", "string", "Alias of the key that asks."),
    Field("team", "string", "Its team, by alias or else by id."),
    Field("process", "string", "`supervisor` or `worker-N`."),
    Field("source", "string", "File and line that made the record, where not all of it is told."),
    # Of an error. Over OTLP they have the names that OpenTelemetry gives an exception.
    Field("error_type", "string", "Class of the error, or LiteLLM's word for the caller's mistake. OTLP: `exception.type`."),
    Field("error_message", "string", "Its words, where they may be told. OTLP: `exception.message`."),
    Field("stack", "string", "Its stack trace, the first cause first. OTLP: `exception.stacktrace`."),
    # Of an answer that is an error.
    Field("method", "string", "HTTP method."),
    Field("path", "string", "Path without the query."),
    Field("status", "int", "HTTP status: the answer's, or that of the error of an attempt."),
    Field("duration_ms", "double", "Milliseconds until the answer began; of an outcome, the whole request."),
    # Of a decision, an attempt, an outcome.
    Field("group", "string", "Model group that was asked for."),
    Field("strategy", "string", "Strategy that decided, or `litellm`."),
    Field("strategy_version", "string", "Version of its bundle."),
    Field("variant", "string", "`live`, `shadow` or `canary`."),
    Field("model", "string", "`litellm_params.model` of the deployment."),
    Field("deployment", "string", "Deployment id."),
    Field("policy", "string", "How scores became a choice."),
    Field("chosen_by", "string", "Who chose the strategy."),
    Field("fallback", "string", "Why a configured strategy did not decide."),
    Field("propensity", "double", "Probability with which the pick was to be picked."),
    Field("scores", "mapping", "Deployment id -> score."),
    Field("dropped", "mapping", "Deployment id -> why it was no candidate."),
    Field("microseconds", "int", "Time that the decision took."),
    Field("prompt", "string", "The request's text, only with `privacy.capture_prompts`."),
    Field("attempt", "int", "1 for the first try of the request."),
    Field("outcome", "string", "`success` or `failure`."),
    Field("prompt_tokens", "int", "As LiteLLM counted them."),
    Field("completion_tokens", "int", "As LiteLLM counted them."),
    Field("cost", "double", "US dollars."),
    # Of the start.
    Field("version", "string", "Version of Pointsman."),
    Field("litellm_version", "string", "Version of LiteLLM."),
    Field("profile", "string", "Profile that runs, or `none`: a file of the operator's own."),
    Field("config", "string", "The configuration's file."),
    Field("url", "string", "Where it listens."),
    Field("workers", "int", "Processes that serve."),
    Field("strategies", "mapping", "Strategy -> kind, version and whether it is degraded."),
    Field("routes", "mapping", "Model group -> strategy, or `litellm`."),
    Field("limits", "mapping", "Limits that are set: deadline, time-outs, retries, budgets, sizes."),
)
