"""One gateway with several strategies at once: who chooses, what policies do, what each endpoint gets."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.database_url import libpq_url, own_schema
from support.calls import WAYS, Clients, errors
from support.gateway import Gateway
from support.processes import wait_for
from support.strategy import EASY, HARD, STRONG, WEAK, FilePublisher, wanted
from support.topology import deployment, pair, routed_config
from support.upstreams import Upstreams

STRAIGHT, INVERTED, WEIGHING, EXPLORING = "straight", "inverted", "weighing", "exploring"
GROUPS: dict[str, str | None] = {
    "auto": STRAIGHT,
    "backwards": INVERTED,
    "left": None,
    "weighed": WEIGHING,
    "explored": EXPLORING,
}
OTHERS = {
    "vectors": ("text-embedding-3-small", "embedding"),
    "bare-vectors": ("text-embedding-3-small", "embedding"),
    "pictures": ("gpt-image-1", "image_generation"),
    "voices": ("tts-1", "audio_speech"),
    "ears": ("whisper-1", "audio_transcription"),
    "censors": ("omni-moderation-latest", "moderation"),
}


@pytest.fixture(scope="module")
def running(
    upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("policies")
    strategies: dict[str, dict[str, Any]] = {}
    for name in (STRAIGHT, INVERTED, WEIGHING, EXPLORING):
        publisher = FilePublisher(directory / "published", name)
        publisher.publish("1.0.0", inverted=name == INVERTED)
        strategies[name] = publisher.settings(reload_interval=60.0)
    strategies[WEIGHING]["policy"] = {"cost_weight": 0.1}
    strategies[EXPLORING]["policy"] = {"explore": {"share": 0.5}}
    models = [entry for group in ("auto", "backwards", "left", "explored") for entry in pair(upstreams, group)]
    for size, model, cost in (("weak", WEAK, 9e-7), ("strong", STRONG, 1e-6)):
        info = {"input_cost_per_token": cost, "output_cost_per_token": cost, "cache_read_input_token_cost": cost / 10}
        models.append(deployment("weighed", f"weighed-{size}", f"openai/{model}", upstreams.url(f"weighed-{size}"), info))
    for group, (model, mode) in OTHERS.items():
        for name in ("one", "two"):
            ours = f"{group}-{name}"
            models.append(deployment(group, ours, f"openai/{model}", upstreams.url(ours), {"mode": mode}))
    models += [
        deployment("ranks", name, "hosted_vllm/rank", upstreams.url(name), {"mode": "rerank"})
        for name in ("ranks-1", "ranks-2")
    ]
    rules = [{"deployment": "vectors-two", "over_tokens": 100}, {"deployment": "vectors-one", "script": "non_latin"}]
    named = {group: strategy for group, strategy in GROUPS.items() if group != "auto"}
    config = routed_config(models, strategies, {})
    config["pointsman"]["routing"] |= {"default": STRAIGHT, "groups": named, "embeddings": {"vectors": rules}}
    gateway = Gateway(config, directory / "gateway", new_database(), workers=1)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def make_key(running: Gateway) -> Callable[..., str]:
    """A key whose metadata, and whose team's, say this; the same one for the same."""

    @functools.cache
    def team(strategy: str) -> str:
        answer = running.admin.post("/team/new", json={"metadata": {"pointsman_strategy": strategy}})
        return str(answer.raise_for_status().json()["team_id"])

    @functools.cache
    def make(own: str | None = None, of_team: str | None = None, allow: Any = None) -> str:
        metadata = {"pointsman_strategy": own, "pointsman_allow_override": list(allow) if isinstance(allow, tuple) else allow}
        fields: dict[str, Any] = {"metadata": {name: value for name, value in metadata.items() if value is not None}}
        if of_team is not None:
            fields["team_id"] = team(of_team)
        return running.new_key(**fields)

    return make


