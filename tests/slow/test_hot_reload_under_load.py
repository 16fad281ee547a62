"""Hot reload under load: 16 clients, a minute, a new bundle every 5 s, every tenth corrupt, S3 away for 20 s in the middle."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from support.gateway import Gateway
from support.processes import resident_mib, wait_for
from support.s3 import S3Server
from support.strategy import EASY, HARD, STRATEGY, Published, S3Publisher
from support.topology import small_config
from support.upstreams import Upstreams

CLIENTS = 16
SECONDS = 60.0
EVERY = 5.0
INTERVAL = 1.0
OUTAGE = (20.0, 40.0)
CORRUPT = 10  # every tenth publication is corrupt; there are also extra ones in between, to have more than one
GROWTH_MIB = 40.0
"""What a worker may grow between the tenth second and the end. Leaking one bundle (100 kB of arrays) a swap would not show, a
leak in each of ten thousand requests would."""


@dataclass(slots=True)
class Seen:
    """What the clients saw: time of asking, time of the answer, version, model, wanted size of each answer; and failures."""

    answers: list[tuple[float, float, str | None, str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@pytest.fixture
def loaded(
    tmp_path: Path, upstreams: Upstreams, s3: S3Server, new_database: Callable[[], str]
) -> Iterator[tuple[Gateway, S3Publisher]]:
    publisher = S3Publisher(s3)
    publisher.publish("0")
    instance = Gateway(small_config(upstreams, publisher), tmp_path / "gateway", new_database()).start()
    yield instance, publisher
    instance.stop()


async def client(instance: Gateway, key: str, number: int, seen: Seen, until: float) -> None:
    """Ask, plain and streamed in turns, over connections that are renewed now and then so that every worker is asked."""
    headers = {"authorization": f"Bearer {key}"}
    while time.monotonic() < until:
        async with httpx.AsyncClient(base_url=instance.url, headers=headers, timeout=30, trust_env=False) as http:
            for turn in range(20):
                if time.monotonic() > until:
                    return
                text, size = ((EASY, "weak"), (HARD, "strong"))[(number + turn) % 2]
                body = {"model": "auto", "messages": [{"role": "user", "content": text}], "stream": turn % 4 == 0}
                asked = time.monotonic()
                try:
                    answer = await http.post("/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    seen.failures.append(f"{asked:.1f} {error!r}")
                    continue
                if answer.status_code != 200 or (body["stream"] and not answer.text.rstrip().endswith("data: [DONE]")):
                    seen.failures.append(f"{asked:.1f} {answer.status_code} {answer.text[:200]}")
                    continue
                version = answer.headers.get("x-pointsman-version")
                seen.answers.append((asked, time.monotonic(), version, answer.headers.get("x-pointsman-model", ""), size))


@dataclass(slots=True)
class Story:
    """What was published and when (monotonic seconds, after the store had it)."""

    good: list[tuple[float, Published]] = field(default_factory=list)
    corrupt: int = 0
    outage: tuple[float, float] = (0.0, 0.0)


def publish_all(publisher: S3Publisher, s3: S3Server, start: float, instance: Gateway) -> Story:
    """Publish on time until the minute is over. Blocking; runs in a thread."""
    story = Story()
    kinds = itertools.cycle(("flipped", "unsigned", "truncated"))
    away = False
    for number in itertools.count(1):
        at = start + number * EVERY
        if at > start + SECONDS - 2 * INTERVAL:
            return story
        time.sleep(max(0.0, at - time.monotonic()))
        if not away and at >= start + OUTAGE[0] and story.outage == (0.0, 0.0):
            s3.stop()
            away, story.outage = True, (time.monotonic(), 0.0)
        if away and at >= start + OUTAGE[1]:
            s3.start()
            away, story.outage = False, (story.outage[0], time.monotonic())
        if away:
            continue
        if number % CORRUPT == 0 or number == 2:
            before = instance.strategy(STRATEGY)["counters"]["rejected"]
            publisher.corrupt(next(kinds), f"bad-{number}")
            story.corrupt += 1
            wait_for(lambda: instance.strategy(STRATEGY)["counters"]["rejected"] > before, 3, "refused and counted")  # noqa: B023
        else:
            published = publisher.publish(str(number))
            story.good.append((time.monotonic(), published))
    raise AssertionError("not reached")


@pytest.mark.slow("hotreload")
@pytest.mark.timeout(300)
@pytest.mark.requirement("P-5", "P-22", "R-3.1", "R-3.3")
async def test_hot_reload_under_load(loaded: tuple[Gateway, S3Publisher], s3: S3Server) -> None:
    instance, publisher = loaded
    key = instance.new_key()
    first = publisher.last
    assert first is not None
    seen, pids = Seen(), instance.worker_pids()
    start = time.monotonic()
    tasks = [asyncio.create_task(client(instance, key, number, seen, start + SECONDS)) for number in range(CLIENTS)]
    story_task = asyncio.create_task(asyncio.to_thread(publish_all, publisher, s3, start, instance))
    memory: dict[int, list[tuple[float, float]]] = {pid: [] for pid in pids}
    while time.monotonic() < start + SECONDS:
        await asyncio.sleep(1)
        for pid in pids:
            memory[pid].append((time.monotonic() - start, resident_mib(pid)))
    await asyncio.gather(*tasks)
    story = await story_task

    row = instance.strategy(STRATEGY)
    latencies = [after - before for before, after, *_ in seen.answers]
    print(
        f"\n{len(seen.answers)} answers, {len(seen.failures)} failures; median {statistics.median(latencies) * 1000:.0f} ms; "
        f"{len(story.good)} good and {story.corrupt} corrupt bundles; outage {story.outage[1] - story.outage[0]:.1f} s; "
        f"counters {row['counters']}"
    )
    assert not seen.failures, seen.failures[:5]
    assert len(seen.answers) > 500
    assert all(version is not None for _, _, version, _, _ in seen.answers), "the strategy decided every time"
    assert all(model == f"openai/{size}-model" for *_, model, size in seen.answers), "and rightly"

    # No answer to a request that was sent `interval` + 1 s after a publication names a version before it.
    history = [(start, first), *story.good]
    for (_, old), (published_at, new) in itertools.pairwise(history):
        in_outage = story.outage[0] - INTERVAL <= published_at <= story.outage[1] + INTERVAL
        deadline = published_at + INTERVAL + 1 + (INTERVAL if in_outage else 0)
        late = [asked - published_at for asked, _, version, *_ in seen.answers if version == old.version and asked > deadline]
        assert not late, f"{old.version} still named {max(late):.2f} s after {new.version} was published"
    last = story.good[-1][1]
    wait_for(lambda: instance.strategy(STRATEGY)["version"] == last.version, 5, "the last good one is in service")
    assert {version for _, _, version, *_ in seen.answers} == {published.version for _, published in history}, "each was served"

    assert story.corrupt >= 2
    assert row["counters"]["rejected"] >= story.corrupt
    assert row["counters"]["failures"] >= 3, "the outage was counted"
    assert row["counters"]["swaps"] == len(story.good) + 1
    assert instance.worker_pids() == pids, "no worker was lost"
    for pid, samples in memory.items():
        settled = statistics.median(mib for at, mib in samples if 10 <= at < 20)
        end = statistics.median(mib for at, mib in samples if at >= SECONDS - 10)
        print(f"worker {pid}: {settled:.0f} MiB after 10-20 s, {end:.0f} MiB at the end")
        assert end - settled < GROWTH_MIB
