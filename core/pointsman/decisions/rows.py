"""Records as rows: what goes into which column of the tables of `0002_decisions.sql` and `0004_policy.sql`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, LiteralString, TypeAlias

import orjson
from psycopg import sql

from pointsman.decisions.types import Attempt, Decision, Outcome

__all__ = ["Record", "encode", "inserts", "row"]

Record: TypeAlias = Decision | Attempt | Outcome
_INTEGER = 2**31 - 1
_BIGINT = 2**63 - 1

_COLUMNS: dict[type[Record], tuple[str, tuple[tuple[str, LiteralString], ...]]] = {
    Decision: (
        "pointsman_decisions",
        (
            ("decision_id", "text"),
            ("created_at", "timestamptz"),
            ("request_id", "text"),
            ("trace_id", "text"),
            ("key_hash", "text"),
            ("team_id", "text"),
            ("user_id", "text"),
            ("model_group", "text"),
            ("strategy", "text"),
            ("version", "text"),
            ("variant", "text"),
            ("scores", "jsonb"),
            ("dropped", "jsonb"),
            ("ranking", "jsonb"),
            ("model", "text"),
            ("policy", "text"),
            ("microseconds", "bigint"),
            ("fallback", "text"),
            ("prompt", "text"),
            ("propensity", "double precision"),
            ("chosen_by", "text"),
            ("scale", "text"),
            ("detail", "jsonb"),
        ),
    ),
    Attempt: (
        "pointsman_attempts",
        (
            ("decision_id", "text"),
            ("number", "integer"),
            ("created_at", "timestamptz"),
            ("deployment_id", "text"),
            ("model", "text"),
            ("outcome", "text"),
            ("error", "text"),
            ("status", "integer"),
            ("latency_ms", "double precision"),
        ),
    ),
    Outcome: (
        "pointsman_outcomes",
        (
            ("decision_id", "text"),
            ("created_at", "timestamptz"),
            ("status", "text"),
            ("deployment_id", "text"),
            ("prompt_tokens", "bigint"),
            ("completion_tokens", "bigint"),
            ("cost", "double precision"),
            ("latency_ms", "double precision"),
            ("feedback", "double precision"),
        ),
    ),
}


def _insert(schema: str, table: str, columns: tuple[tuple[str, LiteralString], ...]) -> sql.Composed:
    names = sql.SQL(", ").join(sql.Identifier(name) for name, _ in columns)
    typed = sql.SQL(", ").join(sql.SQL("{} " + kind).format(sql.Identifier(name)) for name, kind in columns)
    # One parameter a batch, whatever its size; one round trip, one plan.
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM jsonb_to_recordset(%s::jsonb) AS r({}) ON CONFLICT DO NOTHING").format(
        sql.Identifier(schema, table),
        names,
        names,
        typed,
    )


def inserts(schema: str) -> dict[type[Record], sql.Composed]:
    """For each kind of record, the statement that writes a batch (one parameter, see `encode`) into our tables in `schema`.

    The name is in the statement: behind a pooler in transaction mode no search path lasts.
    """
    return {kind: _insert(schema, *table) for kind, table in _COLUMNS.items()}


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError, OSError):  # no such date; the record is worth more than its time
        return datetime.fromtimestamp(0, UTC).isoformat()


def _number(value: float | None) -> float | None:
    """JSON has no NaN or infinity; both mean "not known" here."""
    return value if value is not None and math.isfinite(value) else None


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _whole(value: int, limit: int) -> int:
    return max(-limit, min(int(value), limit))


def row(record: Record) -> dict[str, Any]:
    """One record as column -> JSON value."""
    if isinstance(record, Decision):
        return {
            "decision_id": record.decision_id,
            "created_at": _time(record.created_at),
            "request_id": record.request_id,
            "trace_id": record.trace_id,
            "key_hash": record.key_hash,
            "team_id": record.team_id,
            "user_id": record.user_id,
            "model_group": record.group,
            "strategy": record.strategy,
            "version": record.version,
            "variant": record.variant,
            "scores": {name: _number(float(score)) for name, score in record.scores.items()},
            "dropped": [{"deployment_id": one.deployment_id, "reason": one.reason} for one in record.dropped],
            "ranking": list(record.order),
            "model": record.model,
            "policy": record.policy,
            "microseconds": _whole(record.microseconds, _BIGINT),
            "fallback": record.fallback,
            "prompt": record.prompt,
            "propensity": _number(record.propensity),
            "chosen_by": record.chosen_by,
            "scale": record.scale,
            "detail": None if record.detail is None else _finite(dict(record.detail)),
        }
    if isinstance(record, Attempt):
        return {
            "decision_id": record.decision_id,
            "number": _whole(record.number, _INTEGER),
            "created_at": _time(record.created_at),
            "deployment_id": record.deployment_id,
            "model": record.model,
            "outcome": record.outcome,
            "error": record.error,
            "status": None if record.status is None else _whole(record.status, _INTEGER),
            "latency_ms": _number(record.latency_ms),
        }
    return {
        "decision_id": record.decision_id,
        "created_at": _time(record.created_at),
        "status": record.status,
        "deployment_id": record.deployment_id,
        "prompt_tokens": _whole(record.prompt_tokens, _BIGINT),
        "completion_tokens": _whole(record.completion_tokens, _BIGINT),
        "cost": _number(record.cost) or 0.0,
        "latency_ms": _number(record.latency_ms),
        "feedback": _number(record.feedback),
    }


def _clean(value: Any) -> Any:
    """Without what a Postgres text cannot hold: NUL, lone surrogates."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value


def encode(records: list[Record]) -> str:
    """Records of one kind as the JSON array that the statements of `inserts` take.

    Raises:
        Exception: whatever a record with fields of wrong types provokes.
    """
    rows = [row(record) for record in records]
    try:
        text = orjson.dumps(rows).decode()
    except orjson.JSONEncodeError:
        return orjson.dumps(_clean(rows)).decode()
    return orjson.dumps(_clean(rows)).decode() if "\\u0000" in text else text
