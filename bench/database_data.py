"""Rows for measurements on a database: LiteLLM's keys and spend, our decisions; made by the server itself, in SQL.

The tables must be there (migrated) and empty. Every value follows from its number, so a run can be repeated, and the keys are
real: `secret(n)` is what a client sends for key `n`. `settle` afterwards leaves nothing for the server to do later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import psycopg
from psycopg import sql

from pointsman.database_url import own_schema

__all__ = ["FAST_AND_UNSAFE", "TEAMS", "USERS", "add_decisions", "add_keys", "add_spend", "secret", "settle", "token"]

TEAMS = 200
"""Teams that the keys belong to, the same number to each."""

USERS = 2_000
"""Internal users that the keys belong to, the same number to each."""

FAST_AND_UNSAFE = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "shared_buffers": "512MB",
    "max_connections": "200",
}
"""Settings of a server that is thrown away after the measurement: quick to fill, nothing survives a power cut."""

_NAMES = {
    "users": sql.Literal(USERS),
    "teams": sql.Literal(TEAMS),
    # Neighbours in time are far apart in the keys (Knuth's multiplicative hash), and every key has its share.
    "key": sql.SQL("(n * 2654435761 % keys) + 1 AS k"),
    # LiteLLM's hash of `secret(k)`.
    "token": sql.SQL("encode(sha256(convert_to('sk-scale-' || lpad(k::text, 9, '0'), 'UTF8')), 'hex')"),
}

_KEYS = """
INSERT INTO "LiteLLM_VerificationToken"
  (token, key_name, key_alias, spend, models, user_id, team_id, metadata, max_budget, tpm_limit, created_at, updated_at)
SELECT {token}, 'sk-...' || right(lpad(k::text, 9, '0'), 4), 'key-' || k, 0, '{{}}', 'user-' || k % {users},
  'team-' || k % {teams}, jsonb_build_object('tags', jsonb_build_array('app-' || k % 50)), 1e6, 100000000,
  now() - k * interval '1 second', now()
FROM generate_series(1, {keys}) k
"""

_SPEND = """
INSERT INTO "LiteLLM_SpendLogs"
  (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime",
   request_duration_ms, model, model_id, model_group, custom_llm_provider, api_base, "user", metadata, cache_hit, cache_key,
   request_tags, team_id, end_user, requester_ip_address, session_id, status, litellm_call_id, created_at, updated_at)
SELECT 'chatcmpl-' || md5(n::text), 'acompletion', {token}, (k % 1000) * 1e-6, 700, 500, 200, at, at + interval '900 ms',
  900, 'openai/model-' || n % 5, 'deployment-' || n % 5, 'chat', 'openai', 'https://api.example.org/v1',
  'user-' || k % {users},
  jsonb_build_object('user_api_key_alias', 'key-' || k, 'user_api_key_team_id', 'team-' || k % {teams}, 'usage_object',
    jsonb_build_object('total_tokens', 700, 'prompt_tokens', 500, 'completion_tokens', 200)),
  'False', 'Cache OFF', jsonb_build_array('app-' || k % 50), 'team-' || k % {teams},
  CASE WHEN n % 4 = 0 THEN 'customer-' || k END, '10.0.0.' || n % 250, md5('s' || n / 5), 'success', md5('c' || n), at, at
FROM (
  SELECT n, {key}, (now() AT TIME ZONE 'UTC') - {days} * interval '1 day' * ({rows} - n)::float8 / {rows} AS at
  FROM generate_series({first}::bigint, {last}::bigint) n, (SELECT {keys}::bigint AS keys) k
) made
"""

# Each key on each fifth day, with one model.
_DAILY = """
INSERT INTO "LiteLLM_DailyUserSpend"
  (id, user_id, date, api_key, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, prompt_tokens,
   completion_tokens, spend, api_requests, successful_requests, updated_at)
SELECT gen_random_uuid()::text, 'user-' || k % {users},
  to_char((now() AT TIME ZONE 'UTC') - d * interval '1 day', 'YYYY-MM-DD'),
  {token}, 'openai/model-' || k % 5, 'chat', 'openai', '', '/chat/completions', 5000, 2000, 0.01, 10, 10, now()
FROM generate_series(1, {keys}) k, generate_series(0, {days} - 1) d WHERE (k + d) % 5 = 0
"""

_OF_A_DAY = """
FROM (
  SELECT n, 'd-' || md5(n::text) AS decision_id, {key},
    ({day}::timestamp AT TIME ZONE 'UTC') + (n - {first}) * interval '1 day' / {each} AS at
  FROM generate_series({first}::bigint, {first}::bigint + {each} - 1) n, (SELECT {keys}::bigint AS keys) k
) made
"""

_RECORDS = {
    "pointsman_decisions": """
INSERT INTO {table}
  (decision_id, created_at, request_id, trace_id, key_hash, team_id, user_id, model_group, strategy, version, variant, scores,
   dropped, ranking, model, policy, microseconds)
