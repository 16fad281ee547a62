"""A worker takes up a changed `model_list`: by the public calls of LiteLLM's router, while requests are in flight.

The supervisor has validated the file and replaced the effective one before it tells the workers (else LiteLLM's own reconcile
would evict what is added here). Deployments that came from the database are never touched: only ids of the YAML are named.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pointsman.errors import ConfigError

__all__ = ["MODELS", "ModelSync"]

MODELS = "*models*"
"""The name under which workers acknowledge a `model_list`; no strategy can be called so."""

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
        from litellm.types.router import Deployment

        router = proxy_server.llm_router
        if router is None:
            raise ConfigError("the router is not there yet", code="E4203", mend="it is sent again when the worker is ready")
        wanted = {_id(entry): entry for entry in models}
        changed = [entry for key, entry in wanted.items() if self._applied.get(key) != entry]
        for entry in changed:
            params = {name: _resolved(value) for name, value in entry["litellm_params"].items()}
            info = {**entry.get("model_info", {}), "db_model": False}
            try:
                router.upsert_deployment(Deployment(**{**entry, "litellm_params": params, "model_info": info}))
            except Exception as error:  # LiteLLM raises whatever the provider's set-up raises
                raise ConfigError(
                    f"LiteLLM refuses deployment {_id(entry)}: {error}", code="E4203", where=str(entry.get("model_name"))
                ) from error
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


def _resolved(value: Any) -> Any:
    """`os.environ/NAME` becomes its value, by LiteLLM's own secret look-up, as it does for the file."""
    if isinstance(value, str) and value.startswith("os.environ/"):
        from litellm.secret_managers.main import get_secret

        return get_secret(value)
    return value
