"""Of `bench.faults`: who is measured. Pointsman and stock LiteLLM, booted with the same models on databases of their own.

- `pointsman`: one instance, two workers. The configuration says nothing of resilience, so everything is as it comes.
- `pointsman-timed`: the same with the time-outs of `tuned`: nothing else can tell that an upstream hangs from one that is slow.
- `stock`: LiteLLM's own command line, two workers, with the very same file.
- `tuned`: the same with `TUNED`, what an informed operator would set, and Redis, which tells workers of others' cool-downs.
- `pointsman-2`, `tuned-2`: two instances with one worker each, Redis, and the general and LiteLLM settings of the profile `ha`.

What stock LiteLLM is granted: it finds the database migrated, and our query engine instead of Prisma's, which has to be
downloaded. All else is its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml
from bench.faults_load import PRICE

from pointsman.litellm_config import profile_path
from pointsman.migrations.runner import migrate
from support.gateway import Gateway
from support.pg_cluster import PgCluster
from support.processes import kill_all, marked
from support.redis import RedisServer
from support.stock import StockLiteLLM

__all__ = ["KEYS", "SUBJECTS", "TUNED", "TUNED_FILE", "Books", "Clock", "Subject", "subject"]

SUBJECTS = ("pointsman", "pointsman-timed", "stock", "tuned", "pointsman-2", "tuned-2")
KEYS = 8
"""Virtual keys, dealt out among the clients."""

TUNED_FILE = Path(__file__).with_name("faults_tuned.yaml")
TUNED: dict[str, Any] = yaml.safe_load(TUNED_FILE.read_text(encoding="utf-8"))

_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *ahead;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("FAULTS_CLOCK");
  int file = name ? open(name, O_RDONLY) : -1;
  if (file < 0) return;
  void *page = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (page != MAP_FAILED) ahead = page;
}
int clock_gettime(clockid_t id, struct timespec *now) {
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int done = real(id, now);
  if (done == 0 && ahead && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *ahead;
  return done;
}
int gettimeofday(struct timeval *now, void *zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *where) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (where) *where = exact.tv_sec;
  return exact.tv_sec;
}
"""


class Clock:
    """The wall clock of a gateway's processes, set by a preloaded library; monotonic clocks go on as they are.

    Args:
        folder: an empty directory, for the library and the page that says how many seconds the clock is ahead.

    Raises:
        OSError, subprocess.CalledProcessError: there is no C compiler here, or it does not compile this.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        source, self._library, self._page = folder / "clock.c", folder / "clock.so", folder / "ahead"
        source.write_text(_CLOCK, encoding="utf-8")
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"], check=True, capture_output=True
        )
        self.ahead(0)

    @property
    def environment(self) -> dict[str, str]:
        """For the processes whose clock it is."""
        return {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._page)}

    def ahead(self, seconds: int) -> None:
        """From now on their wall clock is so many seconds ahead of ours."""
        data = seconds.to_bytes(8, "little", signed=True)
        with self._page.open("r+b" if self._page.exists() else "wb") as page:
            page.write(data)


@dataclass(frozen=True, slots=True)
class Row:
    """One request in LiteLLM's table."""

    id: str
    good: bool
    token: str
    spend: float


