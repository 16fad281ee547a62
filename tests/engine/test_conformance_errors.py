"""Every failure has Prisma's code, prisma-client-py's class, and the place in LiteLLM's own classification that it must have.

Codes: https://www.prisma.io/docs/orm/reference/error-reference . LiteLLM decides by them between retry, 400, 401 and 503
(litellm/proxy/db/exception_handler.py); what is reachable and merely wrong must never look like a dead database.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from litellm.proxy.db.exception_handler import PrismaDBExceptionHandler as Handler
from prisma import errors
from prisma.engine.errors import EngineError


def is_the_callers(error: Exception) -> bool:
    """Whether LiteLLM takes it for a fault of the request: no reconnect, no 503."""
    return not (
        Handler.is_database_transport_error(error)
        or Handler.is_database_service_unavailable_error(error)
        or Handler.is_database_connection_error(error)
        or Handler.is_prisma_engine_internal_error(error)
    )


@pytest.mark.conformance("Errors", "P2002 unique")
async def test_unique(client: Any, tag: str) -> None:
    for row, fields in (
        ({"user_id": tag}, ["user_id"]),
        ({"user_id": f"{tag}-1", "sso_user_id": tag}, ["sso_user_id"]),
    ):
        await client.litellm_usertable.create(data=row)
        again = {**row, "user_id": f"{tag}-2"} if "sso_user_id" in row else row
        with pytest.raises(errors.UniqueViolationError) as caught:
            await client.litellm_usertable.create(data=again)
        assert (caught.value.code, caught.value.meta) == ("P2002", {"target": fields})
        assert is_the_callers(caught.value)
    pair = {"user_id": tag, "team_id": tag}
    with pytest.raises(errors.UniqueViolationError) as caught:
        await client.litellm_teammembership.create_many(data=[pair, pair])
    assert caught.value.meta == {"target": ["user_id", "team_id"]}
    with pytest.raises(errors.UniqueViolationError):
        await client.litellm_usertable.update(where={"user_id": f"{tag}-1"}, data={"user_id": tag})


@pytest.mark.conformance("Errors", "P2003 foreign key")
async def test_foreign_key(client: Any, tag: str) -> None:
    with pytest.raises(errors.ForeignKeyViolationError) as caught:
        await client.litellm_teammembership.create(data={"user_id": tag, "team_id": tag, "budget_id": "none"})
    assert caught.value.code == "P2003"
    assert caught.value.meta == {"field_name": "LiteLLM_TeamMembership_budget_id_fkey (index)"}
    assert is_the_callers(caught.value)
    await client.litellm_workflowrun.create(
        data={
            "run_id": tag,
            "workflow_type": "t",
            "events": {"create": [{"event_type": "e", "step_name": "s", "sequence_number": 1}]},
        }
    )
    with pytest.raises(errors.ForeignKeyViolationError) as caught:
        await client.litellm_workflowrun.delete(where={"run_id": tag})
    assert caught.value.meta == {"field_name": "LiteLLM_WorkflowEvent_run_id_fkey (index)"}


@pytest.mark.conformance("Errors", "P2025 not found")
async def test_not_found(client: Any, tag: str) -> None:
    nobody = {"user_id": tag}
    assert await client.litellm_usertable.update(where=nobody, data={"spend": 1}) is None
    assert await client.litellm_usertable.delete(where=nobody) is None
    for method in ("find_unique_or_raise", "find_first_or_raise"):
        with pytest.raises(errors.RecordNotFoundError) as caught:
            await getattr(client.litellm_usertable, method)(where=nobody)
        assert caught.value.code == "P2025"
        assert is_the_callers(caught.value)
    with pytest.raises(errors.RecordNotFoundError) as caught:
        await client.litellm_usertable.create(
            data={**nobody, "object_permission": {"connect": {"object_permission_id": "none"}}}
        )
    assert "cause" in caught.value.meta


INVALID: list[tuple[str, str, dict[str, Any], type[Exception]]] = [
    ("litellm_usertable", "find_first", {"where": {"nothing": 1}}, errors.FieldNotFoundError),
    ("litellm_usertable", "find_unique", {"where": {"spend": 1}}, errors.FieldNotFoundError),
    ("litellm_usertable", "find_unique", {"where": {}}, errors.FieldNotFoundError),
    ("litellm_usertable", "create", {"data": {"user_id": "a", "nothing": 1}}, errors.FieldNotFoundError),
    ("litellm_usertable", "create", {"data": {"user_id": 5}}, errors.FieldNotFoundError),
    ("litellm_usertable", "create", {"data": {"user_id": "a", "blocked": "yes"}}, errors.FieldNotFoundError),
    ("litellm_usertable", "create", {"data": {"user_id": "a", "budget_reset_at": "tomorrow"}}, errors.DataError),
    ("litellm_usertable", "create", {"data": {"user_id": "a", "max_parallel_requests": True}}, errors.DataError),
    ("litellm_usertable", "create", {"data": {"user_id": "a", "tpm_limit": 1.5}}, errors.DataError),
    ("litellm_usertable", "find_many", {"order": {"nothing": "asc"}}, errors.FieldNotFoundError),
    ("litellm_usertable", "find_many", {"where": {"user_id": {"nothing": "a"}}}, errors.DataError),
    ("litellm_managedfilecontenttable", "create", {"data": {"id": "a", "content": "no base 64!"}}, errors.DataError),
    ("litellm_proxymodeltable", "create", {"data": {"model_name": "a"}}, errors.MissingRequiredValueError),
    ("litellm_usertable", "create", {"data": {"user_id": None}}, errors.MissingRequiredValueError),
    ("litellm_usertable", "create", {"data": {}}, errors.MissingRequiredValueError),
]


@pytest.mark.conformance("Errors", "P2009, P2012 validation")
async def test_validation(client: Any) -> None:
    """What is missing is told from what is unknown by the message, as the client does it; nothing reaches the database."""
    for table, method, arguments, expected in INVALID:
        with pytest.raises(errors.DataError) as caught:
            await getattr(getattr(client, table), method)(**arguments)
        assert caught.value.code in {"P2009", "P2012"}, arguments
        assert isinstance(caught.value, expected), (arguments, type(caught.value))
        assert is_the_callers(caught.value)
    for text in ("nonsense {", "query { result: findManyNothing { a } }", "query { result: findManyLiteLLM_Config { ...F } }"):
        with pytest.raises(errors.FieldNotFoundError):
            await client._engine.query(json.dumps({"query": text}), tx_id=None)


@pytest.mark.conformance("Errors", "P2010 raw queries, with the SQLSTATE")
async def test_raw(client: Any) -> None:
    for query, values, state in (
        ("SELEC 1", [], "42601"),
        ("SELECT 1/0", [], "22012"),
        ('SELECT nothing FROM "LiteLLM_Config"', [], "42703"),
        ('SELECT * FROM "Nothing"', [], "42P01"),
        ("SELECT $1::int", ["x"], "22P02"),
        ("SELECT 1; SELECT 2", [], "42601"),
        ("SELECT $1::text", ["\x00"], "22021"),
    ):
        for method in (client.query_raw, client.execute_raw):
            with pytest.raises(errors.RawQueryError) as caught:
                await method(query, *values)
            assert (caught.value.code, caught.value.meta["code"]) == ("P2010", state)
            assert Handler.postgres_sqlstate(caught.value) == state
            assert is_the_callers(caught.value)


@pytest.mark.conformance("Errors", "P1016 wrong number of raw parameters")
async def test_a_wrong_number_of_parameters_is_no_dead_database(client: Any) -> None:
    """Its SQLSTATE is 08P01, of the class of lost connections."""
    for query, values in (("SELECT 1", [1]), ("SELECT $1::int, $2::int", [1])):
        with pytest.raises(errors.DataError) as caught:
            await client.query_raw(query, *values)
        assert caught.value.code in {"P2010", "P1016"}
        assert is_the_callers(caught.value)
    assert await client.query_raw("SELECT 1 AS a") == [{"a": 1}]


@pytest.mark.conformance("Errors", "P2021 missing table, P2022 missing column")
async def test_missing_table_and_column(new_database: Callable[[], str], own_engine: Any) -> None:
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('DROP TABLE "LiteLLM_CronJob"; ALTER TABLE "LiteLLM_Config" DROP COLUMN param_value')
    client = own_engine(url).client()
    await client.connect()
    try:
        with pytest.raises(errors.TableNotFoundError) as table:
            await client.litellm_cronjob.count()
        assert (table.value.code, table.value.table) == ("P2021", "public.LiteLLM_CronJob")
        with pytest.raises(errors.DataError) as column:
            await client.litellm_config.find_many()
        assert column.value.code == "P2022"
        assert "param_value" in str(column.value)
        assert is_the_callers(table.value)
        assert is_the_callers(column.value)
    finally:
        await client.disconnect()


async def _both_ways(client: Any, tag: str, second: Callable[[Any, str], Any]) -> Exception:
    """Two transactions that lock two rows in opposite order; the failure of the one that Postgres ends."""
    for name in "ab":
        await client.litellm_usertable.create(data={"user_id": f"{tag}-{name}"})
    locked = [asyncio.Event(), asyncio.Event()]

    async def lock(own: int) -> None:
        first, other = "ab"[own], "ba"[own]
        async with client.tx(timeout=timedelta(seconds=30)) as tx:
            await tx.litellm_usertable.update(where={"user_id": f"{tag}-{first}"}, data={"spend": 1})
            locked[own].set()
            await locked[1 - own].wait()
            await second(tx, f"{tag}-{other}")

    results = await asyncio.gather(lock(0), lock(1), return_exceptions=True)
    (error,) = [result for result in results if isinstance(result, Exception)]
    return error


@pytest.mark.conformance("Errors", "deadlock, lock_timeout, statement_timeout")
async def test_locks(client: Any, tag: str) -> None:
    """LiteLLM retries deadlocks and lock time-outs; it finds them by code, SQLSTATE or text."""

    async def by_model(tx: Any, name: str) -> None:
        await tx.litellm_usertable.update(where={"user_id": name}, data={"spend": 2})

    async def raw(tx: Any, name: str) -> None:
        await tx.execute_raw('UPDATE "LiteLLM_UserTable" SET spend = 2 WHERE user_id = $1', name)

    async def batch(tx: Any, name: str) -> None:
        async with tx.batch_() as many:
            many.litellm_usertable.update(where={"user_id": name}, data={"spend": 2})

    for number, second in enumerate((by_model, raw, batch)):
        error = await _both_ways(client, f"{tag}-{number}", second)
        assert isinstance(error, errors.DataError)
        assert Handler.is_deadlock_error(error)
        assert is_the_callers(error)
        async with client.tx(timeout=timedelta(seconds=30)) as holder:
            await by_model(holder, f"{tag}-{number}-a")
            with pytest.raises(errors.DataError) as caught:  # noqa: PT012 - the block is the transaction
                async with client.tx(timeout=timedelta(seconds=30)) as tx:
                    await tx.execute_raw("SET LOCAL lock_timeout = 50")
                    await second(tx, f"{tag}-{number}-a")
        assert Handler.is_lock_timeout_error(caught.value)
        assert Handler.postgres_sqlstate(caught.value) == "55P03"
    with pytest.raises(errors.RawQueryError) as slow:  # noqa: PT012 - the block is the transaction
        async with client.tx(timeout=timedelta(seconds=30)) as tx:
            await tx.execute_raw("SET LOCAL statement_timeout = 50")
            await tx.query_raw("SELECT 1 FROM pg_sleep(20)")
    assert slow.value.meta["code"] == "57014"
    client.answers.clear()  # nothing to compare: which of the two Postgres ends is up to it


@pytest.mark.conformance("Errors", "P2034 write conflict")
@pytest.mark.conformance("Transactions", "isolation levels")
async def test_isolation(client: Any, tag: str) -> None:
    """prisma-client-py has no argument for it, but passes the call's text on: `isolation_level`."""
    await client.litellm_usertable.create(data={"user_id": tag})

    async def started(level: str | None) -> tuple[str, Any]:
        asked = {"timeout": 20_000, "max_wait": 5000} | ({"isolation_level": level} if level else {})
        name = await client._engine.start_transaction(content=json.dumps(asked))
        inside = client._copy()
        inside._tx_id = name
        return name, inside

    for level, shown in (
        (None, "read committed"),
        ("ReadUncommitted", "read uncommitted"),
        ("ReadCommitted", "read committed"),
        ("RepeatableRead", "repeatable read"),
        ("Serializable", "serializable"),
    ):
        name, inside = await started(level)
        assert await inside.query_raw("SHOW transaction_isolation") == [{"transaction_isolation": shown}]
        await client._engine.commit_transaction(name)
    with pytest.raises(EngineError):
        await started("nonsense")

    failures = []
    pair = [await started("Serializable") for _ in range(2)]
    for _, inside in pair:
        await inside.litellm_usertable.find_many(where={"user_id": {"startswith": tag}})
    for name, inside in pair:
        try:
            await inside.litellm_usertable.update(where={"user_id": tag}, data={"spend": {"increment": 1}})
            await client._engine.commit_transaction(name)
        except errors.DataError as error:
            failures.append(error)
            with suppress(EngineError):
                await client._engine.rollback_transaction(name)
    (failure,) = failures
    assert failure.code == "P2034"
    assert Handler.is_deadlock_error(failure)  # so LiteLLM tries it again
    assert (await client.litellm_usertable.find_unique(where={"user_id": tag})).spend == 1


