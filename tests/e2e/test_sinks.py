"""Sinks: a team's telemetry goes where that team's settings say, and no sink, whatever it does, is felt by a request."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.gateway import Gateway
from support.langfuse_receiver import Langfuse, Project, langfuse
from support.processes import wait_for
from support.strategy import STRONG, WEAK
from support.topology import pair, routed_config, single
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("observability")

PROMPT = "the-prompt-that-nobody-asked-to-be-told"
ERROR = 2
"""OTLP's code of the status of a span that failed."""
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
"""Milliseconds between exports (5000 else), for the tests' sake."""


@dataclass
class Sent:
    """What a team asked for: trace ids, and of which the upstream failed."""

    traces: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


@dataclass
class Stand:
    """A gateway and its receivers: `central` is the operator's server, `own` are servers of single teams.

    Attributes:
        keys: a virtual key of each team.
    """

    gateway: Gateway
    central: Langfuse
    own: dict[str, Langfuse]
    keys: dict[str, str]

    def ask(self, team: str, sent: Sent, way: str = "plain", seconds: float = 30) -> float:
        """One request; returns how long it took."""
        trace_id = secrets.token_hex(16)
        client = self.gateway.http(self.keys[team], timeout=seconds)
        body = {"model": "plain", "messages": [{"role": "user", "content": PROMPT}], "stream": way == "stream"}
        begun = time.monotonic()
        said = client.post(
            "/v1/chat/completions",
            json=body | ({"model": "failing"} if way == "failing" else {}),
            headers={"traceparent": f"00-{trace_id}-{'1' * 16}-01"},
        )
        took = time.monotonic() - begun
        assert said.status_code == (400 if way == "failing" else 200), said.text
        assert way != "stream" or said.text.rstrip().endswith("data: [DONE]")
        sent.traces.add(trace_id)
        if way == "failing":
            sent.failed.add(trace_id)
        return took


def add_callback(gateway: Gateway, team: str, variables: dict[str, str], name: str = "langfuse_otel") -> httpx.Response:
    """Give a team a sink of its own, by the API."""
    body = {"callback_name": name, "callback_type": "success_and_failure", "callback_vars": variables}
    return gateway.admin.post(f"/team/{team}/callback", json=body)


def by_file(team: str, project: Project) -> dict[str, object]:
    """The same in the YAML file."""
    named = ["langfuse_otel"]
    return {"team_id": team, "success_callback": named, "failure_callback": named, **project.variables}


def chats(project: Project) -> list[Span]:
    """Spans of calls to models."""
    return [span for span in project.spans() if span.name.startswith(("chat ", "litellm_request"))]


def traces_of(spans: list[Span]) -> set[str]:
    """Trace ids, of a span that begins a trace of its own that of the request it is linked to."""
    return {(span.links[0].trace_id if span.links else span.trace_id).hex() for span in spans}


