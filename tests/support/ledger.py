"""Fifty clients with keys, and a ledger of what each answer cost them, to hold against what the tables say they have spent.

- `Spenders`: ask for as long as the block lasts, bounded in number and pace; every answer is noted.
- `Ledger`: what was charged, from the usage in the answers and the known price.
- `Books`: what the tables say.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

from support.gateway import Gateway

__all__ = ["PRICE", "Account", "Books", "Ledger", "Spenders", "open_accounts"]

PRICE = 0.01
"""Dollars a token, sent or received."""

PACE = 0.3
"""Seconds that a client thinks between two requests."""

TIMEOUT = 90.0
"""Seconds after which a client gives up; nothing here may take that long."""


@dataclass(frozen=True, slots=True)
class Account:
    """A key, hashed as the tables have it, and whose it is; `user` and `team` may be empty."""

    key: str
    token: str
    user: str
    team: str

    @property
    def remembered(self) -> bool:
        """Whether a worker that knows it needs no database: LiteLLM remembers a user's membership in a team for 5 s only."""
        return not (self.user and self.team)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it: status 0 is a broken connection, 1 a time-out. Times are monotonic seconds."""

    account: Account
    status: int
    asked: float
    seconds: float
    call: str
    cost: float
    text: str


@dataclass
class Ledger:
    """All answers of a test."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def paid(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def total(self) -> float:
        return math.fsum(answer.cost for answer in self.paid)

    def by(self, name: str) -> dict[str, float]:
        """Charged per `token`, `user` or `team`."""
        sums: dict[str, list[float]] = collections.defaultdict(list)
        for answer in self.paid:
            sums[str(getattr(answer.account, name))].append(answer.cost)
        return {who: math.fsum(costs) for who, costs in sums.items() if who}

    def statuses(self) -> dict[int, int]:
        return dict(sorted(collections.Counter(answer.status for answer in self.answers).items()))

    def slowest(self) -> float:
        return max((answer.seconds for answer in self.answers), default=0.0)


class Spenders:
    """Fifty at once, dealt out over the accounts.

    Args:
        gateway: whom they ask for the group `priced`.
        accounts: their keys.
        ledger: where they note the answers.
    """

    def __init__(self, gateway: Gateway, accounts: Sequence[Account], ledger: Ledger, count: int = 50) -> None:
        self._gateway = gateway
        self._accounts = accounts
        self._ledger = ledger
        self._count = count

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """They begin, and end after the answer that each is waiting for."""
        self._over = asyncio.Event()  # of this test's loop
        limits = httpx.Limits(max_connections=self._count, max_keepalive_connections=self._count)
        async with httpx.AsyncClient(base_url=self._gateway.url, timeout=TIMEOUT, trust_env=False, limits=limits) as http:
            tasks = [asyncio.create_task(self._client(http, number)) for number in range(self._count)]
            try:
                yield
            finally:
                self._over.set()
                await asyncio.gather(*tasks)

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        account = self._accounts[number % len(self._accounts)]
        with contextlib.suppress(TimeoutError):  # not all at once
            await asyncio.wait_for(self._over.wait(), PACE * number / self._count)
        while not self._over.is_set():
            self._ledger.answers.append(await ask(http, account))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), PACE)


async def ask(http: httpx.AsyncClient, account: Account) -> Answer:
    """One request that costs something."""
    asked = time.monotonic()
    body = {"model": "priced", "messages": [{"role": "user", "content": "two words"}]}
    try:
        answer = await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {account.key}"})
    except httpx.TimeoutException as error:
        return Answer(account, 1, asked, time.monotonic() - asked, "", 0.0, repr(error))
    except httpx.TransportError as error:
        return Answer(account, 0, asked, time.monotonic() - asked, "", 0.0, repr(error))
    cost = PRICE * answer.json()["usage"]["total_tokens"] if answer.status_code == 200 else 0.0
    call = answer.headers.get("x-litellm-call-id", "")
    return Answer(account, answer.status_code, asked, time.monotonic() - asked, call, cost, answer.text[:300])