@pytest.mark.conformance("Robustness", "no query ends the engine")
async def test_the_engine_is_still_the_same(engine: Any, client: Any, tag: str) -> None:
    """The queries above that are refused were once panics; a panic ends the one engine of all workers."""
    before = (engine.pid, engine.engine.status()["restarts"])
    for parameters in (
        "nonsense",
        "{}",
        "5",
        "",
        "[NaN]",
        '["\\ud800"]',
        "[1e999]",
        "[" * 200 + "]" * 200,
        '[{"prisma__type":"bytes","prisma__value":"!"}]',
    ):
        body = f'mutation {{ result: queryRaw(query: "SELECT $1", parameters: {json.dumps(parameters)}) }}'
        with pytest.raises(errors.DataError):
            await client._engine.query(json.dumps({"query": body}), tx_id=None)
    with pytest.raises(errors.DataError):
        await client.litellm_config.create(data={"param_name": tag, "param_value": "NaN"})
    for value in (
        "'infinity'::timestamp",
        "'10000-01-01'::date",
        "(repeat('[', 500) || repeat(']', 500))::jsonb",
        "ARRAY[ARRAY[1]]",
    ):
        with suppress(errors.DataError):
            await client.query_raw(f"SELECT {value} AS a")
    await client.litellm_usertable.create(data={"user_id": tag})
    for having in (
        "{}",
        "{spend: {}}",
        "{spend: {not: {}}, user_id: {_count: {}}}",
    ):  # asks for nothing, and so excludes nothing
        arguments = f'by: ["user_id"], where: {{user_id: "{tag}"}}, having: {having}'
        body = f"query {{ result: groupByLiteLLM_UserTable({arguments}) {{ user_id }} }}"
        answer = await client._engine.query(json.dumps({"query": body}), tx_id=None)
        assert answer["data"]["result"] == [{"user_id": tag}]
    assert (engine.pid, engine.engine.status()["restarts"]) == before
