"""One request read back as one trace, from the client's `traceparent` to the one that the upstream received: a real gateway."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from support.calls import WAYS, Clients
from support.gateway import Gateway
from support.otlp import Receiver, attributes, receiver
from support.processes import wait_for
from support.semconv import attribute_names, namespaces, wrong_with
from support.strategy import FILE_STRATEGY, HARD, FilePublisher
from support.topology import pair, routed_config, single
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("observability")

CLIENT = "c11e47c11e47c11e"
SERVER = "POST /v1/chat/completions"


@dataclass
class Observed:
    """A gateway that keeps the traces that failed or whose client wants them kept, and no other one."""

    gateway: Gateway
    collector: Receiver
    upstreams: Upstreams
    publisher: FilePublisher

    def ask(self, flag: str | None, **body: Any) -> tuple[httpx.Response, str]:
        trace_id = secrets.token_hex(16)
        headers = {} if flag is None else {"traceparent": f"00-{trace_id}-{CLIENT}-{flag}"}
        asked = {"model": "auto", "messages": [{"role": "user", "content": HARD}], **body}
        answer = self.gateway.admin.post("/v1/chat/completions", json=asked, headers=headers)
        return answer, trace_id

    def whole(self, trace_id: str, names: set[str]) -> list[Any]:
        """The spans of a trace, once those of these names are there."""

        def there() -> bool:
            return names <= {span.name for span in self.collector.spans(trace_id)}

        wait_for(there, 20, f"{names} have arrived")
        return self.collector.spans(trace_id)


@pytest.fixture(scope="module")
def observed(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    publisher = FilePublisher(tmp_path_factory.mktemp("published"), FILE_STRATEGY)
    publisher.publish("1.0.0")
    models = [*pair(upstreams, "auto"), single(upstreams, "embed", "openai/text-embedding-3-small", {"mode": "embedding"})]
    models.append(single(upstreams, "frail", "openai/frail", {}))
    models.append(single(upstreams, "drawn", "openai/gpt-image-1", {"mode": "image_generation"}))
    models.append(single(upstreams, "ranked", "hosted_vllm/reranker", {"mode": "rerank"}))
    for entry in models:  # its own upstreams: what arrives there is counted
        entry["litellm_params"]["api_base"] = upstreams.url(f"traced-{entry['model_info']['id']}")
    strategies = {FILE_STRATEGY: publisher.settings(reload_interval=0.5)}
    telemetry = {"traces": {"ratio": 0.0, "failures": True}}
    config = routed_config(models, strategies, {"auto": FILE_STRATEGY}, telemetry=telemetry)
    config["router_settings"] |= {"cooldown_time": 0.1, "fallbacks": [{"frail": ["auto"]}]}
    config["litellm_settings"] |= {
        "callbacks": ["otel"],
        "cache": True,
        "cache_params": {"type": "local", "mode": "default_off", "supported_call_types": ["acompletion"]},
    }
    with receiver() as collector:
        env = {**collector.env("otlp_grpc"), "OTEL_BSP_SCHEDULE_DELAY": "100"}
        gateway = Gateway(config, tmp_path_factory.mktemp("traced"), None, env=env, workers=1)
        try:
            gateway.start()
            yield Observed(gateway, collector, upstreams, publisher)
            gateway.stop()
        finally:
            gateway.kill()


@pytest.mark.requirement("P-15", "R-6.2", "R-6.4")
def test_a_request_with_a_fallback_is_one_trace_from_the_client_to_the_upstream(observed: Observed) -> None:
    observed.upstreams.fault("traced-auto-strong", status=500, times=1)
    answer, trace_id = observed.ask("01")
    observed.upstreams.clear("traced-auto-strong")
    assert answer.status_code == 200, answer.text
    spans = observed.whole(trace_id, {SERVER, "pointsman.attempt", "chat auto"})
    wait_for(lambda: len([s for s in observed.collector.spans(trace_id) if s.name == "pointsman.attempt"]) == 2, 20, "both")
    spans = observed.collector.spans(trace_id)
    known = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_span_id not in known]
    assert [(span.name, span.parent_span_id.hex()) for span in roots] == [(SERVER, CLIENT)], "no orphan"

    first, second = sorted((s for s in spans if s.name == "pointsman.route"), key=lambda span: span.start_time_unix_nano)
    told = attributes(first.attributes)
    assert told["pointsman.strategy.name"] == FILE_STRATEGY
    assert told["pointsman.strategy.version"]
    assert told["pointsman.route.pick"] == "auto-strong" == told["pointsman.route.candidates"][0]
    assert len(told["pointsman.route.scores"]) == 2
    assert known[first.parent_span_id].name == "route auto", "LiteLLM's"
    assert [span.name for span in spans if span.parent_span_id == first.span_id] == ["pointsman.encode"]
    assert attributes(second.attributes)["pointsman.route.pick"] == "auto-weak"

    failed, good = sorted((s for s in spans if s.name == "pointsman.attempt"), key=lambda span: span.start_time_unix_nano)
    told = attributes(failed.attributes)
    assert (told["pointsman.deployment.id"], told["error.type"], told["http.response.status_code"]) == (
        "auto-strong",
        "InternalServerError",
        500,
    )
    assert failed.status.code == 2
    assert attributes(good.attributes)["pointsman.attempt.outcome"] == "ok"
    assert attributes(good.attributes)["pointsman.decision.id"] == answer.headers["x-pointsman-decision-id"]
    for name, span in (("traced-auto-strong", failed), ("traced-auto-weak", good)):
        received = observed.upstreams.requests(name)[-1]["headers"]["traceparent"]
        assert received == f"00-{trace_id}-{span.span_id.hex()}-01", "the upstream's spans stand under the attempt"

    lines = [json.loads(line) for line in observed.gateway.log_path.read_text().splitlines() if trace_id in line]
    decided = [line for line in lines if line["logger"] == "pointsman.decisions" and "policy" in line]
    assert [line["deployment"] for line in decided] == ["auto-strong"], "the decision's log line"
    assert known[bytes.fromhex(decided[0]["span_id"])].name == "route auto", "joins the trace"


@pytest.mark.requirement("R-6.9")
def test_every_span_of_a_request_is_as_the_table_and_the_conventions_say(observed: Observed) -> None:
    answer, trace_id = observed.ask("01")
    spans = observed.whole(trace_id, {SERVER, "pointsman.encode", "pointsman.attempt", "chat auto"})
    kinds = {1: "internal", 2: "server", 3: "client"}
    strays: set[str] = set()
    for span in spans:
        values = attributes(span.attributes)
        if span.name.startswith("pointsman."):
            assert wrong_with(span.name, kinds[span.kind], values) == []
            assert values["pointsman.request.id"] == answer.headers["x-request-id"]
        strays |= {name for name in values if name.partition(".")[0] in namespaces()} - attribute_names()
    assert strays <= {"gen_ai.usage.total_tokens"}, "names of LiteLLM's that look like a convention's"
    (server,) = (attributes(span.attributes) for span in spans if span.name == SERVER)
    assert {"http.request.method", "http.response.status_code", "http.route", "url.path"} <= set(server)
    assert "http.method" not in server, "the older names"
    (chat,) = (attributes(span.attributes) for span in spans if span.name == "chat auto")
    assert {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.usage.input_tokens", "server.address"} <= set(chat)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_tells_the_upstream_of_the_trace(observed: Observed, way: str) -> None:
    trace_id = secrets.token_hex(16)
    clients = Clients(observed.gateway, observed.gateway.master_key)
    parent = {"traceparent": f"00-{trace_id}-{CLIENT}-01"}
    clients.openai = clients.openai.with_options(default_headers=parent)
    clients.anthropic = clients.anthropic.with_options(default_headers=parent)
    before = observed.upstreams.count("traced-auto-strong")
    assert WAYS[way](clients, "auto", HARD).served_by == "traced-auto-strong"
    (received,) = observed.upstreams.requests("traced-auto-strong", since=before)
    spans = observed.whole(trace_id, {"pointsman.attempt"})
    (attempt,) = (span for span in spans if span.name == "pointsman.attempt")
    assert received["headers"]["traceparent"] == f"00-{trace_id}-{attempt.span_id.hex()}-01"


@pytest.mark.requirement("R-6.4")
def test_an_answer_from_the_cache_is_seen_as_one(observed: Observed) -> None:
    for _ in range(2):
        answer, trace_id = observed.ask("01", cache={"use-cache": True}, temperature=0.5)
        assert answer.status_code == 200, answer.text
        names = [span.name for span in observed.whole(trace_id, {SERVER, "pointsman.route", "cache.get llm_response"})]
    assert "chat auto" not in names
    assert "pointsman.attempt" not in names, "nobody was asked"


def test_what_did_not_fail_and_nobody_wants_is_dropped_and_what_failed_is_kept(observed: Observed) -> None:
    dropped = [observed.ask("00")[1] for _ in range(3)]
    anonymous, _ = observed.ask(None)
    observed.upstreams.fault("traced-auto-strong", status=500, times=1)
    saved, kept = observed.ask("00")
    refused, wrong = observed.ask("00", model="no-such-model")
    wanted, asked_for = observed.ask("01")
    observed.upstreams.clear("traced-auto-strong")
    assert [answer.status_code for answer in (anonymous, saved, refused, wanted)] == [200, 200, 400, 200]
    spans = observed.whole(kept, {SERVER, "pointsman.route", "pointsman.attempt", "route auto"})
    assert len({span.span_id for span in spans}) == len(spans) >= 7, "the whole trace, each span once"
    observed.whole(asked_for, {SERVER})  # it came last
    for trace_id in (*dropped, wrong):
        assert observed.collector.spans(trace_id) == []
    orphans = {item.what.trace_id.hex() for item in observed.collector.items("/v1/traces") if item.what.name == SERVER}
    assert all(any(span.parent_span_id.hex() == CLIENT for span in observed.collector.spans(one)) for one in orphans)


def test_a_request_that_another_group_answered_says_why(observed: Observed) -> None:
    observed.upstreams.fault("traced-frail", status=500)
    answer, trace_id = observed.ask("00", model="frail")
    observed.upstreams.clear("traced-frail")
    assert answer.status_code == 200, answer.text
    routes = [one for one in observed.whole(trace_id, {SERVER, "pointsman.route"}) if one.name == "pointsman.route"]
    told = [attributes(one.attributes) for one in sorted(routes, key=lambda span: span.start_time_unix_nano)]
    found = {(one["pointsman.route.group"], one.get("pointsman.route.fell_back")) for one in told}
    assert found == {("frail", None), ("auto", "InternalServerError")}


def test_a_reload_is_a_trace_of_its_own_and_so_is_a_refusal(observed: Observed) -> None:
    def reloads() -> list[dict[str, Any]]:
        return [attributes(span.attributes) for span in observed.collector.spans() if span.name == "pointsman.reload"]

    observed.publisher.publish("2.0.0")
    wait_for(lambda: any(one["pointsman.strategy.version"] == "2.0.0" for one in reloads()), 20, "the reload was told")
    taken = next(one for one in reloads() if one["pointsman.strategy.version"] == "2.0.0")
    assert taken["pointsman.reload.previous_version"] == "1.0.0"
    observed.publisher.corrupt("flipped", "3.0.0")
    wait_for(lambda: any(one.get("error.type") == "E4302" for one in reloads()), 20, "the refusal was told")
    for span in (span for span in observed.collector.spans() if span.name == "pointsman.reload"):
        assert wrong_with(span.name, "internal", attributes(span.attributes)) == []


@pytest.mark.requirement("S-6")
@pytest.mark.parametrize("path", ["images/generations", "rerank"])
def test_providers_hear_the_requests_id_on_other_endpoints(observed: Observed, path: str) -> None:
    """Not speech, transcriptions and moderations, whose calls LiteLLM gives no headers (1.106.2)."""
    asked = {"images/generations": {"model": "drawn", "prompt": "a hill"}}.get(
        path, {"model": "ranked", "query": "hill", "documents": ["a hill", "a sea"]}
    )
    answer = observed.gateway.admin.post(f"/v1/{path}", json=asked, headers={"x-request-id": f"my {path}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == f"my {path}"
    (received,) = observed.upstreams.requests(f"traced-{asked['model']}")
    assert received["headers"]["x-request-id"] == f"my {path}"
