"""Which upstream a deployment is: base URL, model and region. Breakers and scores are keyed on it.

Several deployments (of several groups, under several ids) may be one upstream; what one of them finds out holds for all. The
name stands in metrics, log lines and answers of endpoints, so nothing secret may be in it: user, password, query and fragment
of the URL are left out, and a part of its path that might be a token is replaced by a digest of it. Two deployments that differ
in their credentials alone are one upstream, with two accounts: whose key is refused and who asked too often is an account's
matter. An account is known by a digest of its credentials, keyed by a secret of the installation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

__all__ = ["account_of", "upstream_of"]

BASES = ("api_base", "base_url", "aws_bedrock_runtime_endpoint")
REGIONS = ("region_name", "aws_region_name", "vertex_location", "watsonx_region_name")
CREDENTIALS = (
    *("api_key", "organization", "litellm_credential_name", "aws_access_key_id", "aws_role_name", "aws_profile_name"),
    *("vertex_project", "vertex_credentials", "azure_ad_token", "tenant_id", "client_id", "watsonx_project_id"),
)
PORTS = {"http": 80, "https": 443}
TOKEN = re.compile(r"(?=.*[0-9A-Z])[A-Za-z0-9_.~%=+-]{20,}$|.*(?:sk-|key|token|secret)[-_=:]?.{6,}", re.IGNORECASE)
"""Part of a path that might be a token: long and not made of plain words alone, or called one."""


def upstream_of(params: Mapping[str, Any]) -> str:
    """The upstream's name, e.g. `openai/gpt-4.1@https://models.example/v1#eu-west-1`, from a deployment's `litellm_params`.

    URL and region are left out where the deployment names none: then it is the provider's own.
    """
    name = str(params.get("model") or "")
    base = next((value for key in BASES if isinstance(value := params.get(key), str) and value), None)
    region = next((value for key in REGIONS if isinstance(value := params.get(key), str) and value), None)
    if base is not None:
        name += f"@{_clean(base)}"
    return f"{name}#{region}" if region is not None else name


def account_of(params: Mapping[str, Any], secret: bytes) -> str:
    """Eight hexadecimal digits by which an account is told from another; empty where no credentials are named.

    Args:
        params: a deployment's `litellm_params`.
        secret: at most 64 bytes; without it nobody can find out by guessing what the credentials are.
    """
    named = [f"{key}={value}" for key in CREDENTIALS if isinstance(value := params.get(key), str) and value]
    if not named or not secret:
        return ""
    text = "\n".join(named).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, key=secret[:64], digest_size=4, person=b"pointsman acct").hexdigest()


@lru_cache(maxsize=4096)
def _clean(url: str) -> str:
    """The URL without credentials, query and fragment, spelled one way."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        port = parts.port
    except ValueError:
        return _digest(url)  # whatever it is, it may hold a secret
    scheme = parts.scheme.lower()
    host = (parts.hostname or "").rstrip(".")
    if ":" in host:
        host = f"[{host}]"
    where = f"{host}:{port}" if port is not None and port != PORTS.get(scheme) else host
    path = "/".join(_digest(part) if TOKEN.match(part) else part for part in parts.path.split("/") if part)
    return (f"{scheme}://" if scheme else "") + where + (f"/{path}" if path else "")


def _digest(text: str) -> str:
    return f"~{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