def ask(
    gateway: Gateway, key: str, group: str, text: Any, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    payload = {"model": group, "messages": text if isinstance(text, list) else [{"role": "user", "content": text}], **body}
    sent = {"authorization": f"Bearer {key}", **(headers or {})}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=payload, headers=sent, trust_env=False, timeout=30)


def served_by(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).removeprefix("served by ")


def row_of(gateway: Gateway, answer: httpx.Response) -> dict[str, Any]:
    """The decision's record, and that its outcome is written."""
    assert gateway.database_url is not None
    schema = own_schema(gateway.database_url)
    with psycopg.connect(libpq_url(gateway.database_url), row_factory=psycopg.rows.dict_row) as connection:

        def read() -> dict[str, Any] | None:
            query = f"SELECT d.* FROM {schema}.pointsman_decisions d JOIN {schema}.pointsman_outcomes USING (decision_id)"  # noqa: S608
            query += " WHERE decision_id = %s"
            with connection.transaction():
                return connection.execute(query.encode(), (answer.headers["x-pointsman-decision-id"],)).fetchone()

        return wait_for(read, 20, "the decision's record")


asked = st.sampled_from([None, STRAIGHT, INVERTED, "litellm", "no-such"])


@pytest.mark.requirement("P-4", "R-2.2", "R-2.5")
@settings(max_examples=40, deadline=None)
@given(
    group=st.sampled_from(["auto", "backwards", "left"]),
    header=asked.filter(lambda one: one != "no-such"),
    own=asked,
    of_team=asked,
    text=st.sampled_from([EASY, HARD]),
)
def test_property_the_strategy_that_is_configured_chooses(
    running: Gateway,
    make_key: Callable[..., str],
    group: str,
    header: str | None,
    own: str | None,
    of_team: str | None,
    text: str,
) -> None:
    key = make_key(own, of_team, True)
    answer = ask(running, key, group, text, {"x-pointsman-strategy": header} if header else {})
    exists = [one for one in (header, own, of_team) if one not in (None, "no-such")]
    expected = exists[0] if exists else GROUPS[group]
    if expected in (None, "litellm"):
        assert served_by(answer) in (f"{group}-weak", f"{group}-strong")
        assert answer.headers["x-pointsman-strategy"] == "litellm"
        assert "x-pointsman-policy" not in answer.headers
    else:
        better = (wanted(text) == STRONG) != (expected == INVERTED)
        assert served_by(answer) == f"{group}-{'strong' if better else 'weak'}"
        assert answer.headers["x-pointsman-strategy"] == expected
        assert answer.headers["x-pointsman-policy"] == "argmax"
    passed_over = [one for one in (own, of_team) if one is not None][: 1 if own != "no-such" else 2]
    told = header is None and "no-such" in passed_over
    assert answer.headers.get("x-pointsman-fallback") == ("unknown_strategy" if told else None)


@pytest.mark.requirement("P-4")
def test_the_record_says_who_chose(running: Gateway, make_key: Callable[..., str]) -> None:
    for own, of_team, header, by in (
        (None, None, None, "default"),
        (None, INVERTED, None, "team"),
        (STRAIGHT, INVERTED, None, "key"),
        (STRAIGHT, INVERTED, INVERTED, "header"),
    ):
        answer = ask(running, make_key(own, of_team, True), "auto", HARD, {"x-pointsman-strategy": header} if header else {})
        row = row_of(running, answer)
        assert (row["chosen_by"], row["scale"], row["propensity"], row["detail"]) == (by, "quality", 1.0, None)
    row = row_of(running, ask(running, make_key("no-such", None, None), "left", HARD))
    assert (row["chosen_by"], row["detail"]) == ("group", {"ignored_strategies": ["no-such"]})
    assert row["propensity"] is None


