"""Sticky sessions in running gateways: two workers, two instances over one Redis, and LiteLLM's own affinity beside ours."""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from support.gateway import Gateway
from support.processes import wait_for
from support.redis import RedisServer, ha_config, start_instances
from support.strategy import EASY_WORDS, HARD_WORDS, STRONG, WEAK, FilePublisher
from support.topology import deployment, routed_config
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("resilience")

STALENESS = 0.5
"""Seconds after which every worker of an instance knows what one of them did; between instances twice that."""
GROUP, BARE = "auto", "bare"
STICKY: dict[str, Any] = {"sticky": {"enabled": True, "groups": [GROUP]}}
EASY, HARD = tuple(EASY_WORDS), tuple(HARD_WORDS)


def models(upstreams: Upstreams, prefix: str) -> list[dict[str, Any]]:
    """Two routed groups, of two weak and two strong deployments and of one each, and two of three without a strategy."""
    routed = [
        (f"{size}-{number}", f"openai/{name}") for size, name in (("weak", WEAK), ("strong", STRONG)) for number in (1, 2)
    ]
    bare = [(f"{BARE}-{number}", "openai/bare-model") for number in (1, 2, 3)]
    keyed = [(f"keyed-{number}", "openai/bare-model") for number in (1, 2, 3)]
    fought = [(f"fought-{size}", f"openai/{name}") for size, name in (("weak", WEAK), ("strong", STRONG))]
    return [
        deployment(group, f"{prefix}-{name}", model, upstreams.url(f"{prefix}-{name}"))
        for group, members in ((GROUP, routed), (BARE, bare), ("keyed", keyed), ("fought", fought))
        for name, model in members
    ]


def says(words: Sequence[str]) -> str:
    """Something that nobody has asked yet; the strategy sends it where the words belong."""
    return " ".join([*random.choices(words, k=5), uuid.uuid4().hex])


# How clients name their sessions.


def chat(session: Mapping[str, Any], said: str, model: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    body = {"model": model, "messages": [{"role": "user", "content": said}], **session.get("body", {})}
    return "/v1/chat/completions", body, session.get("headers", {})


def messages(session: Mapping[str, Any], said: str, model: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": said}], **session["body"]}
    return "/v1/messages", body, {}


def responses(session: Mapping[str, Any], said: str, model: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    return "/v1/responses", {"model": model, "input": said, **session["body"]}, {}


WAYS: dict[str, tuple[Callable[..., Any], Callable[[str], dict[str, Any]]]] = {
    "header": (chat, lambda name: {"headers": {"x-pointsman-session": name}}),
    "litellm's header": (chat, lambda name: {"headers": {"x-litellm-session-id": name}}),
    "user": (chat, lambda name: {"body": {"user": name}}),
    "metadata": (chat, lambda name: {"body": {"metadata": {"session_id": name}}}),
    "anthropic": (messages, lambda name: {"body": {"metadata": {"user_id": f"user_1_account__session_{name}"}}}),
    "responses": (responses, lambda name: {"body": {"user": name}}),
    "mcp": (chat, lambda name: {"headers": {"mcp-session-id": name}}),
    "a2a": (chat, lambda name: {"body": {"metadata": {"contextId": name}}}),
}


@dataclass
class Talk:
    """A session of a client: how it is named, and who served its turns."""

    way: str
    key: str
    name: str = field(default_factory=lambda: str(uuid.uuid4()))
    model: str = GROUP
    served: list[str] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)

    def turn(self, http: httpx.Client, words: Sequence[str] = ()) -> str:
        """The next turn over a connection; who served it."""
        make, named = WAYS[self.way]
        path, body, headers = make(named(self.name), says(words or random.choice((EASY, HARD))), self.model)
        answer = http.post(path, json=body, headers={**headers, "authorization": f"Bearer {self.key}"})
        assert answer.status_code == 200, f"{self.way}: {answer.status_code} {answer.text}"
        self.served.append(answer.headers["x-litellm-model-id"])
        self.decided.append(answer.headers["x-pointsman-strategy"])
        return self.served[-1]

    @property
    def moves(self) -> int:
        """How often it changed its deployment."""
        return sum(before != after for before, after in zip(self.served, self.served[1:], strict=False))


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> FilePublisher:
    made = FilePublisher(tmp_path_factory.mktemp("published"), "sized")
    made.publish("1.0.0")
    return made


@dataclass(frozen=True)
class Stand:
    """Clients that reach the one or the other of two workers, which are of one gateway or of two."""

    gateway: Gateway
    workers: tuple[Sequence[httpx.Client], Sequence[httpx.Client]]
    key: str
    staleness: float = STALENESS

    def round(self, talks: Sequence[Talk], words: Sequence[str] = ()) -> None:
        """A turn of each at once, each at either worker, by chance."""
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda talk: talk.turn(random.choice(random.choice(self.workers)), words), talks))
        time.sleep(self.staleness)

    @property
    def each(self) -> tuple[httpx.Client, httpx.Client]:
        """A client of either worker."""
        return self.workers[0][0], self.workers[1][0]


