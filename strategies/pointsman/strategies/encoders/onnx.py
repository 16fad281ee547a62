"""Encoders that are neural networks: a model in ONNX and a tokeniser, run by ONNX Runtime.

- `onnx`: any transformer encoder that `pointsman.mlops.encoders` exports (RouterDC's mDeBERTa, for one).
- `minilm`: all-MiniLM-L6-v2, 8-bit, WordPiece from a vocabulary in the bundle, mean of the tokens, length 1.
- `longformer`: what LLMRouter's artifacts were trained on: mean over the mask, and **not** of length 1, as LLMRouter has it.

Of a text the first `max_tokens` tokens count, the special ones included, and before that the first `CHARACTERS` characters a
token. The model must take `input_ids` and `attention_mask` (and may take `token_type_ids`), int64 (batch, tokens), and give
float32 (batch, tokens, dimensions).

Models whose 8-bit scales depend on what they are given (`DynamicQuantizeLinear`) are run one text at a time: in a shared run
the vector of a text would depend on the others' texts (measured with MiniLM: down to a cosine of 0.977). Others share runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params
from pointsman.strategies.encoders.batch import Batcher
from pointsman.strategies.encoders.hashing import unit
from pointsman.strategies.encoders.onnx_check import check_onnx
from pointsman.strategies.encoders.text import head
from pointsman.strategies.encoders.wordpiece import SPECIAL, UNKNOWN, unpack_vocabulary, wordpiece
from pointsman.strategies.files import sha256_hex

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ACTIVATION_BYTES", "CHARACTERS", "LongformerEncoder", "MinilmEncoder", "OnnxEncoder"]

MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
CHARACTERS = 32
ROWS = 16
"""Of one run."""
ACTIVATION_BYTES = 1 << 30
"""What all models of a process may allocate for their runs together: past it a run fails and LiteLLM's choice holds."""
MAX_TOKENIZER = 64 * 2**20


class OnnxParams(ParamsModel):
    """Of all kinds here.

    Attributes:
        dimensions: of a vector.
        max_tokens: of a text; see the module.
        pooling: `mean` over the tokens that are not padding, or `cls`, the first token.
        unit: scale to length 1.
        lowercase: of WordPiece; without effect where the bundle has a tokenizer.json.
        pad_id: token that fills up shorter texts of a run. The mask hides it.
        threads: of one run.
    """

    dimensions: Annotated[int, Field(ge=1, le=65_536)]
    max_tokens: Annotated[int, Field(ge=3, le=4096)] = 128
    pooling: Literal["mean", "cls"] = "mean"
    unit: bool = True
    lowercase: bool = True
    pad_id: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    threads: Annotated[int, Field(ge=1, le=16)] = 1


@cache
def _memory_limit() -> bool:
    """Register the allocator, limited to `ACTIVATION_BYTES`, that all sessions of this process share; whether it is ours."""
    import onnxruntime as ort

    try:
        ort.create_and_register_allocator(
            ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT),
            ort.OrtArenaCfg({"max_mem": ACTIVATION_BYTES, "arena_extend_strategy": 1}),
        )
    except Exception:  # noqa: BLE001 - one was registered before by somebody else; ONNX Runtime has no type for that
        return False
    return True


def _session(model: bytes, threads: int, where: str) -> Any:
    import onnxruntime as ort

    _memory_limit()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise BundleError(f"ONNX Runtime refuses the model: {str(error)[:300]}", code="E4315", where=where) from error


def _tokenizer_from(data: bytes, max_tokens: int, where: str) -> Tokenizer:
    from tokenizers import Tokenizer

    if len(data) > MAX_TOKENIZER:
        raise BundleError(f"the tokenizer is over {MAX_TOKENIZER} bytes", code="E4301", where=where)
    try:
        tokenizer = Tokenizer.from_buffer(data)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
    except BaseException as error:  # a panic of the native parser is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise BundleError(f"the tokenizer cannot be read: {str(error)[:300]}", code="E4315", where=where) from error
    return tokenizer


