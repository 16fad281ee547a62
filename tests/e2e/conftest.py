"""What the end-to-end tests share: clients with a virtual key of the shared gateway, and no fault left switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from support.gateway import Gateway
from support.upstreams import Upstreams


@pytest.fixture(autouse=True)
def _no_fault_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Switch every fault off after each test that may have switched one on."""
    yield
    if "upstreams" in request.fixturenames or "gateway" in request.fixturenames:
        request.getfixturevalue("upstreams").clear()


@pytest.fixture(scope="session")
def key(gateway: Gateway) -> str:
    """A virtual key without limits."""
    return gateway.new_key(key_alias="shared")


@pytest.fixture
def client(gateway: Gateway, key: str) -> openai.OpenAI:
    """The OpenAI SDK with that key."""
    return gateway.openai(key)


@pytest.fixture
def claude(gateway: Gateway, key: str) -> anthropic.Anthropic:
    """The Anthropic SDK with that key."""
    return gateway.anthropic(key)


@pytest.fixture
def own_gateway(tmp_path: Path, upstreams: Upstreams, new_database: Callable[[], str]) -> Iterator[Callable[..., Gateway]]:
    """Factory of gateways for one test; each costs a boot. Whatever is left of them at the end is killed."""
    made: list[Gateway] = []

    def make(config: dict[str, object], *, database_url: str | None = "", **kwargs: object) -> Gateway:
        url = new_database() if database_url == "" else database_url
        instance = Gateway(config, tmp_path / f"gateway-{len(made)}", url, **kwargs)  # type: ignore[arg-type]
        made.append(instance)
        return instance

    yield make
    for instance in made:
        instance.kill()
