"""LLMRouter itself: made from its YAML file, asked for its own choices. Only in the training environment.

Its routers know one encoder, Longformer, which they download. For an import their function for it is replaced, in this
process, by the encoder that the bundle will have: what is compared then is the same router on the same vectors.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.errors import ConfigError
from pointsman.mlops.llmrouter.base import Context, Importer, Scores
from pointsman.strategies.base import Encoder

__all__ = [
    "EMBEDDING",
    "VERSION",
    "artifact_path",
    "construct",
    "embedding_by",
    "picks",
    "read_config",
    "stored_embeddings",
    "talking_to_stderr",
]

VERSION = "0.4.0"
"""Release of `llmrouter-lib` whose formats are read."""
EMBEDDING = "get_longformer_embedding"
"""Its routers' name of the function that encodes a text."""


def _missing(error: ImportError) -> ConfigError:
    return ConfigError(
        f"LLMRouter cannot be imported here: {error}",
        code="E4207",
        where="training environment",
        mend="run this where `pip install 'pointsman[llmrouter]'` was run; the gateway does not need it",
    )


@contextlib.contextmanager
def talking_to_stderr() -> Iterator[None]:
    """LLMRouter prints as it goes; our standard output is for the bundle's path."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def read_config(path: Path) -> Mapping[str, Any]:
    """LLMRouter's YAML file.

    Raises:
        ConfigError: E4201.
    """
    import yaml

    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"LLMRouter's configuration cannot be read: {error}", code="E4201", where=str(path)) from error
    if not isinstance(config, dict):
        raise ConfigError("LLMRouter's configuration is no mapping", code="E4201", where=str(path))
    return config


def _root() -> Path:
    """What LLMRouter resolves relative paths against: the directory that its package lies in."""
    try:
        found = importlib.import_module("llmrouter")
    except ImportError as error:
        raise _missing(error) from error
    return Path(str(found.__file__)).resolve().parent.parent


def artifact_path(config: Mapping[str, Any], where: Path) -> Path:
    """The trained file that the configuration names.

    Raises:
        ConfigError: E4204 (it names none, or it is not there), E4207 (no LLMRouter).
    """
    named = (config.get("model_path") or {}).get("load_model_path")
    path = _root() / str(named) if named else None
    if path is None or not path.is_file():
        raise ConfigError(
            f"there is no trained model at model_path.load_model_path ({path or 'not set'})",
            code="E4204",
            where=str(where),
            mend="train it with LLMRouter first; use absolute paths, relative ones count from LLMRouter's installation",
        )
    return path


def construct(importer: Importer, path: Path, config: Mapping[str, Any], encoder: Encoder) -> Context:
    """The router by LLMRouter's own class. It reads its training data again; a CSV beside the routing data is written anew.

    Raises:
        ConfigError: E4207 (no LLMRouter), E4206 (its class refuses the configuration).
    """
    # Read by a library at its import: without it LiteLLM, which LLMRouter imports, asks the network for prices.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    artifact = artifact_path(config, path) if importer.artifact else None
    with talking_to_stderr():
        try:
            module = importlib.import_module(importer.module)
        except ImportError as error:
            raise _missing(error) from error
        try:
            router = getattr(module, importer.name)(str(path.resolve()))
        except Exception as error:  # whatever LLMRouter raises on data that it cannot use
            raise ConfigError(
                f"LLMRouter's {importer.name} refuses this configuration: {type(error).__name__}: {error}",
                code="E4206",
                where=str(path),
                mend="paths must be absolute, and the directory of the routing data writable: LLMRouter writes a CSV there",
            ) from error
    return Context(router, module, config, artifact, encoder.dimensions)


@contextlib.contextmanager
def embedding_by(context: Context, encoder: Encoder) -> Iterator[None]:
    """LLMRouter's embeddings are this encoder's, within the block."""
    torch = importlib.import_module("torch")

    def embed(texts: str | Sequence[str]) -> Any:
        vectors = torch.from_numpy(encoder.encode([texts] if isinstance(texts, str) else list(texts)))
        return vectors[0] if len(vectors) == 1 else vectors

    previous = getattr(context.module, EMBEDDING, None)
    if previous is None:
        yield
        return
    setattr(context.module, EMBEDDING, embed)
    try:
        yield
    finally:
        setattr(context.module, EMBEDDING, previous)


def picks(
    importer: Importer, context: Context, encoder: Encoder, queries: Sequence[str], users: Sequence[str | None]
) -> list[str]:
    """What LLMRouter's own `route_single` chooses."""
    with talking_to_stderr(), embedding_by(context, encoder):
        return [
            str(context.router.route_single(importer.query(text, user))["model_name"])
            for text, user in zip(queries, users, strict=True)
        ]


def stored_embeddings(context: Context, limit: int) -> tuple[list[str], Scores] | None:
    """Training queries and the embeddings that LLMRouter learned from, (n, d); None where the router has none."""
    embeddings, rows = (getattr(context.router, name, None) for name in ("query_embedding_data", "routing_data_train"))
    if embeddings is None or rows is None or not {"query", "embedding_id"} <= set(rows.columns):
        return None
    chosen = rows.drop_duplicates("query")[["query", "embedding_id"]]
    chosen = chosen.iloc[np.unique(np.linspace(0, len(chosen) - 1, limit).astype(int))]
    vectors = [np.asarray(embeddings[number], np.float64).reshape(-1) for number in chosen["embedding_id"].tolist()]
    return [str(text) for text in chosen["query"]], np.stack(vectors)
