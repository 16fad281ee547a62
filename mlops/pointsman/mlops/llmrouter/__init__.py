"""Import from LLMRouter: which kinds, and how. A new one is a module with `IMPORTERS` and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pointsman.mlops.llmrouter import classic, latent
from pointsman.mlops.llmrouter.base import Context, Imported, Importer

__all__ = ["IMPORTERS", "Context", "Imported", "Importer"]

IMPORTERS: Mapping[str, Importer] = MappingProxyType(
    {importer.kind: importer for module in (classic, latent) for importer in module.IMPORTERS}
)
