"""Redis 6.2, Redis 7.0 and Valkey 9; Sentinel with a killed master; TLS; a Redis that goes away; an instance that is killed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from itertools import count, cycle
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from support.forward import Balancer
from support.gateway import Gateway, free_port
from support.marks import ROOT
from support.processes import wait_for
from support.redis import RedisServer, ha_config, start_instances, valkey_binary
from support.redis_versions import Sentinels, install_redis6, install_redis7
from support.topology import priced, single
from support.upstreams import Upstreams

Boot = Callable[..., list[Gateway]]
PRICE = 0.04


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a version -> its server."""
    place = tmp_path_factory.mktemp("binaries")
    return {
        "redis 6.2": install_redis6(place / "six"),
        "redis 7.0": install_redis7(place / "seven"),
        "valkey 9": valkey_binary(),
    }


@pytest.fixture
def boot(upstreams: Upstreams, new_database: Callable[[], str], tmp_path: Path) -> Iterator[Boot]:
    """Factory of instances on a database of their own: `boot(environment, count, section={...})`."""
    made: list[Gateway] = []
    models = [priced(upstreams), single(upstreams, "plain", "openai/plain-model")]

    def start(env: Mapping[str, str], number: int = 2, **changes: Any) -> list[Gateway]:
        made.extend(start_instances(ha_config(models, **changes), tmp_path, new_database(), env, number))
        return made

    yield start
    for instance in made:
        instance.kill()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "valkey").start()
    yield server
    server.kill()


def ask(instance: Gateway | int, key: str, said: str = "", model: str = "plain") -> httpx.Response:
    """A chat; text that nobody has asked yet unless given."""
    port = instance if isinstance(instance, int) else instance.port
    body = {"model": model, "messages": [{"role": "user", "content": said or uuid.uuid4().hex}]}
    headers = {"authorization": f"Bearer {key}", "connection": "close"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=30, trust_env=False)


def share(first: Gateway, second: Gateway, key: str) -> bool:
    """Whether what the first asked is answered by the second from the cache."""
    said = uuid.uuid4().hex
    return bool(ask(first, key, said).json()["id"] == ask(second, key, said).json()["id"])


