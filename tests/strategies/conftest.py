"""Fixtures of this room: a signing key, a small bundle, a stand with one reloader and everything around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pointsman.mlops.keys import SigningKey
from pointsman.settings import StrategySettings
from support.bundles import make_bundle, new_key
from support.stand import Stand


@pytest.fixture(scope="session")
def key() -> SigningKey:
    """The key that gateways of these tests trust."""
    return new_key()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle; not to be changed in place."""
    return make_bundle(tmp_path_factory.mktemp("small"), "1", prefer={"model-a": ["alpha", "apple"], "model-b": ["beta"]})


@pytest.fixture
def stand(tmp_path: Path, key: SigningKey) -> Callable[..., Stand]:
    """Factory of stands over one directory: calling it again is a restart of the instance."""

    def make(source: str | None = None, **settings: Any) -> Stand:
        values = {"source": source or str(tmp_path / "store" / "current.json"), "trusted_keys": {key.key_id: key.public}}
        return Stand(tmp_path, key, StrategySettings(**{**values, "reload_interval": 0.05, **settings}))

    return make
