"""Models and tokenisers of somebody else: refused before the native parser, or by a child that may crash."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pointsman.errors import BundleError, PointsmanError
from pointsman.settings import StrategySettings
from pointsman.strategies.bundle import parse_bundle
from pointsman.strategies.encoders.onnx_check import check_onnx
from pointsman.strategies.isolation import Limits, load_isolated, needs_isolation, verify_isolated
from support.bundles import make_bundle, new_key
from support.encoders import (
    DIMENSIONS,
    constant,
    edited,
    encoder_bundle,
    onnx_bytes,
    save,
    tiny_model,
    tiny_onnx,
    with_file,
)
from support.stand import Stand


def refused(model: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        check_onnx(model)
    assert caught.value.code == "E4315"
    return str(caught.value)


# The walker ---------------------------------------------------------------------------------------------------------------


def test_what_encoders_are_made_of_is_accepted() -> None:
    facts = check_onnx(tiny_model(dynamic=True))
    assert facts.inputs == ("input_ids", "attention_mask")
    assert facts.outputs == ("last_hidden_state",)
    assert {"Gather", "DynamicQuantizeLinear"} <= facts.ops
    assert facts.elements == 256 * DIMENSIONS + 3


def _external(proto: Any) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def _subgraph(kind: str) -> Any:
    def change(proto: Any) -> None:
        body = helper.make_graph([], "body", [], [])
        node = helper.make_node(kind, ["input_ids"], ["x"], body=body)
        proto.graph.node.insert(0, node)

    return change


def _set(path: str, value: Any) -> Any:
    def change(proto: Any) -> None:
        target = proto
        *parents, last = path.split(".")
        for part in parents:
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        if isinstance(value, list):
            del getattr(target, last)[:]
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)

    return change


def _add(path: str, item: Any) -> Any:
    def change(proto: Any) -> None:
        target = proto
        for part in path.split("."):
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        target.append(item)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_external, "another file"),
        (_set("graph.initializer.0.data_location", TensorProto.EXTERNAL), "another file"),
        (_subgraph("Loop"), "graph within"),
        (_subgraph("If"), "graph within"),
        (_subgraph("Scan"), "graph within"),
        (_set("graph.node.0.op_type", "Loop"), "'Loop', which is not on the list"),
        (_set("graph.node.0.op_type", "RandomNormal"), "not on the list"),
        (_set("graph.node.0.domain", "com.evil"), "com.evil"),
        (_add("opset_import", helper.make_opsetid("com.evil", 1)), "com.evil"),
        (_set("opset_import.0.version", 99), "version 99"),
        (_set("graph.initializer.0.dims", [1 << 40]), "absurd"),
        (_set("graph.initializer.0.dims", [1 << 20, 1 << 20]), "absurd"),
        (_set("graph.initializer.0.dims", [-1]), "negative"),
        (_set("graph.initializer.0.dims", [1] * 9), "axes"),
        (_set("graph.initializer.0.dims", [3]), "bytes"),
        (_set("graph.initializer.0.data_type", TensorProto.STRING), "type 8"),
        (_add("functions", onnx.FunctionProto(name="f")), "functions"),
        (_add("graph.sparse_initializer", onnx.SparseTensorProto()), "sparse"),
        (
            _add("graph.node.0.attribute", helper.make_attribute("t", onnx.TensorProto(data_type=1, dims=[1 << 33]))),
            "absurd",
        ),
    ],
)
def test_what_no_encoder_needs_is_refused(change: Any, says: str) -> None:
    assert says in refused(edited(tiny_model(), change))


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_upset_the_walker(data: st.DataObject) -> None:
    """Garbage, and good models with bits flipped, cut or repeated: accepted, or refused with our error; never anything else."""
    model = bytearray(tiny_model(rows=16))
    if data.draw(st.booleans()):
        model = bytearray(data.draw(st.binary(max_size=300)))
    for _ in range(data.draw(st.integers(0, 3))):
        if model:
            at = data.draw(st.integers(0, len(model) - 1))
            match data.draw(st.sampled_from(["flip", "cut", "insert"])):
                case "flip":
                    model[at] ^= 1 << data.draw(st.integers(0, 7))
                case "cut":
                    del model[at : at + data.draw(st.integers(1, 30))]
                case _:
                    model[at:at] = data.draw(st.binary(min_size=1, max_size=30))
    code = None
    try:
        check_onnx(bytes(model))
    except BundleError as error:
        code = error.code
    assert code in (None, "E4315")


def test_a_long_number_costs_no_time() -> None:
    started = time.perf_counter()
    refused(b"\xff" * 5_000_000)
    refused(b"\x3a" + b"\x80" * 1_000_000)
    assert time.perf_counter() - started < 1


# The child ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good() -> bytes:
    return BUNDLE()


def isolated(tmp_path: Path, data: bytes, **kwargs: Any) -> PointsmanError | None:
    try:
        load_isolated(save(tmp_path / "bundle.zip", data), **kwargs)
    except PointsmanError as error:
        return error
    return None


def test_only_native_files_cost_a_child(tmp_path: Path, good: bytes) -> None:
    assert not needs_isolation(make_bundle(tmp_path))
    assert not needs_isolation(tmp_path / "none.zip")
    assert needs_isolation(save(tmp_path / "native.zip", good))
    assert needs_isolation(save(tmp_path / "external.zip", encoder_bundle(tiny_onnx(), external=True)))


def test_a_good_bundle_gets_through(tmp_path: Path, good: bytes) -> None:
    assert isolated(tmp_path, good) is None
    error = isolated(tmp_path, good, expect_name="other")
    assert error is not None
    assert error.code == "E4305", "what the child finds is told as it is"


def hungry() -> bytes:
    """10 GB, asked for by an operator that is on the list."""
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Gather", ["table", "input_ids"], ["looked_up"]),
        helper.make_node("Add", ["looked_up", "zero"], ["last_hidden_state"]),
    ]
    table = np.random.default_rng(0).standard_normal((256, DIMENSIONS))
    return onnx_bytes(nodes, [constant("huge", [50_000, 50_000], np.int64), constant("table", table)])


def endless() -> bytes:
    """Products of matrices that would take hours, of little memory."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["looked_up"])]
    nodes += [
        helper.make_node("ConstantOfShape", ["shape"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(5_000)),
        helper.make_node("ReduceMax", ["m5000"], ["most"], keepdims=0),
        helper.make_node("Add", ["looked_up", "most"], ["last_hidden_state"]),
    ]
    table = np.random.default_rng(0).standard_normal((256, DIMENSIONS))
    return onnx_bytes(nodes, [constant("shape", [3_000, 3_000], np.int64), constant("table", table)])


def test_one_that_asks_for_ten_gigabytes(tmp_path: Path, good: bytes) -> None:
    error = isolated(tmp_path, with_file(good, "model.onnx", hungry()))
    assert error is not None
    assert error.code in ("E4314", "E4315")
    assert "memory" in str(error).lower() or "alloc" in str(error).lower()


def test_one_that_never_ends(tmp_path: Path, good: bytes) -> None:
    started = time.perf_counter()
    error = isolated(tmp_path, with_file(good, "model.onnx", endless()), limits=Limits(cpu=3, wall=30))
    assert error is not None
    assert error.code == "E4314"
    assert "processor time" in str(error)
    assert time.perf_counter() - started < 25


def test_one_that_reads_other_files(tmp_path: Path, good: bytes) -> None:
    error = isolated(tmp_path, with_file(good, "model.onnx", edited(tiny_model(), _external)))
    assert error is not None
    assert (error.code, "another file" in str(error)) == ("E4315", True)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("import time; time.sleep(600)", "not through"),
        ("print('not json')", "said nothing"),
        ("print('{\"error\": null}'); raise SystemExit(3)", "said nothing"),
        ("import sys; sys.exit(0)", "said nothing"),
        ("print('[' * 100000)", "said nothing"),
    ],
)
def test_whatever_becomes_of_the_child(tmp_path: Path, good: bytes, code: str, says: str) -> None:
    path = save(tmp_path / "bundle.zip", good)
    with pytest.raises(BundleError, match=says) as caught:
        verify_isolated({}, path, "bundle.zip", Limits(wall=2), [sys.executable, "-S", "-c", code])
    assert caught.value.code == "E4314"


