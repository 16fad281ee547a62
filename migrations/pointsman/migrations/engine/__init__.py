"""Prisma's query engine for LiteLLM: one WASM engine on Node an instance, shared by all workers."""

from __future__ import annotations

from pointsman.migrations.engine.query_engine import QueryEngine

__all__ = ["QueryEngine"]
