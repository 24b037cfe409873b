"""Every row of the operator table against the ONNX reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from obert_compiler.backends.torch import to_module
from obert_compiler.backends.torch.operators import OPERATORS
from obert_compiler.graph import Graph, Source

Array = npt.NDArray[Any]


def _floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _ints(*shape: int, low: int = -9, high: int = 10, dtype: Any = np.int64) -> Array:
    drawn = np.random.default_rng(len(shape)).integers(low, high, shape)
    return drawn.astype(dtype)


def _bools(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape) > 0.5


def _list(*values: int) -> Array:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One node: its inputs, which of them are initializers, and its attributes.

    Attributes:
        op: op type.
        inputs: arrays, None for a missing optional input.
        fixed: positions of inputs that are initializers.
        attributes: of the node.
        outputs: number of outputs.
        opset: version of the default domain.
        by_runtime: compare with onnxruntime, where the reference implementation is wrong.
    """

    op: str
    inputs: Sequence[Array | None]
    fixed: tuple[int, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 21
    by_runtime: bool = False

    def __str__(self) -> str:
        shapes = ",".join("-" if i is None else f"{i.dtype}{list(i.shape)}" for i in self.inputs)
        options = ",".join(f"{k}={v}" for k, v in self.attributes.items() if k != "value")
        return f"{self.op}({shapes}){options}".replace(" ", "")


def _model(case: Case, fixed: Sequence[int], dynamic_shapes: bool) -> onnx.ModelProto:
    names = ["" if array is None else f"in{i}" for i, array in enumerate(case.inputs)]
    outputs = [f"out{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="the_node", **case.attributes)
    inputs, initializers = [], []
    for i, array in enumerate(case.inputs):
        if array is None:
            continue
        if i in fixed:
            initializers.append(numpy_helper.from_array(array, names[i]))
        else:
            shape = [f"d{i}_{a}" for a in range(array.ndim)] if dynamic_shapes else array.shape
            element = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(names[i], element, shape))
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "g", inputs, results, initializers)
    imports = [helper.make_opsetid("", case.opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _run(model: onnx.ModelProto, case: Case) -> list[Array]:
    graph = Graph(ir.from_proto(model), Source("onnx"))
    names = {value.name for value in graph.model.graph.inputs}
    feed = {
        f"in{i}": torch.from_numpy(np.array(a))
        for i, a in enumerate(case.inputs)
        if a is not None and f"in{i}" in names
    }
    results = to_module(graph)(**feed)
    return [results[f"out{i}"].detach().numpy() for i in range(case.outputs)]


def _check(case: Case) -> None:
    model = _model(case, case.fixed, dynamic_shapes=False)
    feed = {f"in{i}": a for i, a in enumerate(case.inputs) if a is not None and i not in case.fixed}
    if case.by_runtime:
        expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)
    else:
        expected = ReferenceEvaluator(model).run(None, feed)
    everything = tuple(range(len(case.inputs)))
    # As given, with unknown shapes, and with every input a constant, so that the node folds.
    for fixed, dynamic in ((case.fixed, False), (case.fixed, True), (everything, False)):
        found = _run(_model(case, fixed, dynamic), case)
        for want, got in zip(expected, found, strict=True):
            assert got.shape == want.shape
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


_UNIT = np.linspace(-0.95, 0.95, 12, dtype=np.float32).reshape(3, 4)
_POSITIVE = np.abs(_floats(3, 4)) + 1.1

ELEMENTWISE = [
    *(Case(op, [_UNIT]) for op in ("Acos", "Asin", "Atan", "Atanh", "Cos", "Cosh", "Erf", "Exp")),
    *(Case(op, [_UNIT * 3]) for op in ("Ceil", "Floor", "Neg", "Abs", "Relu", "Round", "Sigmoid")),
    *(Case(op, [_UNIT * 3]) for op in ("Sign", "Sin", "Sinh", "Tan", "Tanh", "Asinh", "Softplus")),
    *(Case(op, [_UNIT * 4]) for op in ("Softsign", "HardSwish", "HardSigmoid", "Elu", "Selu")),
    *(Case(op, [_UNIT * 4], (), {"alpha": 0.3}) for op in ("Celu", "LeakyRelu")),
    *(Case(op, [_POSITIVE]) for op in ("Acosh", "Log", "Reciprocal", "Sqrt")),
    Case("ThresholdedRelu", [_UNIT * 4], (), {"alpha": 0.7}),
    Case("Mish", [_UNIT * 4], opset=22),
    Case("Swish", [_UNIT * 4], (), {"alpha": 0.7}, opset=24),
    Case("Round", [np.array([0.5, 1.5, -2.5, 2.4], np.float32)]),
    Case("PRelu", [_floats(2, 3, 4), _floats(3, 1)], (1,)),
    Case("Gelu", [_floats(3, 4)]),
    Case("Gelu", [_floats(3, 4)], (), {"approximate": "tanh"}),
    Case("Softmax", [_floats(2, 3, 4)], (), {"axis": 1}),
    Case("LogSoftmax", [_floats(2, 3, 4)]),
    Case("IsNaN", [np.array([1, np.nan, np.inf], np.float32)]),
    Case("IsInf", [np.array([1, np.nan, np.inf, -np.inf], np.float32)]),
    Case("IsInf", [np.array([np.inf, -np.inf], np.float32)], (), {"detect_negative": 0}),
    Case("Not", [_bools(3, 4)]),
    Case("BitwiseNot", [_ints(3, 4, dtype=np.int32)]),
    *(Case(op, [_bools(3, 4), _bools(4, seed=1)]) for op in ("And", "Or", "Xor")),
    *(Case(op, [_floats(3, 4), _floats(4, seed=1)]) for op in ("Add", "Sub", "Mul", "Div")),
    *(Case(op, [_floats(3, 4), np.float32(0.7)], (1,)) for op in ("Add", "Sub", "Mul", "Div")),
    *(Case(op, [np.float32(0.7), _floats(3, 4)], (0,)) for op in ("Add", "Sub", "Mul", "Div")),
    Case("Div", [_ints(5, 7), np.int64(-3)], (1,)),
    Case("Div", [np.int64(-7), _ints(5, 7, low=1)], (0,)),
    Case("Div", [_ints(5, 7, dtype=np.int32), _ints(7, low=1, dtype=np.int32)]),
    Case("Mod", [_ints(5, 7), np.int64(-3)], (1,)),
    Case("Mod", [_ints(5, 7), np.int64(-3)], (1,), {"fmod": 1}),
    Case("Mod", [_floats(5, 7), np.float32(0.3)], (1,), {"fmod": 1}),
    Case("Pow", [_POSITIVE, np.float32(2)], (1,)),
    Case("Pow", [_POSITIVE, _floats(4)]),
    Case("Pow", [_ints(3, 4, low=1), np.array([1.0, 2.0, 2.0, 0.5], np.float32)]),
    *(Case(op, [_ints(3, 4), np.int64(2)], (1,)) for op in ("Equal", "Greater", "GreaterOrEqual")),
    *(Case(op, [_floats(3, 4), np.float32(0.1)], (1,)) for op in ("Less", "LessOrEqual")),
    Case("Max", [_floats(3, 4), _floats(4, seed=1), np.float32(0.2)], (2,)),
    Case("Min", [_ints(3, 4), _ints(4, low=0)]),
    Case("Sum", [_floats(3, 4), _floats(4, seed=1), _floats(3, 1)]),
    Case("Mean", [_floats(3, 4), _floats(4, seed=1)]),
    Case("Where", [_bools(3, 4), np.float32(0), np.float32(-1e9)], (1, 2)),
    Case("Where", [_bools(3, 1), _ints(3, 4), np.int64(7)], (2,)),
    Case("Clip", [_floats(3, 4), np.float32(-0.5), np.float32(0.5)], (1, 2)),
    Case("Clip", [_floats(3, 4), None, np.float32(0.5)]),
    Case("Clip", [_ints(3, 4), np.int64(0), np.int64(5)], (1,)),
    *(
        Case(op, [_ints(3, 4, low=0, high=255, dtype=dtype), dtype(15)], (1,))
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
        for dtype in (np.uint8, np.int32, np.uint32)
    ),
    *(
        Case(
            "BitShift", [_ints(3, 4, low=0, high=99, dtype=dtype), dtype(3)], (1,), {"direction": d}
        )
        for d in ("LEFT", "RIGHT")
        for dtype in (np.uint8, np.uint16, np.uint64)
    ),
]

SHAPES = [
    Case("Shape", [_floats(2, 3, 4)]),
    Case("Shape", [_floats(2, 3, 4)], (), {"start": -2, "end": 3}),
    Case("Size", [_floats(2, 3, 4)]),
    Case("Identity", [_floats(2, 3)]),
    Case("Dropout", [_floats(2, 3)]),
    Case("Constant", [], (), {"value": numpy_helper.from_array(_floats(2, 3))}),
    Case("Constant", [], (), {"value_ints": [1, 2]}),
    Case("Constant", [], (), {"value_float": 2.5}),
    Case("Cast", [_floats(3, 4) * 5], (), {"to": onnx.TensorProto.INT64}),
    Case("Cast", [_ints(3, 4)], (), {"to": onnx.TensorProto.FLOAT}),
    Case("Cast", [_ints(3, 4, low=-1, high=2)], (), {"to": onnx.TensorProto.BOOL}),
    Case("CastLike", [_ints(3, 4), _floats(1)]),
    Case("Reshape", [_floats(2, 3, 4), _list(0, -1)], (1,)),
    Case("Reshape", [_floats(2, 3, 4), _list(4, 3, 2)]),
    Case("Reshape", [_floats(0, 3), _list(3, 0)], (1,), {"allowzero": 1}),
    Case("Flatten", [_floats(2, 3, 4)], (), {"axis": 2}),
    Case("Flatten", [_floats(2, 3, 4)], (), {"axis": 0}),
    Case("Expand", [_floats(3, 1), _list(2, 1, 6)], (1,)),
    Case("Expand", [_floats(2, 3, 4), _list(1)]),
    Case("Tile", [_floats(2, 3), _list(2, 3)], (1,)),
    Case("Transpose", [_floats(2, 3, 4)]),
    Case("Transpose", [_floats(2, 3, 4)], (), {"perm": [1, 2, 0]}),
    Case("Squeeze", [_floats(1, 3, 1, 4)]),
    Case("Squeeze", [_floats(1, 3, 1, 4), _list(-2)], (1,)),
    Case("Unsqueeze", [_floats(3, 4), _list(-1, 0)], (1,)),
    Case("Unsqueeze", [_floats(3, 4), _list(1)], (1,)),
    Case("Concat", [_floats(2, 3), _floats(2, 1), _floats(2, 2)], (1,), {"axis": -1}),
    Case("Split", [_floats(7, 2), _list(3, 4)], (1,), outputs=2),
    Case("Split", [_floats(2, 7)], (), {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Slice", [_floats(5, 6), _list(1), _list(2**63 - 1)], (1, 2)),
    Case("Slice", [_floats(5, 6), _list(-4, 5), _list(-1, -(2**62)), _list(0, 1), _list(2, -2)]),
    Case("Slice", [_floats(5, 6), _list(0), _list(3), _list(-1)], (1, 2, 3)),
    Case("Pad", [_floats(3, 4), _list(1, 0, 0, 2)], (1,)),
    Case("Pad", [_floats(3, 4), _list(1, 2), np.float32(7), _list(1)], (1, 2, 3)),
    *(
        Case("Pad", [_floats(3, 4), _list(1, 2, 2, 1)], (1,), {"mode": mode})
        for mode in ("edge", "reflect", "wrap")
    ),
    Case("ConstantOfShape", [_list(2, 3)]),
    Case("ConstantOfShape", [_list(2)], (0,), {"value": numpy_helper.from_array(_list(-1))}),
    Case("Range", [np.int64(2), np.int64(9), np.int64(3)]),
    Case("Range", [np.float32(1), np.float32(3), np.float32(0.5)]),
]

INDEXING = [
    Case("Gather", [_floats(5, 4), _ints(2, 3, low=-5, high=5)], (0,)),
    Case("Gather", [_floats(5, 4), np.int64(-1)], (1,), {"axis": 1}),
    Case("Gather", [_floats(2, 5, 4), _ints(2, 3, low=0, high=5)], (), {"axis": 1}),
    Case("Gather", [_ints(5, 4, dtype=np.uint8, low=0), _ints(3, low=0, high=5)], (0,)),
    Case("GatherElements", [_floats(4, 5), _ints(4, 3, low=-5, high=5)], (), {"axis": 1}),
    Case("GatherND", [_floats(3, 4, 5), _ints(2, 2, low=-3, high=3)]),
    Case("GatherND", [_floats(3, 4, 5), _ints(3, 2, 1, low=0, high=4)], (), {"batch_dims": 1}),
    *(
        Case(
            "ScatterElements",
            [_floats(4, 5), np.array([[0, -1], [2, 1]]), _floats(2, 2, seed=1)],
            (),
            {"axis": 1, "reduction": reduction},
            opset=18,
        )
        for reduction in ("none", "add", "mul", "max", "min")
    ),
    *(
        Case(
            "ScatterND",
            [_floats(4, 5), np.array([[0], [-1], [1]]), _floats(3, 5, seed=1)],
            (),
            {"reduction": reduction},
            opset=18,
        )
        for reduction in ("none", "add", "mul", "max", "min")
    ),
    Case("ScatterND", [_floats(4, 5), np.array([[0, 1], [3, 4]]), _floats(2, seed=1)], (1,)),
    Case("NonZero", [_ints(3, 4, low=0, high=2)]),
    Case("Compress", [_floats(3, 4), np.array([True, False, True])], (), {"axis": 1}),
    Case("Compress", [_floats(2, 2), np.array([True, False, True])]),
    Case("OneHot", [_ints(3, low=-4, high=4), np.int64(4), _floats(2)], (1,)),
    Case("OneHot", [_ints(2, 3, low=0, high=4), np.int64(4), _list(0, 1)], (1, 2), {"axis": 1}),
    Case("TopK", [_ints(3, 6, low=0, high=4), _list(3)], (1,), outputs=2),
    Case("TopK", [_floats(6, 3), _list(2)], (1,), {"axis": 0, "largest": 0}, outputs=2),
    *(
        Case(op, [_ints(4, 6, low=0, high=3)], (), {"axis": 1, "keepdims": 0, **last})
        for op in ("ArgMax", "ArgMin")
        for last in ({}, {"select_last_index": 1})
    ),
    Case("Trilu", [_floats(4, 5), np.int64(1)], (1,)),
    Case("Trilu", [_floats(2, 4, 5)], (), {"upper": 0}),
    Case("EyeLike", [_floats(3, 4)], (), {"k": 1}),
    Case("ReverseSequence", [_floats(4, 3), _list(1, 4, 2)]),
]

REDUCTIONS = [
    *(
        Case(op, [_POSITIVE.reshape(3, 2, 2), axes], (1,), {"keepdims": keep})
        for op in sorted(op for op in OPERATORS if op.startswith("Reduce"))
        for axes, keep in ((_list(-1, 0), 1), (_list(1), 0))
    ),
    Case("ReduceSum", [_floats(3, 4)]),
    Case("ReduceSum", [_floats(3, 4)], (), {"noop_with_empty_axes": 1}),
    Case("ReduceSum", [_ints(3, 4, dtype=np.int32), _list(1)], (1,)),
    Case("ReduceMax", [_ints(3, 4), _list(0)], (1,)),
    Case("ReduceMean", [_floats(3, 4), _list(-1)]),
    *(
        Case("CumSum", [_ints(3, 4, dtype=np.int32), np.int64(1)], (1,), options)
        for options in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1})
    ),
]

PRODUCTS = [
    Case("MatMul", [_floats(2, 3, 4), _floats(2, 4, 5)]),
    Case("MatMul", [_floats(4), _floats(4, 5)], (1,)),
    Case("MatMul", [_floats(3, 4), _floats(4)]),
    Case("Gemm", [_floats(3, 4), _floats(5, 4), _floats(5)], (1, 2), {"transB": 1}),
    Case("Gemm", [_floats(3, 4), _floats(4, 5), _floats(5)], (1, 2), {"beta": 0.5}),
    Case("Gemm", [_floats(4, 3), _floats(4, 5), _floats(1)], (1, 2), {"transA": 1, "alpha": 2.0}),
    Case("Gemm", [_floats(3, 4), _floats(4, 5), _floats(3, 5)]),
    Case("Einsum", [_floats(2, 3, 4), _floats(2, 5, 4)], (), {"equation": "bid,bjd->bij"}),
    Case(
        "MatMulInteger",
        [
            _ints(3, 4, low=0, high=255, dtype=np.uint8),
            _ints(4, 5, dtype=np.int8),
            np.uint8(7),
            np.int8(0),
        ],
        (1, 2, 3),
    ),
]

NORMALISATIONS = [
    Case("LayerNormalization", [_floats(2, 3, 4), _floats(4, seed=1), _floats(4, seed=2)], (1, 2)),
    Case("LayerNormalization", [_floats(2, 3, 4), _floats(3, 4)], (), {"axis": 1}),
    Case("LayerNormalization", [_floats(2, 3, 4), _floats(4), _floats(4)], (1, 2), outputs=3),
    Case("RMSNormalization", [_floats(2, 3, 4), _floats(4, seed=1)], (1,), opset=23),
    Case(
        "BatchNormalization",
        [_floats(2, 3, 4, 4), _floats(3), _floats(3, seed=1), _floats(3, seed=2), _POSITIVE[0, :3]],
        (1, 2, 3, 4),
    ),
    Case("InstanceNormalization", [_floats(2, 3, 4, 4), _floats(3), _floats(3, seed=1)], (1, 2)),
    Case(
        "GroupNormalization",
        [_floats(2, 4, 3), _floats(4), _floats(4, seed=1)],
        (1, 2),
        {"num_groups": 2},
    ),
    Case("LpNormalization", [_floats(3, 4)], (), {"axis": 1, "p": 2}),
]

_LEVELS = _ints(3, 4, low=0, high=255, dtype=np.uint8)
QUANTISATION = [
    Case("QuantizeLinear", [_floats(3, 4) * 9, np.float32(0.05), np.uint8(128)], (1, 2)),
    Case("QuantizeLinear", [_floats(3, 4), _POSITIVE[0] / 50, np.zeros(4, np.int8)], (1, 2)),
    Case("DequantizeLinear", [_LEVELS, np.float32(0.05), np.uint8(128)], (1, 2)),
    Case("DequantizeLinear", [_LEVELS, _POSITIVE[:3, 0], _LEVELS[:, 0]], (), {"axis": 0}),
    Case(
        "DequantizeLinear",
        [_LEVELS, _POSITIVE[:, :2].copy(), _LEVELS[:, :2].copy()],
        (),
        {"axis": 1, "block_size": 2},
    ),
    Case("DynamicQuantizeLinear", [_floats(3, 4)], outputs=3),
]

_IMAGE = _floats(2, 3, 8, 7)
CONVOLUTIONS = [
    Case("Conv", [_IMAGE, _floats(4, 3, 3, 3), _floats(4)], (1, 2), {"pads": [1, 1, 1, 1]}),
    Case("Conv", [_IMAGE, _floats(4, 3, 3, 2)], (1,), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    Case("Conv", [_IMAGE, _floats(6, 1, 3, 3)], (1,), {"group": 3, "dilations": [2, 1]}),
    Case(
        "Conv", [_IMAGE, _floats(4, 3, 3, 3)], (1,), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    ),
    Case("Conv", [_floats(2, 3, 9), _floats(4, 3, 3)], (1,), {"auto_pad": "SAME_LOWER"}),
    Case("ConvTranspose", [_IMAGE, _floats(3, 2, 3, 3)], (1,), {"strides": [2, 2]}),
    Case("ConvTranspose", [_IMAGE, _floats(3, 2, 3, 3)], (1,), {"pads": [1, 0, 1, 2]}),
    Case("MaxPool", [_IMAGE], (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", [_IMAGE], (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [_IMAGE], (), {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]}, by_runtime=True),
    Case("AveragePool", [_IMAGE], (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", [_IMAGE], (), {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0]}),
    Case(
        "AveragePool",
        [_IMAGE],
        (),
        {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "count_include_pad": 1},
    ),
    Case("GlobalAveragePool", [_IMAGE]),
    Case("GlobalMaxPool", [_IMAGE]),
]

_Q, _K, _V = _floats(2, 5, 8), _floats(2, 6, 8, seed=1), _floats(2, 6, 8, seed=2)
_HEADS = {"q_num_heads": 2, "kv_num_heads": 2}
_ANGLES = _floats(2, 5, 2, seed=3)
ATTENTION = [
    Case("Attention", [_Q, _K, _V], (), _HEADS, opset=23),
    Case("Attention", [_Q, _K, _V, _floats(5, 6)], (), {**_HEADS, "scale": 0.3}, opset=23),
    Case("Attention", [_Q, _K, _V, _bools(5, 6) | True], (), {**_HEADS, "softcap": 2.0}, opset=23),
    Case("Attention", [_Q, _Q, _Q], (), {**_HEADS, "is_causal": 1}, opset=23),
    Case(
        "Attention",
        [_floats(2, 4, 5, 8), _floats(2, 2, 6, 8, seed=1), _floats(2, 2, 6, 8, seed=2)],
        opset=23,
    ),
    *(
        Case(
            "RotaryEmbedding",
            [_floats(2, 3, 5, 4), np.cos(_ANGLES), np.sin(_ANGLES)],
            (),
            {"interleaved": interleaved},
            opset=23,
        )
        for interleaved in (0, 1)
    ),
    Case(
        "RotaryEmbedding",
        [
            _floats(2, 5, 12),
            np.cos(_floats(9, 1)),
            np.sin(_floats(9, 1)),
            _ints(2, 5, low=0, high=9),
        ],
        (1, 2),
        {"num_heads": 3, "rotary_embedding_dim": 2},
        opset=23,
    ),
]

CASES = [
    *ELEMENTWISE,
    *SHAPES,
    *INDEXING,
    *REDUCTIONS,
    *PRODUCTS,
    *NORMALISATIONS,
    *QUANTISATION,
    *CONVOLUTIONS,
    *ATTENTION,
]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_row_agrees_with_the_reference(case: Case) -> None:
    _check(case)


def test_every_row_has_a_case() -> None:
    # SimplifiedLayerNormalization and Scatter are older names of rows that are tested.
    older = {"SimplifiedLayerNormalization", "Scatter"}
    assert set(OPERATORS) - older == {case.op for case in CASES}
