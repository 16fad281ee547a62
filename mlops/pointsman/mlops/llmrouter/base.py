"""What an importer is: it takes the parameters out of one of LLMRouter's trained routers.

An importer runs in the training environment, in a process that does nothing else. It may use LLMRouter, torch and
scikit-learn, imported inside functions. What it returns uses none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.base import Encoder, Matrix, Strategy

__all__ = ["Context", "Imported", "Importer", "Scores", "mismatch"]

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Context:
    """What an importer is given.

    Attributes:
        router: LLMRouter's own object, made by its class from the YAML file.
        module: that the class stands in; `module.load_model` reads artifacts (for a pickle: executes them).
        config: the YAML file.
        artifact: the trained file (`model_path.load_model_path`), or None for a router that has none.
        dimensions: of the encoder's vectors.
    """

    router: Any
    module: ModuleType
    config: Mapping[str, Any]
    artifact: Path | None
    dimensions: int

    def load(self) -> Any:
        """The artifact, by LLMRouter's own loader. The operator said that it may be executed (`--trust-artifact`)."""
        return self.module.load_model(str(self.artifact))

    @property
    def hparam(self) -> Mapping[str, Any]:
        """`hparam` of the YAML file."""
        return self.config.get("hparam") or {}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an importer returns.

    Attributes:
        strategy: ours.
        own_scores: (vectors (n, d), users (n) or None) -> float64 (n, m): what LLMRouter's own objects compute for these
            vectors, in the columns of `strategy.models`, in the units of `strategy.score`. It must not go through our code.
        precise: the same strategy with parameters of higher precision, tried where the first is not within tolerance.
        note: what a reader of the bundle should know.
    """

    strategy: Strategy
    own_scores: Callable[[Matrix, Sequence[str | None] | None], Scores]
    precise: Strategy | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Importer:
    """How one kind is imported.

    Attributes:
        kind: of our strategy.
        module, name: where LLMRouter's class stands, and what it is called.
        read: see `Imported`.
        text: whether it looks at the text; if not, the bundle's encoder is `none`.
        artifact: whether there is a trained file.
        query: text and user -> what LLMRouter's `route_single` is asked.
        stored: context and limit -> training queries and the embeddings that LLMRouter learned from; None: where most routers
            have them (`upstream.stored_embeddings`).
        encoder: makes the bundle's encoder out of a router that trained one of its own; None: it is given.
    """

    kind: str
    module: str
    name: str
    read: Callable[[Context], Imported]
    text: bool = True
    artifact: bool = True
    query: Callable[[str, str | None], dict[str, Any]] = lambda text, user: {"query": text, "user_id": user or 0}
    stored: Callable[[Context, int], tuple[list[str], Scores]] | None = None
    encoder: Callable[[Context], Encoder] | None = None


def mismatch(message: str, where: str, mend: str) -> BundleError:
    """E4321: what was imported is not what LLMRouter does; nothing is written."""
    return BundleError(message, code="E4321", where=where, mend=mend)
