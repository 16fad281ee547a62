"""Models come from the YAML file: at the start, and again when it changes; a bad change is refused and the good one stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from support.gateway import Gateway
from support.processes import wait_for
from support.topology import UPSTREAM_KEY
from support.upstreams import Upstreams


@pytest.fixture(autouse=True)
def _as_it_was(gateway: Gateway) -> Iterator[None]:
    """Put the shared configuration back and wait until nothing of ours is listed."""
    before = copy.deepcopy(gateway.config)
    yield
    gateway.write_config(before)
    wait_for(lambda: everywhere(gateway, set(), prefix="hot-"), 15, "the models of this test are gone")


def ask(gateway: Gateway, method: str, path: str, **kwargs: Any) -> httpx.Response:
    """A request over a connection of its own, so that any worker may get it."""
    headers = {"authorization": f"Bearer {gateway.master_key}", "connection": "close"}
    return httpx.request(method, f"{gateway.url}{path}", headers=headers, trust_env=False, timeout=30, **kwargs)


def everywhere(gateway: Gateway, names: set[str], prefix: str, requests: int = 8) -> bool:
    """Whether every one of several answers lists exactly these models of a prefix."""
    for _ in range(requests):
        listed = {model["id"] for model in ask(gateway, "GET", "/v1/models").json()["data"]}
        if {name for name in listed if name.startswith(prefix)} != names:
            return False
    return True


def entry(upstreams: Upstreams, name: str, upstream: str, **params: Any) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": "openai/hot-model", "api_base": upstreams.url(upstream), "api_key": UPSTREAM_KEY, **params},
    }


def chat(gateway: Gateway, model: str) -> httpx.Response:
    return ask(
        gateway, "POST", "/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": "hello"}]}
    )


@pytest.mark.requirement("R-1.5", "R-3.3", "P-5")
def test_a_model_is_added_changed_and_removed_without_a_restart(gateway: Gateway, upstreams: Upstreams) -> None:
    before = copy.deepcopy(gateway.config)
    pids = gateway.worker_pids()

    def serve(*models: dict[str, Any]) -> None:
        gateway.write_config({**before, "model_list": [*before["model_list"], *models]})

    serve(entry(upstreams, "hot-one", "hot-a"))
    wait_for(lambda: everywhere(gateway, {"hot-one"}, "hot-"), 15, "the new model is listed by every worker")
    assert chat(gateway, "hot-one").json()["choices"][0]["message"]["content"] == "served by hot-a"
    serve(entry(upstreams, "hot-one", "hot-b"))
    wait_for(
        lambda: all(chat(gateway, "hot-one").json()["choices"][0]["message"]["content"] == "served by hot-b" for _ in range(8)),
        15,
        "every worker asks the new place",
    )
    serve()
    wait_for(lambda: everywhere(gateway, set(), "hot-"), 15, "the model is gone from every worker")
    assert chat(gateway, "hot-one").status_code in (400, 404)
    assert gateway.worker_pids() == pids, "no worker was restarted"


@pytest.mark.requirement("R-3.6", "P-5")
def test_a_bad_change_is_told_and_the_good_configuration_stays(gateway: Gateway) -> None:
    good = gateway.config_path.read_text()
    try:
        gateway.config_path.write_text(good + "\n  - : : not yaml\n")
        error = wait_for(lambda: gateway.status()["config"].get("last_error"), 15, "the bad file is told")
        assert "E42" in str(error)
        assert chat(gateway, "plain").status_code == 200
        unknown = yaml.safe_load(good)
        unknown["pointsman"]["stratgies"] = {}
        gateway.config_path.write_text(yaml.safe_dump(unknown))
        wait_for(lambda: "stratgies" in str(gateway.status()["config"].get("last_error")), 15, "the unknown key is told")
        assert chat(gateway, "plain").status_code == 200
    finally:
        gateway.config_path.write_text(good)
    wait_for(lambda: not gateway.status()["config"].get("last_error"), 15, "the error is over with the good file")


@pytest.mark.requirement("P-5")
def test_a_deployment_that_litellm_refuses_is_told_and_taken_back(gateway: Gateway, upstreams: Upstreams) -> None:
    before = copy.deepcopy(gateway.config)
    bad = {"model_name": "hot-bad", "litellm_params": {"model": "nosuchprovider/xyz"}}
    gateway.write_config({**before, "model_list": [*before["model_list"], entry(upstreams, "hot-good", "hot-a"), bad]})
    error = wait_for(lambda: gateway.status()["config"].get("last_error"), 20, "the refusal is told")
    assert "nosuchprovider/xyz" in str(error)
    wait_for(lambda: everywhere(gateway, set(), "hot-"), 15, "nothing of the file is in service, by all or by none")


def test_the_users_file_is_never_written(gateway: Gateway) -> None:
    before = gateway.config_path.read_bytes()
    gateway.admin.post("/config/update", json={"litellm_settings": {"drop_params": True}})
    gateway.admin.post("/key/generate", json={}).raise_for_status()
    assert gateway.config_path.read_bytes() == before
    assert gateway.master_key.encode() not in before


names = st.sets(st.text("abcdefgh0123456789", min_size=1, max_size=12).map("hot-{}".format), min_size=1, max_size=4)


@pytest.mark.requirement("P-3", "R-1.5")
@settings(max_examples=6, deadline=None)
@given(wanted=names, copies=st.integers(1, 3), temperature=st.none() | st.floats(0, 1, allow_nan=False))
def test_property_what_the_file_lists_is_served_with_its_parameters(
    gateway: Gateway, upstreams: Upstreams, wanted: set[str], copies: int, temperature: float | None
) -> None:
    base = {**gateway.config, "model_list": [m for m in gateway.config["model_list"] if not m["model_name"].startswith("hot-")]}
    params = {} if temperature is None else {"temperature": temperature}
    added = [entry(upstreams, name, f"{name}-{number}", **params) for name in sorted(wanted) for number in range(copies)]
    gateway.write_config({**base, "model_list": [*base["model_list"], *added]})
    wait_for(lambda: everywhere(gateway, wanted, "hot-"), 20, f"{sorted(wanted)} are listed by every worker")
    for name in wanted:
        answer = chat(gateway, name)
        assert answer.status_code == 200, answer.text
        served = answer.json()["choices"][0]["message"]["content"].removeprefix("served by ")
        assert served in {f"{name}-{number}" for number in range(copies)}
        arrived = upstreams.requests(served)[-1]
        assert arrived["body"]["model"] == "hot-model"
        assert arrived["headers"]["authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert arrived["body"].get("temperature") == temperature
