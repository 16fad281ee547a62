"""LiteLLM's own database code on this engine: its views, and the client it wraps."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

VIEWS = {
    "DailyTagSpend",
    "Last30dKeysBySpend",
    "Last30dModelsBySpend",
    "Last30dTopEndUsersSpend",
    "LiteLLM_VerificationTokenView",
    "MonthlyGlobalSpend",
    "MonthlyGlobalSpendPerKey",
    "MonthlyGlobalSpendPerUserPerKey",
}


@pytest.fixture
async def litellm_client(
    new_database: Callable[[], str], own_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    """LiteLLM's own `PrismaClient`, connected."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm.caching.caching import DualCache
    from litellm.proxy.utils import PrismaClient, ProxyLogging

    url = new_database()
    for name, value in {**own_engine(url).engine.environment, "DATABASE_URL": url}.items():
        monkeypatch.setenv(name, value)
    client = PrismaClient(database_url=url, proxy_logging_obj=ProxyLogging(user_api_key_cache=DualCache()))
    await client.connect()
    yield client
    await client.disconnect()


@pytest.mark.requirement("R-1.3")
async def test_litellms_client(litellm_client: Any) -> None:
    """Its start-up checks, and the query behind every authenticated request."""
    client = litellm_client
    await client.check_view_exists()
    await client.health_check()
    token = hashlib.sha256(b"sk-secret").hexdigest()
    await client.db.litellm_teamtable.create(
        data={"team_id": "t", "models": ["m"], "metadata": '{"x": {}}', "tpm_limit": 2**40, "members_with_roles": "[]"}
    )
    key = {
        "token": "sk-secret",
        "team_id": "t",
        "models": ["m"],
        "spend": 0.0,
        "metadata": {"tags": ["é"]},
        "aliases": {},
        "config": {},
    }
    await client.insert_data(data=key, table_name="key")
    found = await client.get_data(token=token, table_name="combined_view", query_type="find_unique")
    assert (found.token, found.team_models, found.team_metadata) == (token, ["m"], {"x": {}})
    assert (found.team_tpm_limit, found.metadata, found.aliases) == (2**40, {"tags": ["é"]}, {})
    await client.update_data(token=token, data={"token": token, "spend": 1.5, "metadata": {"a": 1}})
    again = await client.get_data(token=token, table_name="key", query_type="find_unique")
    assert (again.spend, again.metadata) == (1.5, {"a": 1})
    await client.delete_data(tokens=[token])
    assert await client.db.litellm_verificationtoken.count() == 0


async def test_the_spend_views_are_made(
    new_database: Callable[[], str], own_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm.proxy.db.create_views import create_missing_views, should_create_missing_views

    client = own_engine(new_database()).client()
    await client.connect()
    try:
        await should_create_missing_views(client)
        await create_missing_views(client)
        await create_missing_views(client)
        rows = await client.query_raw(
            "WITH v AS (SELECT viewname FROM pg_views WHERE schemaname = 'public') "
            "SELECT (SELECT count(*) FROM v) AS view_count, array_agg(viewname) AS view_names FROM v"
        )
        assert set(rows[0]["view_names"]) >= VIEWS
        assert rows[0]["view_count"] == len(rows[0]["view_names"])
        for view in sorted(VIEWS):
            assert await client.query_raw(f'SELECT * FROM "{view}"') == []  # noqa: S608 - our own names
    finally:
        await client.disconnect()


async def test_the_client_can_be_instrumented(db: Any) -> None:
    """LiteLLM replaces the client's engine by a tracking one, through this name; prisma-client-py 0.13 and later lack it."""
    original = db._Prisma__engine
    db._Prisma__engine = original
    assert db._engine is original
