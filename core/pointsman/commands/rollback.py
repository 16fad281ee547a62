"""`pointsman strategies rollback`: asks a running gateway, which owns the state, by its own endpoint for operators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pointsman.errors import CATALOGUE, AccessError, ConfigError, PointsmanError, ProcessError, RequestError
from pointsman.settings import default_data_dir

__all__ = ["admin_key", "roll_back"]


def admin_key(file: Path | None, env: Mapping[str, str]) -> str:
    """The key to ask with: of a file, else LITELLM_MASTER_KEY, else the one that `pointsman up` made.

    Raises:
        ConfigError: E4204, there is none.
    """
    if file is None and (key := env.get("LITELLM_MASTER_KEY")):
        return key
    path = file or default_data_dir(env) / "master_key"
    try:
        if key := path.read_text(encoding="utf-8").strip():
            return key
        problem = "is empty"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {error.strerror if isinstance(error, OSError) else 'it is no text'}"
    raise ConfigError(
        f"the key file {problem}", code="E4204", where=str(path), mend="set LITELLM_MASTER_KEY, or name a file with --key-file"
    )


def roll_back(name: str, reason: str, url: str, key: str, timeout: float) -> dict[str, Any]:
    """Roll a strategy back; the gateway's row on it afterwards.

    Args:
        name: of the strategy.
        reason: for the history.
        url: of the gateway.
        key: an admin's.
        timeout: seconds.

    Raises:
        PointsmanError: what the gateway answered, with its own code; ProcessError E4605 where it does not answer.
    """
    import httpx

    address = f"{url.rstrip('/')}/pointsman/strategies/{quote(name, safe='')}/rollback"
    try:
        answer = httpx.post(address, json={"reason": reason}, headers={"Authorization": f"Bearer {key}"}, timeout=timeout)
        body = answer.json() if answer.content else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ProcessError(
            f"the gateway does not answer as one: {error}", code="E4605", where=address, mend="is it running there? see --url"
        ) from error
    if answer.is_success and isinstance(body, dict):
        return body
    raise _error(answer.status_code, body, address)


def _error(status: int, body: Any, where: str) -> PointsmanError:
    found = body.get("error") if isinstance(body, dict) else None
    error = found if isinstance(found, dict) else {}
    message, code = str(error.get("message") or f"HTTP {status}"), str(error.get("code"))
    if code in CATALOGUE:
        return PointsmanError(message, code=code, where=error.get("param") or where, mend=error.get("mend"))
    if status in (401, 403):  # LiteLLM's own words
        return AccessError(message[:300], where=where, mend="use the master key or an admin's key")
    return RequestError(message[:300], code="E4004" if status == 404 else "E4001", where=where, mend="is --url a Pointsman?")