class Books:
    """What a subject's database says, read past it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> tuple[list[Row], dict[str, float]]:
        """The requests, and dollars by key (hashed)."""
        with psycopg.connect(self._url, autocommit=True, connect_timeout=3) as connection:
            rows = connection.execute('SELECT request_id, status, api_key, spend FROM "LiteLLM_SpendLogs"').fetchall()
            keys = connection.execute(
                'SELECT token, spend FROM "LiteLLM_VerificationToken" WHERE key_alias LIKE %s', ["faults-%"]
            )
            found = [Row(str(id_), state == "success", str(token), float(spend)) for id_, state, token, spend in rows]
            return found, {str(token): float(spend) for token, spend in keys.fetchall()}


@dataclass(slots=True)
class Subject:
    """A running one.

    Attributes:
        name: of `SUBJECTS`.
        urls: of its instances.
        keys: virtual keys.
        tokens: their hashes, as the tables have them.
        books: its database.
        marks: of its instances' processes.
        logs: what its instances write.
        starts: start one of its instances that was killed, and wait until it is ready.
    """

    name: str
    urls: list[str]
    keys: list[str]
    tokens: list[str]
    books: Books
    marks: list[str]
    logs: list[Path]
    starts: list[Callable[[], object]]

    def processor_time(self) -> float:
        """Seconds that its processes have used so far: proc(5), `stat`."""
        ticks = 0
        for pid in (pid for mark in self.marks for pid in marked(mark)):
            with suppress(OSError):  # ended in the meantime
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill_instance(self, place: int) -> None:
        """SIGKILL every process of one instance, as when its container or machine is gone."""
        kill_all(self.marks[place])

    def start_instance(self, place: int) -> None:
        """Start one again that was killed, where it was: its data directory is what it left."""
        self.starts[place]()


def models(groups: Sequence[str], ports: dict[str, int]) -> dict[str, Any]:
    """`model_list` and fallbacks of all groups: three deployments each and one to fall back on, at upstreams of their own."""
    prices = {"input_cost_per_token": PRICE, "output_cost_per_token": PRICE}

    def deployment(group: str, door: str, path: str) -> dict[str, Any]:
        base = f"http://127.0.0.1:{ports[door]}/{path}/v1"
        return {
            "model_name": group,
            "litellm_params": {"model": "openai/words", "api_base": base, "api_key": "none"},
            "model_info": {"id": f"{path}-{door}", **prices},
        }

    listed = [deployment(group, door, group) for group in groups for door in ("a", "b", "c")]
    listed += [deployment(f"{group}-spare", "spare", group) for group in groups]
    return {"model_list": listed, "router_settings": {"fallbacks": [{group: [f"{group}-spare"]} for group in groups]}}


def configuration(name: str, groups: Sequence[str], ports: dict[str, int]) -> dict[str, Any]:
    """The file of a subject."""
    general = {"master_key": "os.environ/LITELLM_MASTER_KEY", "store_model_in_db": True}
    config: dict[str, Any] = {**models(groups, ports), "general_settings": general}
    if name.endswith("-2"):
        shipped: dict[str, Any] = yaml.safe_load(profile_path("ha").read_text(encoding="utf-8"))
        config["general_settings"] |= shipped["general_settings"]
        config["litellm_settings"] = shipped["litellm_settings"]
    if name.startswith("tuned"):
        for section, values in TUNED.items():
            config[section] = {**config.get(section, {}), **values}
    elif name.startswith("pointsman"):
        config["pointsman"] = {"shutdown": {"not_ready": 0.2, "grace": 5.0}}  # its end is no part of what is measured
    if name == "pointsman-timed":
        times = TUNED["router_settings"]
        config["router_settings"] |= {key: times[key] for key in ("timeout", "stream_timeout")}
        config["pointsman"]["resilience"] = {"failover": {"first_token": times["stream_timeout"]}}
    return config


@asynccontextmanager
async def subject(
    name: str,
    folder: Path,
    groups: Sequence[str],
    ports: dict[str, int],
    postgres: PgCluster,
    redis: RedisServer,
    clock: Clock | None,
) -> AsyncIterator[Subject]:
    """A subject with keys, running inside the block; its database is made on `postgres`.

    Args:
        name: of `SUBJECTS`.
        folder: its own.
        groups: the model groups, one a scenario.
        ports: of the upstreams' doors.
        postgres: where its database goes.
        redis: for those that use it; emptied.
        clock: its processes' wall clock; None: the machine's.
    """
    database = name.replace("-", "_")
    await asyncio.to_thread(postgres.execute, f"CREATE DATABASE {database}")
    url = postgres.url(database)
    await asyncio.to_thread(migrate, url, lambda _: None)
    master = f"sk-{secrets.token_urlsafe(24)}"
    env = {"LITELLM_MASTER_KEY": master, "LITELLM_SALT_KEY": f"sk-salt-{secrets.token_urlsafe(24)}"}
    if name not in ("pointsman", "pointsman-timed", "stock"):
        with redis.client() as client:
            client.flushall()
        env |= redis.environment
    env |= clock.environment if clock else {}
    config = configuration(name, groups, ports)
    instances, workers = (2, 1) if name.endswith("-2") else (1, 2)
    places = [folder / f"{name}-{number}" for number in range(instances)]
    with ExitStack() as stack:
        if name.startswith("pointsman"):
            ours = [Gateway(config, place, url, env=env, workers=workers) for place in places]
            for gateway in ours:
                gateway.spawn()
                stack.callback(_stop, gateway)
            for gateway in ours:
                await asyncio.to_thread(gateway.wait_ready)
            urls, marks, logs = [one.url for one in ours], [one.mark for one in ours], [one.log_path for one in ours]
            starts: list[Callable[[], object]] = [one.start for one in ours]
        else:
            stocks = [StockLiteLLM(config, place, url, env, workers) for place in places]
            await asyncio.gather(*(asyncio.to_thread(stack.enter_context, one) for one in stocks))
            urls = [f"http://127.0.0.1:{one.port}" for one in stocks]
            marks, logs = [one.mark for one in stocks], [one.log_path for one in stocks]
            starts = [one.start for one in stocks]
        keys, tokens = await asyncio.to_thread(_make_keys, urls[0], master)
        yield Subject(name, urls, keys, tokens, Books(url), marks, logs, starts)
        await asyncio.to_thread(stack.close)


def _stop(gateway: Gateway) -> None:
    """End it as an operator would, so that it writes what it has still to write; by force if that does not help."""
    try:
        gateway.stop()
    except AssertionError:  # a status, or a process, that is left over after it was killed
        gateway.kill()


def _make_keys(url: str, master: str) -> tuple[list[str], list[str]]:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {master}"}, timeout=60, trust_env=False) as http:
        made = []
        for number in range(KEYS):
            answer = http.post("/key/generate", json={"key_alias": f"faults-{number}"})
            assert answer.status_code == 200, answer.text
            made.append(answer.json())
    return [one["key"] for one in made], [one["token"] for one in made]
