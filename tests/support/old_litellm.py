"""Databases as an older LiteLLM leaves them: a part of its migrations, its ledger, and rows written the way it writes them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import psycopg
from psycopg import sql

from pointsman.migrations.backup.tools import find_tool, way_to
from pointsman.migrations.ledger import PrismaLedger
from pointsman.migrations.sources import Migration, litellm_migrations

__all__ = [
    "CREDENTIAL",
    "KEY",
    "MODEL_KEY",
    "SALT",
    "Filled",
    "count",
    "dump",
    "encrypt",
    "execute",
    "fill",
    "litellm_schema",
    "rows",
]

SALT = "sk-salt-of-the-old-installation"
KEY = "sk-a-virtual-key-of-old"
MODEL_KEY = "sk-provider-key-stored-with-a-model"
CREDENTIAL = "sk-provider-key-stored-as-credential"


@dataclass
class Filled:
    """What was put into a database: plain secrets, to look for in outputs, and rows by table."""

    secrets: tuple[str, ...] = (SALT, KEY, MODEL_KEY, CREDENTIAL)
    rows: dict[str, int] = field(default_factory=dict)


def execute(url: str, *statements: str) -> None:
    """Run statements, each on its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def encrypt(value: str, key: str = SALT) -> str:
    """As LiteLLM stores it: its own function, and the base64 that it wraps the bytes in."""
    with mock.patch.dict(os.environ, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}):
        from litellm.proxy.common_utils.encrypt_decrypt_utils import encrypt_value
    return base64.urlsafe_b64encode(encrypt_value(value, key)).decode()


def litellm_schema(url: str, migrations: Iterable[Migration] | None = None, *, ledger: bool = True) -> list[Migration]:
    """Apply LiteLLM's migrations (by default all) to an empty database and note them as Prisma does, without anything of ours.

    Args:
        ledger: without one it is as `prisma db push` leaves it.
    """
    applied = list(litellm_migrations() if migrations is None else migrations)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        if ledger:
            PrismaLedger.create(connection)
        for migration in applied:
            connection.execute(migration.text.encode())
            if ledger:
                PrismaLedger.record(connection, migration, datetime.now(UTC))
    return applied


def fill(url: str, *, salt: str = SALT, upstream: str = "http://127.0.0.1:9/v1") -> Filled:
    """Rows of an installation that is in use, as far as this schema has the tables: keys, models, credentials, agents, logs."""
    filled = Filled()

    def locked(value: str) -> str:
        return encrypt(value, salt)

    content: list[tuple[str, Mapping[str, Any]]] = [
        ("LiteLLM_UserTable", {"user_id": "anna", "user_email": "anna@example.org", "spend": 1.25, "models": []}),
        (
            "LiteLLM_TeamTable",
            {
                "team_id": "team-1",
                "team_alias": "first",
                "admins": [],
                "members": ["anna"],
                "metadata": {"logging": [{"callback_vars": {"langfuse_secret_key": "litellm_enc::" + locked("sk-lf")}}]},
            },
        ),
        (
            "LiteLLM_VerificationToken",
            {
                "token": hashlib.sha256(KEY.encode()).hexdigest(),
                "key_name": "sk-...fold",
                "key_alias": "old",
                "spend": 0.5,
                "models": [],
                "user_id": "anna",
                "max_budget": 100.0,
                "metadata": {"team": "first"},
            },
        ),
        (
            "LiteLLM_ProxyModelTable",
            {
                "model_id": "model-1",
                "model_name": "old-model",
                "litellm_params": {
                    "model": locked("openai/small"),
                    "api_key": locked(MODEL_KEY),
                    "api_base": locked(upstream),
                    "rpm": 100,
                },
                "model_info": {"id": "model-1", "db_model": True},
                "created_by": "anna",
                "updated_by": "anna",
            },
        ),
        (
            "LiteLLM_ProxyModelTable",
            {
                "model_id": "model-2",
                "model_name": "old-model-with-credential",
                "litellm_params": {"model": locked("openai/small"), "litellm_credential_name": locked("stored")},
                "model_info": {"id": "model-2", "db_model": True},
                "created_by": "anna",
                "updated_by": "anna",
            },
        ),
        (
            "LiteLLM_CredentialsTable",
            {
                "credential_id": "credential-1",
                "credential_name": "stored",
                "credential_values": {"api_key": locked(CREDENTIAL), "api_base": locked(upstream)},
                "credential_info": {"custom_llm_provider": "openai"},
                "created_by": "anna",
                "updated_by": "anna",
            },
        ),
        ("LiteLLM_Config", {"param_name": "environment_variables", "param_value": {"OLD_SETTING": locked("of old")}}),
        (
            "LiteLLM_MCPServerTable",
            {
                "server_id": "server-1",
                "server_name": "old_tools",
                "alias": "old_tools",
                "url": "http://127.0.0.1:9/mcp",
                "transport": "http",
                "auth_type": "bearer_token",
                "credentials": {"auth_value": locked("bearer-of-old")},
            },
        ),
        (
            "LiteLLM_AgentsTable",
            {
                "agent_id": "agent-1",
                "agent_name": "old-agent",
                "litellm_params": {"make_public": False},
                "agent_card_params": {
                    "protocolVersion": "0.3.0",
                    "name": "old-agent",
                    "description": "registered long ago",
                    "url": "http://127.0.0.1:9/a2a",
                    "version": "1.0.0",
                    "capabilities": {"streaming": True},
                    "defaultInputModes": ["text"],
                    "defaultOutputModes": ["text"],
                    "skills": [],
                },
                "created_by": "anna",
                "updated_by": "anna",
            },
        ),
        *(
            (
                "LiteLLM_SpendLogs",
                {
                    "request_id": f"request-{number}",
                    "call_type": "acompletion",
                    "api_key": hashlib.sha256(KEY.encode()).hexdigest(),
                    "spend": 0.01,
                    "startTime": datetime(2026, 1, 1, tzinfo=UTC),
                    "endTime": datetime(2026, 1, 1, tzinfo=UTC),
                    "user": "anna",
                },
            )
            for number in range(20)
        ),
    ]
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("SELECT table_name, column_name, data_type FROM information_schema.columns").fetchall()
        there = {(table, column): kind for table, column, kind in found}
        for table, row in content:
            known = {name: value for name, value in row.items() if (table, name) in there}
            if not known:
                continue
            values = [json.dumps(value) if there[table, name] == "jsonb" else value for name, value in known.items()]
            connection.execute(
                sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    sql.Identifier(table),
                    sql.SQL(", ").join(map(sql.Identifier, known)),
                    sql.SQL(", ").join([sql.Placeholder()] * len(known)),
                ),
                values,
            )
            filled.rows[table] = 0
    # Counted, for a trigger of LiteLLM's writes a row of its own.
    filled.rows = {table: count(url, table) for table in filled.rows}
    return filled


def count(url: str, table: str) -> int:
    """Rows of a table."""
    with psycopg.connect(url) as connection:
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
    return int(row[0]) if row else 0


def dump(url: str) -> bytes:
    """The whole database as text, byte for byte the same when nothing in it has changed."""
    with way_to(url, "test dump") as (name, environment):
        command = [str(find_tool("pg_dump", 0).path), "--restrict-key=same", f"--dbname={name}"]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout
