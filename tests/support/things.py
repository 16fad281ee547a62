"""Things that LiteLLM keeps in the database, each with one value: how to make, change, delete and find them.

For tests of persistence: what the gateway acknowledged is compared with what the tables hold, read beside the gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

__all__ = ["KINDS", "Kind", "Request", "Row", "rows"]

Request = tuple[str, str, dict[str, Any]]
"""Method, path and body of a call."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing.

    Attributes:
        make: name, value and the name of a team (or None) -> the call that creates it.
        change: handle, name and value -> the call that updates it.
        delete: handle and name -> the call that deletes it.
        query: selects name, value and handle (what its calls want to know it by) of all whose name begins with a prefix.
    """

    make: Callable[[str, int, str | None], Request]
    change: Callable[[str, str, int], Request]
    delete: Callable[[str, str], Request]
    query: str


@dataclass(frozen=True, slots=True)
class Row:
    """What the tables hold of a thing."""

    value: int
    handle: str


def _key(name: str, value: int, team: str | None) -> Request:
    return "POST", "/key/generate", {"key_alias": name, "max_budget": value, **({"team_id": team} if team else {})}


def _model(name: str, value: int, _: str | None) -> Request:
    params = {"model": "openai/none", "api_base": "http://127.0.0.1:9", "api_key": "none", "rpm": value}
    return "POST", "/model/new", {"model_name": name, "litellm_params": params, "model_info": {"id": name}}


def _agent(name: str, value: int, _: str | None) -> Request:
    card = {"name": name, "description": "d", "url": "http://127.0.0.1:9/", "version": "1.0", "skills": [], "capabilities": {}}
    card |= {"defaultInputModes": ["text"], "defaultOutputModes": ["text"]}
    return "POST", "/v1/agents", {"agent_name": name, "agent_card_params": card, "tpm_limit": value}


def _server(name: str, value: int, _: str | None) -> Request:
    named = {"server_id": name, "server_name": name.replace("-", "_")}
    return "POST", "/v1/mcp/server", {**named, "transport": "http", "url": "http://127.0.0.1:9/mcp", "description": str(value)}


KINDS = {
    "key": Kind(
        _key,
        lambda handle, _, value: ("POST", "/key/update", {"key": handle, "max_budget": value}),
        lambda handle, _: ("POST", "/key/delete", {"keys": [handle]}),
        'SELECT key_alias, max_budget::int, token FROM "LiteLLM_VerificationToken" WHERE key_alias LIKE %s',
    ),
    "team": Kind(
        lambda name, value, _: ("POST", "/team/new", {"team_id": name, "team_alias": name, "max_budget": value}),
        lambda _, name, value: ("POST", "/team/update", {"team_id": name, "max_budget": value}),
        lambda _, name: ("POST", "/team/delete", {"team_ids": [name]}),
        'SELECT team_id, max_budget::int, team_id FROM "LiteLLM_TeamTable" WHERE team_id LIKE %s',
    ),
    "user": Kind(
        lambda name, value, _: ("POST", "/user/new", {"user_id": name, "max_budget": value, "auto_create_key": False}),
        lambda _, name, value: ("POST", "/user/update", {"user_id": name, "max_budget": value}),
        lambda _, name: ("POST", "/user/delete", {"user_ids": [name]}),
        'SELECT user_id, max_budget::int, user_id FROM "LiteLLM_UserTable" WHERE user_id LIKE %s',
    ),
    "agent": Kind(
        _agent,
        lambda handle, _, value: ("PATCH", f"/v1/agents/{handle}", {"tpm_limit": value}),
        lambda handle, _: ("DELETE", f"/v1/agents/{handle}", {}),
        'SELECT agent_name, tpm_limit, agent_id FROM "LiteLLM_AgentsTable" WHERE agent_name LIKE %s',
    ),
    "server": Kind(
        _server,
        lambda _, name, value: ("PUT", "/v1/mcp/server", {"server_id": name, "description": str(value)}),
        lambda _, name: ("DELETE", f"/v1/mcp/server/{name}", {}),
        'SELECT server_id, description::int, server_id FROM "LiteLLM_MCPServerTable" WHERE server_id LIKE %s',
    ),
    "model": Kind(
        _model,
        lambda _, name, value: ("PATCH", f"/model/{name}/update", {"litellm_params": {"rpm": value}}),
        lambda _, name: ("POST", "/model/delete", {"id": name}),
        """SELECT model_id, (litellm_params->>'rpm')::int, model_id FROM "LiteLLM_ProxyModelTable" WHERE model_id LIKE %s""",
    ),
    "memory": Kind(
        lambda name, value, _: ("POST", "/v1/memory", {"key": name, "value": str(value)}),
        lambda _, name, value: ("PUT", f"/v1/memory/{name}", {"value": str(value)}),
        lambda _, name: ("DELETE", f"/v1/memory/{name}", {}),
        'SELECT key, value::int, key FROM "LiteLLM_MemoryTable" WHERE key LIKE %s',
    ),
}


def rows(url: str, prefix: str) -> dict[tuple[str, str], Row]:
    """(kind, name) -> what the tables hold, for every thing whose name begins with `prefix`."""
    found: dict[tuple[str, str], Row] = {}
    with psycopg.connect(url) as connection:
        for kind, each in KINDS.items():
            for name, value, handle in connection.execute(each.query.encode(), [f"{prefix}%"]).fetchall():
                assert (kind, name) not in found, f"{kind} {name} is there twice"
                found[kind, name] = Row(value, handle)
    return found
