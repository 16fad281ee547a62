"""A changed model list meets LiteLLM's real router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm.proxy import proxy_server

from pointsman.errors import ConfigError
from pointsman.process.models import ModelSync, resolved


def entry(identifier: str, model: str = "openai/a", **params: Any) -> dict[str, Any]:
    params = {"model": model, "api_key": "sk-test", "api_base": "http://127.0.0.1:9", **params}
    return {"model_name": "group", "litellm_params": params, "model_info": {"id": identifier}}


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[litellm.Router]:
    """A router made as the proxy makes its own, in the proxy's place."""
    made = litellm.Router(model_list=[entry("one")], ignore_invalid_deployments=True)
    monkeypatch.setattr(proxy_server, "llm_router", made)
    monkeypatch.setattr(proxy_server, "llm_model_list", made.get_model_list())
    yield made
    made.reset()


def ids(router: litellm.Router) -> set[str]:
    return {item["model_info"]["id"] for item in router.get_model_list() or ()}


def test_add_change_remove_and_nothing_to_do(router: litellm.Router) -> None:
    sync = ModelSync([entry("one")])
    assert sync.apply([entry("one"), entry("two")]) == (1, 0)
    assert ids(router) == {"one", "two"}
    assert sync.apply([entry("one", "openai/b"), entry("two")]) == (1, 0)
    found = router.get_deployment(model_id="one")
    assert found is not None
    assert found.litellm_params.model == "openai/b"
    assert sync.apply([entry("two")]) == (0, 1)
    assert ids(router) == {"two"}
    assert sync.apply([entry("two")]) == (0, 0)


def test_a_deployment_of_the_database_is_left_alone(router: litellm.Router) -> None:
    from litellm.types.router import Deployment

    router.add_deployment(Deployment(**entry("from-database")))
    ModelSync([entry("one")]).apply([entry("two")])
    assert ids(router) == {"two", "from-database"}


def test_what_litellm_drops_without_a_word_is_refused_and_can_be_taken_back(router: litellm.Router) -> None:
    sync = ModelSync([entry("one")])
    with pytest.raises(ConfigError) as caught:
        sync.apply([entry("one"), entry("bad", "nosuchprovider/xyz", api_base=None)])
    assert "nosuchprovider/xyz" in caught.value.message
    assert sync.apply([entry("one")])[1] == 0
    assert ids(router) == {"one"}


def test_a_refusal_quotes_no_secret(router: litellm.Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-verysecret-0123456789")
    with pytest.raises(ConfigError) as caught:
        ModelSync([]).apply([entry("x", api_key="os.environ/UPSTREAM_KEY", max_retries="not a number")])
    assert "verysecret" not in str(caught.value)
    assert "0123456789" not in str(caught.value)


def test_references_are_resolved_at_any_depth(router: litellm.Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t-1")
    ModelSync([]).apply([entry("x", extra_headers={"X-Token": "os.environ/TOKEN"})])
    found = router.get_deployment(model_id="x")
    assert found is not None
    assert found.litellm_params.model_dump()["extra_headers"] == {"X-Token": "t-1"}
    assert resolved({"a": ["os.environ/TOKEN", 3]}, lambda name: name.upper()) == {"a": ["OS.ENVIRON/TOKEN", 3]}