SELECT decision_id, at, 'chatcmpl-' || md5(n::text), md5('t' || n), {token}, 'team-' || k % {teams}, 'user-' || k % {users},
  'chat', 'learned', '1.0.0', 'live', '{{"a": 0.7, "b": 0.3}}', '[]', '["a", "b"]', 'openai/model-1', 'best', 200
""",
    "pointsman_attempts": """
INSERT INTO {table} (decision_id, number, created_at, deployment_id, model, outcome, status, latency_ms)
SELECT decision_id, 1, at, 'a', 'openai/model-1', 'ok', 200, 900
""",
    "pointsman_outcomes": """
INSERT INTO {table} (decision_id, created_at, status, deployment_id, prompt_tokens, completion_tokens, cost)
SELECT decision_id, at, 'success', 'a', 500, 200, 0.001
""",
}


def secret(number: int) -> str:
    """What a client sends for the key of this number, from 1."""
    return f"sk-scale-{number:09d}"


def token(number: int) -> str:
    """LiteLLM's hash of `secret(number)`: the key's primary key."""
    return hashlib.sha256(secret(number).encode()).hexdigest()


def add_keys(url: str, keys: int) -> None:
    """Teams, users, and `keys` virtual keys of theirs, with budgets and limits far away.

    Args:
        url: of the database.
        keys: how many; numbered from 1.
    """
    teams = sql.SQL(
        'INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias, models, metadata, max_budget, spend, updated_at) '
        "SELECT 'team-' || n, 'Team ' || n, ARRAY['chat'], '{{}}', 1e9, 0, now() FROM generate_series(0, {teams} - 1) n"
    )
    users = sql.SQL(
        'INSERT INTO "LiteLLM_UserTable" (user_id, user_email, models, metadata, spend, max_budget, updated_at) '
        "SELECT 'user-' || n, 'user' || n || '@example.org', '{{}}', '{{}}', 0, 1e9, now() "
        "FROM generate_series(0, {users} - 1) n"
    )
    with psycopg.connect(url) as connection:
        for statement in (teams, users, sql.SQL(_KEYS)):
            connection.execute(statement.format(**_NAMES, keys=sql.Literal(keys)))


def add_spend(url: str, rows: int, keys: int, *, days: int = 30, jobs: int = 2, log: Callable[[str], None] = print) -> None:
    """LiteLLM's request log over the last `days` days, and daily sums by user.

    The indexes of the log are dropped and built again, as one would before loading a large table.

    Args:
        url: of the database.
        rows: of the request log.
        keys: as given to `add_keys`; each row is of one of them.
        days: that they lie in, the present one included.
        jobs: sessions that write, and build indexes, at once.
        log: told what was done.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = 'LiteLLM_SpendLogs' "
            "AND indexname <> 'LiteLLM_SpendLogs_pkey'"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        connection.execute('ALTER TABLE "LiteLLM_SpendLogs" DROP CONSTRAINT "LiteLLM_SpendLogs_pkey"')
    share = -(-rows // jobs)
    numbers = {"keys": sql.Literal(keys), "days": sql.Literal(days), "rows": sql.Literal(rows)}
    parts = [(part * share + 1, min((part + 1) * share, rows)) for part in range(jobs)]
    fills = [
        sql.SQL(_SPEND).format(**_NAMES, **numbers, first=sql.Literal(first), last=sql.Literal(last)) for first, last in parts
    ]
    _together(url, jobs, fills)
    log(f"{rows} rows of the request log")
    # Alone: its lock and a CREATE INDEX would wait for each other.
    _together(url, 1, [sql.SQL('ALTER TABLE "LiteLLM_SpendLogs" ADD PRIMARY KEY (request_id)')])
    _together(url, jobs, [sql.SQL(definition) for _, definition in indexes])
    log(f"{len(indexes) + 1} indexes of the request log")
    _together(url, 1, [sql.SQL(_DAILY).format(**_NAMES, **numbers)])
    log("daily sums by user")


def add_decisions(url: str, rows: int, keys: int, days: Sequence[date]) -> None:
    """Decisions of ours, as many on each of `days`, whose partitions must be there; an attempt and an outcome for each.

    Args:
        url: of the database.
        rows: decisions in all.
        keys: as given to `add_keys`.
        days: UTC days that they lie in.
    """
    each = rows // len(days)
    with psycopg.connect(url) as connection:
        for index, day in enumerate(days):
            numbers = {"keys": keys, "day": day.isoformat(), "first": index * each, "each": each}
            values = {name: sql.Literal(value) for name, value in numbers.items()}
            for table, statement in _RECORDS.items():
                where = sql.Identifier(own_schema(url), table)
                connection.execute(sql.SQL(statement + _OF_A_DAY).format(table=where, **_NAMES, **values))


def settle(url: str) -> None:
    """Freeze, mark visible, gather statistics: what autovacuum would have done by the time that a table is this large."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")


def _together(url: str, jobs: int, statements: Sequence[sql.SQL | sql.Composed]) -> None:
    def execute(statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET maintenance_work_mem = '512MB'")
            connection.execute("SET max_parallel_maintenance_workers = 0")
            connection.execute(statement)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(execute, statements))