@pytest.fixture(scope="module")
def stand(upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The operator's Langfuse for everybody, and what teams have besides.

    Teams a and b: servers of their own, by the API. e and f: projects on the central server, by the file. w: keys that nobody
    knows. n: nothing. l: another kind of sink.
    """
    with langfuse("operator", "e", "f") as central, langfuse("a") as a, langfuse("b") as b:
        models = [
            *(single(upstreams, name, f"openai/{name}-model") for name in ("plain", "failing")),
            *pair(upstreams, "asked", input_cost_per_token=0.01),
        ]
        cascade = {"kind": "automix", "cascade": {"samples": 1, "models": [f"openai/{WEAK}", f"openai/{STRONG}"]}}
        config = routed_config(models, {"cascade": cascade}, {"asked": "cascade"})
        config["litellm_settings"] |= {
            "callbacks": ["langfuse_otel"],
            "provider_url_destination_allowed_hosts": ["127.0.0.1"],
            "default_team_settings": [by_file(f"team-{name}", central[name]) for name in "ef"],
        }
        env = {**central["operator"].environment, **SOON}
        gateway = Gateway(config, tmp_path_factory.mktemp("gateway"), new_database(), env=env).start()
        try:
            for team in "abefwnl":
                gateway.admin.post("/team/new", json={"team_id": f"team-{team}"}).raise_for_status()
            for name, server in (("a", a), ("b", b)):
                add_callback(gateway, f"team-{name}", server[name].variables).raise_for_status()
            smith = {
                "langsmith_api_key": "ls",
                "langsmith_base_url": b.host,
                "langsmith_project": "l",
            }
            add_callback(gateway, "team-l", smith, "langsmith").raise_for_status()
            add_callback(gateway, "team-w", a["a"].variables | {"langfuse_secret_key": "sk-lf-guessed"}).raise_for_status()
            keys = {team: gateway.new_key(team_id=f"team-{team}") for team in "abefwnl"}
            yield Stand(gateway, central, {"a": a, "b": b}, keys)
            gateway.stop()
        finally:
            gateway.kill()


@pytest.mark.requirement("P-16", "R-6.7", "R-6.8")
def test_a_teams_traces_reach_its_project_only(stand: Stand, upstreams: Upstreams) -> None:
    upstreams.fault("failing", status=400)
    sent = {team: Sent() for team in stand.keys if team != "l"}
    ways = [(team, way) for way in ("plain", "stream", "failing") for team in sent for _ in range(3)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda item: stand.ask(item[0], sent[item[0]], item[1]), ways))

    projects = {
        "a": stand.own["a"]["a"],
        "b": stand.own["b"]["b"],
        **{name: stand.central[name] for name in "ef"},
        "n": stand.central["operator"],
    }
    for team, project in projects.items():
        wait_for(lambda p=project, t=team: sent[t].traces <= traces_of(chats(p)), 30, f"all of {team} arrived")  # type: ignore[misc]
    for team, project in projects.items():
        calls = chats(project)
        assert traces_of(calls) == sent[team].traces, "its own, and nobody else's"
        assert traces_of([span for span in calls if span.status.code == ERROR]) == sent[team].failed
        text = project.text()
        assert PROMPT not in text
        assert "sk-lf-" not in text
        assert not any(key in text for key in stand.keys.values())
        others = set().union(*(sent[other].traces for other in sent if other != team))
        if team != "n":
            assert not any(span.trace_id.hex() in others for span in project.spans()), "no other span of their requests either"
            assert not any(f"team-{other}" in text for other in sent if other != team)
    # Whose keys nobody knows loses its traces; they reach no one else.
    assert set(stand.own["a"].refused) == {stand.own["a"]["a"].public_key}
    assert not stand.own["b"].refused
    assert not stand.central.refused


VERDICT = r'\\"id\\": \\"([0-9a-f]{16})\\", \\"score'


@pytest.mark.parametrize("team", ["a", "l"])
def test_a_teams_sink_is_told_of_a_cascades_calls(stand: Stand, upstreams: Upstreams, team: str) -> None:
    """An answer and a verdict on it: calls that the team pays for."""
    upstreams.script("asked-weak", (VERDICT, '{"id": "{1}", "score": 9}'), ("", "four it is"))
    project, hooked = stand.own["a"]["a"], stand.own["b"].hooked
    trace_id = secrets.token_hex(16)
    body = {"model": "asked", "messages": [{"role": "user", "content": "what is two and two"}]}
    headers = {"traceparent": f"00-{trace_id}-{'1' * 16}-01"}
    said = stand.gateway.http(stand.keys[team]).post("/v1/chat/completions", json=body, headers=headers)
    assert said.status_code == 200, said.text
    assert said.headers["x-pointsman-cascade"].startswith("calls=2,"), dict(said.headers)

    def told() -> bool:
        if team == "l":  # with text, as it is told of every call
            return "You grade answers" in json.dumps(hooked)
        return len([span for span in chats(project) if span.trace_id.hex() == trace_id]) == 2

    wait_for(told, 30, "the team's sink is told of the calls inside")
