"""A worker takes up a changed `model_list`: by the public calls of LiteLLM's router, while requests are in flight.

The supervisor has validated the file and replaced the effective one before it tells the workers (else LiteLLM's own reconcile
would evict what is added here). Deployments that came from the database are never touched: only ids of the YAML are named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pointsman.errors import ConfigError

__all__ = ["MODELS", "ModelSync"]

MODELS = "*models*"
"""The name under which workers acknowledge a `model_list`; no strategy can be called so."""

REFERENCE = "os.environ/"

logger = logging.getLogger("pointsman.models")


class ModelSync:
    """Keeps LiteLLM's router equal to the YAML's deployments. One a worker, used from its event loop only.

    Args:
        models: the effective `model_list` that the worker started with; each entry has a `model_info.id`.
    """

    def __init__(self, models: Sequence[Mapping[str, Any]]) -> None:
        self._applied = {_id(entry): entry for entry in models}

    def apply(self, models: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Make the router serve these deployments of the YAML; returns how many were set and how many removed.

        Raises:
            ConfigError: E4203, LiteLLM refuses an entry; those before it are applied, the rest are as before.
        """
        from litellm.proxy import proxy_server

        router = proxy_server.llm_router
        if router is None:
            raise ConfigError("the router is not there yet", code="E4203", mend="it is sent again when the worker is ready")
        wanted = {_id(entry): entry for entry in models}
        changed = [entry for key, entry in wanted.items() if self._applied.get(key) != entry]
        for entry in changed:
            self._applied.pop(_id(entry), None)  # should it be refused, nobody knows what the router still has of it
            _upsert(router, entry)
            self._applied[_id(entry)] = entry
        gone = [key for key in self._applied if key not in wanted]
        for key in gone:
            router.delete_deployment(key)
            del self._applied[key]
        if changed or gone:
            proxy_server.llm_model_list = router.get_model_list()
            logger.info("model list: %d set, %d removed", len(changed), len(gone))
        return len(changed), len(gone)


def _id(entry: Mapping[str, Any]) -> str:
    return str(entry["model_info"]["id"])


def _upsert(router: Any, entry: Mapping[str, Any]) -> None:
    from litellm.secret_managers.main import get_secret
    from litellm.types.router import Deployment

    plain = {**entry, "model_info": {**entry["model_info"], "db_model": False}}
    try:
        Deployment(**plain)  # unresolved first: what a validator says then quotes no secret
        deployment = Deployment(**{**plain, "litellm_params": resolved(entry["litellm_params"], get_secret)})
        router.upsert_deployment(deployment)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        raise _refused(entry, "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)) from None
    except Exception as error:  # LiteLLM raises whatever the provider's set-up raises; its text may quote a key
        logger.debug("LiteLLM refuses a deployment", exc_info=True)
        raise _refused(entry, type(error).__name__) from None
    # The proxy's router swallows what is wrong with one deployment and goes on without it; so look.
    live = router.get_deployment(model_id=_id(entry))
    if live is None or live.litellm_params.model != deployment.litellm_params.model:
        raise _refused(entry, "its provider is unknown or its parameters do not do; the worker's log says more")


def _refused(entry: Mapping[str, Any], why: str) -> ConfigError:
    name = entry.get("model_name")
    model = entry["litellm_params"].get("model")
    return ConfigError(f"LiteLLM refuses the deployment {model} of {name}: {why}", code="E4203", where=f"model_list: {name}")


def resolved(value: Any, secret: Callable[[str], Any]) -> Any:
    """`os.environ/NAME` becomes its value, by LiteLLM's own secret look-up, at any depth, as LiteLLM does for the file."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        return secret(value)
    if isinstance(value, Mapping):
        return {key: resolved(item, secret) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item, secret) for item in value]
    return value
