"""The database's schema and its upkeep, once per instance; the supervisor owns both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pointsman.decisions.store import maintain
from pointsman.errors import DatabaseError, PointsmanError
from pointsman.migrations.runner import migrate, require_current

__all__ = ["keep_partitions", "schema"]

logger = logging.getLogger("pointsman.supervisor")

MAINTENANCE_INTERVAL = 6 * 3600.0
"""Seconds between two runs of partition upkeep; partitions are made days ahead."""


async def schema(url: str, detail: Callable[[str], None], *, wait: float, change: bool) -> None:
    """Apply what is pending, or see that nothing is; a database that cannot be reached yet is waited for.

    Args:
        url: of the database, by whom its schema may be changed.
        detail: is told what is done.
        wait: seconds.
        change: the schema, where it is behind; else that is an error.

    Raises:
        DatabaseError: see `migrations.runner`.
    """
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        try:
            if change:
                await asyncio.to_thread(migrate, url, detail)
            else:
                await asyncio.to_thread(require_current, url)
            return
        except DatabaseError as error:
            if error.code != "E4500" or asyncio.get_running_loop().time() > deadline:
                raise
            detail(f"waiting for the database: {error.message}")
            await asyncio.sleep(1)


async def keep_partitions(url: str, retention_days: int) -> None:
    """Upkeep of the partitions; without it rows go to the default partition, so it never stands in the way of a start."""
    while True:
        try:
            await maintain(url, retention_days)
        except PointsmanError as error:
            logger.error("decision records are not maintained: %s", error)
        await asyncio.sleep(MAINTENANCE_INTERVAL)
