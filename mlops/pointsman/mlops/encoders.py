"""Makes encoders out of transformer models, in the training environment (torch, transformers, onnx; never in the gateway).

    model = AutoModel.from_pretrained(directory)                      # any encoder that gives `last_hidden_state`
    encoder = export_encoder(model, kind="onnx", pooling="cls", max_tokens=512, tokenizer=Path("tokenizer.json").read_bytes())
    build_bundle(encoder=encoder, strategy=..., ...)                  # or save_encoder(path, encoder)

The export is TorchScript's (`dynamo=False`, operators of version 17), which needs no package besides `onnx`. Longformer's
sliding windows are exported as what they compute, attention within a band: the windows' own code depends on the length that
it is traced with.
"""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pointsman.errors import BundleError
from pointsman.strategies.encoders.onnx import LongformerEncoder, MinilmEncoder, OnnxEncoder
from pointsman.strategies.encoders.wordpiece import pack_vocabulary

__all__ = ["export_encoder", "export_minilm", "export_model", "quantize", "read_vocabulary"]

OPSET = 17
KINDS: dict[str, type[OnnxEncoder]] = {kind.kind: kind for kind in (OnnxEncoder, MinilmEncoder, LongformerEncoder)}


def export_encoder(
    model: Any,
    *,
    kind: Literal["onnx", "minilm", "longformer"] = "onnx",
    pooling: Literal["mean", "cls"] = "mean",
    unit: bool = True,
    max_tokens: int = 128,
    tokenizer: bytes | None = None,
    vocabulary: list[str] | None = None,
    lowercase: bool = True,
    pad_id: int = 0,
    int8: bool = False,
    threads: int = 1,
) -> OnnxEncoder:
    """An encoder that gives what `model` gives.

    Args:
        model: torch module of transformers whose call with `input_ids` and `attention_mask` gives `last_hidden_state`.
        kind: see `pointsman.strategies.encoders.onnx`.
        pooling, unit, max_tokens, lowercase, pad_id, threads: see `OnnxParams`.
        tokenizer: bytes of a tokenizer.json (`tokenizer.backend_tokenizer.to_str().encode()` of a fast tokenizer); or
        vocabulary: WordPiece tokens in the order of their ids.
        int8: 8-bit weights, see `quantize`.

    Raises:
        BundleError: as a gateway would: E4315, E4306, E4307.
    """
    exported = export_model(model)
    return KINDS[kind].from_files(
        {
            "dimensions": int(model.config.hidden_size),
            "max_tokens": max_tokens,
            "pooling": pooling,
            "unit": unit,
            "lowercase": lowercase,
            "pad_id": pad_id,
            "threads": threads,
        },
        {} if vocabulary is None else {"vocabulary": pack_vocabulary(vocabulary)},
        {
            "model.onnx": quantize(exported) if int8 else exported,
            **({} if tokenizer is None else {"tokenizer.json": tokenizer}),
        },
    )


def export_minilm(directory: Path, *, int8: bool = True, max_tokens: int = 128) -> OnnxEncoder:
    """The encoder `minilm` from a directory with the weights of all-MiniLM-L6-v2, or of a model of the same kind.

    Args:
        directory: with config.json, weights and vocab.txt; nothing is downloaded.
        int8: see `quantize`.
        max_tokens: of a text.

    Raises:
        BundleError: E4320, the directory does not hold such a model.
    """
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(directory, attn_implementation="eager", local_files_only=True)
    except (OSError, ValueError) as error:
        raise BundleError(f"no model can be read: {error}", code="E4320", where=str(directory)) from error
    return export_encoder(
        model, kind="minilm", vocabulary=read_vocabulary(directory), max_tokens=max_tokens, int8=int8, pooling="mean"
    )


def read_vocabulary(directory: Path) -> list[str]:
    """WordPiece tokens of a model's directory, in the order of their ids: vocab.txt, else tokenizer.json.

    Raises:
        BundleError: E4320.
    """
    text, file = directory / "vocab.txt", directory / "tokenizer.json"
    try:
        if text.is_file():
            return text.read_text(encoding="utf-8").rstrip("\n").split("\n")
        ids: dict[str, int] = json.loads(file.read_bytes())["model"]["vocab"]
        return sorted(ids, key=ids.__getitem__)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"no vocabulary can be read: {error}", code="E4320", where=str(directory)) from error


