"""Importers of LLMRouter's routers that are classifiers or constants."""

from __future__ import annotations

from pointsman.mlops.llmrouter.base import Importer

__all__ = ["IMPORTERS"]

IMPORTERS: tuple[Importer, ...] = ()
