"""The log of a real gateway: one JSON line a record, joined to its request, without a prompt, an answer, a key or a secret."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psycopg
import pytest

from pointsman.callbacks.names import LOG_FIELDS
from support.gateway import Gateway
from support.otlp import Receiver, attributes, receiver
from support.processes import wait_for
from support.strategy import HARD, STRATEGY, S3Publisher
from support.topology import UPSTREAM_KEY, deployment, pair, routed_config, single
from support.upstreams import Upstreams

CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/messages", "/v1/responses", "/v1/completions", "/v1/embeddings")
SAID = "Quittenbrot"
"""What an upstream answers; as secret as the prompt."""


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """A provider that quotes what it is sent, key and all, in its errors: the path's first part is the status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            words = f"cannot do {body} for {self.headers.get('authorization')}"
            answer = json.dumps({"error": {"message": words, "type": "server_error", "code": None}}).encode()
            self.send_response(int(self.path.split("/")[1]))
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Not its access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Stand:
    """A gateway that logs to standard output and to a collector, and traces to it."""

    gateway: Gateway
    collector: Receiver
    key: str

    def lines(self) -> list[dict[str, Any]]:
        """Everything that it logged so far; each line is one JSON object."""
        return [json.loads(line) for line in self.gateway.log_path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def of(self, request_id: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """A request's lines at INFO and above with these fields, once there are `count`."""

        def found() -> list[dict[str, Any]]:
            rows = [row for row in self.lines() if row.get("request_id") == request_id and row["level"] != "DEBUG"]
            return [row for row in rows if all(row.get(name) == value for name, value in fields.items())]

        wait_for(lambda: len(found()) >= count, 20, f"{count} line(s) of {request_id}")
        return found()

    def ask(self, model: str = "auto", key: str | None = None, path: str = CHAT, **extra: Any) -> httpx.Response:
        """One request with an id and a trace of its own."""
        headers = {"x-request-id": f"test-{uuid.uuid4()}", "traceparent": f"00-{secrets.token_hex(16)}-{'1' * 16}-01"}
        body = {"model": model, "messages": [{"role": "user", "content": HARD}], **extra}
        return self.gateway.http(self.key if key is None else key).post(path, json=body, headers=headers)


@pytest.fixture(scope="module")
def stand(
    upstreams: Upstreams, publisher: S3Publisher, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    with receiver() as collector, echo() as echoes:
        claude = deployment("claude", "claude", "anthropic/claude-sonnet-4-5", upstreams.anthropic_url("log-claude"))
        models = [
            *pair(upstreams, "log"),
            single(upstreams, "log-plain", "openai/plain-model"),
            claude,
            *(deployment(f"echo-{s}", f"echo-{s}", "openai/echo", f"{echoes}/{s}/v1", num_retries=0) for s in (400, 401, 500)),
        ]
        config = routed_config(models, {STRATEGY: publisher.settings()}, {"log": STRATEGY})
        config["router_settings"] |= {"cooldown_time": 0, "allowed_fails": 1000}
        # What LiteLLM would write by itself, were it asked to.
        config["litellm_settings"] |= {"callbacks": ["otel", "prometheus"], "json_logs": True}
        config["pointsman"]["telemetry"] = {"logs": {"otlp": {"endpoint": collector.endpoint, "interval": 0.2}}}
        gateway = Gateway(config, tmp_path_factory.mktemp("logs"), new_database(), env=collector.env())
        try:
            gateway.start()
            team = gateway.admin.post("/team/new", json={"team_alias": "cooks"}).raise_for_status().json()["team_id"]
            yield Stand(gateway, collector, gateway.new_key(key_alias="kitchen", team_id=team))
            gateway.stop()
        finally:
            gateway.kill()


@pytest.mark.requirement("R-15.6")
def test_the_start_says_what_runs(stand: Stand) -> None:
    (line,) = [row for row in stand.lines() if row["logger"] == "pointsman.start" and "routes" in row]
    assert (line["level"], line["process"], line["workers"], line["profile"]) == ("INFO", "supervisor", 2, "none")
    assert line["version"]
    assert line["strategies"][STRATEGY]["version"] in line["message"]
    assert (line["routes"]["log"], line["routes"]["log-plain"]) == (STRATEGY, "litellm")
    assert line["limits"]["routing.deadline_ms"] == 2_000
    assert line["limits"]["router_settings.num_retries"] == 2


@pytest.mark.requirement("R-15.2")
@pytest.mark.requirement("R-15.5")
@pytest.mark.requirement("R-6.5")
@pytest.mark.requirement("P-20")
def test_a_decision_is_one_line_in_the_requests_trace(stand: Stand) -> None:
    answer = stand.ask("log")
    assert answer.status_code == 200, answer.text
    line, *more = stand.of(answer.headers["x-request-id"])
    assert not more
    assert (line["level"], line["logger"], line["strategy"]) == ("INFO", "pointsman.decisions", STRATEGY)
    assert line["decision_id"] == answer.headers["x-pointsman-decision-id"]
    assert line["model"] == answer.headers["x-pointsman-model"]
    assert (line["key_alias"], line["team"]) == ("kitchen", "cooks")
    assert line["trace_id"] == answer.request.headers["traceparent"].split("-")[1]

    def spans() -> set[str]:
        return {span.span_id.hex() for span in stand.collector.spans(line["trace_id"])}

    wait_for(lambda: line["span_id"] in spans(), 30, "the span that it names has arrived")


@pytest.mark.requirement("R-6.3")
@pytest.mark.requirement("R-15.4")
@pytest.mark.requirement("P-15")
def test_the_same_line_leaves_by_otlp(stand: Stand) -> None:
    answer = stand.ask("log")
    (line,) = stand.of(answer.headers["x-request-id"])
    wait_for(lambda: bool(stand.collector.logs(line["trace_id"])), 20, "it has arrived")
    (record,) = stand.collector.logs(line["trace_id"])
    assert record.body.string_value == line["message"]
    assert record.span_id.hex() == line["span_id"]
    found = attributes(record.attributes)
    assert {name: found[name] for name in ("request_id", "decision_id", "team")} == {
        name: line[name] for name in ("request_id", "decision_id", "team")
    }
    wait_for(lambda: bool(stand.collector.spans(line["trace_id"])), 30, "and so have its spans")


@pytest.mark.requirement("R-15.7")
@pytest.mark.requirement("P-21")
@pytest.mark.parametrize(("model", "status"), [("echo-500", 500), ("echo-401", 401)])
def test_an_error_is_one_line_with_its_stack_in_the_requests_trace(stand: Stand, model: str, status: int) -> None:
    answer = stand.ask(model)
    assert answer.status_code == status, answer.text
    (line,) = stand.of(answer.headers["x-request-id"], level="ERROR")
    assert line["stack"].startswith("Traceback")
    assert f"status={status} provider=openai" in line["stack"]
    assert line["trace_id"] == answer.request.headers["traceparent"].split("-")[1]
    assert line["decision_id"] == answer.headers["x-pointsman-decision-id"]


@pytest.mark.requirement("L-10")
def test_a_callers_mistake_is_one_warning_without_a_traceback(stand: Stand) -> None:
    http = stand.gateway.http(stand.key)
    answers = {
        "no key": stand.gateway.http(None).post(CHAT, json={}),
        "wrong key": stand.ask(key="sk-wrong"),
        "no such model": stand.ask("nothing"),
        "no such path": http.get("/nowhere"),
        "no JSON": http.post(CHAT, content=b"{", headers={"content-type": "application/json"}),
    }
    for what, answer in answers.items():
        assert 400 <= answer.status_code < 500, what
        lines = stand.of(answer.headers["x-request-id"])
        assert [row["level"] for row in lines] == ["WARNING"], (what, lines)
        assert (lines[0]["status"], lines[0]["path"]) == (answer.status_code, answer.request.url.path)
        assert "stack" not in lines[0], what


@pytest.mark.requirement("S-6")
def test_one_id_runs_through_everything(stand: Stand, upstreams: Upstreams) -> None:
    answer = stand.ask("log")
    mine = answer.headers["x-request-id"]
    assert mine == answer.request.headers["x-request-id"]
    (arrived,) = [
        row
        for name in ("log-weak", "log-strong")
        for row in upstreams.requests(name)
        if row["headers"].get("x-request-id") == mine
    ]
    assert arrived["path"].endswith("/chat/completions")
    claude = stand.ask("claude", path="/v1/messages", max_tokens=9)
    assert claude.status_code == 200, claude.text
    assert upstreams.requests("log-claude")[-1]["headers"]["x-request-id"] == claude.headers["x-request-id"]

    def record() -> tuple[Any, ...] | None:
        with psycopg.connect(str(stand.gateway.database_url)) as connection:
            return connection.execute("SELECT decision_id FROM pointsman_decisions WHERE request_id = %s", (mine,)).fetchone()

    wait_for(lambda: record() == (answer.headers["x-pointsman-decision-id"],), 20, "the decision's record")

    # One that comes twice, as from a proxy that tries again, is two rows of spend.
    twice = {"x-request-id": f"twice-{uuid.uuid4()}"}
    http = stand.gateway.http(stand.key)
    for _ in range(2):
        http.post("/v1/embeddings", json={"model": "log-plain", "input": "x"}, headers=twice).raise_for_status()

    def rows() -> list[str]:
        with psycopg.connect(str(stand.gateway.database_url)) as connection:
            query = 'SELECT litellm_call_id FROM "LiteLLM_SpendLogs" WHERE litellm_call_id LIKE %s'
            return [row[0] for row in connection.execute(query, (f"{twice['x-request-id']}.%",)).fetchall()]

    wait_for(lambda: len(rows()) == 2, 20, "both rows of spend")


def test_an_id_that_is_none_is_not_taken(stand: Stand) -> None:
    for given in ("x" * 129, "a\tb", ""):
        for path in ("/health/liveliness", "/nowhere"):
            said = stand.gateway.http(None).get(path, headers={"x-request-id": given}).headers["x-request-id"]
            assert uuid.UUID(said).version == 4


def levels(stand: Stand, **levels: str) -> dict[str, Any]:
    answer: dict[str, Any] = stand.gateway.admin.post("/pointsman/logs", json=levels).raise_for_status().json()
    return answer


@pytest.mark.slow("observability")
@pytest.mark.requirement("R-15.1")
@pytest.mark.requirement("R-15.3")
@pytest.mark.requirement("R-6.3")
def test_nothing_secret_is_told_not_even_by_the_verbose_mode(stand: Stand, upstreams: Upstreams) -> None:
    assert stand.gateway.http(stand.key).get("/pointsman/logs").status_code in (401, 403)  # LiteLLM refuses it before we do
    assert levels(stand, level="debug", library_level="debug")["library_level"] == "debug"
    marks: list[str] = []

    def secret() -> str:
        marks.append(f"Zwetschge{secrets.token_hex(6)}")
        return marks[-1]

    def messages() -> list[dict[str, Any]]:
        return [{"role": "system", "content": secret()}, {"role": "user", "content": f'tell "{secret()}" to me'}]

    for name in ("log-weak", "log-strong", "log-plain"):
        upstreams.script(name, (".", SAID))
    verbose = f"Verbose{uuid.uuid4().hex}"
    stand.gateway.http(stand.key).post(CHAT, json={"model": "log", "messages": messages()}, headers={"x-request-id": verbose})
    # Each way to ask, each way to go wrong; not their product, which takes half a minute.
    asked = [("log", path) for path in PATHS] + [(f"echo-{status}", CHAT) for status in (400, 401, 500)]
    for model, path in [*asked, ("claude", "/v1/messages"), ("echo-500", "/v1/messages"), ("nothing", "/v1/responses")]:
        text = secret()
        rest: dict[str, Any] = {"input": text, "prompt": text, "max_tokens": 9, "metadata": {"a": secret()}}
        stand.ask(model, path=path, messages=messages(), **rest)
    for broken in ({"messages": secret()}, {"messages": [{"role": secret()}]}, {"messages": [{"content": {"x": secret()}}]}):
        stand.ask("log-plain", **broken)
    stand.ask("log-plain", stream=True, messages=messages())
    upstreams.fault("log-plain", cut_after_chunks=2)
    with contextlib.suppress(httpx.HTTPError):
        stand.ask("log-plain", stream=True, messages=messages())
    upstreams.fault("log-plain", garbage=True)
    stand.ask("log-plain", messages=messages())
    upstreams.clear()
    http = stand.gateway.http(None)
    http.post(CHAT, content=f'{{"messages": "{secret()}'.encode(), headers={"authorization": f"Bearer {stand.key}"})
    for header in ({"authorization": f"Bearer {secret()}"}, {"x-api-key": secret()}, {"api-key": f"sk-{secret()}"}):
        http.post(CHAT, json={"model": "log", "messages": messages()}, headers=header)
    http.get("/key/info", params={"key": f"sk-{secret()}"}, headers={"authorization": f"Bearer sk-{secret()}"})
    answer = stand.ask("log")  # the last one; what it leaves is there when everything before it is

    lines = stand.of(answer.headers["x-request-id"])
    trace = lines[0]["trace_id"]
    wait_for(lambda: bool(stand.collector.logs(trace)) and bool(stand.collector.spans(trace)), 30, "it has arrived")
    told = [row for row in stand.lines() if row.get("request_id") == verbose]
    assert {row["level"] for row in told if row["logger"].startswith("LiteLLM")} >= {"DEBUG"}
    assert len(told) > 20, "the verbose mode tells more"
    assert any(row["logger"] == "pointsman.decisions" and row["level"] == "DEBUG" for row in told)
    signals = {
        "log": stand.gateway.log_path.read_text(),
        "logs by OTLP": "\n".join(str(item.what) for item in stand.collector.items("/v1/logs")),
        "spans": "\n".join(str(item.what) for item in stand.collector.items("/v1/traces")),
        "metrics": stand.gateway.admin.get("/metrics/").text,
    }
    assert verbose in signals["log"]
    assert verbose in signals["logs by OTLP"]
    forbidden = [*marks, SAID, UPSTREAM_KEY, stand.key, stand.gateway.master_key]
    for name, text in signals.items():
        assert len(text) > 1_000, name
        assert [mark for mark in forbidden if mark in text] == [], name
    levels(stand, level="info", library_level="warning")


def test_every_line_is_json_and_every_field_is_declared(stand: Stand) -> None:
    stand.of(stand.ask("log").headers["x-request-id"])
    lines = stand.lines()
    assert {name for line in lines for name in line} <= set(LOG_FIELDS)
    assert {row["process"] for row in lines} == {"supervisor", "worker-0", "worker-1"}
    for line in lines:
        assert {"timestamp", "level", "logger", "message", "process"} <= line.keys()
    state = stand.gateway.admin.get("/pointsman/logs").raise_for_status().json()
    assert state["level"] == "info"
    assert all(count == 0 for lost in state["dropped"].values() for count in lost.values())
