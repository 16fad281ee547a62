"""Fixtures come from `tests/support/`, one file a concern; `tests/` itself is on the path (pyproject.toml)."""

pytest_plugins = [
    "support.requirements",
    "support.postgres",
    "support.upstreams",
    "support.s3",
    "support.gateway",
    "support.redis",
]