def connections(gateway: Gateway, count: int = 4) -> tuple[Sequence[httpx.Client], Sequence[httpx.Client]]:
    """So many clients of each worker.

    A worker keeps a connection that it has accepted, so it is found out once whose it is, by the table of sockets.
    """
    found: dict[int, list[httpx.Client]] = {pid: [] for pid in gateway.worker_pids()}
    one_that_stays = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)

    def another() -> bool:
        http = httpx.Client(base_url=gateway.url, trust_env=False, timeout=30, limits=one_that_stays)
        gateway._clients.append(http)
        stream = http.get("/health/liveliness").raise_for_status().extensions["network_stream"]
        port = stream.get_extra_info("socket").getsockname()[1]
        owner = next(
            pid for pid in found for one in psutil.Process(pid).net_connections("tcp") if one.raddr and one.raddr.port == port
        )
        found[owner].append(http)
        return all(len(clients) >= count for clients in found.values())

    wait_for(another, 20, "each worker has accepted some connections", interval=0.0)
    one, two = found.values()
    return one, two


@pytest.fixture(scope="module")
def stand(
    upstreams: Upstreams,
    publisher: FilePublisher,
    new_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stand]:
    config = routed_config(
        models(upstreams, "two"),
        {"sized": publisher.settings(reload_interval=60.0)},
        {GROUP: "sized", "fought": "sized"},
        resilience=STICKY,
    )
    config["pointsman"]["routing"]["deadline_ms"] = 10_000  # a strategy that is late decides nothing, and this machine is busy
    # The breakers alone say who is away, so LiteLLM's cool-downs cannot be what moves a session.
    config["router_settings"] |= {
        "disable_cooldowns": True,
        "model_group_affinity_config": {
            BARE: ["session_affinity"],
            "keyed": ["deployment_affinity"],
            "fought": ["session_affinity"],
        },
    }
    gateway = Gateway(config, tmp_path_factory.mktemp("two-workers"), new_database())
    gateway.start()
    yield Stand(gateway, connections(gateway), gateway.new_key())
    gateway.stop()


@pytest.mark.requirement("F-4")
def test_each_session_stays_on_one_deployment_whatever_it_is_called_by_and_whoever_serves_it(stand: Stand) -> None:
    talks = [Talk(way, stand.key) for way in WAYS for _ in range(3)]
    for _ in range(4):
        stand.round(talks)
    assert {talk.way: talk.served for talk in talks if len(set(talk.served)) > 1} == {}
    assert len({talk.served[0] for talk in talks}) >= 3, "they are spread"
    assert all(set(talk.decided[1:]) == {"sticky"} for talk in talks)
    assert {talk.decided[0] for talk in talks} == {"sized"}


@pytest.mark.requirement("F-4")
def test_a_response_goes_on_where_it_is_kept_and_takes_its_session_along(stand: Stand) -> None:
    http, headers = stand.each[0], {"authorization": f"Bearer {stand.key}", "x-pointsman-session": uuid.uuid4().hex}
    body: dict[str, Any] = {"model": GROUP, "input": says(HARD)}
    served = set()
    for turn in range(6):
        answer = stand.each[turn % 2].post("/v1/responses", json=body, headers=headers).raise_for_status()
        served.add(answer.headers["x-litellm-model-id"])
        body = {"model": GROUP, "input": says(EASY), "previous_response_id": answer.json()["id"]}
    assert len(served) == 1
    time.sleep(STALENESS)
    chatted = http.post(
        "/v1/chat/completions", json={"model": GROUP, "messages": [{"role": "user", "content": says(EASY)}]}, headers=headers
    )
    assert {chatted.headers["x-litellm-model-id"]} == served


