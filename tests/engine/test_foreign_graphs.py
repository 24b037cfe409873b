"""Graphs that other programs wrote: torch exports quantised by ONNX Runtime's own tool."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from obert_compiler.runtime import engine_use, session

Arrays = dict[str, np.ndarray]
Pair = tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]
AssertClose = Callable[[list[np.ndarray], list[np.ndarray]], None]

_FILE = Path(__file__).with_name("foreign_models.py")
_SPEC = importlib.util.spec_from_file_location("foreign_models", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
models = importlib.util.module_from_spec(_SPEC)  # tests are not a package
_SPEC.loader.exec_module(models)
WORDS, BATCH, LENGTH = models.WORDS, models.BATCH, models.LENGTH


@pytest.fixture(scope="session")
def exported(tiny_cache: Path) -> Callable[[str], Path]:
    """``exported(exporter)``: the encoder in float32, kept from run to run."""
    key = hashlib.sha256(_FILE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]

    def make(exporter: str) -> Path:
        file = tiny_cache / f"foreign-{exporter}-{key}.onnx"
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                models.export(file.with_suffix(".new"), exporter)
                file.with_suffix(".new").rename(file)
        return file

    return make


def feed_of(batch: int, length: int, seed: int = 0) -> Arrays:
    """Random tokens, padded on the right."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(1, length + 1, (batch, 1))
    return {"ids": rng.integers(0, WORDS, (batch, length)), "mask": mask.astype(np.int64)}


