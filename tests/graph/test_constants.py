"""Reading constants behind whatever chain of nodes, against onnxruntime."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.errors import GraphError
from obert_compiler.graph.constants import constant_nodes, is_constant, read_constant

RNG = np.random.default_rng(1)
INT8 = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
UINT8 = RNG.integers(0, 256, (6, 4)).astype(np.uint8)


def scales(*shape: int) -> np.ndarray:
    """Positive float32."""
    return RNG.random(shape).astype(np.float32) + 0.1


CHAINS = {
    "initializer": ("", {"c": scales(2, 3)}),
    "transpose": ("c = Transpose<perm=[1,0]>(w)", {"w": scales(2, 3)}),
    "transpose without perm": ("c = Transpose(w)", {"w": scales(2, 3, 4)}),
    "identity": ("c = Identity(w)", {"w": scales(2)}),
    "per tensor": ("c = DequantizeLinear(q, s, z)", {"q": INT8, "s": scales(), "z": np.int8(3)}),
    "per row": ("c = DequantizeLinear<axis=0>(q, s)", {"q": INT8, "s": scales(6)}),
    "per column": (
        "c = DequantizeLinear(q, s, z)",
        {"q": UINT8, "s": scales(4), "z": np.arange(4, dtype=np.uint8)},
    ),
    "negative axis": ("c = DequantizeLinear<axis=-1>(q, s)", {"q": INT8, "s": scales(4)}),
    "blocks": ("c = DequantizeLinear<axis=0, block_size=3>(q, s)", {"q": INT8, "s": scales(2, 4)}),
    "ragged blocks": (
        "c = DequantizeLinear<axis=0, block_size=4>(q, s)",
        {"q": INT8, "s": scales(2, 4)},
    ),
    "one row per column": (
        "c = DequantizeLinear<axis=0>(q, s)",
        {"q": INT8[:1], "s": scales(1)},
    ),
    "dequantised and transposed": (
        "d = DequantizeLinear<axis=1>(q, s) c = Transpose(d)",
        {"q": INT8, "s": scales(4)},
    ),
    "reshaped as it was": (
        "t = Expand(o, two) r = Reshape(q, t) k = Cast<to=7>(r) c = Cast<to=1>(k)",
        {"q": UINT8, "o": np.int64(0), "two": np.array([2])},
    ),
    "reshaped to one open and one copied dimension": (
        "r = Reshape(q, t) c = Cast<to=1>(r)",
        {"q": INT8, "t": np.array([0, -1, 2])},
    ),
    "any standard op": (
        "d = Cast<to=1>(q) e = Mul(d, s) f = ReduceSum<keepdims=0>(e) c = Add(e, f)",
        {"q": INT8, "s": scales(4)},
    ),
    "quantised by one scale": (
        "f = DequantizeLinear(q, s) a = Abs(f) b = Add(a, t) k = QuantizeLinear(b, u) "
        "c = Cast<to=1>(k)",
        {"q": INT8, "s": scales(), "t": scales(4), "u": scales()},
    ),
    "quantised to another type": (
        "k = QuantizeLinear<output_dtype=3>(w, s) c = Cast<to=1>(k)",
        {"w": scales(4) - np.float32(0.5), "s": np.float32(0.01)},
    ),
    "quantised by row": (
        "k = QuantizeLinear<axis=0>(w, s, z) c = Cast<to=1>(k)",
        {"w": scales(2, 4), "s": scales(2), "z": np.arange(2, dtype=np.uint8)},
    ),
    "several outputs": ("a, c = Split<axis=1, num_outputs=2>(q)", {"q": INT8}),
}


def constant_of(body: str, weights: dict[str, np.ndarray]) -> tuple[ir.Value, ir.Model]:
    """The value ``c`` that ``body`` makes from ``weights``, and a model that returns it."""
    nodes = f"{{ {body} y = Identity(c) }}"
    text = f'<ir_version: 10, opset_import: ["" : 21]> g () => (float[?] y) {nodes}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    model.graph.outputs[0].shape = None
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        tensor = ir.tensor(np.asarray(array), name=name)
        value.const_value, value.shape, value.dtype = tensor, tensor.shape, tensor.dtype
        model.graph.register_initializer(value)
    last = model.graph.outputs[0].producer()
    assert last is not None
    value = last.inputs[0]
    assert value is not None
    return value, model


@pytest.mark.parametrize("chain", CHAINS)
def test_read_equals_onnxruntime(chain: str) -> None:
    value, model = constant_of(*CHAINS[chain])
    proto = ir.to_proto(model)
    if chain == "several outputs":
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    options = onnxruntime.SessionOptions()
    # As written: before 1.32 the optimiser aborts on a transposed DequantizeLinear with an axis.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    expected = session.run(None, {})[0]
    got = read_constant(value)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_four_bit_blocks() -> None:
    packed = RNG.integers(-8, 8, (4, 6)).astype(ml_dtypes.int4)
    scale = scales(4, 3)
    value, _ = constant_of(
        "c = DequantizeLinear<axis=1, block_size=2>(q, s)", {"q": packed, "s": scale}
    )
    expected = packed.astype(np.float32) * np.repeat(scale, 2, axis=1)
    np.testing.assert_allclose(read_constant(value), expected)


def test_nodes_come_in_topological_order_once() -> None:
    value, _ = constant_of("a = Neg(w) b = Add(a, a) c = Mul(b, a)", {"w": scales(2)})
    nodes = constant_nodes(value)
    assert nodes is not None
    assert [node.op_type for node in nodes] == ["Neg", "Add", "Mul"]


def test_what_an_input_changes_is_no_constant() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    output = model.graph.outputs[0]
    assert not is_constant(output)
    with pytest.raises(GraphError, match="'y': expected a constant"):
        read_constant(output)
