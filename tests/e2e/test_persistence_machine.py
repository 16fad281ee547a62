"""What was acknowledged is there after any crash: a stateful model of keys, teams, users, agents, servers, models and memory.

Random calls go to a real gateway on a real Postgres, one after the other, and in handfuls while something gets a SIGKILL:
a worker, the query engine, Postgres, the whole gateway. Afterwards the tables are read beside the gateway:

- what was acknowledged (2xx) has its last acknowledged value; what was acknowledged as deleted is gone;
- what was answered with an error, or not at all, while something was down is in doubt: it is as before or as asked;
- no key belongs to a team that is not there;
- keys that exist are served, keys that were deleted are not, at the latest `STALE` seconds after.

Between crashes every call must succeed.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from support.gateway import Gateway
from support.postgres import UNSAFE_AND_FAST, PostgresServer
from support.processes import wait_for
from support.things import KINDS, rows
from support.topology import priced, routed_config, single
from support.upstreams import Upstreams

STALE = 8.0
"""Seconds that a worker may still know a key which another worker has deleted: `user_api_key_cache_ttl` is 5 here."""

ABSENT = None
VICTIMS = ("worker", "engine", "postgres", "gateway")


@dataclass
class Thing:
    """What the model knows: the values that are possible (`ABSENT` is one), more than one while in doubt."""

    kind: str
    name: str
    possible: set[int | None]
    handle: str = ""
    secret: str | None = None
    team: str | None = None
    deleted_at: float | None = None

    @property
    def alive(self) -> bool:
        return ABSENT not in self.possible


@dataclass
class World:
    """The gateway, its database server, and how to kill their parts."""

    gateway: Gateway
    server: PostgresServer
    url: str
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    tally: Counter[str] = field(default_factory=Counter)

    def kill(self, victim: str) -> None:
        """SIGKILL it; what is watched comes back by itself, the gateway is started again by `recover`."""
        self.tally[f"killed {victim}"] += 1
        if victim == "gateway":
            self.gateway.kill()
        elif victim == "postgres":
            os.kill(self.server.embedded.status()["pid"], signal.SIGKILL)
        else:
            os.kill(self.process(victim), signal.SIGKILL)

    def process(self, which: str) -> int:
        """Process id of the engine, or of a worker."""
        parents = [self.gateway.pid]
        if which == "engine":
            return next(pid for pid, line in children(parents).items() if "main.mjs" in line)
        preloader = [pid for pid, line in children(parents).items() if "preloader" in line]
        return next(iter(children(preloader)))

    def recover(self, victim: str) -> None:
        """Wait until everything serves again; start the gateway when it was the one that was killed."""
        if victim == "gateway":
            self.gateway.start()
        wait_for(self.steady, 60, f"calls succeed again after {victim} was killed", interval=0.2)

    def steady(self) -> bool:
        """Whether a dozen calls that need the database succeed in a row, over connections of their own."""
        try:
            return self.gateway.ready() and all(self.call("GET", "/team/list", {}).status_code == 200 for _ in range(12))
        except httpx.TransportError:
            return False

    def call(self, method: str, path: str, body: dict[str, Any], key: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.gateway.master_key}", "connection": "close"}
        return httpx.request(method, f"{self.gateway.url}{path}", json=body, headers=headers, timeout=60, trust_env=False)

    def outcome(self, method: str, path: str, body: dict[str, Any], key: str | None = None) -> httpx.Response | None:
        """The answer, or None when the connection broke."""
        try:
            return self.call(method, path, body, key)
        except httpx.TransportError:
            return None


def children(parents: list[int]) -> dict[int, str]:
    """Pid -> command line of the living children of `parents` (proc(5))."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) in parents and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # gone in the meantime
    return found