@pytest.mark.parametrize("way", WAYS)
def test_who_may_not_choose_is_refused_every_way(
    running: Gateway, make_key: Callable[..., str], upstreams: Upstreams, way: str
) -> None:
    mark = uuid.uuid4().hex
    clients = Clients(running, make_key(None, None, ("cost_weight",)))
    for client in (clients.openai, clients.anthropic):
        client._custom_headers = {"x-pointsman-strategy": INVERTED}
    with pytest.raises(errors) as refused:
        WAYS[way](clients, "auto", f"{HARD} {mark}")
    assert refused.value.status_code == 403
    assert "E4110" in refused.value.response.text
    assert "may not choose its strategy" in refused.value.response.text
    assert upstreams.requests("auto-strong", contains=mark) == upstreams.requests("auto-weak", contains=mark) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embeddings", {"model": "vectors", "input": "x"}),
        ("images/generations", {"model": "pictures", "prompt": "x"}),
        ("audio/speech", {"model": "voices", "input": "x", "voice": "alloy"}),
        ("moderations", {"model": "censors", "input": "x"}),
        ("rerank", {"model": "ranks", "query": "x", "documents": ["x"]}),
    ],
)
def test_nor_on_any_other_endpoint(running: Gateway, make_key: Callable[..., str], path: str, body: dict[str, Any]) -> None:
    client = running.http(make_key())
    answer = client.post(f"/v1/{path}", json=body, headers={"x-pointsman-cost-weight": "1"})
    assert (answer.status_code, "E4110" in answer.text) == (403, True), answer.text


def test_a_header_that_means_nothing_is_a_bad_request(running: Gateway, make_key: Callable[..., str]) -> None:
    for header, value in (("x-pointsman-strategy", "no-such"), ("x-pointsman-cost-weight", "much")):
        answer = ask(running, make_key(None, None, True), "auto", HARD, {header: value})
        assert (answer.status_code, "E4010" in answer.text) == (400, True), answer.text


def test_a_weight_by_header_makes_the_cheaper_one_win(running: Gateway, make_key: Callable[..., str]) -> None:
    key = make_key(None, None, ("cost_weight",))
    free = ask(running, key, "weighed", HARD, {"x-pointsman-cost-weight": "0"})
    assert (served_by(free), free.headers["x-pointsman-policy"]) == ("weighed-strong", "argmax")
    dear = ask(running, key, "weighed", HARD, {"x-pointsman-cost-weight": "50"})
    assert (served_by(dear), dear.headers["x-pointsman-policy"]) == ("weighed-weak", "cost")
    detail = row_of(running, dear)["detail"]
    assert detail["cost_weight"] == 50
    assert detail["costs"]["weighed-strong"] == detail["reference_cost"] > detail["costs"]["weighed-weak"] > 0
    unpriced = ask(running, make_key(None, None, True), "auto", HARD, {"x-pointsman-cost-weight": "50"})
    assert (served_by(unpriced), unpriced.headers["x-pointsman-policy"]) == ("auto-strong", "argmax:no_prices")


def test_a_conversation_stays_where_its_prompt_is_cached(running: Gateway, make_key: Callable[..., str]) -> None:
    headers = {"x-pointsman-cost-weight": "5"}
    key, prefix = make_key(None, None, True), f"{HARD} {uuid.uuid4().hex} " * 200
    opening = [{"role": "user", "content": prefix}]
    first = ask(running, key, "weighed", opening, headers)
    assert served_by(first) == "weighed-strong"
    row_of(running, first)  # from then on the worker knows who served it
    turn = [*opening, {"role": "assistant", "content": "so be it"}, {"role": "user", "content": EASY}]
    second = ask(running, key, "weighed", turn, headers)
    assert served_by(second) == "weighed-strong"
    assert row_of(running, second)["detail"]["switching"]["weighed-weak"] > 0
    # The same without that history goes to the one that the prompt is for.
    turn[0] = {"role": "user", "content": prefix[::-1]}
    assert served_by(ask(running, key, "weighed", turn, headers)) == "weighed-weak"


