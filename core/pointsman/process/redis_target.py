"""Where Redis is, by the settings that LiteLLM reads: `cache_params`, the router's `redis_*`, and REDIS_* of the environment.

What LiteLLM derives from a cloud's identity (AWS, Azure, Google) is not read: it names a client that only LiteLLM makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pointsman.litellm_config.checks import resolve

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

__all__ = ["RedisTarget", "find"]

TIMEOUT = 1.0
"""Seconds that connecting and each answer may take."""
CONNECTIONS = 4
_YES = frozenset({"true", "1", "yes"})
_WORDS: Mapping[str, Callable[[str], Any]] = {
    "host": str,
    "port": int,
    "db": int,
    "username": str,
    "password": str,
    "ssl": lambda value: value.lower() in _YES,
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": str,
    "ssl_check_hostname": lambda value: value.lower() in _YES,
}
"""Parameters of one connection, and how a text becomes one."""
_LISTS = {"sentinel_nodes": "REDIS_SENTINEL_NODES", "startup_nodes": "REDIS_CLUSTER_NODES"}


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """How to reach it.

    Attributes:
        params: of one connection, by redis-py's names.
        url: in place of host and port, or None.
        sentinels, service, sentinel_password: of a Sentinel set-up, or empty.
        nodes: of a cluster (host, port), or empty.
    """

    params: Mapping[str, Any]
    url: str | None = None
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str | None = None
    sentinel_password: str | None = None
    nodes: tuple[tuple[str, int], ...] = ()

    @property
    def where(self) -> str:
        """For people: no user, no password."""
        if self.nodes:
            return "cluster " + ", ".join(f"{host}:{port}" for host, port in self.nodes)
        if self.sentinels:
            return f"{self.service} by Sentinel " + ", ".join(f"{host}:{port}" for host, port in self.sentinels)
        if self.url is not None:
            try:
                parts = urlsplit(self.url)
                return f"{parts.hostname}:{parts.port or 6379}"
            except ValueError:
                return "REDIS_URL"
        return f"{self.params['host']}:{self.params.get('port', 6379)}"

    def client(self) -> Redis | RedisCluster:
        """A client with time-outs and few connections; connects when it is used first."""
        from redis import asyncio as aioredis  # where there is no Redis, its client is not imported either
        from redis.asyncio.cluster import ClusterNode, RedisCluster
        from redis.asyncio.retry import Retry
        from redis.asyncio.sentinel import Sentinel
        from redis.backoff import NoBackoff

        bounds: dict[str, Any] = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
        params = {**self.params, **bounds, "max_connections": CONNECTIONS}
        if self.nodes:
            plain = {key: value for key, value in params.items() if key not in ("host", "port", "db")}
            return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in self.nodes], **plain)
        once = Retry(NoBackoff(), 0)
        if self.url is not None:
            plain = {key: value for key, value in params.items() if key not in ("host", "port", "db", "password", "ssl")}
            return aioredis.Redis.from_url(self.url, retry=once, **plain)
        if self.sentinels:
            plain = {key: value for key, value in params.items() if key not in ("host", "port")}
            kept = {key: value for key, value in plain.items() if key.startswith("ssl")}
            own = {**kept, **bounds, **({"password": self.sentinel_password} if self.sentinel_password else {})}
            found = Sentinel(list(self.sentinels), sentinel_kwargs=own, retry=once)  # type: ignore[no-untyped-call]
            main: Redis = found.master_for(self.service or "", retry=once, **plain)
            return main
        return aioredis.Redis(retry=once, **params)


def find(config: Mapping[str, Any], env: Mapping[str, str]) -> RedisTarget | None:
    """The Redis of an effective configuration and its environment; None: there is none, or it is told in no way known here.

    Raises:
        ValueError: something of it cannot be read.
    """
    cache = (config.get("litellm_settings") or {}).get("cache_params")
    cache = cache if isinstance(cache, Mapping) and cache.get("type", "redis") == "redis" else {}
    router = config.get("router_settings") or {}
    given = {key: _text(cache.get(key), env) for key in (*_WORDS, "url", "service_name", "sentinel_password")}
    for key in ("host", "port", "password", "db", "url"):
        given[key] = given[key] or _text(router.get(f"redis_{key}"), env)
    own = given["host"] is not None or any(cache.get(key) for key in _LISTS)
    for key, value in given.items():
        if value is None and not (key == "url" and own):
            given[key] = env.get(f"REDIS_{key.upper()}") or None
    lists = {key: _nodes(cache.get(key) or env.get(name)) for key, name in _LISTS.items()}
    if given["host"] is None and given["url"] is None and not any(lists.values()):
        return None
    params = {key: make(value) for key, make in _WORDS.items() if (value := given[key]) is not None}
    if not params.get("ssl", False) and not (given["url"] or "").startswith("rediss:"):
        params = {key: value for key, value in params.items() if not key.startswith("ssl_")}
    return RedisTarget(
        params,
        given["url"] if not lists["startup_nodes"] else None,
        lists["sentinel_nodes"],
        given["service_name"],
        given["sentinel_password"],
        lists["startup_nodes"],
    )


def _text(value: object, env: Mapping[str, str]) -> str | None:
    if isinstance(value, bool | int):
        return str(value).lower()
    return resolve(value, env) or None


def _nodes(value: object) -> tuple[tuple[str, int], ...]:
    found = json.loads(value) if isinstance(value, str) else value or ()
    if not isinstance(found, list | tuple):
        raise ValueError("nodes are a list")
    pairs = [(node["host"], node["port"]) if isinstance(node, Mapping) else node for node in found]
    return tuple((str(host), int(port)) for host, port in pairs)