@pytest.mark.slow("redisversions")
@pytest.mark.timeout(240)
@pytest.mark.requirement("R-17", "R-4.2", "R-4.3", "R-4.5")
@pytest.mark.parametrize("version", ["redis 6.2", "redis 7.0"])
def test_two_instances_are_one_on(binaries: dict[str, Path], version: str) -> None:
    """The tests of tests/e2e/test_redis.py, which run on Valkey else."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/e2e/test_redis.py"]
    started = time.monotonic()
    command += ["--redis", str(binaries[version])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) >= 13
    print(f"\n{version}: {passed[1]} tests in {time.monotonic() - started:.0f} s")


@pytest.mark.slow("redisversions")
@pytest.mark.requirement("R-17")
@pytest.mark.parametrize(
    ("version", "said"), [("redis 6.2", "Redis 6.2"), ("redis 7.0", "Redis 7.0"), ("valkey 9", "Valkey 9")]
)
def test_the_servers_are_what_they_are_called(binaries: dict[str, Path], tmp_path: Path, version: str, said: str) -> None:
    server = RedisServer(tmp_path, binaries[version]).start()
    try:
        assert server.version.startswith(said)
    finally:
        server.kill()


@pytest.mark.slow("redisversions")
@pytest.mark.timeout(120)
@pytest.mark.requirement("R-17")
@pytest.mark.parametrize("version", ["redis 6.2", "redis 7.0", "valkey 9"])
def test_sentinel_names_another_master_and_the_instances_follow(
    binaries: dict[str, Path], boot: Boot, tmp_path: Path, version: str
) -> None:
    group = Sentinels(tmp_path / "group", binaries[version])
    try:
        first, second = boot(group.environment)
        key = first.new_key()
        assert share(first, second, key)
        group.master.kill()
        killed, slowest = time.monotonic(), 0.0

        def follows() -> bool:
            nonlocal slowest
            for instance in (first, second):
                asked = time.monotonic()
                assert ask(instance, key).status_code == 200, "it serves all the time"
                slowest = max(slowest, time.monotonic() - asked)
            return group.promoted() and share(first, second, key) and share(second, first, key)

        wait_for(follows, 60, "both instances use the new master", interval=0.2)
        print(f"\n{version}: shared again {time.monotonic() - killed:.1f} s after the kill; slowest answer {slowest:.1f} s")
        group.sentinels[0].kill()
        limited = first.new_key(rpm_limit=6)
        statuses = [ask(instance, limited).status_code for _, instance in zip(range(12), cycle((first, second)), strict=False)]
        assert statuses.count(200) == 6, "limits are shared again, too, and one Sentinel less does not matter"
    finally:
        group.kill()


@pytest.mark.slow("redisversions")
@pytest.mark.timeout(120)
@pytest.mark.requirement("R-17")
@pytest.mark.parametrize("how", ["url", "host"])
def test_tls_with_an_authority_of_ones_own(binaries: dict[str, Path], boot: Boot, tmp_path: Path, how: str) -> None:
    certificate, secret = tmp_path / "tls.crt", tmp_path / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-out", certificate, "-keyout", secret], check=True, capture_output=True)
    port = free_port()
    tls = (f"tls-port {port}", f'tls-cert-file "{certificate}"', f'tls-key-file "{secret}"', "tls-auth-clients no")
    server = RedisServer(tmp_path / "redis", binaries["redis 7.0"], settings=tls).start()
    try:
        if how == "url":
            env = {"REDIS_URL": f"rediss://:{server.password}@localhost:{port}/0?ssl_ca_certs={certificate}"}
        else:
            env = {"REDIS_HOST": "localhost", "REDIS_PORT": str(port), "REDIS_PASSWORD": server.password}
            env |= {"REDIS_SSL": "true", "REDIS_SSL_CA_CERTS": str(certificate)}
        first, second = boot(env)
        assert share(first, second, first.new_key())
        with server.client() as client:
            kinds = {str(entry["laddr"]).rpartition(":")[2] for entry in client.client_list() if "laddr" in entry}
        assert str(port) in kinds, "connections came to the port that speaks TLS"
    finally:
        server.kill()


@pytest.mark.slow("redisversions")
@pytest.mark.timeout(180)
@pytest.mark.requirement("R-4.2", "R-4.3", "R-4.5")
@pytest.mark.parametrize("how", ["refuses", "answers nothing"])
def test_without_redis_each_instance_serves_on_by_itself_and_they_find_back(boot: Boot, valkey: RedisServer, how: str) -> None:
    first, second = boot(valkey.environment)
    key = first.new_key()
    assert share(first, second, key)
    (valkey.stop if how == "refuses" else valkey.stand_still)()
    since, waits = time.monotonic(), []
    while time.monotonic() - since < 12:
        for instance in (first, second):
            asked = time.monotonic()
            assert ask(instance, key).status_code == 200
            waits.append((asked - since, time.monotonic() - asked))
    slow = [wait for _, wait in waits if wait > 1.0]
    print(f"\nRedis {how}: {len(waits)} answers, slowest {max(wait for _, wait in waits):.1f} s, {len(slow)} above a second")
    # A request meets Redis a few times, each at most a second (`socket_timeout`), until the breaker opens.
    assert max(wait for _, wait in waits) < (3.0 if how == "refuses" else 6.0)
    assert len(slow) <= 10

    # Reported: in the log, in the metrics, by the cache's own health check; and it stays ready.
    for instance in (first, second):
        assert instance.ready()
        assert "Redis circuit breaker OPENED" in instance.log_path.read_text()
        assert 'litellm_redis_circuit_breaker_state{state="open"} 1.0' in instance.admin.get("/metrics/").text
        assert instance.admin.get("/cache/ping").status_code == 503

    # Limits on requests: each instance counts for itself.
    limited = first.new_key(rpm_limit=5)
    statuses = [ask(instance, limited).status_code for _, instance in zip(range(20), cycle((first, second)), strict=False)]
    assert 5 <= statuses.count(200) <= 10
    # Budgets: what Postgres says counts, so that they stop late, by the time between two writes, but stop.
    poor = first.new_key(max_budget=0.2)
    begun, served = time.monotonic(), 0
    for instance in cycle((first, second)):
        if ask(instance, poor, model="priced").status_code == 429:
            break
        served += 1
        assert time.monotonic() - begun < 30, "the budget stops it"
    print(f"a budget of 0.20 stopped at {served * PRICE:.2f} after {time.monotonic() - begun:.1f} s")

    (valkey.start if how == "refuses" else valkey.go_on)()
    back = time.monotonic()
    wait_for(lambda: share(first, second, key) and share(second, first, key), 20, "the cache is shared again")
    print(f"shared again {time.monotonic() - back:.1f} s after Redis came back")
    assert ask(second, poor, model="priced").status_code == 429
    limited = first.new_key(rpm_limit=6)
    statuses = [ask(instance, limited).status_code for _, instance in zip(range(12), cycle((first, second)), strict=False)]
    assert statuses.count(200) == 6

    def told() -> bool:
        fresh = first.new_key()
        assert ask(second, fresh).status_code == 200
        first.admin.post("/key/block", json={"key": fresh}).raise_for_status()
        time.sleep(0.5)
        return ask(second, fresh).status_code == 401

    wait_for(told, 60, "the instances tell each other of blocked keys again", interval=1)
    print(f"blocked keys are told again {time.monotonic() - back:.1f} s after Redis came back")


@pytest.mark.slow("redisversions")
@pytest.mark.timeout(120)
@pytest.mark.requirement("R-4.2", "R-4.5")
def test_an_instance_that_is_killed_leaves_the_other_and_finds_the_cache_when_it_is_back(
    boot: Boot, valkey: RedisServer, upstreams: Upstreams
) -> None:
    first, second = boot(valkey.environment)
    balancer = Balancer([first.port, second.port])
    try:
        key, said = first.new_key(), uuid.uuid4().hex
        kept = ask(first, key, said).json()["id"]
        limited = first.new_key(rpm_limit=10)
        assert [ask(balancer.port, limited).status_code for _ in range(6)] == [200] * 6
        first.kill()
        wait_for(lambda: not first.ready(), 5, "its port is closed: a health check would see it")
        assert [ask(balancer.port, key).status_code for _ in range(20)] == [200] * 20
        statuses = [ask(balancer.port, limited).status_code for _ in range(8)]
        assert statuses.count(200) == 4, "what the dead one let in counts"
        first.start()
        before = upstreams.count("plain")
        assert ask(first, key, said).json()["id"] == kept, "the cache outlives the instance"
        assert upstreams.count("plain") == before
    finally:
        balancer.close()


@pytest.mark.slow("redisversions")
@pytest.mark.timeout(120)
@pytest.mark.requirement("R-4.5")
@pytest.mark.parametrize("buffered", [False, True], ids=["each writes", "one writes for all"])
def test_spend_of_both_is_written_once(boot: Boot, valkey: RedisServer, buffered: bool) -> None:
    """With `use_redis_transaction_buffer` the instances gather in Redis what one of them writes to Postgres."""
    first, second = boot(valkey.environment, general_settings={"use_redis_transaction_buffer": buffered})
    key = first.new_key()
    for number, instance in zip(count(), cycle((first, second)), strict=False):
        if number == 60:
            break
        assert ask(instance, key, model="priced").status_code == 200
    assert first.database_url is not None
    with psycopg.connect(first.database_url, autocommit=True) as database:

        def written() -> list[Any]:
            log = database.execute('SELECT count(*), sum(spend) FROM "LiteLLM_SpendLogs" WHERE spend > 0').fetchone()
            day = database.execute('SELECT sum(api_requests), sum(spend) FROM "LiteLLM_DailyUserSpend"').fetchone()
            own = database.execute('SELECT sum(spend) FROM "LiteLLM_VerificationToken"').fetchone()
            return [*(log or ()), *(day or ()), *(own or ())]

        right = [60, pytest.approx(60 * PRICE), 60, pytest.approx(60 * PRICE), pytest.approx(60 * PRICE)]
        wait_for(lambda: written() == right, 40, "everything is written", interval=0.3)
        time.sleep(3)  # three more rounds of writing, at least
        assert written() == right, "and not again"
