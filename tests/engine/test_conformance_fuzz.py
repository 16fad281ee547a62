"""No query ends the engine, whatever is in it: a panic of the one engine takes every worker's queries down."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prisma import errors

from engine.conformance_schema import models
from engine.harness import eventually

_WORDS = """equals not in path set push has create connect update upsert data where AND OR is some increment mode take _count
array_contains string_contains deleteMany updateMany createMany"""
WORDS = st.sampled_from(_WORDS.split())
NAMES = st.sampled_from(sorted({name for model in models().values() for name in (*model.columns, *model.relations)}))
TEXTS = st.text(max_size=10) | st.sampled_from(
    [
        "NaN",
        "{}",
        "[",
        "null",
        '"\\ud800"',
        "1e999",
        "2026-05-01T00:00:00Z",
        "9" * 30,
        "asc",
        "JsonNull",
        "AP8=",
        "\x00",
        "[" * 130,
    ]
)
LEAVES = (
    TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False))
    | st.integers().map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.sampled_from(["true", "false", "null", "DbNull", "AnyNull", "NaN", "9" * 40, "-1", "1e400", "[]", "{}"])
)


def _object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in dict(pairs).items()) + "}"


VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(WORDS | NAMES, inner), max_size=4).map(_object)
    ),
    max_leaves=10,
)


ARGUMENTS = {
    "findMany": ["where", "orderBy", "cursor"],
    "findFirst": ["where"],
    "findUnique": ["where"],
    "createOne": ["data"],
    "updateOne": ["where", "data"],
    "upsertOne": ["where", "create", "update"],
    "deleteOne": ["where"],
    "groupBy": ["where", "having"],
}


@st.composite
def queries(draw: st.DrawFn) -> str:
    """A query with arguments that mostly make no sense, on columns that are there."""
    model = draw(st.sampled_from(sorted(models().values(), key=lambda one: one.name)))
    columns = [*model.columns, *model.relations]
    fields = st.lists(st.tuples(st.sampled_from(columns), VALUES), min_size=1, max_size=3).map(_object)
    action = draw(st.sampled_from(sorted(ARGUMENTS)))
    arguments = ARGUMENTS[action]
    parts = [f"{name}: {draw(fields)}" for name in arguments] + (
        ["by: [" + json.dumps(columns[0]) + "]"] if action == "groupBy" else []
    )
    # A missing row should be the exception, so the key is right most of the time.
    if "where" in arguments and draw(st.booleans()):
        parts[0] = f"where: {{{columns[0]}: {draw(VALUES)}}}"
    return f"query {{ result: {action}{model.name}({', '.join(parts)}) {{ {draw(st.sampled_from(columns))} }} }}"


RAW = st.tuples(
    st.sampled_from(["$1", "$1::jsonb", "$1::int", "$1::text[]", "$1::timestamp", "$1::bytea", "$1::numeric"]), TEXTS | LEAVES
)


async def _survives(engine: Any, client: Any, text: str) -> None:
    # After a failure Hypothesis asks again, simpler; the engine must be back for that.
    await asyncio.to_thread(eventually, lambda: engine.engine.status()["state"] == "ready", what="the engine")
    before = engine.engine.status()["restarts"]
    try:
        with suppress(errors.PrismaError, UnicodeEncodeError):  # refused, by the engine or by the client
            await client._engine.query(json.dumps({"query": text}), tx_id=None)
    except httpx.TransportError as error:
        pytest.fail(f"ended the engine ({error!r}): {text}")
    assert engine.engine.status()["restarts"] == before, text


@pytest.mark.slow("conformance")
@pytest.mark.conformance("Robustness", "no query ends the engine")
@settings(max_examples=3000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(text=queries())
async def test_random_queries(engine: Any, client: Any, text: str) -> None:
    await _survives(engine, client, text)


@pytest.mark.slow("conformance")
@pytest.mark.conformance("Robustness", "no query ends the engine")
@settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(raw=RAW)
async def test_random_parameters(engine: Any, client: Any, raw: tuple[str, str]) -> None:
    expression, parameters = raw
    for given_ in (parameters, f"[{parameters}]"):
        sent = json.dumps(given_, ensure_ascii=False)
        text = f'mutation {{ result: queryRaw(query: "SELECT {expression} AS a", parameters: {sent}) }}'
        await _survives(engine, client, text)
