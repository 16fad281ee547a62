"""Workers and a whole instance are killed with -9 before LiteLLM has written what requests cost; all is booked, and once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from support.gateway import Gateway
from support.ledger import PRICE, Books, Ledger, ask, open_accounts
from support.processes import wait_for
from support.topology import routed_config, single
from support.upstreams import Upstreams

pytestmark = [pytest.mark.slow("resilience"), pytest.mark.timeout(200)]

NEVER = 3600
"""Seconds after which LiteLLM writes the counters by itself: not in this test."""


@pytest.fixture
def stand(
    upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, Books]]:
    prices = {"input_cost_per_token": PRICE, "output_cost_per_token": PRICE}
    config = routed_config([single(upstreams, "priced", "openai/priced-model", prices)], {}, {})
    config["general_settings"]["proxy_batch_write_at"] = NEVER
    database = new_database()
    gateway = Gateway(config, tmp_path_factory.mktemp("gateway"), database).start()
    try:
        yield gateway, Books(database)
    finally:
        gateway.kill()


def folders(gateway: Gateway) -> list[Path]:
    """Of the journals, one a worker; its process id begins the name."""
    return sorted((gateway.data_dir / f"serve-{gateway.port}" / "spend-journal").iterdir())


def entries(gateway: Gateway) -> dict[int, int]:
    """Process id of a worker -> how many entries are in its journal."""
    return {
        int(folder.name.partition("-")[0]): sum(path.read_bytes().count(b"\n") for path in folder.glob("*.open"))
        for folder in folders(gateway)
    }


@pytest.mark.requirement("R-4.1")
async def test_what_a_killed_worker_and_a_killed_instance_had_not_written_is_booked_once(
    stand: tuple[Gateway, Books],
) -> None:
    gateway, books = stand
    ledger, accounts = Ledger(), await asyncio.to_thread(open_accounts, gateway, 6)

    async def spend(count: int) -> None:
        """Ask on connections of their own, so that both workers serve, until every answer is in a journal."""
        before = sum(entries(gateway).values())
        for number in range(count):
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as http:
                ledger.answers += await asyncio.gather(*(ask(http, account) for account in accounts[number % 2 :: 2]))
        asked = before + count * 3
        await asyncio.to_thread(wait_for, lambda: sum(entries(gateway).values()) >= asked, 10, "every answer is in a journal")

    await spend(16)
    assert ledger.statuses() == {200: 48}
    assert books.read()["token"] == {}, "a counter was written already, so this proves nothing"
    kept = entries(gateway)
    assert len(kept) == 2
    assert min(kept.values()) > 0, "one worker has served all"

    victim = max(kept, key=lambda pid: kept[pid])
    os.kill(victim, signal.SIGKILL)

    def charged() -> bool:
        return round(sum(books.read()["token"].values()), 6) >= round(PRICE, 6) and victim not in entries(gateway)

    await asyncio.to_thread(wait_for, charged, 30, "a living worker has booked what the dead one left")
    await asyncio.to_thread(wait_for, lambda: len(folders(gateway)) == 2, 30, "the worker is replaced")
    await spend(8)

    await asyncio.to_thread(gateway.kill)
    assert books.differences(ledger), "all was written already, so this proves nothing"
    await asyncio.to_thread(gateway.start)
    assert await asyncio.to_thread(books.agree, ledger, 30) == {}, gateway.log()
    assert ledger.statuses() == {200: 72}

    await asyncio.to_thread(gateway.stop)
    assert folders(gateway) == []
    assert books.differences(ledger) == {}
    assert "two words" not in gateway.log()
