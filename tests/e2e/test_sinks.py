"""Sinks: a team's telemetry goes where that team's settings say, and no sink, whatever it does, is felt by a request."""

from __future__ import annotations

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
from support.topology import routed_config, single
from support.upstreams import Upstreams

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


def add_callback(gateway: Gateway, team: str, variables: dict[str, str]) -> httpx.Response:
    """Give a team a Langfuse project of its own, by the API."""
    body = {"callback_name": "langfuse_otel", "callback_type": "success_and_failure", "callback_vars": variables}
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
    knows. n: nothing.
    """
    with langfuse("operator", "e", "f") as central, langfuse("a") as a, langfuse("b") as b:
        config = routed_config([single(upstreams, name, f"openai/{name}-model") for name in ("plain", "failing")], {}, {})
        config["litellm_settings"] |= {
            "callbacks": ["langfuse_otel"],
            "provider_url_destination_allowed_hosts": ["127.0.0.1"],
            "default_team_settings": [by_file(f"team-{name}", central[name]) for name in "ef"],
        }
        env = {**central["operator"].environment, **SOON}
        gateway = Gateway(config, tmp_path_factory.mktemp("gateway"), new_database(), env=env).start()
        try:
            for team in "abefwn":
                gateway.admin.post("/team/new", json={"team_id": f"team-{team}"}).raise_for_status()
            for name, server in (("a", a), ("b", b)):
                add_callback(gateway, f"team-{name}", server[name].variables).raise_for_status()
            add_callback(gateway, "team-w", a["a"].variables | {"langfuse_secret_key": "sk-lf-guessed"}).raise_for_status()
            keys = {team: gateway.new_key(team_id=f"team-{team}") for team in "abefwn"}
            yield Stand(gateway, central, {"a": a, "b": b}, keys)
            gateway.stop()
        finally:
            gateway.kill()


@pytest.mark.requirement("P-16", "R-6.7", "R-6.8")
def test_a_teams_traces_reach_its_project_only(stand: Stand, upstreams: Upstreams) -> None:
    upstreams.fault("failing", status=400)
    sent = {team: Sent() for team in stand.keys}
    ways = [(team, way) for way in ("plain", "stream", "failing") for team in stand.keys for _ in range(3)]
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