class Persistence(RuleBasedStateMachine):
    """One run of the model, with names of its own; `world` and `deck` are set by the test."""

    world: World
    deck: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"run-{uuid.uuid4().hex[:8]}-"
        self.things: dict[tuple[str, str], Thing] = {}
        self.crashes = list(self.deck)
        self.failed = False

    # Rules

    @initialize()
    def begin(self) -> None:
        """Something of each kind, so that there is something to lose."""
        for kind in KINDS:
            self.calm(*self.creation(kind, 0))

    @rule(kind=st.sampled_from(sorted(KINDS)), pick=st.integers(0, 99))
    def create(self, kind: str, pick: int) -> None:
        self.calm(*self.creation(kind, pick))

    @rule(pick=st.integers(0, 999))
    def change(self, pick: int) -> None:
        if thing := self.pick(pick):
            self.calm(thing, "change", next(self.world.numbers))

    @rule(pick=st.integers(0, 999))
    def delete(self, pick: int) -> None:
        if thing := self.pick(pick):
            self.calm(thing, "delete", ABSENT)

    @rule(pick=st.integers(0, 99))
    def use(self, pick: int) -> None:
        """A paid request with a key that exists."""
        if key := self.pick(pick, lambda thing: thing.secret is not None):
            assert self.chat(key) == 200, f"{key} is not served"

    @precondition(lambda self: self.crashes)
    @rule(
        card=st.integers(0, 99),
        work=st.lists(
            st.tuples(st.sampled_from(["create", "change", "delete"]), st.sampled_from(sorted(KINDS)), st.integers(0, 999)),
            min_size=3,
            max_size=8,
        ),
        delay=st.floats(0, 0.15),
    )
    def crash(self, card: int, work: list[tuple[str, str, int]], delay: float) -> None:
        victim = self.crashes.pop(card % len(self.crashes))
        self.storm(victim, work, delay)

    # Steps

    def pick(self, number: int, wanted: Callable[[Thing], bool] = lambda _: True) -> Thing | None:
        """One of the things that certainly exist."""
        found = [thing for thing in self.things.values() if thing.alive and wanted(thing)]
        return found[number % len(found)] if found else None

    def creation(self, kind: str, pick: int) -> tuple[Thing, str, int]:
        """A thing to be made; every other key belongs to a team."""
        team = self.pick(pick, lambda thing: thing.kind == "team") if kind == "key" and pick % 2 == 0 else None
        number = next(self.world.numbers)
        thing = Thing(kind, f"{self.prefix}{number}", {ABSENT}, team=team.name if team else None)
        self.things[kind, thing.name] = thing
        return thing, "create", number

    def send(self, thing: Thing, verb: str, value: int | None) -> httpx.Response | None:
        kind = KINDS[thing.kind]
        if value is ABSENT:
            return self.world.outcome(*kind.delete(thing.handle, thing.name))
        if verb == "create":
            return self.world.outcome(*kind.make(thing.name, value, thing.team))
        return self.world.outcome(*kind.change(thing.handle, thing.name, value))

    def note(self, thing: Thing, verb: str, value: int | None, answer: httpx.Response | None) -> None:
        """Acknowledged: it is so. Else it is as before, or as asked."""
        followers = [each for each in self.things.values() if value is ABSENT and each.team == thing.name]
        acknowledged = answer is not None and answer.is_success
        self.world.tally["acknowledged" if acknowledged else "in doubt"] += 1
        if answer is None or not acknowledged:
            thing.possible |= {value}
            for each in followers:
                each.possible |= {ABSENT}
            return
        for each in (thing, *followers):
            each.possible = {value}
            if value is ABSENT:
                each.deleted_at = time.monotonic()
        if verb == "create":
            body = answer.json()
            thing.secret = body.get("key") if thing.kind == "key" else None
            thing.handle = body.get("token") or body.get("agent_id") or thing.name

    def calm(self, thing: Thing, verb: str, value: int | None) -> None:
        """A call while nothing is amiss: it must succeed."""
        self.failed = True
        answer = self.send(thing, verb, value)
        assert answer is not None, f"{verb} {thing}: the connection broke"
        assert answer.is_success, f"{verb} {thing}: {answer.status_code} {answer.text}"
        self.note(thing, verb, value, answer)
        self.failed = False

    def storm(self, victim: str, work: list[tuple[str, str, int]], delay: float) -> None:
        """Calls about different things, all at once; `delay` seconds after their start `victim` is killed."""
        self.failed = True
        jobs: dict[tuple[str, str], tuple[Thing, str, int | None]] = {}
        teams: set[str | None] = set()
        for verb, kind, pick in work:
            # A key and its team at once could be refused for good reasons; each of them is in one storm only.
            found = self.pick(pick, lambda thing: (thing.kind, thing.name) not in jobs and thing.name not in teams)
            made = self.creation(kind, pick) if verb == "create" or found is None else None
            job = made or (found, verb, next(self.world.numbers) if verb == "change" else ABSENT)
            thing = job[0]
            assert thing is not None
            if ("team", thing.team) in jobs or (thing.kind == "team" and self.busy(thing, jobs)):
                if made:
                    del self.things[thing.kind, thing.name]
                continue
            teams.add(thing.team)
            jobs[thing.kind, thing.name] = (thing, job[1], job[2])
        started = threading.Barrier(len(jobs) + 1)

        def run(job: tuple[Thing, str, int | None]) -> httpx.Response | None:
            started.wait(30)
            return self.send(*job)

        with ThreadPoolExecutor(len(jobs)) as pool:
            answers = [(job, pool.submit(run, job)) for job in jobs.values()]
            started.wait(30)
            time.sleep(delay)
            self.world.kill(victim)
            for job, answer in answers:
                self.note(*job, answer.result(120))
        self.world.recover(victim)
        self.verify()
        self.failed = False

    def busy(self, team: Thing, jobs: dict[tuple[str, str], tuple[Thing, str, int | None]]) -> bool:
        return any(thing.team == team.name for thing, _, _ in jobs.values())

    def chat(self, key: Thing) -> int | None:
        body = {"model": "priced", "messages": [{"role": "user", "content": "hello there"}]}
        answer = self.world.outcome("POST", "/v1/chat/completions", body, key.secret)
        return answer.status_code if answer is not None else None

    def verify(self) -> None:
        """The tables agree with the model; what was in doubt is settled by what they hold."""
        held = rows(self.world.url, self.prefix)
        values = {key: row.value for key, row in held.items()}
        wrong = [
            f"{values.get(key)} is held, of {thing}"
            for key, thing in self.things.items()
            if values.get(key) not in thing.possible
        ]
        assert not wrong, "\n".join(wrong)
        assert not values.keys() - self.things.keys(), "nobody asked for these"
        for key, thing in self.things.items():
            thing.possible = {values.get(key)}
            if key in held:
                thing.handle = held[key].handle
        orphans = """SELECT key_alias, team_id FROM "LiteLLM_VerificationToken" k WHERE team_id IS NOT NULL
                     AND NOT EXISTS (SELECT 1 FROM "LiteLLM_TeamTable" t WHERE t.team_id = k.team_id)"""
        with psycopg.connect(self.world.url) as connection:
            assert connection.execute(orphans).fetchall() == [], "keys without their team"

    def verify_keys(self) -> None:
        """Keys that exist are served; keys that were deleted are not."""
        for key in [thing for thing in self.things.values() if thing.secret is not None]:
            if key.alive:
                assert self.chat(key) == 200, f"{key} is not served"
            elif key.deleted_at is not None:
                wait = max(0.0, key.deleted_at + STALE - time.monotonic())
                wait_for(lambda key=key: self.chat(key) == 401, wait + 0.1, f"{key} is refused", interval=0.3)
                assert [self.chat(key) for _ in range(4)] == [401] * 4, f"a worker still knows {key}"

    def teardown(self) -> None:
        """The cards that are left are played; then everything is killed at once and looked at once more."""
        if self.failed:
            return
        work = [("create", kind, number) for number, kind in enumerate(sorted(KINDS))]
        for victim in self.crashes:
            self.storm(victim, work, 0.02)
        self.verify()
        self.verify_keys()
        self.world.kill("gateway")
        self.world.kill("postgres")
        self.world.recover("gateway")
        self.verify()
        self.verify_keys()


