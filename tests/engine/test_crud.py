"""What LiteLLM does with keys, users, teams, budgets, models, agents and spend logs, through the client that it uses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prisma import Base64, Json, Prisma

WHO = {"created_by": "test", "updated_by": "test"}


@pytest.fixture
def tag() -> str:
    """Prefix of this test's keys: the database is shared."""
    return uuid4().hex[:12]


async def test_a_key_is_made_read_changed_and_deleted(db: Prisma, tag: str) -> None:
    expires = datetime(2027, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    made = await db.litellm_verificationtoken.create(
        data={
            "token": tag,
            "key_alias": "alias",
            "models": ["fast", "clever"],
            "expires": expires,
            "max_budget": 12.5,
            "aliases": "{}",
        }
    )
    assert (made.models, made.expires, made.max_budget, made.aliases, made.spend) == (
        ["fast", "clever"],
        expires,
        12.5,
        {},
        0.0,
    )
    assert made.created_at is not None
    assert abs(made.created_at - datetime.now(UTC)) < timedelta(minutes=1)

    changed = await db.litellm_verificationtoken.update(
        where={"token": tag}, data={"spend": {"increment": 0.25}, "models": {"set": []}, "blocked": True, "expires": None}
    )
    assert changed is not None
    assert (changed.spend, changed.models, changed.blocked, changed.expires) == (0.25, [], True, None)
    assert changed.updated_at is not None
    assert made.updated_at is not None
    assert changed.updated_at >= made.updated_at

    assert await db.litellm_verificationtoken.delete(where={"token": tag}) is not None
    assert await db.litellm_verificationtoken.find_unique(where={"token": tag}) is None


async def test_relations_are_written_and_included(db: Prisma, tag: str) -> None:
    await db.litellm_budgettable.create(data={"budget_id": tag, "max_budget": 3.5, "tpm_limit": 2**62 + 1, **WHO})
    await db.litellm_verificationtoken.create(
        data={"token": tag, "litellm_budget_table": {"connect": {"budget_id": tag}}, "metadata": Json({"a": {}})},
    )
    key = await db.litellm_verificationtoken.find_unique(where={"token": tag}, include={"litellm_budget_table": True})
    assert key is not None
    assert key.litellm_budget_table is not None
    assert (key.litellm_budget_table.max_budget, key.litellm_budget_table.tpm_limit) == (3.5, 2**62 + 1)
    budget = await db.litellm_budgettable.find_unique(
        where={"budget_id": tag}, include={"keys": {"where": {"metadata": {"path": ["a"], "equals": Json({})}}, "take": 5}}
    )
    assert budget is not None
    assert [key.token for key in budget.keys or []] == [tag]
    found = await db.litellm_verificationtoken.find_many(
        where={"litellm_budget_table": {"is": {"max_budget": {"gt": 3}}}, "token": tag}
    )
    assert [key.token for key in found] == [tag]
    assert await db.litellm_budgettable.count(where={"keys": {"some": {"token": tag}}}) == 1
    assert (
        await db.litellm_budgettable.count(
            where={"budget_id": tag, "keys": {"none": {"metadata": {"equals": Json({"a": {}})}}}}
        )
        == 0
    )


async def test_json_survives_nested_writes(db: Prisma, tag: str) -> None:
    """`{}` in a nested create must arrive as an object, not as its text; `data` is both an argument and a column here."""
    run = await db.litellm_workflowrun.create(
        data={
            "run_id": tag,
            "workflow_type": "test",
            "input": Json({}),
            "events": {
                "create": [{"event_type": "e", "step_name": "s", "sequence_number": 1, "data": Json({"where": {}, "n": 1})}]
            },
        },
        include={"events": True},
    )
    assert run.input == {}
    assert run.events is not None
    assert run.events[0].data == {"where": {}, "n": 1}
    event = run.events[0].event_id
    await db.litellm_workflowrun.update(
        where={"run_id": tag},
        data={"events": {"update": [{"where": {"event_id": event}, "data": {"data": Json({}), "step_name": "t"}}]}},
    )
    after = await db.litellm_workflowevent.find_unique(where={"event_id": event}, include={"run": True})
    assert after is not None
    assert (after.data, after.step_name) == ({}, "t")
    assert after.run is not None
    assert after.run.input == {}
    text = await db.query_raw('SELECT jsonb_typeof(data) AS kind FROM "LiteLLM_WorkflowEvent" WHERE event_id = $1', event)
    assert text == [{"kind": "object"}]
    await db.litellm_workflowevent.update(
        where={"event_id": event}, data={"run": {"update": {"metadata": Json([{}]), "status": "done"}}}
    )
    again = await db.litellm_workflowrun.find_unique(where={"run_id": tag})
    assert again is not None
    assert (again.metadata, again.status) == ([{}], "done")


async def test_teams_with_compound_keys_and_upserts(db: Prisma, tag: str) -> None:
    where = {"user_id_team_id": {"user_id": tag, "team_id": tag}}
    for spend in (1.0, 3.0):
        row = await db.litellm_teammembership.upsert(
            where=where,
            data={"create": {"user_id": tag, "team_id": tag, "spend": spend}, "update": {"spend": {"increment": 2.0}}},
        )
        assert row.spend == spend
    team = await db.litellm_teamtable.create(
        data={
            "team_id": tag,
            "members_with_roles": Json([{"user_id": tag, "role": "admin"}]),
            "litellm_model_table": {"create": {"model_aliases": Json({"a": "b"}), **WHO}},
        },
        include={"litellm_model_table": True},
    )
    assert team.members_with_roles == [{"user_id": tag, "role": "admin"}]
    assert team.litellm_model_table is not None
    assert team.litellm_model_table.model_aliases == {"a": "b"}
    pushed = await db.litellm_teamtable.update(where={"team_id": tag}, data={"members": {"push": [tag, 'q"\\']}})
    assert pushed is not None
    assert pushed.members == [tag, 'q"\\']
    assert [t.team_id for t in await db.litellm_teamtable.find_many(where={"members": {"has": 'q"\\'}, "team_id": tag})] == [
        tag
    ]


async def test_many_at_once(db: Prisma, tag: str) -> None:
    start = datetime(2026, 5, 1, tzinfo=UTC)
    rows = [
        {
            "request_id": f"{tag}-{i}",
            "call_type": "acompletion",
            "api_key": tag,
            "spend": i / 8,
            "total_tokens": i,
            "startTime": start,
            "endTime": start + timedelta(seconds=i),
            "model": "m" if i % 2 else "n",
            "metadata": Json({"i": i}),
            "request_tags": Json(["a"]),
        }
        for i in range(9)
    ]
    assert await db.litellm_spendlogs.create_many(data=rows) == 9
    assert await db.litellm_spendlogs.create_many(data=rows, skip_duplicates=True) == 0

    page = await db.litellm_spendlogs.find_many(
        where={
            "api_key": tag,
            "endTime": {"gte": start + timedelta(seconds=2)},
            "OR": [{"model": "m"}, {"total_tokens": {"in": [4, 6]}}],
        },
        order=[{"model": "asc"}, {"endTime": "desc"}],
        skip=1,
        take=3,
    )
    assert [row.request_id for row in page] == [f"{tag}-{i}" for i in (5, 3, 6)]
    assert page[0].metadata == {"i": 5}

    after = await db.litellm_spendlogs.find_many(
        where={"api_key": tag}, order={"request_id": "asc"}, cursor={"request_id": f"{tag}-4"}, skip=1, take=2
    )
    assert [row.request_id for row in after] == [f"{tag}-5", f"{tag}-6"]
    first = await db.litellm_spendlogs.find_first(
        where={"NOT": [{"model": "n"}], "api_key": {"startswith": tag[:6]}}, order={"spend": "desc"}
    )
    assert first is not None
    assert first.request_id == f"{tag}-7"

    groups = await db.litellm_spendlogs.group_by(
        by=["model"], where={"api_key": tag}, sum={"spend": True, "total_tokens": True}, count=True, order={"model": "asc"}
    )
    assert groups == [
        {"model": "m", "_sum": {"spend": 2.0, "total_tokens": 16}, "_count": {"_all": 4}},
        {"model": "n", "_sum": {"spend": 2.5, "total_tokens": 20}, "_count": {"_all": 5}},
    ]
    assert await db.litellm_spendlogs.count(where={"api_key": tag, "model": {"not": "n"}}) == 4
    assert (
        await db.litellm_spendlogs.update_many(
            where={"api_key": tag, "model": "n"}, data={"spend": {"multiply": 2}, "metadata": "{}"}
        )
        == 5
    )
    assert await db.litellm_spendlogs.delete_many(where={"api_key": tag}) == 9


async def test_a_model_with_its_parameters(db: Prisma, tag: str) -> None:
    parameters = {"model": "openai/x", "api_key": "sk-…", "nested": {"list": [1, 2.5, None, True]}, "text": 'quo"te\\\n'}
    made = await db.litellm_proxymodeltable.create(
        data={
            "model_id": tag,
            "model_name": "gruppe-ü",
            "litellm_params": Json(parameters),
            "model_info": Json({"id": tag}),
            **WHO,
        }
    )
    assert made.litellm_params == parameters
    found = await db.litellm_proxymodeltable.find_first(where={"model_info": {"path": ["id"], "equals": Json(tag)}})
    assert found is not None
    assert found.model_name == "gruppe-ü"
    assert await db.litellm_proxymodeltable.find_many(
        where={"model_info": {"path": ["id"], "string_starts_with": tag[:4]}, "model_id": tag}
    )
    assert not await db.litellm_proxymodeltable.find_many(
        where={"model_info": {"path": ["id"], "string_contains": "{"}, "model_id": tag}
    )


async def test_agents_objects_and_enums(db: Prisma, tag: str) -> None:
    agent = await db.litellm_agentstable.create(
        data={
            "agent_id": tag, "agent_name": tag, "agent_card_params": Json({"name": tag, "skills": []}), **WHO,
            "object_permission": {"create": {"mcp_servers": ["one"], "mcp_tool_permissions": Json({"one": ["t"]})}},
        },
        include={"object_permission": True},
    )  # fmt: skip
    assert agent.object_permission is not None
    assert agent.object_permission.mcp_tool_permissions == {"one": ["t"]}
    assert agent.static_headers == {}
    job = await db.litellm_cronjob.create(data={"pod_id": tag, "status": "ACTIVE", "ttl": datetime(2026, 1, 1, tzinfo=UTC)})
    assert job.status == "ACTIVE"
    assert len(await db.litellm_cronjob.find_many(where={"pod_id": tag, "status": {"in": ["ACTIVE"]}})) == 1


async def test_bytes(db: Prisma, tag: str) -> None:
    raw = bytes(range(256)) * 3
    await db.litellm_managedfilecontenttable.create(data={"id": tag, "content": Base64.encode(raw)})
    found = await db.litellm_managedfilecontenttable.find_unique(where={"id": tag})
    assert found is not None
    assert found.content.decode() == raw


@pytest.mark.conformance("Transactions", "batches are atomic")
async def test_batches_are_one_transaction(db: Prisma, tag: str) -> None:
    async with db.batch_() as batch:
        for i in range(40):
            batch.litellm_usertable.upsert(
                where={"user_id": f"{tag}-{i}"},
                data={"create": {"user_id": f"{tag}-{i}", "metadata": Json({})}, "update": {"spend": {"increment": 1}}},
            )
        batch.execute_raw('UPDATE "LiteLLM_UserTable" SET spend = spend + $1 WHERE user_id = $2', 1.5, f"{tag}-3")
    assert await db.litellm_usertable.count(where={"user_id": {"startswith": tag}}) == 40
    third = await db.litellm_usertable.find_unique(where={"user_id": f"{tag}-3"})
    assert third is not None
    assert (third.spend, third.metadata) == (1.5, {})


async def test_an_empty_batch(db: Prisma) -> None:
    async with db.batch_():
        pass