class Calibration(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """Four batches."""

    def __init__(self) -> None:
        self._feeds = iter([feed_of(BATCH, LENGTH, seed) for seed in range(4)])

    def get_next(self) -> Arrays | None:
        """The next batch."""
        return next(self._feeds, None)


SCHEMES: dict[str, dict[str, Any]] = {
    "per channel": {"per_channel": True},
    "per tensor, signed": {"activation_type": QuantType.QInt8},
    "asymmetric weights": {
        "weight_type": QuantType.QUInt8,
        "extra_options": {"WeightSymmetric": False},
    },
    "products alone": {"per_channel": True, "op_types_to_quantize": ["MatMul", "Gemm"]},
}


@pytest.mark.parametrize("exporter", ["dynamic", "static", "torchscript"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantised_by_onnx_runtime(
    exporter: str,
    scheme: str,
    exported: Callable[[str], Path],
    tmp_path: Path,
    both: Callable[..., Pair],
    assert_close: AssertClose,
) -> None:
    # Its quantiser writes files beside the model.
    float32 = shutil.copy(exported(exporter), tmp_path / "float32.onnx")
    model = tmp_path / "model.onnx"
    defaults = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    options = defaults | SCHEMES[scheme]
    quantize_static(float32, model, Calibration(), QuantFormat.QDQ, **options)
    initializers = {tensor.name: tensor for tensor in onnx.load(model).graph.initializer}
    scale = initializers.get("logits_scale")
    step = 0.0 if scale is None else float(onnx.numpy_helper.to_array(scale))
    ours, theirs = both(model)
    claims = engine_use(ours).claims
    assert claims is not None
    assert claims.claimed >= 0.4 * claims.nodes, claims.describe()
    shapes = [(BATCH, LENGTH)]
    if exporter != "static":
        shapes += [(1, 1), (3, 33), (2, 65), (9, 7)]
    for batch, length in shapes:
        feed = feed_of(batch, length, seed=1)
        (found,), (expected,) = ours.run(None, feed), theirs.run(None, feed)
        # A quantised output moves by whole steps.
        if np.abs(found - expected).max() > 1.01 * step:
            assert_close([found], [expected])


def same_at_all_sizes(
    ours: onnxruntime.InferenceSession,
    theirs: onnxruntime.InferenceSession,
    assert_close: AssertClose,
) -> None:
    """Batches and lengths around the edges of panels, and nothing but padding."""
    for batch, length in ((BATCH, LENGTH), (1, 1), (3, 33), (2, 65), (9, 7)):
        feed = feed_of(batch, length, seed=1)
        assert_close(ours.run(None, feed), theirs.run(None, feed))
    feed["mask"][:] = 0
    assert_close(ours.run(None, feed), theirs.run(None, feed))


def quantise_products(float32: Path, model: Path, left: Sequence[str] = ()) -> None:
    """Products alone, by channel, but for the nodes that are ``left``."""
    quantize_static(
        float32,
        model,
        Calibration(),
        QuantFormat.QDQ,
        nodes_to_exclude=list(left),
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


@pytest.mark.parametrize("exporter", ["torchscript", "20", "23"])
@pytest.mark.parametrize("encoder", ["rotary", "grouped"])
def test_newer_encoders_quantised_by_onnx_runtime(
    encoder: str,
    exporter: str,
    exported: Callable[[str], Path],
    tmp_path: Path,
    both: Callable[..., Pair],
    assert_close: AssertClose,
) -> None:
    """Opset 23 has attention, rotary embeddings and RMSNorm as ops of their own."""
    float32 = shutil.copy(exported(f"{encoder} {exporter}"), tmp_path / "float32.onnx")
    model = tmp_path / "model.onnx"
    quantise_products(float32, model)
    assert (exporter == "23") == any(n.op_type == "Attention" for n in onnx.load(model).graph.node)
    ours, theirs = both(model)
    claims = engine_use(ours).claims
    assert claims is not None
    assert not claims.left, claims.describe()
    assert claims.parts == 1
    same_at_all_sizes(ours, theirs, assert_close)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("exporter", ["torchscript", "20"])
def test_relative_positions_quantised_by_onnx_runtime(
    exporter: str,
    everything: bool,
    exported: Callable[[str], Path],
    tmp_path: Path,
    both: Callable[..., Pair],
    assert_close: AssertClose,
) -> None:
    """``everything``: products of activations, scores and positions are quantised too."""
    float32 = shutil.copy(exported(f"relative {exporter}"), tmp_path / "float32.onnx")
    model = tmp_path / "model.onnx"
    proto = onnx.load(float32)
    names = {tensor.name for tensor in proto.graph.initializer}
    computed = [
        n.name for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] not in names
    ]
    quantise_products(float32, model, [] if everything else computed)
    ours, theirs = both(model)
    claims = engine_use(ours).claims
    assert claims is not None
    assert not claims.left, claims.describe()
    same_at_all_sizes(ours, theirs, assert_close)


def test_dense_float_is_left_alone_and_named(exported: Callable[[str], Path]) -> None:
    model = exported("torchscript")
    opened = session(model, engine="obert")
    claims = engine_use(opened).claims
    assert claims is not None
    assert claims.claimed == claims.parts == 0
    assert {left.op for left in claims.left} >= {"MatMul", "Softmax", "LayerNormalization"}
    assert all(left.value and left.reason for left in claims.left)
    feed = feed_of(2, 9)
    expected = session(model, engine="cpu").run(None, feed)[0]
    assert np.array_equal(opened.run(None, feed)[0], expected)


@pytest.mark.parametrize("block", [1, 4])
def test_sparse_float(
    block: int, exported: Callable[[str], Path], tmp_path: Path, both: Callable[..., Pair]
) -> None:
    """Nine tenths of zeros, single or in blocks along the inputs."""
    rng = np.random.default_rng(0)
    proto = onnx.load(exported("torchscript"))
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.shape != (WORDS, models.WIDTH):
            inputs, outputs = array.shape
            keep = rng.random((-(-inputs // block), outputs)) < 0.1
            zeroed = array * keep.repeat(block, 0)[:inputs]
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeroed, tensor.name))
    onnx.save(proto, tmp_path / "sparse.onnx")
    ours, theirs = both(tmp_path / "sparse.onnx")
    claims = engine_use(ours).claims
    assert claims is not None
    assert not [left for left in claims.left if left.op == "MatMul"], claims.describe()
    for batch, length in ((1, 1), (3, 33), (8, 40)):
        feed = feed_of(batch, length)
        found, expected = ours.run(None, feed)[0], theirs.run(None, feed)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_graph_without_any_product(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "plain (float[n, 8] x, float[8] s) => (float[n, 8] y) { r = Relu(x)  y = Mul(r, s) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "plain.onnx")
    opened = session(tmp_path / "plain.onnx", engine="obert")
    claims = engine_use(opened).claims
    assert claims is not None
    assert (claims.claimed, claims.left) == (0, ())
    x = np.ones((3, 8), np.float32)
    assert np.array_equal(opened.run(None, {"x": x, "s": x[0]})[0], x)


def test_products_inside_a_branch(tmp_path: Path) -> None:
    """Subgraphs are offered to the engine too; whatever it takes, the result is the same."""
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    branch (bool c, float[n, 2] x) => (float[n, 2] y)
    <float[2, 2] w = {1.0, 0.0, 0.0, 2.0}>
    {
        y = If (c) <
            then_branch = yes () => (float[n, 2] a) { a = MatMul(x, w) },
            else_branch = no () => (float[n, 2] b) { b = Identity(x) }
        >
    }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "branch.onnx")
    x = np.array([[1.0, 2.0]], np.float32)
    opened = session(tmp_path / "branch.onnx", engine="obert")
    assert opened.run(None, {"c": np.array(True), "x": x})[0].tolist() == [[1.0, 4.0]]
    assert opened.run(None, {"c": np.array(False), "x": x})[0].tolist() == [[1.0, 2.0]]


def _product(file: Path, inputs: int, outputs: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Write x -> Q -> DQ -> MatMul -> Add with scales that are powers of two: all of it is exact.

    ``kind``: types of activations and weights. Returns x [7, inputs], full of codes at the ends of
    their range, and the exact result.
    """
    rng = np.random.default_rng(inputs * outputs)
    low, activation = (-128, np.int8) if kind.startswith("s8") else (0, np.uint8)
    zero = int(rng.integers(low, low + 256))
    codes = rng.choice([low, low + 255, zero, low + 77], (7, inputs))
    low_w, weight = (0, np.uint8) if kind.endswith("u8") else (-128, np.int8)
    zeros_w = (
        rng.integers(low_w, low_w + 256, outputs) if kind.endswith("u8") else np.zeros(outputs)
    )
    w = rng.choice([low_w, low_w + 255, low_w + 128], (inputs, outputs), p=[0.3, 0.3, 0.4])
    scale_x, scale_w = 2.0**-4, 2.0 ** -rng.integers(3, 6, outputs).astype(np.float64)
    exact = (codes - zero) @ (w - zeros_w) * (scale_x * scale_w)
    bias = rng.integers(-50, 50, outputs).astype(np.float64)
    constants = {
        "sx": np.float32(scale_x),
        "zx": activation(zero),
        "w": w.astype(weight),
        "sw": scale_w.astype(np.float32),
        "zw": zeros_w.astype(weight),
        "bias": bias.astype(np.float32),
    }
    node = onnx.helper.make_node
    value = onnx.helper.make_tensor_value_info
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
        node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=1),
        node("MatMul", ["d", "dw"], ["p"]),
        node("Add", ["p", "bias"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "product",
        [value("x", onnx.TensorProto.FLOAT, ["n", inputs])],
        [value("y", onnx.TensorProto.FLOAT, ["n", outputs])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), file)
    return ((codes - zero) * scale_x).astype(np.float32), (exact + bias).astype(np.float32)


def test_integer_products_are_exact_on_every_instruction_set(tmp_path: Path, answers: Any) -> None:
    """Codes at the ends of their ranges, where 16-bit sums would saturate: bit for bit."""
    work, exact, what = [], [], []
    for kind in ("u8 s8", "s8 s8", "u8 u8"):
        for inputs, outputs in ((1, 1), (3, 5), (64, 33), (257, 130), (480, 3)):
            file = tmp_path / f"{kind} {inputs} {outputs}.onnx"
            x, y = _product(file, inputs, outputs, kind)
            work.append((file, {"x": x}))
            exact.append(y)
            what.append(file.stem)
    for isa, found in answers(work).items():
        wrong = [w for w, a, b in zip(what, found, exact, strict=True) if not np.array_equal(a, b)]
        assert wrong == [], isa


@pytest.mark.parametrize("kind", ["u8 s8", "s8 s8"])
def test_numbers_that_are_none(kind: str, tmp_path: Path, both: Callable[..., Pair]) -> None:
    """NaN, infinities, denormals and the largest floats take the codes that ONNX Runtime gives."""
    x, _ = _product(tmp_path / "product.onnx", 8, 5, kind)
    x[1, 3], x[2, 0], x[3, 1], x[4], x[5] = np.nan, np.inf, -np.inf, 1e-42, 3e38
    ours, theirs = both(tmp_path / "product.onnx")
    assert np.array_equal(ours.run(None, {"x": x})[0], theirs.run(None, {"x": x})[0])
