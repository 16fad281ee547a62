"""LiteLLM's settings of the database become parameters of the engine's URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pointsman import litellm_config
from pointsman.database_parts import Parts
from pointsman.process.environment import most_connections, pooled_url

URL = "postgresql://u:p@h1,h2:6000/d"


def pooled(url: str = URL, workers: int = 2, **general: Any) -> dict[str, str]:
    parts = Parts.of(pooled_url(url, {"general_settings": general}, workers))
    assert (parts.userinfo, parts.authority, parts.path) == ("u:p", "h1,h2:6000", "d")
    return dict(parts.query)


@pytest.mark.requirement("R-4.4")
def test_the_limit_is_a_workers_and_the_urls_is_the_engines() -> None:
    assert pooled() == {"connection_limit": "20", "pool_timeout": "60"}
    assert pooled(workers=3, database_connection_pool_limit=4)["connection_limit"] == "12"
    assert pooled(f"{URL}?connection_limit=5", database_connection_pool_limit=4)["connection_limit"] == "5"


def test_times_and_extras() -> None:
    got = pooled(
        database_connection_timeout=7.2,
        database_connect_timeout=3,
        database_socket_timeout=30,
        database_max_idle_connection_lifetime=60,
        database_disable_prepared_statements=True,
        database_extra_connection_params={"sslmode": "require", "pool_timeout": 9},
    )
    assert got == {
        "connection_limit": "20",
        "pool_timeout": "9",
        "connect_timeout": "3",
        "socket_timeout": "30",
        "max_idle_connection_lifetime": "60",
        "pgbouncer": "true",
        "sslmode": "require",
    }
    assert pooled(database_connection_pool_timeout=5)["pool_timeout"] == "5"


def test_the_servers_time_limits_are_options_of_the_session() -> None:
    got = pooled(f"{URL}?options=-c%20lock_timeout%3D1s", database_statement_timeout=2.5, database_lock_timeout=9)
    assert got["options"] == "-c lock_timeout=1s -c statement_timeout=2500"
    assert pooled(database_idle_in_transaction_session_timeout=60)["options"] == "-c idle_in_transaction_session_timeout=60000"


def test_the_number_that_is_told() -> None:
    url = pooled_url(URL, {}, 2)
    assert most_connections(url, 2, decisions=False, strategies=False) == 22
    assert most_connections(url, 2, decisions=True, strategies=True) == 28


@pytest.mark.parametrize(
    ("env", "code", "where"),
    [
        ({"IAM_TOKEN_DB_AUTH": "True"}, "E4204", "DATABASE_HOST, DATABASE_USER, DATABASE_NAME"),
        ({"IAM_TOKEN_DB_AUTH": "perhaps", "DATABASE_URL": URL}, "E4203", "IAM_TOKEN_DB_AUTH"),
        ({"DATABASE_URL": f"{URL}?requirepeer=me"}, "E4504", "DATABASE_URL"),
    ],
)
def test_the_check_of_a_configuration_tells(env: dict[str, str], code: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model_list: []\n")
    problems = litellm_config.check(path, env)
    assert [(problem.code, problem.key) for problem in problems if problem.severity == "error"] == [(code, where)]


def test_a_gateway_takes_litellms_single_variables_and_several_hosts(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model_list: []\n")
    env = {"LITELLM_MASTER_KEY": "sk-0123456789abcdef0123456789abcdef"}
    single = {"DATABASE_HOST": "h", "DATABASE_USER": "u", "DATABASE_PASSWORD": "p@", "DATABASE_NAME": "d"}
    assert litellm_config.load(path, env | single).database_url == "postgresql://u:p%40@h/d"
    assert litellm_config.load(path, env | {"DATABASE_URL": URL}).database_url == URL