def test_the_child_knows_no_secret(tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-secret")
    seen = tmp_path / "seen"
    code = f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ))); print('{{\"error\": null}}')"
    verify_isolated({}, save(tmp_path / "bundle.zip", good), "x", Limits(), [sys.executable, "-S", "-c", code])
    assert "PYTHONPATH" in seen.read_text()
    assert "secret" not in seen.read_text()


async def test_the_last_good_one_keeps_serving(tmp_path: Path, good: bytes) -> None:
    """A reloader is given a good encoder, then one that exhausts memory: refused, and the first stays."""
    key = new_key()
    settings = StrategySettings(
        source=str(tmp_path / "store" / "current.json"), reload_interval=0.05, trusted_keys={key.key_id: key.public}
    )
    stand = Stand(tmp_path, key, settings)
    stand.bad(good)
    async with stand.running():
        await stand.until(lambda: stand.serving == "1", timeout=30)
        stand.bad(with_file(good, "model.onnx", hungry()))
        await stand.until(lambda: stand.error in ("E4314", "E4315"), timeout=30)
        assert stand.serving == "1"
        assert stand.counter("rejected") == 1
        assert subprocess.run([sys.executable, "-S", "-c", ""], check=True).returncode == 0


BUNDLE = cache(lambda: encoder_bundle(tiny_onnx()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_native_files_of_any_bytes(data: st.DataObject) -> None:
    """Whatever the walker lets through, ONNX Runtime takes or refuses with an error that becomes ours."""
    model = bytearray(tiny_model())
    for _ in range(data.draw(st.integers(1, 3))):
        model[data.draw(st.integers(0, len(model) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    bundle = with_file(BUNDLE(), "model.onnx", bytes(model[: data.draw(st.integers(len(model) // 2, len(model)))]))
    code = "E4300"
    try:
        parse_bundle(bundle, where="test")
    except BundleError as error:
        code = error.code
    assert code.startswith("E43")
