"""LLMRouter's YAML file, made ready for a process of its own.

LLMRouter's constructors write a CSV beside each file of routing data, and relative paths count from its installation. The copy
of the file that the process gets names links in a directory of the process, and absolute paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pointsman.errors import ConfigError
from pointsman.strategies.catalogue import Entry

__all__ = ["llmrouter_spec", "read_config"]

NEEDS: Mapping[str, tuple[str, ...]] = {"causallm": ("vllm",)}
"""Modules that LLMRouter imports at its first query only; asked for at the start, so that they are missed then."""


def read_config(path: Path) -> dict[str, Any]:
    """LLMRouter's YAML file.

    Raises:
        ConfigError: E4203, it cannot be read or is no mapping.
    """
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"LLMRouter's file cannot be read: {error}", code="E4203", where=str(path)) from error
    if not isinstance(value, dict):
        raise ConfigError("LLMRouter's file is no mapping", code="E4203", where=str(path), mend="it has `data_path:` and so on")
    return value


def llmrouter_spec(entry: Entry, config: Path, scratch: Path) -> dict[str, Any]:
    """What the process is told to load; writes into `scratch`. Blocks.

    Raises:
        ConfigError: E4203, see `read_config`; or it refers to itself, or has keys that are no text or number.
        OSError: `scratch` cannot be written.
    """
    value = read_config(config)
    base = config.parent
    for section in ("data_path", "model_path"):
        paths = value.get(section)
        if isinstance(paths, dict):
            value[section] = {key: str(base / item) if isinstance(item, str) else item for key, item in paths.items()}
    data = value.get("data_path")
    if not isinstance(data, dict):
        data = {}
    for key, item in data.items():
        original = Path(item) if isinstance(item, str) else None
        if original is not None and original.is_file():
            link = scratch / "data" / str(key) / original.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(original)
            data[key] = str(link)
    copy = scratch / "router.yaml"
    try:
        copy.write_text(json.dumps(value, default=str), "utf-8")  # JSON is YAML; dates become text
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"LLMRouter's file holds what cannot be written again: {error}", code="E4203", where=str(config)
        ) from error
    return {"mode": "llmrouter", "class": entry.llmrouter, "config": str(copy), "needs": list(NEEDS.get(entry.kind, ()))}
