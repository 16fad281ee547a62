"""Looks at an ONNX model before the native parser does: a protocol-buffer walker that refuses what no encoder needs.

Refused: files beside the model (external data), control flow and functions (subgraphs, hence loops), operators of other
domains or not on the list, strings, sparse tensors, tensors whose lengths do not fit their bytes, and absurd numbers of
anything. What remains may still ask for much memory or time while it runs: that is what `pointsman.strategies.isolation` is
for.

Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3), the wire format is that of
https://protobuf.dev/programming-guides/encoding/. Every field that is not known here is refused, so that nothing is
understood by another parser and not by this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from pointsman.errors import BundleError

__all__ = ["ALLOWED_OPS", "ModelFacts", "check_onnx"]

MAX_NODES = 20_000
MAX_TENSORS = 20_000
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 31
OPSETS = range(7, 24)

_OPS = """
Abs Add And Attention BatchNormalization Cast CastLike Ceil Clip Concat Constant ConstantOfShape Cos CumSum
DequantizeLinear Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND
Gelu Gemm Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity LayerNormalization LeakyRelu Less
LessOrEqual Log LogSoftmax MatMul MatMulInteger Max Min Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearMatMul
QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape ScatterElements ScatterND Selu Shape Sigmoid Sign SimplifiedLayerNormalization Sin Size Slice
Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Swish Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
ALLOWED_OPS = frozenset(_OPS.split())
"""Operators of the default domain that an encoder may use: dense arithmetic and shapes. None holds a subgraph, reads a file
or draws a random number."""

# Bytes of an element by TensorProto.DataType; strings (8) and complex numbers (14, 15) have no place in an encoder.
_ITEM = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 21: 1, 22: 1}
_HALF_BYTE = frozenset({21, 22})  # 4-bit integers, two in a byte

# Fields of a tensor that hold elements one by one, with the least bytes that one takes: floats, varints, doubles.
_TYPED = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the walker saw: kinds of operators, names of the graph's inputs and outputs, elements of all tensors together."""

    ops: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    elements: int