@pytest.mark.requirement("F-4")
def test_two_keys_with_the_same_session_id_have_two_sessions(stand: Stand) -> None:
    other = stand.gateway.new_key()
    names = [uuid.uuid4().hex for _ in range(18)]
    talks = {key: [Talk("header", key, name) for name in names] for key in (stand.key, other)}
    for words in (EASY, HARD):
        stand.round([*talks[stand.key], *talks[other]], words)
    assert all(talk.moves == 0 for one in talks.values() for talk in one)
    places = [[talk.served[0] for talk in one] for one in talks.values()]
    assert places[0] != places[1], "a session of the other key would have been found otherwise"


@pytest.mark.requirement("F-4")
def test_a_session_that_two_workers_begin_at_once_ends_on_one_deployment(stand: Stand) -> None:
    """The strategy wants another deployment for each of the two turns, so before they hear of each other they must differ."""
    talks = [(Talk("header", stand.key, name), Talk("header", stand.key, name)) for name in map(str, range(8))]
    first, second = stand.each
    with ThreadPoolExecutor(8) as pool:
        turns = [(pool.submit(one.turn, first, EASY), pool.submit(two.turn, second, HARD)) for one, two in talks]
        split = [one.result() != two.result() for one, two in turns]
    time.sleep(STALENESS)
    for one, two in talks:
        settled = {one.turn(first, HARD), two.turn(second, EASY), one.turn(second, HARD), two.turn(first, EASY)}
        assert len(settled) == 1
        assert settled <= {one.served[0], two.served[0]}
        assert one.moves + two.moves <= 1, "one of them moved, once"
    assert any(split), "else nothing was to be settled here"


def test_of_equals_two_workers_choose_the_same_before_they_hear_of_each_other(stand: Stand) -> None:
    talks = [
        (Talk("header", stand.key, name), Talk("header", stand.key, name)) for name in (uuid.uuid4().hex for _ in range(8))
    ]
    first, second = stand.each
    with ThreadPoolExecutor(8) as pool:
        turns = [(pool.submit(one.turn, first, EASY), pool.submit(two.turn, second, EASY)) for one, two in talks]
        assert all(one.result() == two.result() for one, two in turns)


def death(stand: Stand, upstreams: Upstreams) -> tuple[list[Talk], list[Talk], str]:
    """The deployment with the most of twenty sessions dies and comes back: all of them, those that were there, and its name."""
    talks = [Talk(way, stand.key) for way in ("header", "user", "metadata", "anthropic", "responses") for _ in range(4)]
    stand.round(talks)
    dead = max({talk.served[0] for talk in talks}, key=lambda name: sum(talk.served[0] == name for talk in talks))
    theirs = [talk for talk in talks if talk.served[0] == dead]
    upstreams.fault(dead, status=503)
    try:
        before = upstreams.count(dead)
        for _ in range(3):
            stand.round(talks)
        assert [talk.moves for talk in theirs] == [1] * len(theirs)
        assert [talk.moves for talk in talks if talk not in theirs] == [0] * (len(talks) - len(theirs))
        assert upstreams.count(dead) - before <= 4 * len(theirs), "nobody is sent there again and again"
    finally:
        upstreams.clear(dead)
    return talks, theirs, dead


@pytest.mark.requirement("F-4")
def test_when_a_deployment_dies_its_sessions_move_once_and_no_others(stand: Stand, upstreams: Upstreams) -> None:
    talks, theirs, dead = death(stand, upstreams)
    # It comes back; without prices nobody knows that going back would pay.
    http = stand.each[0]

    def is_back() -> bool:
        answer = Talk("header", stand.key).turn(http, EASY if "weak" in dead else HARD)
        return answer == dead

    wait_for(is_back, 40, "the deployment is tried again")
    for _ in range(2):
        stand.round(talks)
    assert [talk.moves for talk in theirs] == [1] * len(theirs)


