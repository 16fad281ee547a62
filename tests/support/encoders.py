"""Tiny random encoders for tests: ONNX models made node by node, a tokenizer.json, a token table. No torch, no download."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pointsman.mlops.distil import make_static
from pointsman.strategies.archive import pack, unpack, unpack_arrays
from pointsman.strategies.base import Encoder
from pointsman.strategies.bundle import build_bundle
from pointsman.strategies.encoders.onnx import OnnxEncoder, OnnxParams
from pointsman.strategies.encoders.static import StaticEncoder
from pointsman.strategies.encoders.wordpiece import pack_vocabulary
from pointsman.strategies.files import canonical_json, sha256_hex
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.manifest import MANIFEST, Provenance

TOKENS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "hello", "world", "prove", "##s", "##ing", ",", ".", "!", "?"),
    *"bcdefghijklmnopqrstuvwxyz0123456789",
    *(f"##{character}" for character in "abcdefghijklmnopqrtuvwxyz0123456789"),
]
DIMENSIONS = 8


def onnx_bytes(nodes: Sequence[Any], constants: Sequence[Any] = (), *, opset: int = 17, output: Any = None) -> bytes:
    """A model with the inputs and the output that encoders want."""
    names = ("input_ids", "attention_mask")
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in names]
    out = output or helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", DIMENSIONS])
    graph = helper.make_graph(list(nodes), "tiny", ids, [out], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def constant(name: str, value: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def tiny_model(seed: int = 0, *, dynamic: bool = False, rows: int = 256) -> bytes:
    """Looks tokens up, mixes them a little with the mean of the unmasked. `dynamic`: in 8 bits, as `quantize` makes them."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((rows, DIMENSIONS)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["looked_up"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask3"]),
        helper.make_node("Mul", ["looked_up", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "token_axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "little"], ["context"]),
        helper.make_node("Add", ["looked_up", "context"], ["mixed"]),
    ]
    constants = [
        constant("table", table),
        constant("last_axis", [2], np.int64),
        constant("token_axis", [1], np.int64),
        constant("little", [0.05]),
    ]
    if dynamic:
        nodes += [
            helper.make_node("DynamicQuantizeLinear", ["mixed"], ["q", "q_scale", "q_zero"]),
            helper.make_node("DequantizeLinear", ["q", "q_scale", "q_zero"], ["dq"]),
            helper.make_node("Tanh", ["dq"], ["last_hidden_state"]),
        ]
    else:
        nodes.append(helper.make_node("Tanh", ["mixed"], ["last_hidden_state"]))
    return onnx_bytes(nodes, constants)


def tiny_tokenizer() -> bytes:
    """A tokenizer.json: bytes-level BPE without merges, so that every text has tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import RobertaProcessing

    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(["<s>", "</s>", *alphabet[:250]])}, [], unk_token="</s>"))
    tokenizer.pre_tokenizer = ByteLevel()
    tokenizer.post_processor = RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer.to_str().encode()


def tiny_onnx(
    kind: type[OnnxEncoder] = OnnxEncoder, seed: int = 0, *, dynamic: bool = False, model: bytes | None = None, **params: Any
) -> OnnxEncoder:
    """An encoder with WordPiece."""
    settings = OnnxParams(**{"dimensions": DIMENSIONS, "max_tokens": 16, **params})
    return kind(settings, model or tiny_model(seed, dynamic=dynamic), vocabulary=pack_vocabulary(TOKENS))


def tiny_static(precision: Any = "float16", seed: int = 0) -> StaticEncoder:
    """A table of random vectors through the distiller's second half."""
    vectors = np.random.default_rng(seed).standard_normal((len(TOKENS), 12)).astype(np.float32)
    return make_static(TOKENS, vectors, dimensions=DIMENSIONS, precision=precision)


def encoder_bundle(encoder: Encoder, version: str = "1", *, name: str = "knn", **kwargs: Any) -> bytes:
    """A bundle with this encoder and a small kNN."""
    texts = ["hello world", "prove a theorem", "the end.", "zebra"]
    vectors = encoder.encode(texts)
    scores = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.3, 0.6]], np.float32)
    strategy = KnnStrategy(("model-a", "model-b"), vectors, scores, np.ones((4, 2), np.uint8), 2)
    return build_bundle(
        name=name,
        version=version,
        encoder=encoder,
        strategy=strategy,
        provenance=Provenance(code_version="test", seed=0, rows=4),
        probe_texts=["hello world", "a theorem"],
        **kwargs,
    )


def with_file(bundle: bytes, name: str, data: bytes, change: Callable[[dict[str, Any]], None] = lambda _: None) -> bytes:
    """The bundle with another file of its encoder, and every digest within made to fit: what a hostile publisher would sign."""
    members = {**unpack(bundle, "test"), name: data}
    manifest = json.loads(members.pop(MANIFEST))
    manifest["files"] = {file: {"sha256": sha256_hex(body), "size": len(body)} for file, body in members.items()}
    arrays = unpack_arrays(members["encoder.safetensors"], "test") if "encoder.safetensors" in members else {}
    content = {
        "kind": manifest["encoder"]["kind"],
        "params": manifest["encoder"]["params"],
        "arrays": {key: [a.dtype.name, list(a.shape), sha256_hex(a.tobytes())] for key, a in arrays.items()},
        "files": {file: sha256_hex(body) for file, body in members.items() if not file.endswith(".safetensors")},
    }
    manifest["encoder"]["sha256"] = sha256_hex(canonical_json(content))
    change(manifest)
    return pack({MANIFEST: canonical_json(manifest), **members})


def edited(model: bytes, change: Callable[[Any], None]) -> bytes:
    """An ONNX model changed through the official classes."""
    proto = onnx.load_from_string(model)
    change(proto)
    return bytes(proto.SerializeToString())


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