def open_accounts(gateway: Gateway, keys: int = 10, users: int = 4, teams: int = 3) -> list[Account]:
    """Keys of users, of teams, of users in teams in turns; with a budget that nobody reaches, so that spend is looked at."""
    admin = gateway.admin

    def post(path: str, body: Mapping[str, Any]) -> Any:
        answer = admin.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    people = [post("/user/new", {"user_id": f"user-{number}", "auto_create_key": False})["user_id"] for number in range(users)]
    members = [{"role": "user", "user_id": person} for person in people]
    groups = [
        post("/team/new", {"team_alias": f"team-{number}", "members_with_roles": members})["team_id"] for number in range(teams)
    ]
    accounts = []
    for number in range(keys):
        owners = [{"user_id": people[number % users]}, {"team_id": groups[number % teams]}]
        owner = [owners[0], owners[1], owners[0] | owners[1]][number % 3]
        made = post("/key/generate", {**owner, "max_budget": 1e9})
        accounts.append(Account(made["key"], made["token"], owner.get("user_id", ""), owner.get("team_id", "")))
    return accounts


class Books:
    """The tables of a database, read past the gateway."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> dict[str, Any]:
        """Every sum, `rows` of the request log, and its `calls`; raises while the database cannot be asked."""
        with psycopg.connect(self._url, autocommit=True, connect_timeout=3) as connection:

            def sums(query: str) -> dict[str, float]:
                return {str(who): float(spend) for who, spend in connection.execute(query).fetchall() if who and spend}

            logs = connection.execute(
                'SELECT request_id, spend FROM "LiteLLM_SpendLogs" WHERE model_group = %s AND status = %s',
                ["priced", "success"],
            ).fetchall()
            return {
                "rows": len(logs),
                "logs": math.fsum(float(spend) for _, spend in logs),
                "ids": {str(name) for name, _ in logs},
                "token": sums('SELECT token, spend FROM "LiteLLM_VerificationToken"'),
                "user": sums("SELECT user_id, spend FROM \"LiteLLM_UserTable\" WHERE user_id LIKE 'user-%'"),
                "team": sums('SELECT team_id, spend FROM "LiteLLM_TeamTable"'),
                "daily key": sums('SELECT api_key, sum(spend) FROM "LiteLLM_DailyUserSpend" GROUP BY 1'),
                "daily user": sums(
                    "SELECT user_id, sum(spend) FROM \"LiteLLM_DailyUserSpend\" WHERE user_id LIKE 'user-%' GROUP BY 1"
                ),
                "daily team": sums('SELECT team_id, sum(spend) FROM "LiteLLM_DailyTeamSpend" GROUP BY 1'),
            }

    def differences(self, ledger: Ledger) -> dict[str, float]:
        """Dollars that a table says more than was charged, largest first; less than a hundredth of a token is arithmetic."""
        now = self.read()
        found = {"logs": now["logs"] - ledger.total, "rows": PRICE * (now["rows"] - len(ledger.paid))}
        pairs = {
            "token": "token",
            "user": "user",
            "team": "team",
            "daily key": "token",
            "daily user": "user",
            "daily team": "team",
        }
        for table, name in pairs.items():
            charged = ledger.by(name)
            for who in charged.keys() | now[table].keys():
                found[f"{table} {who[:12]}"] = now[table].get(who, 0.0) - charged.get(who, 0.0)
        wrong = {what: round(more, 4) for what, more in found.items() if abs(more) > PRICE / 100}
        return dict(sorted(wrong.items(), key=lambda item: -abs(item[1])))

    def agree(self, ledger: Ledger, within: float) -> dict[str, float]:
        """Wait until the tables say what was charged; else what differs after `within` seconds and has stayed so for ten."""
        end, last, since = time.monotonic() + within, None, time.monotonic()
        while True:
            try:
                wrong = self.differences(ledger)
            except psycopg.OperationalError as error:
                wrong = {repr(error): 0.0}
            if not wrong:
                return {}
            if wrong != last:
                last, since = wrong, time.monotonic()
            if time.monotonic() > end and time.monotonic() - since > 10:
                return wrong
            time.sleep(0.5)