@pytest.mark.requirement("F-3")
def test_a_tenant_with_headers_of_its_own_takes_no_upstream_from_the_others(stand: Stand) -> None:
    body = {"model": GROUP, "messages": [{"role": "user", "content": says(EASY)}]}
    for own, status in (({"extra_headers": {"Authorization": "refused"}}, 401), ({"api_key": ""}, 500)):
        for number in range(8):
            headers = {"authorization": f"Bearer {stand.key}"}
            answer = stand.each[number % 2].post("/v1/chat/completions", json={**body, **own}, headers=headers)
            assert answer.status_code == status, answer.text
    listed = stand.gateway.admin.get("/pointsman/breakers").raise_for_status().json()
    states = {row["state"] for row in listed["breakers"] if "two-weak" in str(row["deployments"])}
    assert states
    assert "open" not in states, listed


# LiteLLM's own, for groups without a strategy.


@pytest.mark.requirement("F-4")
def test_litellms_own_affinity_keeps_the_sessions_of_a_group_without_a_strategy(stand: Stand) -> None:
    """One worker: without a Redis, LiteLLM's pins are each worker's own."""
    talks = [Talk(way, stand.key, model=BARE) for way in ("metadata", "litellm's header", "anthropic") for _ in range(4)]
    for talk in talks:
        for _ in range(6):
            talk.turn(stand.each[0])
    assert {talk.way: talk.served for talk in talks if talk.moves} == {}
    assert len({talk.served[0] for talk in talks}) > 1
    assert {word for talk in talks for word in talk.decided} == {"litellm"}
    unnamed = Talk("user", stand.key, model=BARE)  # LiteLLM's takes no `user` for a session
    assert len({unnamed.turn(stand.each[0]) for _ in range(20)}) > 1


def test_litellms_own_affinity_keeps_the_requests_of_a_key_together(stand: Stand) -> None:
    for key in (stand.gateway.new_key() for _ in range(3)):
        assert len({Talk("user", key, model="keyed").turn(stand.each[0]) for _ in range(8)}) == 1


def test_litellms_own_affinity_keeps_a_strategy_from_being_asked(stand: Stand) -> None:
    """Which is why `pointsman check` warns of it for a group with a strategy."""
    talk, free = Talk("metadata", stand.key, model="fought"), Talk("user", stand.key, model="fought")
    for words in (EASY, HARD, EASY, HARD):
        talk.turn(stand.each[0], words)
        free.turn(stand.each[0], words)
    assert (talk.moves, talk.decided) == (0, ["sized", "litellm", "litellm", "litellm"])
    assert (free.moves, free.decided) == (3, ["sized"] * 4)


# Two instances.


@dataclass(frozen=True)
class Fleet(Stand):
    """Two instances of one worker each, over one Redis."""

    instances: tuple[Gateway, ...] = ()
    redis: RedisServer | None = None

    def shared(self) -> bool:
        """Whether the other instance has a session where it began, though the strategy wants it elsewhere."""
        talk = Talk("header", self.key)
        begun = talk.turn(self.each[0], EASY)
        time.sleep(self.staleness)
        return talk.turn(self.each[1], HARD) == begun


def clients(instances: Sequence[Gateway]) -> tuple[Sequence[httpx.Client], Sequence[httpx.Client]]:
    one, two = ([instance.http(None) for _ in range(4)] for instance in instances)
    return one, two


