"""What is there already: provider keys in the environment, model servers on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DEFAULT_PORTS", "PROVIDER_KEYS", "Detected", "detect"]

PROVIDER_KEYS: dict[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "mistral": ("MISTRAL_API_KEY",),
    "groq": ("GROQ_API_KEY",),
    "cohere": ("COHERE_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "xai": ("XAI_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY",),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY"),
    "fireworks_ai": ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "cerebras": ("CEREBRAS_API_KEY",),
    "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
}
"""Provider -> the variables that LiteLLM looks for its key in."""

DEFAULT_PORTS: dict[str, int] = {"ollama": 11434, "llama.cpp": 8080, "vllm": 8000}

MAX_ANSWER = 2**20
MAX_MODELS = 50


@dataclass(frozen=True, slots=True)
class Detected:
    """One thing found.

    Attributes:
        name: `openai`, `bedrock`, `ollama`, ...
        where: the environment variable or the server's base URL.
        models: names that clients will ask for; one with `*` stands for all of the provider's models.
        entries: ready for `model_list`.
    """

    name: str
    where: str
    models: tuple[str, ...]
    entries: tuple[dict[str, Any], ...]


def detect(env: Mapping[str, str], timeout: float = 0.3, *, ports: Mapping[str, int] | None = None) -> list[Detected]:
    """Look for provider keys in `env` and for Ollama, llama.cpp and vLLM on 127.0.0.1, at once.

    Args:
        env: the environment.
        timeout: seconds for each step of a probe; nothing else is reached than the loopback interface.
        ports: server -> port, where not the usual ones.

    Returns:
        Keys first, then servers; [] when there is nothing. Never raises for what a server answers.
    """
    from concurrent.futures import ThreadPoolExecutor

    where = {**DEFAULT_PORTS, **(ports or {})}
    probes = {"ollama": _ollama, "llama.cpp": _llama_cpp, "vllm": _vllm}
    with ThreadPoolExecutor(len(probes), thread_name_prefix="detect") as pool:
        servers = list(pool.map(lambda name: probes[name](where[name], timeout), probes))
    return [*_keys(env), *(found for found in servers if found is not None)]


def _keys(env: Mapping[str, str]) -> list[Detected]:
    found: list[Detected] = []
    for provider, variables in PROVIDER_KEYS.items():
        variable = next((name for name in variables if env.get(name)), None)
        if variable is not None:
            found.append(_wildcard(provider, variable, {"api_key": f"os.environ/{variable}"}))
    if env.get("AZURE_API_KEY") and env.get("AZURE_API_BASE"):
        params = {"api_key": "os.environ/AZURE_API_KEY", "api_base": "os.environ/AZURE_API_BASE"}
        if env.get("AZURE_API_VERSION"):
            params["api_version"] = "os.environ/AZURE_API_VERSION"
        found.append(_wildcard("azure", "AZURE_API_KEY", params))
    region = next((name for name in ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION") if env.get(name)), None)
    credentials = next((name for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN") if env.get(name)), None)
    if region is not None and credentials is not None:
        found.append(_wildcard("bedrock", credentials, {"aws_region_name": f"os.environ/{region}"}))
    return found


def _wildcard(provider: str, variable: str, params: Mapping[str, str]) -> Detected:
    """One entry for all of a provider's models, so that no model name here goes out of date."""
    name = f"{provider}/*"
    return Detected(provider, variable, (name,), ({"model_name": name, "litellm_params": {"model": name, **params}},))


def _get(port: int, path: str, timeout: float) -> tuple[Any, str] | None:
    """The parsed JSON and the `Server` header, or None when there is no such server. No proxy is ever used."""
    import http.client  # with its e-mail parser a sixth of this package's import, and seldom wanted

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return None
        body = response.read(MAX_ANSWER + 1)
        if len(body) > MAX_ANSWER:
            return None
        return json.loads(body), response.headers.get("Server") or ""
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return None
    finally:
        connection.close()


def _ollama(port: int, timeout: float) -> Detected | None:
    answer = _get(port, "/api/tags", timeout)
    if answer is None:
        return None
    names = _names(answer[0], "models", "name")
    if names is None:
        return None
    base = f"http://127.0.0.1:{port}"
    return _served("ollama", base, names, lambda name: {"model": f"ollama_chat/{name}", "api_base": base})


def _llama_cpp(port: int, timeout: float) -> Detected | None:
    """llama.cpp's server names itself in `Server`, in /props and as owner of its models; something else may hold the port."""
    answer = _get(port, "/v1/models", timeout)
    if answer is None:
        return None
    owners = _names(answer[0], "data", "owned_by") or []
    if "llamacpp" not in owners and "llama.cpp" not in answer[1].lower():
        props = _get(port, "/props", timeout)
        if props is None or not isinstance(props[0], dict) or "default_generation_settings" not in props[0]:
            return None
    names = [name.rsplit("/", 1)[-1].removesuffix(".gguf") for name in _names(answer[0], "data", "id") or []]
    base = f"http://127.0.0.1:{port}/v1"
    return _served("llama.cpp", base, names, lambda name: {"model": f"openai/{name}", "api_base": base, "api_key": "none"})


def _vllm(port: int, timeout: float) -> Detected | None:
    answer = _get(port, "/v1/models", timeout)
    if answer is None:
        return None
    owners = _names(answer[0], "data", "owned_by") or []
    if "vllm" not in owners:
        version = _get(port, "/version", timeout)
        if version is None or not isinstance(version[0], dict) or "version" not in version[0]:
            return None
    names = _names(answer[0], "data", "id") or []
    base = f"http://127.0.0.1:{port}/v1"
    return _served("vllm", base, names, lambda name: {"model": f"hosted_vllm/{name}", "api_base": base})


def _names(body: Any, section: str, key: str) -> list[str] | None:
    """`body[section][*][key]`, or None when the body has another shape."""
    items = body.get(section) if isinstance(body, dict) else None
    if not isinstance(items, list):
        return None
    values = [item.get(key) for item in items[:MAX_MODELS] if isinstance(item, dict)]
    return [value for value in values if isinstance(value, str) and value.strip() and value.isprintable()]


def _served(name: str, base: str, models: list[str], params: Any) -> Detected:
    unique = list(dict.fromkeys(models))
    entries = tuple({"model_name": model, "litellm_params": params(model)} for model in unique)
    return Detected(name, base, tuple(unique), entries)
