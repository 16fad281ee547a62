"""Where LiteLLM keeps ciphertext, held against its own source, and how ciphertext is told from plain text."""

from __future__ import annotations

import ast
import base64
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import DatabaseError
from pointsman.migrations.adoption.census import columns_of
from pointsman.migrations.adoption.secrets import COLUMNS, MARK, Keys, Kind, looks_encrypted, open_values, stored_values
from pointsman.migrations.adoption.witness import Witness
from support.old_litellm import SALT, encrypt, litellm_schema


def package() -> Path:
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_the_columns_are_those_that_litellm_itself_encrypts_anew_when_its_master_key_changes() -> None:
    tree = ast.parse((package() / "proxy" / "db" / "master_key_migration.py").read_text(encoding="utf-8"))
    theirs = {
        (
            *(ast.literal_eval(argument) for argument in node.args),
            any(k.arg == "only_rows_with_marked_ciphertexts" for k in node.keywords),
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_SecretColumn"
    }
    assert len(theirs) > 15
    assert {(one.table, one.key, one.column, one.kind is Kind.MARKED) for one in COLUMNS} == theirs


def test_the_columns_are_in_the_schema(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    litellm_schema(url)
    with psycopg.connect(url) as connection:
        present = columns_of(connection)
    assert [one for one in COLUMNS if (one.table, one.column) not in present or (one.table, one.key) not in present] == []


@given(st.text(max_size=200), st.text(min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_ciphertext_looks_like_it(plain: str, key: str) -> None:
    stored = encrypt(plain.encode("utf-8", "ignore").decode(), key.encode("utf-8", "ignore").decode() or "k")
    assert looks_encrypted(stored)
    # As early versions wrote it.
    assert looks_encrypted(stored.replace("-", "+").replace("_", "/"))


@given(st.text(min_size=1, max_size=100))
def test_plain_text_in_base64_does_not(plain: str) -> None:
    assert not looks_encrypted(base64.urlsafe_b64encode(plain.encode("utf-8", "ignore")).decode())


@pytest.mark.parametrize(
    "plain",
    [
        "",
        "openai/gpt-4o",
        "os.environ/OPENAI_API_KEY",
        "sk-proj-" + "A1b2" * 14,
        "0123456789abcdef" * 4,
        "https://example.org/a/very/long/path/that/goes/on/and/on/v1",
        "A" * 52,
    ],
)
def test_what_stands_beside_it_does_not(plain: str) -> None:
    assert not looks_encrypted(plain)


def test_litellms_own_function_opens_every_format(fresh_database: Callable[[], str]) -> None:
    """Of each kind of column: the old cipher, the new one, marked, whole maps, JSON in text; and what is plain stays plain."""
    with mock.patch.dict(os.environ, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}):
        from litellm.proxy.common_utils.encrypt_decrypt_utils import _encrypt_aes_gcm
    url = fresh_database()
    litellm_schema(url)
    new_cipher = _encrypt_aes_gcm("new cipher", SALT)
    with psycopg.connect(url, autocommit=True) as connection:
        for table, row in (
            (
                "LiteLLM_Config",
                ("param_name", "a", "param_value", f'{{"x": "{new_cipher}", "y": ["{encrypt("deep")}", "plain", 7]}}'),
            ),
            ("LiteLLM_Config", ("param_name", "b", "param_value", f'"{{\\"password\\": \\"{encrypt("in text")}\\"}}"')),
            (
                "LiteLLM_TeamTable",
                ("team_id", "c", "metadata", f'{{"k": "{MARK}{encrypt("marked")}", "l": "{encrypt("not marked")}"}}'),
            ),
        ):
            key, value, column, stored = row
            connection.execute(f'INSERT INTO "{table}" ({key}, {column}) VALUES (%s, %s)', [value, stored])  # noqa: S608 - ours
        connection.execute(
            'INSERT INTO "LiteLLM_MCPServerTable" (server_id, transport, env, static_headers) VALUES (%s, %s, %s, %s)',
            ["d", "stdio", f'"{encrypt("{}")}"', f'{{"authorization": "{"Q" * 64}"}}'],
        )
        connection.execute(
            'INSERT INTO "LiteLLM_MCPUserCredentials" (id, user_id, server_id, credential_b64) VALUES (%s, %s, %s, %s)',
            ["e", "u", "d", base64.urlsafe_b64encode(b"plain, as early versions stored it, in sixty-four letters").decode()],
        )
        with Witness() as witness:
            values = list(stored_values(connection, columns_of(connection)))
            opened = open_values(witness, values, Keys(salt=SALT, master="sk-other"))
            wrong = open_values(witness, values, Keys(salt="sk-wrong"))
    assert (opened.by, opened.unreadable, opened.elsewhere) == ({"salt": 5}, (), ())
    assert opened.plain == 2  # "plain", and the early credential
    assert wrong.by == {}
    assert sorted(value.place for value in wrong.unreadable) == [
        "LiteLLM_Config.param_value of a",
        "LiteLLM_Config.param_value of a",
        "LiteLLM_Config.param_value of b",
        "LiteLLM_MCPServerTable.env of d",
        "LiteLLM_TeamTable.metadata of c",
    ]
    assert SALT not in repr(Keys(salt=SALT))
    assert not any(value.text in repr(value) for value in values if value.encrypted)


def test_a_witness_that_dies_is_told() -> None:
    with Witness() as witness:
        witness._process.kill()
        with pytest.raises(DatabaseError, match="LiteLLM could not be asked"):
            witness.open(["x"], [("salt", "k")])