class _Walk:
    def __init__(self, where: str) -> None:
        self.where = where
        self.nodes = self.tensors = self.elements = 0
        self.ops: set[str] = set()

    def refuse(self, why: str) -> NoReturn:
        raise BundleError(
            f"the ONNX model is refused: {why}",
            code="E4315",
            where=self.where,
            mend="export it with `pointsman.mlops.encoders`, which makes what is accepted",
        )

    # Wire format ----------------------------------------------------------------------------------------------------------

    def varint(self, data: memoryview, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                self.refuse("cut off within a number")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _MASK, at
            shift += 7

    def fields(self, data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
        """(number, wire type, value of a number, bytes) of each field."""
        at, end, nothing = 0, len(data), data[:0]
        while at < end:
            key, at = self.varint(data, at)
            number, wire = key >> 3, key & 7
            if number == 0:
                self.refuse("a field without a number")
            if wire == _VARINT:
                value, at = self.varint(data, at)
                yield number, wire, value, nothing
            elif wire == _BYTES:
                length, at = self.varint(data, at)
                if length > end - at:
                    self.refuse("a field is longer than what holds it")
                yield number, wire, 0, data[at : at + length]
                at += length
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
                if size > end - at:
                    self.refuse("cut off within a number")
                yield number, wire, 0, data[at : at + size]
                at += size
            else:
                self.refuse(f"wire type {wire}")

    def text(self, data: memoryview) -> str:
        if len(data) > 4096:
            self.refuse("a name of more than 4096 bytes")
        try:
            return bytes(data).decode()
        except UnicodeDecodeError:
            self.refuse("a name that is not UTF-8")

    def packed(self, wire: int, value: int, data: memoryview) -> Iterator[int]:
        if wire == _VARINT:
            yield value
            return
        at = 0
        while at < len(data):
            number, at = self.varint(data, at)
            yield number

    # ONNX -----------------------------------------------------------------------------------------------------------------

    def model(self, data: memoryview) -> ModelFacts:
        graph: memoryview | None = None
        opset: int | None = None
        for number, wire, _, body in self.fields(data):
            if number == 7 and wire == _BYTES:
                if graph is not None:
                    self.refuse("two graphs")
                graph = body
            elif number == 8 and wire == _BYTES:
                domain, version = self.opset(body)
                if domain not in ("", "ai.onnx"):
                    self.refuse(f"operators of the domain {domain!r}")
                if opset is not None:
                    self.refuse("two versions of the operators")
                opset = version
            elif number in (20, 25, 26):
                self.refuse("it holds training, functions or device settings")
            elif number not in (1, 2, 3, 4, 5, 6, 14):
                self.refuse(f"unknown field {number} of the model")
        if graph is None or opset is None:
            self.refuse("no graph or no version of the operators")
        if opset not in OPSETS:
            self.refuse(f"version {opset} of the operators; {OPSETS.start} to {OPSETS.stop - 1} are accepted")
        inputs, outputs = self.graph(graph)
        return ModelFacts(frozenset(self.ops), inputs, outputs, self.elements)

    def opset(self, data: memoryview) -> tuple[str, int]:
        domain, version = "", 0
        for number, wire, value, body in self.fields(data):
            if number == 1 and wire == _BYTES:
                domain = self.text(body)
            elif number == 2 and wire == _VARINT:
                version = value
            else:
                self.refuse("an unknown field of the version of the operators")
        return domain, version

    def graph(self, data: memoryview) -> tuple[tuple[str, ...], tuple[str, ...]]:
        inputs: list[str] = []
        outputs: list[str] = []
        initialised: set[str] = set()
        for number, wire, _, body in self.fields(data):
            if wire != _BYTES:
                self.refuse(f"field {number} of the graph")
            if number == 1:
                self.node(body)
            elif number == 5:
                initialised.add(self.tensor(body))
            elif number == 11:
                inputs.append(self.named(body))
            elif number == 12:
                outputs.append(self.named(body))
            elif number not in (2, 10, 13, 14, 16):  # 14: quantisation annotations, which name tensors only
                self.refuse(f"field {number} of the graph (sparse tensors are not accepted)")
        return tuple(name for name in inputs if name not in initialised), tuple(outputs)

    def named(self, data: memoryview) -> str:
        for number, wire, _, body in self.fields(data):
            if number == 1 and wire == _BYTES:
                return self.text(body)
        return ""

    def node(self, data: memoryview) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.refuse(f"more than {MAX_NODES} operators")
        kind, domain = "", ""
        for number, wire, _, body in self.fields(data):
            if wire != _BYTES:
                self.refuse(f"field {number} of an operator")
            if number == 4:
                kind = self.text(body)
            elif number == 7:
                domain = self.text(body)
            elif number == 5:
                self.attribute(body)
            elif number not in (1, 2, 3, 6, 9):
                self.refuse(f"field {number} of an operator")
        if domain not in ("", "ai.onnx"):
            self.refuse(f"operator {kind!r} of the domain {domain!r}")
        if kind not in ALLOWED_OPS:
            self.refuse(f"operator {kind!r}, which is not on the list")
        self.ops.add(kind)

    def attribute(self, data: memoryview) -> None:
        for number, wire, _, body in self.fields(data):
            if number in (6, 11):
                self.refuse("an operator with a graph within")
            elif number in (5, 10) and wire == _BYTES:
                self.tensor(body)
            elif number not in (1, 2, 3, 4, 7, 8, 9, 13, 20):
                self.refuse(f"field {number} of an attribute")

    def tensor(self, data: memoryview) -> str:
        """Check lengths against bytes; the name."""
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            self.refuse(f"more than {MAX_TENSORS} tensors")
        dims: list[int] = []
        kind, name = 0, ""
        raw: int | None = None
        typed = 0  # most elements that the typed fields can hold
        for number, wire, value, body in self.fields(data):
            if number == 1 and wire in (_VARINT, _BYTES):
                dims += self.packed(wire, value, body)
            elif number == 2 and wire == _VARINT:
                kind = value
            elif number == 8 and wire == _BYTES:
                name = self.text(body)
            elif number == 9 and wire == _BYTES and raw is None:
                raw = len(body)
            elif number in _TYPED:
                typed += len(body) // _TYPED[number] if wire == _BYTES else 1
            elif number == 13 or (number == 14 and value != 0):
                self.refuse("a tensor whose content lies in another file")
            elif number not in (12, 14, 16):
                self.refuse(f"field {number} of a tensor")
        self.elements += self.extent(dims, kind, raw, typed)
        return name

    def extent(self, dims: list[int], kind: int, raw: int | None, typed: int) -> int:
        """How many elements, which must be as many as there are bytes for."""
        if kind not in _ITEM:
            self.refuse(f"a tensor of type {kind}")
        if len(dims) > MAX_DIMS:
            self.refuse(f"a tensor of more than {MAX_DIMS} axes")
        elements = 1
        for length in dims:
            if length >= MAX_ELEMENTS or elements * length > MAX_ELEMENTS:
                self.refuse("a tensor with a negative or an absurd length")
            elements *= length
        half = kind in _HALF_BYTE
        if raw is not None:
            wanted = (elements + 1) // 2 if half else elements * _ITEM[kind]
            if raw != wanted or typed:
                self.refuse(f"a tensor of {elements} elements with {raw} bytes")
        elif elements > typed * (2 if half else 1):
            self.refuse(f"a tensor of {elements} elements with room for {typed}")
        return elements


def check_onnx(data: bytes, where: str = "model.onnx") -> ModelFacts:
    """Walk the whole model.

    Args:
        data: the file.
        where: for messages.

    Raises:
        BundleError: E4315, with the reason.
    """
    return _Walk(where).model(memoryview(data))
