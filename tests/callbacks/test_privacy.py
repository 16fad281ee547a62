"""What is known to be secret by the name it stands under, what looks like it, and that looking takes no time to speak of."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.callbacks.privacy import _SHAPES, REDACTED, Redactor, known_secrets

VALUE = "wJalrXUtnFEMI/K7MDENG"


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "LANGFUSE_SECRET_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "DD_APP_KEY"),
        *("NEW_RELIC_LICENSE_KEY", "LITELLM_SALT_KEY", "DB_PASS", "PGPASSWORD", "API_TOKENS", "OPENAI_API_KEY_2", "HF_TOKEN"),
        *("aws_secret_access_key", "aws_session_token", "vertex_credentials", "master_key", "client-secret", "apiKey"),
    ],
)
def test_a_name_says_that_its_value_is_secret(name: str) -> None:
    assert known_secrets({name: VALUE}) == {VALUE}
    assert known_secrets({}, {"model_list": [{"litellm_params": {name: VALUE}}]}) == {VALUE}


@pytest.mark.parametrize(
    "name",
    [
        *("LANGFUSE_PUBLIC_KEY", "MAX_TOKENS", "max_tokens", "prompt_tokens", "output_cost_per_token", "AWS_REGION_NAME"),
        *("PATH", "token_url", "key_id", "model_s3_key", "trusted_keys", "PWD", "secret_name", "forward_headers_to"),
    ],
)
def test_a_name_says_that_its_value_is_none(name: str) -> None:
    assert known_secrets({name: VALUE}, {"a": [{name: VALUE}]}) == set()


def test_headers_are_secret_but_for_plain_ones() -> None:
    env = {"OTEL_HEADERS": "x-honeycomb-team=hcaik_01abc,content-type=application/json,Authorization=Basic%20dXNlcjpwdw=="}
    headers = {"x-honeycomb-team": "HCKEY12345", "Authorization": "Bearer opaque-bearer", "anthropic-version": "2023-06-01"}
    found = known_secrets(env, {"telemetry": {"logs": {"otlp": {"headers": headers}}}}, {"extra_headers": ["x-forwarded"]})
    assert {"hcaik_01abc", "dXNlcjpwdw==", "HCKEY12345", "opaque-bearer"} <= found
    assert not {"application/json", "2023-06-01", "x-forwarded"} & found


def test_a_secret_that_is_json_gives_its_parts() -> None:
    account = (
        '{"type": "service_account", "private_key_id": "0a1b2c3d4e", "client_email": "a@b.example", "token_uri": "http://x"}'
    )
    assert known_secrets({"VERTEX_CREDENTIALS": account}) == {"0a1b2c3d4e"}
    assert known_secrets({"VERTEX_CREDENTIALS": '{"broken-json'}) == {'{"broken-json'}


def test_what_stands_in_a_url() -> None:
    env = {"DATABASE_URL": "postgres://u:p%40ssword1@h/d", "REDIS": "redis://:first@word@a,redis://:second-one@b"}
    found = known_secrets({**env, "HOOK": "https://h/x?api_key=query-key-1&page=123456789"})
    assert {"p%40ssword1", "p@ssword1", "first@word", "second-one", "query-key-1"} <= found
    assert "123456789" not in found
    assert known_secrets({"A": "http://[bad", "B": "http://host:8000/path"}) == set()


@pytest.mark.parametrize("value", ["os.environ/SOME_KEY", "env.SOME_KEY", "None", "TRUE"])
def test_a_reference_is_no_secret(value: str) -> None:
    assert known_secrets({"X_PASSWORD": value}) == set()


@given(st.text("abcXYZ0189", min_size=1, max_size=9), st.sampled_from(["os.environ/", "env.", "true", "none"]))
def test_property_a_secret_may_hold_what_a_reference_looks_like(word: str, reference: str) -> None:
    value = f"my-{word}{reference}Passw0rd"
    assert known_secrets({"X_PASSWORD": value}) == {value}


values = st.text("abcdefXYZ0123456789/+_~!", min_size=8, max_size=40)


@given(
    st.sampled_from(["api_key", "x-api-key", "aws_secret_access_key", "AccountKey", "DD_APP_KEY", "password", "passphrase"]),
    st.sampled_from(["{}={}", '{{"{}": "{}"}}', '{{\\"{}\\": \\"{}\\"}}', '{{\\\\\\"{}\\\\\\":\\\\\\"{}\\\\\\"}}', "{}: {};"]),
    values,
)
def test_property_what_stands_beside_such_a_name_is_replaced(name: str, form: str, value: str) -> None:
    assert Redactor().text(form.format(name, value)) == form.format(name, REDACTED)


@pytest.mark.parametrize(
    "text",
    [
        *("prompt_tokens=12345", '{"max_tokens": 40960}', "LANGFUSE_PUBLIC_KEY=abcdefgh", "cost_per_token: 0.0000015"),
        *("the token was refused", "http://host:8000/a", "task-runner", '{"completion_token_count": 12345}'),
    ],
)
def test_what_is_readable_stays_readable(text: str) -> None:
    assert Redactor().text(text) == text


def test_a_password_with_an_at_sign_is_replaced_whole() -> None:
    assert Redactor().text("at postgres://user:p@ss@host/db now") == f"at postgres://{REDACTED}@host/db now"
    assert Redactor().text("authorization: Token abcdef123") == f"authorization: Token {REDACTED}"


HINTS = sorted({hint for hints, _ in _SHAPES for hint in hints})


def seconds(redactor: Redactor, text: str) -> float:
    """The least of three, of this process's own time."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        redactor.text(text)
        taken.append(time.process_time() - began)
    return min(taken)


@pytest.mark.parametrize("hint", HINTS)
def test_looking_takes_time_in_proportion_to_the_text(hint: str) -> None:
    redactor = Redactor()
    words = {"eyj": "eyJ", "akia": "AKIA", "aiza": "AIza", "private key": "-----BEGIN PRIVATE KEY"}
    word = words.get(hint, hint)
    pieces = [
        "a.b-",
        " ",
        "a",
        "\\",
        *(form.format(word) for form in ("{}-", "{}aaaaaaaaaa-", "{}aaaaaaaaaa.", "-{} ", "{} = ")),
    ]
    slow = {}
    for piece in pieces:
        once, twice = (f"{word} {word}" + piece * (size // len(piece)) for size in (20_000, 40_000))
        slow[piece] = (seconds(redactor, once), seconds(redactor, twice))
    assert all(twice < 3 * once + 0.02 for once, twice in slow.values()), slow


def test_nothing_in_a_line_means_that_nothing_is_replaced() -> None:
    redactor = Redactor([VALUE])
    told: dict[str, Any] = {"a": "plain", "b": 1}
    assert redactor.nothing_in('{"a": "plain"}')
    assert redactor.value(told) == told
    for text in (VALUE, "sk-abcdef1234", "https://u:password@h", "AccountKey=abcdefgh12", "x-api-key: abcdefgh"):
        assert not redactor.nothing_in(text)
        assert REDACTED in redactor.text(text)
