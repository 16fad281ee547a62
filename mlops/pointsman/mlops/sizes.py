"""Makes `smallest` and `largest` from LLMRouter's candidate metadata; there is nothing to learn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pointsman.errors import BundleError
from pointsman.mlops.probes import stable
from pointsman.mlops.trainers.base import Progress, silent
from pointsman.strategies.bundle import build_bundle, save_bundle
from pointsman.strategies.catalogue import CATALOGUE
from pointsman.strategies.constant import LargestStrategy, SmallestStrategy
from pointsman.strategies.encoders.nothing import NoEncoder
from pointsman.strategies.files import sha256_hex, strict_json
from pointsman.strategies.manifest import Provenance

__all__ = ["KINDS", "billions", "make_by_size"]

KINDS: Mapping[str, type[SmallestStrategy | LargestStrategy]] = MappingProxyType(
    {"smallest": SmallestStrategy, "largest": LargestStrategy}
)
_SIZE = re.compile(r"([0-9]*\.?[0-9]+)([KMBT]?)")
_UNITS = {"K": 1e-6, "M": 1e-3, "B": 1.0, "": 1.0, "T": 1e3}


def billions(size: Any) -> float | None:
    """Billions of parameters of `7B`, `512M`, `1.5T` or a number (of billions); None if it is none of these.

    LLMRouter looks at sizes that end in B only, and takes one that it cannot read (`unknownB`) for 0, so as the smallest.
    """
    if isinstance(size, bool) or not isinstance(size, str | int | float):
        return None
    found = _SIZE.fullmatch(str(size).strip().upper())
    value = float(found[1]) * _UNITS[found[2]] if found else None
    return value if value is not None and 0 < value < 1e9 else None


def make_by_size(
    kind: str,
    llm_data: Path,
    out: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Write `<out>/<name>-<version>.zip`.

    Args:
        kind: `smallest` or `largest`.
        llm_data: `{name: {"size": "7B", ...}}`. Of equal sizes the one that stands first is preferred.
        out: directory; made if it is not there.
        name: of the strategy; by default the catalogue's.
        version: by default made from the file's digest.
        progress: told which models were left out because their size is not known.

    Raises:
        BundleError: E4320, the file cannot be used.
        SourceError: E4410, the bundle could not be written.
    """
    try:
        raw = llm_data.read_bytes()
        value = strict_json(raw)
        known = {str(model): billions(info.get("size")) for model, info in value.items()}
    except OSError as error:
        raise BundleError(f"the file cannot be read: {error.strerror or error}", code="E4320", where=str(llm_data)) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"this is not LLMRouter's metadata: {error}", code="E4320", where=str(llm_data)) from error
    sizes = {model: size for model, size in known.items() if size is not None}
    if left := sorted(set(known) - set(sizes)):
        progress(f"no size is known of {', '.join(left)}: never preferred")
    if not sizes:
        raise BundleError(
            "no model has a size that can be read", code="E4320", where=str(llm_data), mend='e.g. {"model": {"size": "7B"}}'
        )
    strategy, encoder = KINDS[kind](tuple(sizes), np.array(list(sizes.values()), np.float64)), NoEncoder()
    digest = sha256_hex(raw)
    called, number = name or CATALOGUE[kind].name, version or digest[:8]
    content = build_bundle(
        name=called,
        version=number,
        encoder=encoder,
        strategy=strategy,
        provenance=Provenance(
            data_sha256=digest,
            code_version=installed_version("pointsman"),
            seed=0,
            rows=0,
            settings={"strategy": kind, "left_out": left},
        ),
        probe_texts=stable(encoder, strategy),
    )
    path = out / f"{called}-{number}.zip"
    bundle = save_bundle(path, content)
    progress(f"{path}: {bundle.size} bytes, sha256 {bundle.sha256}")
    return path
