"""Makes the encoder `static` out of a sentence encoder: what the model says to each token alone, projected and weighted.

Runs in the training environment (torch, transformers), once for a model; the file serves any number of strategies.

1. The vector of token t is the mean over the last layer for the input `[CLS] t [SEP]`, as the model pools a sentence
   (the idea of model2vec: https://github.com/MinishLab/model2vec; no code of it).
2. The vectors are centred and projected to their first principal components (Pearson, 1901).
3. Rows are weighted by smooth inverse frequency, a / (a + p(t)) with a = 1e-3 (Arora, Liang, Ma: "A simple but tough-to-beat
   baseline for sentence embeddings", ICLR 2017). No corpus is counted: WordPiece vocabularies are sorted by frequency, so that
   p of the token of rank r is taken as Zipf's 1 / (r * H), H = ln(n) + 0.5772 (Zipf, 1949; Powers, 1998).

Tokens without a say (`[PAD]`, `[UNK]`, `[unused7]`, ...) weigh nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.mlops.encoders import read_vocabulary
from pointsman.strategies.base import Matrix
from pointsman.strategies.encoders.static import StaticEncoder
from pointsman.strategies.encoders.wordpiece import pack_vocabulary

__all__ = ["distil", "make_static", "zipf_weights"]

SMOOTHING = 1e-3
BATCH = 256
_SILENT = re.compile(r"\[[A-Za-z0-9_ ]+\]")

Progress = Callable[[str], None]


def distil(
    directory: Path,
    *,
    dimensions: int = 256,
    precision: Literal["float16", "int8"] = "float16",
    progress: Progress = lambda _: None,
) -> StaticEncoder:
    """Distil the model in `directory`; nothing is downloaded.

    Args:
        directory: config.json, weights, vocab.txt of a BERT-like sentence encoder with WordPiece that pools by the mean.
        dimensions: of the vectors, at most the model's.
        precision: of the table.
        progress: told of each step.

    Raises:
        BundleError: E4320, the directory holds no such model.
    """
    tokens = read_vocabulary(directory)
    progress(f"{len(tokens)} tokens")
    vectors = _token_vectors(directory, len(tokens), tokens.index("[CLS]"), tokens.index("[SEP]"), progress)
    return make_static(tokens, vectors, dimensions=dimensions, precision=precision)


def make_static(
    tokens: list[str], vectors: Matrix, *, dimensions: int, precision: Literal["float16", "int8"] = "float16"
) -> StaticEncoder:
    """Steps 2 and 3. `vectors`: float32 (v, D), one for each token; deterministic."""
    silent = np.array([bool(_SILENT.fullmatch(token)) for token in tokens])
    projected = _principal(vectors, ~silent, dimensions)
    weights = zipf_weights(len(tokens)) * ~silent
    weighted = projected * weights[:, None]
    table: NDArray[Any]
    if precision == "int8":
        largest = np.abs(weighted).max(axis=1)
        scales = (largest / 127).astype(np.float32)
        table = np.rint(weighted / np.where(scales > 0, scales, 1)[:, None]).clip(-127, 127).astype(np.int8)
    else:
        scales = np.ones(len(tokens), np.float32)
        table = weighted.astype(np.float16)
    return StaticEncoder(pack_vocabulary(tokens), table, scales)


def zipf_weights(count: int) -> NDArray[np.float64]:
    """Weight of each token by its place in a vocabulary that is sorted by frequency, in (0, 1)."""
    ranks = np.arange(1, count + 1, dtype=np.float64)
    probability = 1 / (ranks * (np.log(count) + np.euler_gamma))
    weights: NDArray[np.float64] = SMOOTHING / (SMOOTHING + probability)
    return weights


def _principal(vectors: Matrix, counted: NDArray[np.bool_], dimensions: int) -> NDArray[np.float64]:
    """Rows centred and turned into their first principal components, each with its largest entry positive."""
    centred = vectors.astype(np.float64) - vectors[counted].mean(axis=0, dtype=np.float64)
    _, turns = np.linalg.eigh(centred[counted].T @ centred[counted])
    axes = turns[:, ::-1][:, :dimensions]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    projected: NDArray[np.float64] = centred @ (axes * signs)
    return projected


def _token_vectors(directory: Path, count: int, first: int, last: int, progress: Progress) -> Matrix:
    """Step 1: float32 (count, D)."""
    import torch
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise BundleError(f"no model can be read: {error}", code="E4320", where=str(directory)) from error
    vectors = np.empty((count, int(model.config.hidden_size)), np.float32)
    with torch.no_grad():
        for start in range(0, count, BATCH):
            ids = torch.arange(start, min(start + BATCH, count))
            around = torch.stack([torch.full_like(ids, first), ids, torch.full_like(ids, last)], dim=1)
            output = model(input_ids=around, attention_mask=torch.ones_like(around)).last_hidden_state
            vectors[start : start + len(ids)] = output.mean(dim=1).numpy()
            if start % (BATCH * 40) == 0:
                progress(f"{start} of {count} tokens")
    return vectors
