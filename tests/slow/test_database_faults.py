"""Fifty clients while the database and its engine fail in every way we can make: nobody is charged twice, nobody for nothing.

What clients see: 200, or 503 for a key that no worker knows yet; never 401 for a good key, never a hang. What is spent: exactly
what the answers say, in every table, once things are flushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pointsman.migrations.runner import migrate
from support.gateway import Gateway
from support.ledger import PRICE, Account, Books, Ledger, Spenders, ask, open_accounts
from support.pg_cluster import PgCluster
from support.pg_faults import FAULTS, promoted
from support.processes import wait_for
from support.topology import routed_config, single
from support.upstreams import Upstreams

pytestmark = [pytest.mark.slow("databasefaults"), pytest.mark.timeout(600)]

DATABASE = "litellm"
CONNECTIONS = 60
SHORT = ("clients thrown out", "a backend killed")
AWAY = ("restarted", "killed", "hangs", "out of connections")
"""Faults during which a key that nobody knows yet cannot be looked up."""

LONGEST = 30.0
"""Seconds that an answer may take at worst, whatever fails."""

BACK = 30.0
"""Seconds after the end of a fault in which everything works again by itself."""

FLUSHED = 60.0
"""Seconds after the last answer in which all spend is in the tables."""


class Stand:
    """A gateway of two workers on a Postgres that is ill-treated, ten keys that are known and many that are not yet."""

    def __init__(self, gateway: Gateway, cluster: PgCluster, standby: PgCluster) -> None:
        self.gateway, self.cluster, self.standby = gateway, cluster, standby
        self.accounts = open_accounts(gateway)
        self.remembered = [account for account in self.accounts if account.remembered]
        self.ledger = Ledger()
        self.spenders = Spenders(gateway, self.accounts, self.ledger)
        self.fresh: list[Account] = []

    @property
    def books(self) -> Books:
        return Books(self.cluster.url(DATABASE))

    def make_fresh(self, count: int = 40) -> None:
        """Keys that no worker has seen; made before the database goes."""
        one = self.accounts[0]
        for _ in range(count - len(self.fresh)):
            made = self.gateway.admin.post("/key/generate", json={"user_id": one.user, "team_id": one.team})
            assert made.status_code == 200, made.text
            self.fresh.append(Account(made.json()["key"], made.json()["token"], one.user, one.team))

    async def meet(self) -> None:
        """Have every worker know every key: many connections each, for they are dealt out by chance."""
        for _ in range(16):
            async with httpx.AsyncClient(base_url=self.gateway.url, timeout=90, trust_env=False) as http:
                self.ledger.answers += await asyncio.gather(*(ask(http, account) for account in self.accounts))

    async def ask_fresh(self) -> Any:
        """One request with a key that nobody knows yet."""
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=90, trust_env=False) as http:
            answer = await ask(http, self.fresh.pop())
        self.ledger.answers.append(answer)
        return answer

    def engine(self) -> int:
        """Process id of the query engine."""

        def find() -> int | None:
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if entry.name.isdigit() and b"core.mjs" in (entry / "cmdline").read_bytes():
                        relay = parent(int(entry.name))
                        if parent(relay) == self.gateway.pid:
                            return int(entry.name)
            return None

        return wait_for(find, 10, "there is one engine")

    def exposure(self, seconds: float) -> float:
        """The share of time in which a transaction of spend is under way: what a killed engine would interrupt."""
        busy = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pointsman-engine'"
            " AND backend_xid IS NOT NULL AND state LIKE '%transaction%'"
        )
        samples, until = [], time.monotonic() + seconds
        with psycopg.connect(self.cluster.url(DATABASE), autocommit=True) as connection:
            while time.monotonic() < until:
                row = connection.execute(busy).fetchone()
                samples.append(row is not None and row[0] > 0)
                time.sleep(0.005)
        return sum(samples) / len(samples)


def parent(pid: int) -> int:
    """Process id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def faulty_config(upstreams: Upstreams) -> dict[str, Any]:
    """A group at a cent a token; keys are remembered for longer than any fault lasts."""
    prices = {"input_cost_per_token": PRICE, "output_cost_per_token": PRICE}
    config = routed_config([single(upstreams, "priced", "openai/priced-model", prices)], {}, {})
    config["general_settings"]["user_api_key_cache_ttl"] = 600
    return config


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PgCluster]]:
    """A primary with the schema, and a standby of it; stops whatever is in the list at the end."""
    options = {"max_connections": str(CONNECTIONS), "wal_keep_size": "256MB"}
    primary = PgCluster(tmp_path_factory.mktemp("primary"), options).start()
    primary.execute(f"CREATE DATABASE {DATABASE}")
    migrate(primary.url(DATABASE), lambda _: None)
    made = [primary, PgCluster(tmp_path_factory.mktemp("standby"), options, origin=primary).start()]
    yield made
    for cluster in made:
        cluster.stop()