@pytest.fixture
def world(upstreams: Upstreams, tmp_path: Path) -> Iterator[World]:
    """A gateway of two workers on a Postgres of its own, which comes back when it is killed."""
    server = PostgresServer(tmp_path / "postgres", UNSAFE_AND_FAST)
    gateway: Gateway | None = None
    try:
        server.start()
        server.watch()
        url = server.new_database()
        config = routed_config([priced(upstreams), single(upstreams, "plain", "openai/plain-model")], {}, {})
        gateway = Gateway(config, tmp_path / "gateway", url).start()
        yield World(gateway, server, url)
        gateway.stop()
    finally:
        if gateway is not None:
            gateway.kill()
        server.close()


def run(world: World, deck: tuple[str, ...], examples: int, steps: int, derandomize: bool) -> None:
    machine = type("Machine", (Persistence,), {"world": world, "deck": deck})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            deadline=None,
            database=None,
            # Nothing to shrink: what failed once under SIGKILL need not fail again, and each attempt costs a minute.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(sorted(world.tally.items())))


@pytest.mark.requirement("P-6", "R-4.1")
@pytest.mark.slow("persistence")
def test_what_was_acknowledged_survives_crashes(world: World) -> None:
    run(world, ("worker", "engine", "postgres"), examples=1, steps=15, derandomize=True)


@pytest.mark.requirement("P-6", "R-4.1")
@pytest.mark.slow("persistence")
@pytest.mark.timeout(1200)
def test_what_was_acknowledged_survives_many_crashes(world: World) -> None:
    run(world, (*VICTIMS, "worker", "engine", "postgres"), examples=2, steps=45, derandomize=False)
    assert world.tally["in doubt"] > 0, "no call was under way when something was killed: the test does not test"