@pytest.fixture(scope="module")
def fleet(
    upstreams: Upstreams,
    publisher: FilePublisher,
    redis_server: RedisServer,
    new_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    config = ha_config(
        models(upstreams, "fleet"),
        router_settings={"disable_cooldowns": True, "model_group_affinity_config": {BARE: ["session_affinity"]}},
        pointsman={
            "strategies": {"sized": publisher.settings(reload_interval=60.0)},
            "routing": {"groups": {GROUP: "sized"}, "deadline_ms": 10_000},
            "resilience": STICKY,
        },
    )
    instances = start_instances(config, tmp_path_factory.mktemp("fleet"), new_database(), redis_server.environment)
    key = instances[0].new_key()
    yield Fleet(instances[0], clients(instances), key, 2 * STALENESS, tuple(instances), redis_server)
    for instance in instances:
        instance.stop()


@pytest.mark.requirement("F-4")
def test_each_session_stays_on_one_deployment_whichever_instance_serves_it(fleet: Fleet) -> None:
    assert fleet.redis is not None
    wait_for(fleet.shared, 10, "the instances share")
    talks = [Talk(way, fleet.key) for way in WAYS for _ in range(3)]
    for _ in range(3):
        fleet.round(talks)
    assert {talk.way: talk.served for talk in talks if talk.moves} == {}
    assert len({talk.served[0] for talk in talks}) >= 3
    with fleet.redis.client() as client:
        (name,) = [name for name in client.scan_iter("*") if name.endswith("facts:affinity")]
        assert 0 < client.ttl(name) <= 3600
        told = str(client.xrange(name))
    assert talks[0].served[0] in told
    secrets = [word for talk in talks for word in (talk.name, talk.key, hashlib.sha256(talk.key.encode()).hexdigest())]
    assert not any(word in told for word in secrets), "no session, no key and no hash of a key is told"


@pytest.mark.requirement("F-4")
def test_when_a_deployment_dies_its_sessions_move_once_in_both_instances(fleet: Fleet, upstreams: Upstreams) -> None:
    death(fleet, upstreams)


@pytest.mark.requirement("F-4")
def test_litellms_own_affinity_is_shared_by_redis(fleet: Fleet) -> None:
    talks = [Talk("metadata", fleet.key, model=BARE) for _ in range(12)]
    for _ in range(3):
        fleet.round(talks)
    assert [talk.served for talk in talks if talk.moves] == []
    assert len({talk.served[0] for talk in talks}) > 1


@pytest.mark.requirement("F-4")
def test_while_redis_is_away_each_instance_goes_on_by_itself_and_afterwards_they_agree(fleet: Fleet) -> None:
    assert fleet.redis is not None
    old = [Talk("header", fleet.key) for _ in range(6)]
    fleet.round(old)
    fleet.redis.kill()
    try:
        new = [(Talk("header", fleet.key, name), Talk("header", fleet.key, name)) for name in map(str, range(100, 108))]
        first, second = fleet.each
        for words in (EASY, HARD, EASY):
            fleet.round(old)
            for one, two in new:
                one.turn(first, words)
                two.turn(second, HARD if words is EASY else EASY)
        assert [talk.moves for talk in old] == [0] * len(old)
        assert all(one.moves == two.moves == 0 for one, two in new)
        assert any(one.served[0] != two.served[0] for one, two in new), "else there is nothing to agree on"
    finally:
        fleet.redis.start()
    wait_for(fleet.shared, 20, "the instances share again")
    time.sleep(fleet.staleness)
    for one, two in new:
        assert one.turn(first) == two.turn(second)
        assert one.moves + two.moves <= 1


@pytest.mark.requirement("F-4")
def test_an_instance_that_is_restarted_learns_where_the_sessions_are(fleet: Fleet) -> None:
    talks = [Talk("header", fleet.key) for _ in range(12)]
    for _ in range(2):
        fleet.round(talks)
    second = fleet.instances[1]
    second.kill()
    second.start()
    again = second.http(None)
    for words in (EASY, HARD):
        for talk in talks:
            talk.turn(again, words)
    assert [talk.moves for talk in talks] == [0] * len(talks)


# The end of a session.


def test_a_session_that_is_not_used_ends(
    upstreams: Upstreams, publisher: FilePublisher, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    resilience = {"sticky": {"enabled": True, "ttl": 3.0}}
    strategies = {"sized": publisher.settings(reload_interval=60.0)}
    config = routed_config(models(upstreams, "short"), strategies, {GROUP: "sized"}, resilience=resilience)
    gateway = Gateway(config, tmp_path, None, workers=1).start()
    try:
        talk, http = Talk("header", gateway.master_key), gateway.http(None)
        for words in (EASY, HARD, HARD):
            talk.turn(http, words)
        assert (talk.moves, talk.decided) == (0, ["sized", "sticky", "sticky"])
        time.sleep(3.1)
        talk.turn(http, HARD)
        assert (talk.moves, talk.decided[-1]) == (1, "sized")
    finally:
        gateway.stop()
