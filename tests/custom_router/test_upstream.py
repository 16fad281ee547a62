"""Who is behind a deployment: one name for one upstream, and no secret in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.request import candidate_of
from pointsman.custom_router.upstream import upstream_of

MODEL = "openai/gpt-4.1"
SECRETS = (
    "sk-abcdefghijklmnop",
    "AbCdEf0123456789AbCdEf0123456789",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    "token=hunter22",
)


def at(base: str, **more: str) -> str:
    return upstream_of({"model": MODEL, "api_base": base, **more})


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"model": MODEL}, MODEL),
        ({"model": MODEL, "api_base": "https://models.example/v1"}, f"{MODEL}@https://models.example/v1"),
        ({"model": MODEL, "base_url": "http://127.0.0.1:8000"}, f"{MODEL}@http://127.0.0.1:8000"),
        ({"model": "bedrock/claude", "aws_region_name": "eu-west-1"}, "bedrock/claude#eu-west-1"),
        ({"model": MODEL, "api_base": "http://[::1]:1/v1", "region_name": "eu"}, f"{MODEL}@http://[::1]:1/v1#eu"),
        ({"model": MODEL, "api_base": "models.example:8000/v1"}, f"{MODEL}@models.example:8000/v1"),
        ({"model": MODEL, "api_base": None, "region_name": ""}, MODEL),
        ({}, ""),
    ],
)
def test_the_name_is_base_model_and_region(params: dict[str, object], name: str) -> None:
    assert upstream_of(params) == name
    assert candidate_of({"model_info": {"id": "d"}, "litellm_params": params}).upstream == name


def test_one_upstream_has_one_name() -> None:
    same = ("https://models.example/v1", "https://MODELS.example:443/v1/", "HTTPS://user:pass@models.example./v1?key=a#b")
    assert len({at(base, api_key=f"sk-{number}") for number, base in enumerate(same)}) == 1


def test_others_have_others() -> None:
    bases = ("https://a/v1", "http://a/v1", "https://a:8443/v1", "https://b/v1", "https://a/v2", "https://a/V1")
    names = {at(base) for base in bases} | {at(bases[0], region_name="eu"), upstream_of({"model": "x", "api_base": bases[0]})}
    assert len(names) == len(bases) + 2
    long = [f"https://a/{digit * 24}/v1" for digit in "12"]  # tenants by a token in the path
    assert len({at(base) for base in long}) == 2


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "form", ["https://{}@a/v1", "https://u:{}@a/v1", "https://a/v1?k={}", "https://a/v1#{}", "https://a/{}/v1"]
)
def test_no_secret_is_in_it(secret: str, form: str) -> None:
    name = at(form.format(secret), api_key=secret)
    assert secret not in name
    assert name.startswith(f"{MODEL}@https://a")


@given(st.text(max_size=40), st.text(max_size=20))
def test_any_base_has_a_name(base: str, region: str) -> None:
    assert at(base, region_name=region).startswith(MODEL)
    assert at(base) == at(base)
