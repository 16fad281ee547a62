"""Fixtures come from `tests/support/`, one file a concern; `tests/` itself is on the path (pyproject.toml)."""

import os
from unittest import mock

with mock.patch.dict(os.environ, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}):  # it asks the internet else, three times
    import litellm  # noqa: F401

pytest_plugins = [
    "support.requirements",
    "support.parallel",
    "support.postgres",
    "support.upstreams",
    "support.s3",
    "support.gateway",
    "support.redis",
]
