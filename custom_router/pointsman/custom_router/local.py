"""Which deployments are local backends: servers of models that the operator runs, whose first answer may load a model."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["is_local"]

SERVERS = frozenset({
    *("vllm", "hosted_vllm", "ollama", "ollama_chat", "llamafile", "lm_studio", "xinference", "infinity"),
    *("oobabooga", "triton", "docker_model_runner", "lemonade", "text-generation-inference"),
})  # fmt: skip
"""LiteLLM's providers that are servers of one's own."""
PROTOCOLS = frozenset({"openai", "custom_openai", "openai_like", "text-completion-openai", "litellm_proxy"})
"""Those that may be a server of one's own (llama.cpp, ...): where it is decides."""
SUFFIXES = (".local", ".internal", ".lan", ".svc", ".localhost", ".home.arpa")


def is_local(params: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether a deployment is a local backend.

    Args:
        params: its `litellm_params`.
        info: its `model_info`; `pointsman.local` there decides.
    """
    own = info.get("pointsman")
    if isinstance(own, Mapping) and isinstance(own.get("local"), bool):
        return bool(own["local"])
    provider = str(params.get("custom_llm_provider") or str(params.get("model") or "").partition("/")[0])
    if provider in SERVERS:
        return True
    base = params.get("api_base") or params.get("base_url")
    return provider in PROTOCOLS and isinstance(base, str) and _private(base)


def _private(url: str) -> bool:
    """Whether an address is one of a private network: by its number, by a name without a dot, or by its last part."""
    try:
        host = (urlsplit(url if "://" in url else f"//{url}").hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and ("." not in host or host.endswith((*SUFFIXES, ".svc.cluster.local")))
    return address.is_private or address.is_loopback or address.is_link_local
