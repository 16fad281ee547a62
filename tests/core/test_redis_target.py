"""Where Redis is, as LiteLLM's settings say it; nothing secret is told."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.process.redis_target import find


@pytest.mark.parametrize(
    ("config", "env", "where", "params"),
    [
        ({}, {"REDIS_HOST": "r", "REDIS_PORT": "6380", "REDIS_PASSWORD": "p"}, "r:6380", {"password": "p", "port": 6380}),
        (
            {},
            {"REDIS_HOST": "r", "REDIS_SSL": "true", "REDIS_SSL_CA_CERTS": "/ca"},
            "r:6379",
            {"ssl": True, "ssl_ca_certs": "/ca"},
        ),
        ({}, {"REDIS_HOST": "r", "REDIS_SSL_CA_CERTS": "/ca"}, "r:6379", {}),
        ({}, {"REDIS_URL": "rediss://user:secret@r.example:6390/2"}, "r.example:6390", {}),
        (
            {"litellm_settings": {"cache_params": {"type": "redis", "host": "os.environ/MINE", "port": 7000}}},
            {"MINE": "mine", "REDIS_URL": "redis://other"},
            "mine:7000",
            {"port": 7000},
        ),
        ({"router_settings": {"redis_host": "routers", "redis_password": "p"}}, {}, "routers:6379", {"password": "p"}),
        (
            {},
            {"REDIS_SENTINEL_NODES": '[["s1", 26379], ["s2", 26380]]', "REDIS_SERVICE_NAME": "main", "REDIS_PASSWORD": "p"},
            "main by Sentinel s1:26379, s2:26380",
            {"password": "p"},
        ),
        ({}, {"REDIS_CLUSTER_NODES": '[{"host": "c1", "port": "7001"}]'}, "cluster c1:7001", {}),
    ],
)
def test_it_is_found_where_litellm_finds_it(
    config: dict[str, Any], env: dict[str, str], where: str, params: dict[str, Any]
) -> None:
    target = find(config, env)
    assert target is not None
    assert target.where == where
    assert {key: value for key, value in target.params.items() if key != "host"} == params
    assert "secret" not in target.where
    client = target.client()  # nothing is connected yet
    assert client is not None


@pytest.mark.parametrize(
    ("config", "env"),
    [
        ({}, {}),
        ({}, {"REDIS_PORT": "6379", "REDIS_PASSWORD": "p"}),
        ({"litellm_settings": {"cache": True, "cache_params": {"type": "s3", "host": "no"}}}, {}),
        ({"litellm_settings": None, "router_settings": None}, {}),
    ],
)
def test_there_is_none(config: dict[str, Any], env: dict[str, str]) -> None:
    assert find(config, env) is None


@pytest.mark.parametrize(
    "env",
    [
        {"REDIS_HOST": "r", "REDIS_PORT": "many"},
        {"REDIS_SENTINEL_NODES": "not json"},
        {"REDIS_SENTINEL_NODES": '{"a": 1}'},
        {"REDIS_CLUSTER_NODES": '[{"port": 1}]'},
    ],
)
def test_what_cannot_be_read_is_said(env: dict[str, str]) -> None:
    with pytest.raises((ValueError, KeyError)):
        find({}, env)
