"""Whose model a deployment is: the names of a bundle, or of LLMRouter's metadata, matched with deployments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Names", "loose", "names_of"]


def names_of(deployment_id: str, model: str, base_model: str | None = None) -> tuple[str, ...]:
    """Every name under which a model may be known: id, model, model without its provider, without its publisher, base model."""
    bare = model.split("/", 1)[-1]
    names = (deployment_id, model, bare, bare.rsplit("/", 1)[-1], *((base_model,) if base_model else ()))
    return tuple(dict.fromkeys(names))


def loose(name: str) -> str:
    """A name without what stands before the last slash, and without case."""
    return name.rpartition("/")[2].casefold()


class Names:
    """What a strategy calls its models, ready to be asked for a deployment's.

    Args:
        models: the strategy's names.
        aliases: strategy's name -> deployment's id or model (`pointsman.routing.candidates`, LLMRouter's metadata).
    """

    def __init__(self, models: Sequence[str], aliases: Mapping[str, str]) -> None:
        self._exact: dict[str, str] = {name: name for name in models}
        self._exact.update({alias: name for name, alias in aliases.items() if name in self._exact})
        self._loose: dict[str, str | None] | None = None

    def exact(self, names: Iterable[str]) -> str | None:
        """The model of a deployment with these names, or None."""
        return next((self._exact[name] for name in names if name in self._exact), None)

    def find(self, names: Sequence[str]) -> str | None:
        """As `exact`; else one that differs in case or in what stands before the last slash, if there is just one."""
        found = self.exact(names)
        if found is not None:
            return found
        if self._loose is None:
            self._loose = {}
            for known, meant in self._exact.items():
                key = loose(known)
                self._loose[key] = meant if self._loose.get(key, meant) == meant else None
        # An id is a name of its own and no model's: only the model's names are taken loosely.
        return next((model for name in names[1:] if (model := self._loose.get(loose(name))) is not None), None)
