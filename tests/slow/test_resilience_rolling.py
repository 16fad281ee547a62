"""Two instances behind a real nginx, each restarted under load: no request fails, and all are paid for once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import psycopg
import pytest

from support.gateway import Gateway
from support.nginx import nginx
from support.postgres import OWN_FIRST
from support.processes import wait_for
from support.topology import routed_config, single
from support.upstreams import Upstreams

pytestmark = [pytest.mark.slow("resilience"), pytest.mark.timeout(280)]

CLIENTS = 16
EVENT_SECONDS = 0.15
"""Between two events of a stream, so that one takes about a second: many are under way whenever an instance stops."""


class Load:
    """Chats through one address, streams among them, by clients that never ask twice; each keeps its connection."""

    def __init__(self, url: str, keys: list[str]) -> None:
        self.url, self.keys = url, keys
        self.failed: list[str] = []
        self.served: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ask(self, client: openai.OpenAI, number: int) -> str:
        text = f"STREAM {number}" if number % 2 else f"chat {number}"
        messages = [{"role": "user", "content": text}]
        if number % 2:
            with client.chat.completions.create(model="plain", messages=messages, stream=True) as stream:  # type: ignore[call-overload]
                chunks = list(stream)
            assert chunks[-1].choices[0].finish_reason == "stop", f"the stream ended early: {chunks[-1]}"
            return "stream"
        answer = client.chat.completions.create(model="plain", messages=messages)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
        return "chat"

    def work(self, number: int, stop: threading.Event) -> None:
        key = self.keys[number % len(self.keys)]
        with (
            httpx.Client(trust_env=False, timeout=30) as http,
            openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=http) as client,
        ):
            while not stop.is_set():
                try:
                    kind = self.ask(client, number)
                    with self._lock:
                        self.served[kind] += 1
                except (openai.OpenAIError, httpx.HTTPError, AssertionError) as error:
                    self.failed.append(f"{time.strftime('%X')} {type(error).__name__}: {error}")
                time.sleep(0.05)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self.work, args=(number, stop), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)

    def goes_on(self, count: int = 60) -> None:
        there = self.served.total()
        wait_for(lambda: self.failed or self.served.total() > there + count, 60, f"{count} more requests")


def test_a_rolling_restart_behind_nginx_loses_nothing(
    upstreams: Upstreams, new_database: Callable[[], str], tmp_path: Path
) -> None:
    url = new_database()
    section = {
        "shutdown": {"not_ready": 1.0, "grace": 10.0},
        "resilience": {"queue": {"enabled": True, "limit": {"limit": 12}}},
    }
    config = routed_config([single(upstreams, "plain", "openai/plain-model")], {}, {}, **section)
    instances = [Gateway(config, tmp_path / name, url) for name in ("a", "b")]
    upstreams.fault("plain", match="STREAM", chunk_delay=EVENT_SECONDS)
    asked = upstreams.count("plain")
    try:
        for instance in instances:
            instance.spawn()
        for instance in instances:
            instance.wait_ready()
        keys = [instances[0].new_key() for _ in range(4)]
        with nginx(tmp_path / "nginx", [instance.port for instance in instances]) as address:
            load = Load(address, keys)
            with load.running():
                load.goes_on()
                for instance in instances:
                    instance.stop()
                    load.goes_on()  # the other one serves alone
                    instance.start()
                    load.goes_on()
        log = (tmp_path / "nginx" / "error.log").read_text()
        refused = log.count("Connection refused")
        print(f"{dict(load.served)}, nginx found {refused} connections refused and asked the other instance")
        assert load.failed == [], "\n".join([*load.failed, *log.splitlines()[-30:]])
        assert load.served["stream"] > 20 < load.served["chat"]
        # Nothing was asked twice, nothing was lost: neither at the upstream nor in what is paid for.
        total = load.served.total()
        assert upstreams.count("plain") - asked == total
        with psycopg.connect(url, autocommit=True, options=OWN_FIRST) as connection:

            def rows() -> int:
                found = connection.execute("SELECT count(*) FROM \"LiteLLM_SpendLogs\" WHERE status = 'success'").fetchone()
                return int(found[0]) if found else 0

            wait_for(lambda: rows() >= total, 30, f"{total} rows of spend")
            assert rows() == total
    finally:
        upstreams.clear("plain")
        for instance in instances:
            instance.kill()