class OnnxEncoder:
    """See the module. Immutable, thread-safe.

    Args:
        params: see `OnnxParams`.
        model: the ONNX file; `check_onnx` sees it first.
        tokenizer: the bytes of a tokenizer.json; or
        vocabulary: uint8, as `pack_vocabulary` makes it, for WordPiece.

    Raises:
        BundleError: E4315 (the model or tokenizer is not accepted), E4307 (names, shapes), E4306 (neither or both tokenisers).
    """

    kind: ClassVar[str] = "onnx"

    def __init__(
        self,
        params: OnnxParams,
        model: bytes,
        *,
        tokenizer: bytes | None = None,
        vocabulary: NDArray[np.uint8] | None = None,
    ) -> None:
        if (tokenizer is None) == (vocabulary is None):
            raise BundleError(
                "an encoder has either a tokenizer.json or a vocabulary", code="E4306", where=f"encoder {self.kind}"
            )
        facts = check_onnx(model)
        self._params = params
        self._files = {MODEL: model} if tokenizer is None else {MODEL: model, TOKENIZER: tokenizer}
        self._digests = {name: sha256_hex(data) for name, data in self._files.items()}
        self._vocabulary = vocabulary
        if vocabulary is not None:
            tokens = unpack_vocabulary(vocabulary)
            self._tokenizer = wordpiece(tokens, lowercase=params.lowercase, max_tokens=params.max_tokens)
            self._special = frozenset(tokens.index(token) for token in SPECIAL if token != UNKNOWN)
        else:
            assert tokenizer is not None  # noqa: S101 - narrows the type; checked above
            self._tokenizer = _tokenizer_from(tokenizer, params.max_tokens, TOKENIZER)
            self._special = frozenset()
        self._session = _session(model, params.threads, MODEL)
        self._inputs = self._checked_inputs()
        self._most = 1 if "DynamicQuantizeLinear" in facts.ops else ROWS
        self._batcher: Batcher[list[int]] = Batcher(self._run, self._most)

    def _checked_inputs(self) -> frozenset[str]:
        inputs = {item.name: item for item in self._session.get_inputs()}
        known = {"input_ids", "attention_mask", "token_type_ids"}
        outputs = self._session.get_outputs()
        if not {"input_ids", "attention_mask"} <= set(inputs) <= known or any(
            item.type != "tensor(int64)" or len(item.shape) != 2 for item in inputs.values()
        ):
            raise BundleError(
                f"the model takes {sorted(inputs)}; it must take input_ids and attention_mask, int64 (batch, tokens)",
                code="E4307",
                where=MODEL,
            )
        if not outputs or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 3:
            raise BundleError("the model must give float32 (batch, tokens, dimensions)", code="E4307", where=MODEL)
        if outputs[0].shape[2] not in (self._params.dimensions, None) and not isinstance(outputs[0].shape[2], str):
            raise BundleError(
                f"the model's vectors have {outputs[0].shape[2]} dimensions, the parameters say {self._params.dimensions}",
                code="E4307",
                where=MODEL,
            )
        return frozenset(inputs)

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._params.dimensions

    def digests(self) -> Mapping[str, str]:
        """See `WithFiles.digests`."""
        return self._digests

    def files(self) -> dict[str, bytes]:
        """See `WithFiles.files`."""
        if not self._files:
            raise BundleError("this encoder serves and has put its files away", code="E4300", where=f"encoder {self.kind}")
        return dict(self._files)

    def put_files_away(self) -> None:
        """See `WithFiles.put_files_away`."""
        self._files = {}

    def encode(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder.encode`. Texts without a token but special ones give zeros."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        rows = [self._tokens(text) for text in texts]
        # Texts of like length share a run, so that little is spent on padding.
        order = sorted((number for number, ids in enumerate(rows) if ids), key=lambda number: len(rows[number]))
        for start in range(0, len(order), self._most):
            chosen = order[start : start + self._most]
            part = [rows[number] for number in chosen]
            vectors[chosen] = self._run(part) if self._most == 1 else self._batcher(part)
        if not bool(np.isfinite(vectors).all()):
            raise BundleError("the model gives NaN or infinity", code="E4308", where=MODEL)
        return unit(vectors) if self._params.unit else vectors

    def _tokens(self, text: str) -> list[int]:
        try:
            encoding = self._tokenizer.encode(head(text, CHARACTERS * self._params.max_tokens))
        except BaseException as error:  # a panic of the native code is no Exception, and must not end the thread
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            raise BundleError(f"the text cannot be tokenised: {str(error)[:200]}", code="E4315", where=TOKENIZER) from error
        ids: list[int] = encoding.ids
        if self._special:
            return ids if not self._special.issuperset(ids) else []
        return ids if 0 in encoding.special_tokens_mask else []

    def _run(self, rows: Sequence[list[int]]) -> Matrix:
        """Vectors of token ids, (len(rows), dimensions), not scaled."""
        length = max(len(ids) for ids in rows)
        tokens = np.full((len(rows), length), self._params.pad_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for number, ids in enumerate(rows):
            tokens[number, : len(ids)] = ids
            mask[number, : len(ids)] = 1
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        try:
            output = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise BundleError(f"the model cannot be run: {str(error)[:300]}", code="E4315", where=MODEL) from error
        if output.shape != (len(rows), length, self.dimensions):
            raise BundleError(
                f"the model gives the shape {output.shape}, not {(len(rows), length, self.dimensions)}",
                code="E4307",
                where=MODEL,
            )
        if self._params.pooling == "cls":
            return np.asarray(output[:, 0], np.float32)
        weights = mask[:, :, None].astype(np.float32)
        return np.asarray((output * weights).sum(axis=1) / weights.sum(axis=1), np.float32)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return self._params.model_dump()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {} if self._vocabulary is None else {"vocabulary": self._vocabulary}

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """Refuses: without files there is none."""
        return cls.from_files(params, arrays, {})

    @classmethod
    def from_files(cls, params: Params, arrays: Arrays, files: Mapping[str, bytes]) -> Self:
        """See `WithFiles.from_files`."""
        checked = check_params(OnnxParams, params, "encoder")
        check_arrays(arrays, {"vocabulary": (("uint8",), ("bytes",))} if arrays else {}, "encoder")
        if MODEL not in files or not set(files) <= {MODEL, TOKENIZER}:
            raise BundleError(
                f"an encoder of the kind {cls.kind!r} has {MODEL} and may have {TOKENIZER}; here are {sorted(files)}",
                code="E4306",
                where="encoder files",
            )
        return cls(checked, files[MODEL], tokenizer=files.get(TOKENIZER), vocabulary=arrays.get("vocabulary"))


class MinilmEncoder(OnnxEncoder):
    """`minilm`: see the module."""

    kind: ClassVar[str] = "minilm"


class LongformerEncoder(OnnxEncoder):
    """`longformer`: see the module. A text of n tokens costs n * n memory: some 200 MB for 2,048 tokens of the real one."""

    kind: ClassVar[str] = "longformer"