def export_model(model: Any) -> bytes:
    """A transformer as ONNX: int64 `input_ids`, `attention_mask` (batch, tokens) to float32 `last_hidden_state`.

    Any number of rows and tokens. The model is put into evaluation mode and stays there; one of Longformer's is changed (see
    the module) and gives the same.
    """
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]  # torch is not there where types are checked
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    if model.config.model_type == "longformer":
        _attend_within_band(model)
    plain = Plain().eval()  # export restores the mode that it finds: dropout would come back with training mode
    ids = torch.full((2, 7), 5, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    buffer = io.BytesIO()
    names = ["input_ids", "attention_mask"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn of every shape that they see
        torch.onnx.export(
            plain,
            (ids, mask),
            buffer,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]},
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def quantize(model: bytes) -> bytes:
    """The same with 8-bit weights, a quarter of the size.

    Products are computed in 8 bits, activations scaled for each text as it comes, but for those that lead back from the wide
    layer of a block: their inputs have outliers, and with them in 8 bits MiniLM's vectors fall below a cosine of 0.99. Those
    weights are stored in 8 bits and multiplied in float32. Weights have a scale for each column and 7 of the 8 bits: with all
    of them processors without VNNI would saturate and give other vectors, and a bundle's probes would fail there.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load_from_string(model)
    wide = [node.name for node in proto.graph.node if node.op_type == "MatMul" and _narrows(node.name)]
    with tempfile.TemporaryDirectory(prefix="pointsman-") as name:
        source, target = Path(name) / "model.onnx", Path(name) / "int8.onnx"
        source.write_bytes(_stored_in_8_bits(proto, wide).SerializeToString())
        quantize_dynamic(
            source, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True, nodes_to_exclude=wide
        )
        return target.read_bytes()


def _narrows(name: str) -> bool:
    """Whether a node is the second product of a block's feed-forward part, as transformers names them."""
    return name.endswith("/output/dense/MatMul") and "attention" not in name


def _stored_in_8_bits(proto: Any, nodes: list[str]) -> Any:
    """Replace the weights of these nodes by 8-bit ones and a DequantizeLinear, a scale for each column."""
    from onnx import helper, numpy_helper

    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    before = []
    for node in graph.node:
        if node.name not in nodes or node.input[1] not in constants:
            continue
        tensor = constants[node.input[1]]
        weights = numpy_helper.to_array(tensor)
        scales = np.maximum(np.abs(weights).max(axis=0) / 127, 1e-12).astype(np.float32)
        base = f"{tensor.name}_8bit"
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.rint(weights / scales).astype(np.int8), base),
                numpy_helper.from_array(scales, f"{base}_scale"),
                numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{base}_zero"),
            ]
        )
        before.append(
            helper.make_node("DequantizeLinear", [base, f"{base}_scale", f"{base}_zero"], [f"{base}_out"], base, axis=1)
        )
        node.input[1] = f"{base}_out"
        graph.initializer.remove(tensor)
    for number, node in enumerate(before):
        graph.node.insert(number, node)
    return proto


def _attend_within_band(model: Any) -> None:
    """Give Longformer's layers the attention that its windows compute: each token sees those up to half a window away.

    Beltagy, Peters, Cohan: "Longformer", 2020, section 3.1. Without global attention, which LLMRouter does not use.
    """
    import torch
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    class Banded(torch.nn.Module):  # type: ignore[misc]  # as above
        def __init__(self, theirs: Any) -> None:
            super().__init__()
            self.query, self.key, self.value = theirs.query, theirs.key, theirs.value
            self.heads, self.width = theirs.num_heads, theirs.head_dim
            self.reach = theirs.one_sided_attn_window_size

        def forward(self, hidden_states: Any, attention_mask: Any = None, **_: Any) -> Any:
            batch, tokens, _width = hidden_states.shape

            def split(linear: Any) -> Any:
                return linear(hidden_states).view(batch, tokens, self.heads, self.width).transpose(1, 2)

            scores = split(self.query) @ split(self.key).transpose(2, 3) / self.width**0.5
            places = torch.arange(tokens)
            far = (places[:, None] - places[None, :]).abs() > self.reach
            hidden = far[None, None] | (attention_mask < 0)[:, None, None, :]
            weights = torch.softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), dim=-1)
            return ((weights @ split(self.value)).transpose(1, 2).reshape(batch, tokens, -1),)

    for layer in model.encoder.layer:
        if isinstance(layer.attention.self, LongformerSelfAttention):
            layer.attention.self = Banded(layer.attention.self)
    # Nothing is to be padded to whole windows then.
    model._pad_to_window_size = lambda input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, pad_token_id: (
        0,
        input_ids,
        attention_mask,
        token_type_ids,
        position_ids,
        inputs_embeds,
    )
