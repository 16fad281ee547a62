"""LiteLLM's own retention of its request log, on this engine: by deleting, and by dropping partitions where it has some."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from engine.test_litellm import litellm_client

__all__ = ["litellm_client"]

SETTINGS = {"maximum_spend_logs_retention_period": "7d", "maximum_spend_logs_cleanup_batch_size": 2}


def add(url: str, ages: list[int]) -> None:
    """A row of the log for each age in days."""
    with psycopg.connect(url) as connection:
        for age in ages:
            at = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=age)
            connection.execute(
                'INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", updated_at) '
                "VALUES (%s, %s, %s, %s, %s)",
                (f"age{age}", "acompletion", at, at, at),
            )


def left(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [
            name for (name,) in connection.execute('SELECT request_id FROM "LiteLLM_SpendLogs" ORDER BY "startTime"').fetchall()
        ]


@pytest.mark.requirement("R-4.1")
async def test_what_is_too_old_is_deleted(litellm_client: Any) -> None:
    from litellm.proxy.db.db_transaction_queue.spend_log_cleanup import SpendLogCleanup

    url = os.environ["DATABASE_URL"]
    add(url, [30, 29, 9, 8, 6, 0])
    await SpendLogCleanup(general_settings=SETTINGS).cleanup_old_spend_logs(litellm_client)
    assert left(url) == ["age6", "age0"]


async def test_partitions_that_are_too_old_are_dropped(litellm_client: Any) -> None:
    """The log as LiteLLM's runbook makes it: by day, keyed by id and time; with rows outside of any day too."""
    from litellm.proxy.db.db_transaction_queue.spend_log_cleanup import SpendLogCleanup

    url, today = os.environ["DATABASE_URL"], datetime.now(UTC).date()
    with psycopg.connect(url) as connection:
        connection.execute('ALTER TABLE "LiteLLM_SpendLogs" RENAME TO old')
        connection.execute(
            'CREATE TABLE "LiteLLM_SpendLogs" (LIKE old INCLUDING DEFAULTS, PRIMARY KEY (request_id, "startTime")) '
            'PARTITION BY RANGE ("startTime")'
        )
        connection.execute('CREATE TABLE "LiteLLM_SpendLogs_default" PARTITION OF "LiteLLM_SpendLogs" DEFAULT')
        for age in (20, 19, 0):
            day = today - timedelta(days=age)
            connection.execute(
                f'CREATE TABLE "LiteLLM_SpendLogs_p{day:%Y%m%d}" PARTITION OF "LiteLLM_SpendLogs" '
                f"FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')".encode()
            )
    add(url, [20, 19, 12, 3, 0])
    await SpendLogCleanup(general_settings=SETTINGS | {"use_spend_logs_partitioning": True}).cleanup_old_spend_logs(
        litellm_client
    )
    assert left(url) == ["age3", "age0"]
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '\"LiteLLM_SpendLogs\"'::regclass"
        ).fetchall()
    present = {name.strip('"') for (name,) in names}
    assert not {f"LiteLLM_SpendLogs_p{today - timedelta(days=age):%Y%m%d}" for age in (20, 19)} & present
    assert f"LiteLLM_SpendLogs_p{today + timedelta(days=1):%Y%m%d}" in present, "the next days are made ahead"
