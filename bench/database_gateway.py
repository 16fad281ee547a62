"""Of `bench.database_scale`: a gateway on a database, asked over HTTP. Times are in milliseconds unless named seconds."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import yaml
from bench.database_data import secret, token
from bench.startup import FOREIGN, KEYS, free_port

__all__ = ["gateway", "pages", "say", "spend_of_requests", "spread", "unseen_keys"]

PATIENCE = 180.0
"""Seconds that a start, or an answer, may take."""


def say(line: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {"p50": round(ordered[len(ordered) // 2] * 1000, 2), "p99": round(ordered[int(len(ordered) * 0.99)] * 1000, 2)}


@contextmanager
def gateway(folder: Path, url: str) -> Iterator[tuple[str, float]]:
    """A gateway of one worker on a database; its address, and the seconds it took to be ready."""
    folder.mkdir(exist_ok=True)
    config = {
        "model_list": [
            {"model_name": "chat", "litellm_params": {"model": "openai/none", "api_key": "none", "mock_response": "fine"}}
        ],
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "store_model_in_db": True,
            "proxy_batch_write_at": 1,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    command = [str(Path(sys.executable).parent / "pointsman"), "serve", "--config", str(folder / "config.yaml")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder / "data")]
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | KEYS | {"DATABASE_URL": url}
    with (folder / "gateway.log").open("wb") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(address):
            if process.poll() is not None or time.perf_counter() - begun > PATIENCE:
                raise SystemExit("the gateway was not ready:\n" + (folder / "gateway.log").read_text(errors="replace")[-4000:])
            time.sleep(0.02)
        yield address, time.perf_counter() - begun
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(address: str) -> bool:
    try:
        return ask(f"{address}/health/readiness", None)[0] == 200
    except OSError:
        return False


def ask(url: str, key: str | None, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and content of one request, on a connection of its own."""
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=PATIENCE) as answer:  # noqa: S310 - ours
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def unseen_keys(address: str, first: int, count: int) -> list[float]:
    """Seconds of requests, four at once, each with a key that the gateway has not seen: each is looked up in the database."""

    def one(number: int) -> float:
        begun = time.perf_counter()
        status, text = ask(f"{address}/v1/models", secret(number))
        assert status == 200, text
        return time.perf_counter() - begun

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(first, first + count)))


def spend_of_requests(address: str, url: str, first: int, count: int) -> float:
    """Seconds from the last of `count` chats, each with another key, until every one of them is in the request log."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}

    def one(number: int) -> None:
        status, text = ask(f"{address}/v1/chat/completions", secret(number), body)
        assert status == 200, text

    since = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(first, first + count)))
    begun = time.perf_counter()
    keys = [token(number) for number in range(first, first + count)]
    statement = 'SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE api_key = ANY(%s) AND "startTime" >= %s'
    with psycopg.connect(url, autocommit=True) as connection:
        while (connection.execute(statement, (keys, since)).fetchone() or (0,))[0] < count:
            assert time.perf_counter() - begun < PATIENCE, "spend is missing from the request log"
            time.sleep(0.05)
    return time.perf_counter() - begun


def pages(address: str) -> dict[str, dict[str, float]]:
    """First and median milliseconds of the pages that an administrator opens."""
    today, master = datetime.now(UTC), KEYS["LITELLM_MASTER_KEY"]
    day, week, month = (f"{today - timedelta(days=back):%Y-%m-%d}" for back in (0, 7, 29))
    hours = f"start_date={today - timedelta(hours=24):%Y-%m-%d+%H:%M:%S}&end_date={today:%Y-%m-%d+%H:%M:%S}"
    paths = {
        "key/list": "/key/list?page=1&size=50&return_full_object=true",
        "key/list, the last page": "/key/list?page=1000&size=50&return_full_object=true",
        "key/list of a team": "/key/list?page=1&size=50&team_id=team-7&return_full_object=true",
        "key/info": f"/key/info?key={secret(4321)}",
        "spend/logs/v2, a day": f"/spend/logs/v2?{hours}&page=1&page_size=50",
        "spend/logs/v2, a key": f"/spend/logs/v2?{hours}&page=1&page_size=50&api_key={token(4321)}",
        "user/daily/activity, a week": f"/user/daily/activity?start_date={week}&end_date={day}&page_size=1000",
        "user/daily/activity, a month": f"/user/daily/activity?start_date={month}&end_date={day}&page_size=1000",
        "global/activity, a month": f"/global/activity?start_date={month}&end_date={day}",
        "global/spend": "/global/spend",
        "global/spend/logs": "/global/spend/logs",
        "global/spend/keys": "/global/spend/keys?limit=5",
        "global/spend/models": "/global/spend/models?limit=5",
    }
    times = {}
    for name, path in paths.items():
        taken, status = [], 0
        for _ in range(3):
            begun = time.perf_counter()
            status, text = ask(address + path, master)
            taken.append((time.perf_counter() - begun) * 1000)
            if status != 200:  # LiteLLM's client waits 30 seconds for a query, no longer
                say(f"{path} answered {status}: {text[:200]!r}")
                break
        times[name] = {"status": status, "first": round(taken[0], 1), "median": round(statistics.median(taken), 1)}
        say(f"{name}: {times[name]}")
    return times