@pytest.fixture(scope="module")
def stand(servers: list[PgCluster], upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    primary, standby = servers
    both = primary.url(DATABASE).replace(f":{primary.port}/", f":{primary.port},127.0.0.1:{standby.port}/")
    url = f"{both}?target_session_attrs=read-write"
    gateway = Gateway(faulty_config(upstreams), tmp_path_factory.mktemp("gateway"), url).start()
    try:
        yield Stand(gateway, primary, standby)
    finally:
        gateway.stop()


@contextlib.asynccontextmanager
async def spending(stand: Stand, name: str) -> AsyncIterator[None]:
    """Clients before, during and after; then the ledger. Prints what was seen."""
    stand.make_fresh()
    await stand.meet()
    async with stand.spenders():
        await asyncio.sleep(2)
        seen, began = len(stand.ledger.answers), time.monotonic()
        yield
        over = time.monotonic()
        while (await stand.ask_fresh()).status != 200:
            assert time.monotonic() - over < BACK, f"not back: {stand.ledger.answers[-1]}\n{stand.gateway.log()}"
        back = time.monotonic() - over
        await asyncio.sleep(2)
    answers = stand.ledger.answers[seen:]
    wrong = await asyncio.to_thread(stand.books.agree, stand.ledger, FLUSHED)
    statuses = Ledger(answers).statuses()
    refused = sorted(answer.seconds for answer in answers if answer.status == 503) or [0.0]
    print(
        f"\n{name}: {len(answers)} answers in {over - began:.1f} s of fault and {back:.1f} s until all is well; "
        f"statuses {statuses}; a 503 takes {refused[len(refused) // 2]:.1f} s, at most {refused[-1]:.1f} s; "
        f"slowest {Ledger(answers).slowest():.1f} s; "
        f"charged {stand.ledger.total:.2f}; differences {wrong}"
    )
    odd = [answer for answer in answers if answer.status not in (200, 503)]
    assert not odd, odd[:3]
    assert Ledger(answers).slowest() < LONGEST
    known = [answer for answer in answers if answer.account in stand.remembered and answer.status != 200]
    assert not known, f"{len(known)} answers to keys that were known: {known[:2]}"
    assert not wrong, stand.gateway.log(200)


@pytest.mark.parametrize(("name", "seconds"), [(name, 0.0 if name in SHORT else 8.0) for name in FAULTS])
async def test_postgres(stand: Stand, name: str, seconds: float) -> None:
    async with spending(stand, name):
        with FAULTS[name](stand.cluster):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                answer = await stand.ask_fresh()
                await asyncio.sleep(0.5)
            if name in AWAY:
                assert answer.status == 503, answer


async def test_the_engine_killed(stand: Stand) -> None:
    """Three times in a row, each at a random moment."""
    async with spending(stand, "engine killed"):
        print(f"\nspend is being written {await asyncio.to_thread(stand.exposure, 20.0):.2%} of the time", end="")
        for _ in range(3):
            await asyncio.sleep(random.uniform(0.5, 2.5))
            os.kill(stand.engine(), signal.SIGKILL)
            assert (await stand.ask_fresh()).status in (200, 503)


async def test_failover(stand: Stand) -> None:
    """The primary dies, its synchronous standby takes over on another address."""
    stand.cluster.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    synced = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
    wait_for(lambda: stand.cluster.execute(synced) == [(1,)], 10, "the standby is synchronous")
    async with spending(stand, "failover"):
        await asyncio.to_thread(promoted, stand.cluster, stand.standby)
        stand.cluster, stand.standby = stand.standby, stand.cluster


SEED = int(os.environ.get("LEDGER_SEED", time.time_ns() % 1_000_000))
TEN = ("restarted", "killed", "hangs", "out of connections", "read-only", "clients thrown out", "a backend killed", "engine")


@pytest.mark.requirement("R-4.1")
async def test_the_ledger(stand: Stand) -> None:
    """Ten faults in a random order, of random lengths; at the end every table says what the clients were charged."""
    dice = random.Random(SEED)
    told: list[str] = []
    stand.make_fresh()
    print(f"\nLEDGER_SEED={SEED}")
    async with stand.spenders():
        for _ in range(10):
            await asyncio.sleep(dice.uniform(1, 4))
            name, seconds = dice.choice(TEN), dice.uniform(0, 10)
            told.append(f"{name} {seconds:.1f} s")
            if name == "engine":
                os.kill(stand.engine(), signal.SIGKILL)
                continue
            with FAULTS[name](stand.cluster):
                await asyncio.sleep(seconds)
        await asyncio.sleep(5)
    wrong = await asyncio.to_thread(stand.books.agree, stand.ledger, FLUSHED)
    now, ledger = stand.books.read(), stand.ledger
    calls = [answer.call for answer in ledger.paid]
    print(f"faults: {', '.join(told)}")
    print(f"requests {len(ledger.answers)}, by status {ledger.statuses()}, slowest {ledger.slowest():.1f} s")
    print(f"charged {ledger.total:.2f}, request log {now['logs']:.2f} in {now['rows']} rows, ", end="")
    print(", ".join(f"{table} {sum(now[table].values()):.2f}" for table in now if isinstance(now[table], dict)))
    print(f"differences {wrong}; answers without a row of their own {now['rows'] - len(calls)}")
    assert set(ledger.statuses()) <= {200, 503}
    assert not wrong
