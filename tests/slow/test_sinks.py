"""No sink, whatever it does, is felt by a request: down for a minute under load, hanging, failing, babbling, lying."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.gateway import Gateway
from support.langfuse_receiver import Fault, Langfuse, Project, langfuse
from support.processes import marked, resident_mib, wait_for
from support.topology import routed_config, single
from support.upstreams import Upstreams

AT_MOST = 0.08
"""What all of our signals may add to the processor time of a request without any."""
CALLERS = 6
DOWN_SECONDS = 60.0
FAULT_SECONDS = 12.0
FELT_SECONDS = 5.0
"""An export waits for up to 10 s (OTLP's default); a request that waited for a sink would take longer than this."""
MIB_PER_WORKER = 120.0
"""What a worker may grow by while its sinks are down: two queues of 2048 spans, LiteLLM's queues, and the allocator's slack."""


@dataclass
class Load:
    """Callers that ask one after the other, for two teams, plain and streamed, until told to stop."""

    gateway: Gateway
    keys: list[str]
    took: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> tuple[list[float], list[str]]:
        """Seconds that each request of this phase took, and what went wrong."""
        self.took, self.failed = [], []
        stop = time.monotonic() + seconds
        threads = [threading.Thread(target=self._call, args=(number, stop)) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.took, self.failed

    def _call(self, number: int, stop: float) -> None:
        body = {"model": "plain", "messages": [{"role": "user", "content": "hello"}], "stream": bool(number % 2)}
        headers = {"authorization": f"Bearer {self.keys[number % len(self.keys)]}"}
        with httpx.Client(base_url=self.gateway.url, headers=headers, trust_env=False, timeout=60) as client:
            while time.monotonic() < stop:
                begun = time.monotonic()
                try:
                    said = client.post("/v1/chat/completions", json=body)
                    if said.status_code != 200 or (number % 2 and "[DONE]" not in said.text):
                        self.failed.append(f"{said.status_code} {said.text[:200]}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                self.took.append(time.monotonic() - begun)


def memory(gateway: Gateway) -> float:
    """MiB of all processes of the gateway."""
    return sum(resident_mib(pid) for pid in marked(gateway.mark))


def exported(gateway: Gateway, result: str) -> float:
    """How many spans of all workers ended so, by the scrape."""
    lines = gateway.admin.get("/metrics", follow_redirects=True).raise_for_status().text.splitlines()
    found = [line for line in lines if line.startswith("pointsman_export_records_total{") and f'result="{result}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


@pytest.fixture(scope="module")
def central() -> Iterator[Langfuse]:
    with langfuse("operator") as server:
        yield server


@pytest.fixture(scope="module")
def own() -> Iterator[Langfuse]:
    with langfuse("a") as server:
        yield server


@pytest.fixture(scope="module")
def load(
    upstreams: Upstreams,
    central: Langfuse,
    own: Langfuse,
    new_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Load]:
    """Two workers that send to three sinks: the operator's Langfuse, a team's own, and a web hook."""
    config = routed_config([single(upstreams, "plain", "openai/plain-model")], {}, {})
    config["litellm_settings"] |= {
        "callbacks": ["langfuse_otel", "web_hook", "prometheus"],
        "success_callback": ["other_hook"],
        "provider_url_destination_allowed_hosts": ["127.0.0.1"],
    }
    config["callback_settings"] = {
        name: {"callback_type": "generic_api", "endpoint": server.hook, "headers": {"x-from": "pointsman"}}
        for name, server in (("web_hook", central), ("other_hook", own))
    }
    env = {**central["operator"].environment, "OTEL_BSP_SCHEDULE_DELAY": "1000"}
    env |= {"OTEL_BSP_MAX_QUEUE_SIZE": "256", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "128"}  # full soon, on a slow machine too
    gateway = Gateway(config, tmp_path_factory.mktemp("gateway"), new_database(), env=env).start()
    try:
        gateway.admin.post("/team/new", json={"team_id": "team-a"}).raise_for_status()
        body = {"callback_name": "langfuse_otel", "callback_type": "success_and_failure", "callback_vars": own["a"].variables}
        gateway.admin.post("/team/team-a/callback", json=body).raise_for_status()
        made = Load(gateway, [gateway.new_key(team_id="team-a"), gateway.new_key(), gateway.new_key()])
        made.run(8)  # caches filled, threads and exporters there
        yield made
        gateway.stop()
    finally:
        gateway.kill()


def arrives(load: Load, server: Langfuse, project: str) -> None:
    """A request made now is told to the sink, whatever was before."""
    server[project].clear()
    load.run(0.5)
    wait_for(server[project].spans, 60, f"{project} is told again")


@pytest.mark.slow("observability")
@pytest.mark.requirement("R-6.7")
def test_a_receiver_that_is_down_for_a_minute(load: Load, central: Langfuse, own: Langfuse) -> None:
    healthy, failed = load.run(15)
    assert not failed
    wait_for(lambda: central.hooked, 30, "the web hook is called")
    assert not own.hooked, "what `check` warns of is not so any more: a hook in `success_callback` is called"
    before = memory(load.gateway)
    central.fault("refuse")
    own.fault("refuse")
    down, failed = load.run(DOWN_SECONDS)
    after = memory(load.gateway)
    assert not failed, failed[:3]
    central.hooked.clear()
    central.fault("")
    own.fault("")
    arrives(load, central, "operator")
    arrives(load, own, "a")
    wait_for(lambda: central.hooked, 30, "the web hook is called again")
    lost = {result: exported(load.gateway, result) for result in ("failed", "dropped")}
    told = {
        "requests": len(down),
        "spans": lost,
        "median_ms": [round(statistics.median(took) * 1000, 1) for took in (healthy, down)],
        "worst_ms": [round(max(took) * 1000) for took in (healthy, down)],
        "mib": [round(before), round(after)],
    }
    print("\ndown for a minute:", json.dumps(told))
    assert lost["failed"] > 0, told
    assert lost["dropped"] > 0, told
    assert max(down) < FELT_SECONDS, told
    assert statistics.median(down) < 2 * statistics.median(healthy), told
    assert after - before < 2 * MIB_PER_WORKER, told


@pytest.mark.slow("observability")
@pytest.mark.requirement("R-6.7")
@pytest.mark.parametrize("fault", [fault for fault in get_args(Fault) if fault not in ("", "refuse")])
def test_a_receiver_that_misbehaves(load: Load, central: Langfuse, own: Langfuse, fault: Fault) -> None:
    healthy, failed = load.run(5)
    assert not failed
    before = memory(load.gateway)
    central.fault(fault)
    own.fault(fault)
    try:
        bad, failed = load.run(FAULT_SECONDS)
        after = memory(load.gateway)
    finally:
        central.fault("")
        own.fault("")
    arrives(load, central, "operator")
    arrives(load, own, "a")
    told = {
        "requests": len(bad),
        "median_ms": [round(statistics.median(took) * 1000, 1) for took in (healthy, bad)],
        "worst_ms": [round(max(took) * 1000) for took in (healthy, bad)],
        "mib": [round(before), round(after)],
    }
    print(f"\n{fault}:", json.dumps(told))
    assert not failed, failed[:3]
    assert max(bad) < FELT_SECONDS, told
    assert after - before < 2 * MIB_PER_WORKER, told


@pytest.mark.slow("observability")
def test_what_our_signals_cost(tmp_path: Path) -> None:
    from bench.telemetry import measure

    report = measure(tmp_path, rounds=80)
    print("\ncost:", report)
    assert report.ours <= AT_MOST + 2 * report.error, report


@pytest.mark.slow("observability")
@pytest.mark.requirement("P-16", "R-6.8")
def test_teams_of_the_file_where_the_gateway_has_no_sink(
    upstreams: Upstreams, new_database: Callable[[], str], tmp_path: Path
) -> None:
    """LiteLLM's older exporter serves them, each on its own server, without text where the gateway's settings keep it back."""
    with langfuse("c") as c, langfuse("d") as d:
        config = routed_config([single(upstreams, "plain", "openai/plain-model")], {}, {})
        named = {"success_callback": ["langfuse_otel"], "failure_callback": ["langfuse_otel"]}
        config["litellm_settings"]["default_team_settings"] = [
            {"team_id": "team-c", **named, **c["c"].variables},
            {"team_id": "team-d", **named, **d["d"].variables},
        ]
        config["litellm_settings"]["turn_off_message_logging"] = True
        gateway = Gateway(config, tmp_path / "gateway", new_database(), workers=1).start()
        try:
            for team in ("team-c", "team-d"):
                gateway.admin.post("/team/new", json={"team_id": team}).raise_for_status()
                body = {"model": "plain", "messages": [{"role": "user", "content": f"text-of-{team}"}], "user": f"user-{team}"}
                client = gateway.http(gateway.new_key(team_id=team))
                for _ in range(3):
                    assert client.post("/v1/chat/completions", json=body).status_code == 200
            for project in (c["c"], d["d"]):
                wait_for(lambda p=project: len(calls(p)) >= 3, 60, f"{project.name} is told")  # type: ignore[misc]
            assert [len(calls(project)) for project in (c["c"], d["d"])] == [3, 3]
            assert "team-d" not in c["c"].text()
            assert "team-c" not in d["d"].text()
            assert "text-of-team" not in c["c"].text() + d["d"].text()
            assert not c.refused
            assert not d.refused
            gateway.stop()
        finally:
            gateway.kill()


def calls(project: Project) -> list[Span]:
    return [span for span in project.spans() if span.name == "litellm_request"]


@pytest.mark.slow("observability")
@pytest.mark.requirement("R-6.7", "P-16")
def test_langfuses_own_sdk(upstreams: Upstreams, new_database: Callable[[], str], tmp_path: Path) -> None:
    """The callback `langfuse`, with the SDK that the extra brings, for the gateway and for a team of its own."""
    with langfuse("operator") as central, langfuse("a") as own:
        config = routed_config([single(upstreams, "plain", "openai/plain-model")], {}, {})
        config["litellm_settings"] |= {"success_callback": ["langfuse"], "turn_off_message_logging": True}
        env = {**central["operator"].environment, "LANGFUSE_FLUSH_INTERVAL": "1"}
        gateway = Gateway(config, tmp_path / "gateway", new_database(), env=env, workers=1).start()
        try:
            gateway.admin.post("/team/new", json={"team_id": "team-a"}).raise_for_status()
            body = {"callback_name": "langfuse", "callback_type": "success", "callback_vars": own["a"].variables}
            gateway.admin.post("/team/team-a/callback", json=body).raise_for_status()
            for key in (gateway.new_key(team_id="team-a"), gateway.new_key()):
                body = {"model": "plain", "messages": [{"role": "user", "content": "the-text"}]}
                for _ in range(3):
                    assert gateway.http(key).post("/v1/chat/completions", json=body).status_code == 200
            for project in (central["operator"], own["a"]):
                wait_for(lambda p=project: len({span.trace_id for span in p.spans()}) >= 3, 60, "it is told")  # type: ignore[misc]
                assert len({span.trace_id for span in project.spans()}) == 3, "its own, and nobody else's"
                assert "the-text" not in project.text()
            assert not central.refused
            assert not own.refused
            gateway.stop()
        finally:
            gateway.kill()