def test_nobody_elses_conversation_counts_nor_on_another_endpoint(running: Gateway, make_key: Callable[..., str]) -> None:
    """Anthropic's endpoint, marks for its cache, and two keys that say the same in a session of the same name."""
    mine, other = make_key(None, None, True), make_key(None, None, ("cost_weight",))
    mark = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": f"{HARD} {uuid.uuid4().hex} " * 200, **mark}]
    opening = [{"role": "user", "content": [{"type": "text", "text": HARD, **mark}]}]
    turn = [*opening, {"role": "assistant", "content": "so be it"}, {"role": "user", "content": EASY}]

    def message(key: str, messages: list[Any]) -> httpx.Response:
        body = {"model": "weighed", "max_tokens": 50, "system": system, "messages": messages}
        headers = {"x-pointsman-cost-weight": "5", "x-litellm-session-id": "one-and-the-same"}
        answer = running.http(key).post("/v1/messages", json=body, headers=headers)
        assert (answer.status_code, answer.headers["x-pointsman-policy"]) == (200, "cost"), answer.text
        return answer

    first = message(mine, opening)
    assert first.headers["x-litellm-model-id"] == "weighed-strong"
    row_of(running, first)  # from then on the worker knows who served it
    theirs = message(other, turn)
    assert theirs.headers["x-litellm-model-id"] == "weighed-weak"
    assert "switching" not in row_of(running, theirs)["detail"]
    again = message(mine, turn)
    assert again.headers["x-litellm-model-id"] == "weighed-strong"
    assert row_of(running, again)["detail"]["switching"]["weighed-weak"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_gone_on_from_where_it_is_kept(running: Gateway, make_key: Callable[..., str], stream: bool) -> None:
    client = running.openai(make_key())
    first = client.responses.create(model="auto", input=HARD)
    raw = client.responses.with_raw_response.create(
        model="auto", input=EASY, previous_response_id=first.id, **({"stream": True} if stream else {})
    )
    answer = raw.parse()
    assert not stream or list(answer)
    assert raw.headers["x-litellm-model-id"] == "auto-strong"
    assert (raw.headers["x-pointsman-strategy"], raw.headers["x-pointsman-fallback"]) == ("litellm", "continued")


def test_exploration_writes_down_its_odds(running: Gateway, make_key: Callable[..., str]) -> None:
    answers = [ask(running, make_key(), "explored", HARD) for _ in range(50)]
    picks = [served_by(answer) for answer in answers]
    assert set(picks) == {"explored-strong", "explored-weak"}
    for answer, pick in list(zip(answers, picks, strict=True))[::7]:
        row = row_of(running, answer)
        assert row["propensity"] == pytest.approx(0.75 if pick == "explored-strong" else 0.25)
        assert (row["policy"] == "argmax+explore") == row["detail"]["explored"]
        assert row["ranking"][0] == pick


@pytest.mark.parametrize(
    ("given_input", "who"),
    [
        ("x" * 401, "vectors-two"),
        (["a", "x" * 401], "vectors-two"),
        ([7] * 101, "vectors-two"),
        ("привет, мир", "vectors-one"),
        ("hello", None),
    ],
)
def test_embeddings_go_by_rule(running: Gateway, make_key: Callable[..., str], given_input: Any, who: str | None) -> None:
    answer = running.http(make_key()).post("/v1/embeddings", json={"model": "vectors", "input": given_input})
    assert answer.status_code == 200, answer.text
    headers = answer.headers
    assert headers["x-pointsman-strategy"] == ("rule" if who else "litellm")
    assert headers.get("x-pointsman-fallback") == (None if who else "not_text")
    assert headers["x-litellm-model-id"] in ((who,) if who else ("vectors-one", "vectors-two"))


@pytest.mark.parametrize(
    ("path", "body", "files"),
    [
        ("embeddings", {"model": "bare-vectors", "input": HARD}, None),
        ("images/generations", {"model": "pictures", "prompt": HARD}, None),
        ("audio/speech", {"model": "voices", "input": HARD, "voice": "alloy"}, None),
        ("audio/transcriptions", {"model": "ears"}, {"file": ("a.wav", b"RIFF0000WAVE")}),
        ("moderations", {"model": "censors", "input": HARD}, None),
        ("rerank", {"model": "ranks", "query": HARD, "documents": ["x"]}, None),
    ],
)
def test_what_has_no_text_to_score_falls_back(
    running: Gateway, make_key: Callable[..., str], path: str, body: dict[str, Any], files: Any
) -> None:
    client = running.http(make_key())
    answer = client.post(f"/v1/{path}", data=body, files=files) if files else client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-pointsman-strategy"], answer.headers["x-pointsman-fallback"]) == ("litellm", "not_text")
    assert "x-pointsman-version" not in answer.headers


TOOL = [
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": EASY}]},
]
TOOLS = [{"name": "look", "description": "looks", "input_schema": {"type": "object", "properties": {}}}]


@pytest.mark.parametrize(
    ("path", "body", "strategy"),
    [
        ("responses", {"input": HARD}, STRAIGHT),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": HARD}]}], "instructions": EASY},
            STRAIGHT,
        ),
        ("messages", {"max_tokens": 9, "system": EASY, "messages": [{"role": "user", "content": HARD}]}, STRAIGHT),
        ("messages", {"max_tokens": 9, "tools": TOOLS, "messages": [{"role": "user", "content": HARD}, *TOOL]}, STRAIGHT),
        ("completions", {"prompt": HARD}, STRAIGHT),
        ("completions", {"prompt": [HARD]}, STRAIGHT),
        ("completions", {"prompt": [1, 2, 3]}, None),
        ("completions", {"prompt": [[1, 2], [3]]}, None),
    ],
)
@pytest.mark.requirement("R-2.5")
def test_endpoints_with_text_are_scored_by_what_the_user_asked(
    running: Gateway, make_key: Callable[..., str], path: str, body: dict[str, Any], strategy: str | None
) -> None:
    answer = running.http(make_key()).post(f"/v1/{path}", json={"model": "auto", **body})
    assert answer.headers["x-pointsman-strategy"] == (strategy or "litellm"), answer.text
    if strategy is not None:
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-litellm-model-id"] == "auto-strong"
    else:
        assert answer.headers["x-pointsman-fallback"] == "no_text"


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent"])
def test_geminis_own_endpoint_is_scored_by_what_the_user_asked(
    running: Gateway, make_key: Callable[..., str], method: str
) -> None:
    asked = [("user", EASY), ("model", "so be it"), ("user", HARD)]
    body = {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in asked]}
    answer = running.http(make_key()).post(f"/v1beta/models/auto:{method}", json=body)
    assert answer.status_code == 200, answer.text
    assert [answer.headers[f"x-pointsman-{name}"] for name in ("strategy", "model")] == [STRAIGHT, f"openai/{STRONG}"]


@pytest.mark.parametrize(
    "text",
    [f"{'word ' * 210_000} {HARD}", "\U0001f600" * 50_000 + HARD, f"\u202e\u05e9\u05dc\u05d5\u05dd {HARD}", f"\x01\x1b {HARD}"],
)
def test_a_prompt_of_any_kind_is_decided(running: Gateway, make_key: Callable[..., str], text: str) -> None:
    answer = ask(running, make_key(), "auto", text)
    assert answer.status_code == 200, answer.text[:500]
    assert answer.headers["x-pointsman-strategy"] == STRAIGHT
    assert row_of(running, answer)["microseconds"] < 2_000_000


@pytest.mark.parametrize(
    "content", [None, 7, [], [[]], {"text": "x"}, [{"type": "text", "text": {"a": [1]}}], json.loads("[" * 90 + "]" * 90)]
)
def test_content_of_a_wrong_type_is_answered_and_not_an_error_of_ours(
    running: Gateway, make_key: Callable[..., str], content: Any
) -> None:
    answer = ask(running, make_key(), "auto", [{"role": "user", "content": content}])
    assert answer.status_code < 500 or "x-pointsman-decision-id" in answer.headers, answer.text
