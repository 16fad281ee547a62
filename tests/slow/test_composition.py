"""One YAML file puts it together: strategies from S3, callbacks with spans and budgets, A2A and MCP, kept in Postgres."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from support.gateway import Gateway
from support.otlp import receiver
from support.processes import wait_for
from support.strategy import HARD, STRATEGY, S3Publisher
from support.things import KINDS
from support.topology import pair, routed_config
from support.upstreams import Upstreams


@pytest.mark.slow("startup")
@pytest.mark.requirement("C-2")
def test_one_file_puts_it_together(
    upstreams: Upstreams, publisher: S3Publisher, new_database: Callable[[], str], tmp_path: Path
) -> None:
    models = pair(upstreams, "auto", input_cost_per_token=0.01, output_cost_per_token=0.01)
    config = routed_config(models, {STRATEGY: publisher.settings()}, {"auto": STRATEGY})
    config["litellm_settings"]["callbacks"] = ["otel"]
    body = {"model": "auto", "messages": [{"role": "user", "content": HARD}]}
    trace_id = secrets.token_hex(16)
    with receiver() as collector:
        env = {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": collector.endpoint}
        gateway = Gateway(config, tmp_path / "gateway", new_database(), env=env)
        try:
            gateway.start()
            client = gateway.http(gateway.new_key(max_budget=0.05))
            said = client.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{trace_id}-{'1' * 16}-01"})
            assert said.status_code == 200, said.text
            assert said.headers["x-pointsman-strategy"] == STRATEGY
            first = said.headers["x-pointsman-version"]

            wait_for(lambda: any("auto" in span.name for span in collector.spans(trace_id)), 30, "its spans have arrived")
            wait_for(lambda: client.post("/v1/chat/completions", json=body).status_code == 429, 30, "the budget is spent")

            publisher.publish(f"{first}.1")
            wait_for(lambda: gateway.strategy(STRATEGY)["version"] == f"{first}.1", 30, "the new ETag was seen")

            for kind in ("agent", "server"):
                method, path, thing = KINDS[kind].make("kept", 7, None)
                gateway.admin.request(method, path, json=thing).raise_for_status()
            gateway.restart()
            agents = gateway.admin.get("/v1/agents").raise_for_status().json()
            assert [agent["agent_name"] for agent in agents] == ["kept"]
            servers = gateway.admin.get("/v1/mcp/server").raise_for_status().json()
            assert [server["server_id"] for server in servers] == ["kept"]
            card = gateway.admin.get(f"/a2a/{agents[0]['agent_id']}/.well-known/agent-card.json").raise_for_status().json()
            assert card["name"] == "kept"
            gateway.stop()
        finally:
            gateway.kill()
