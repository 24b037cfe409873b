"""Graphs with something changed: the engine refuses them with a reason, leaves them, or runs them.

Each graph is opened in another process, so that a crash is a failed test with the graph at hand.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LARGEST = 0.05
"""See `conftest`."""

OPENER = Path(__file__).with_name("opener.py")

OPS = (
    *("MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Softmax", "LayerNormalization", "Erf", "Gelu"),
    *("Relu", "Tanh", "Sigmoid", "QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape"),
    *("Identity", "Gather", "Slice", "Concat", "Unsqueeze", "Cast", "Flatten"),
)
NUMBERS = (0, 1, -1, 2, 3, 4, 7, 127, -128, 255, 2**31 - 1, -(2**31), 2**62, -(2**62))


class Opener:
    """The process that opens models; a new one after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, model: onnx.ModelProto) -> dict[str, Any]:
        """What became of ``model``."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, str(OPENER)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        payload = model.SerializeToString()
        self._process.stdin.write(struct.pack("<Q", len(payload)) + payload)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


@pytest.fixture(scope="module")
def opener() -> Iterator[Opener]:
    """One process for all examples."""
    process = Opener()
    yield process
    process.close()


def mutate(model: onnx.ModelProto, what: int, where: int, how: int) -> None:
    """Change one thing of ``model``; the numbers pick what, where and how."""
    graph = model.graph
    node = graph.node[where % len(graph.node)]
    values = [o for n in graph.node for o in n.output] + [i.name for i in graph.initializer]
    other = values[how % len(values)]
    match what % 9:
        case 0:
            node.op_type = OPS[how % len(OPS)]
        case 1 if node.input:
            node.input[how % len(node.input)] = other
        case 2:
            graph.node.remove(node)
        case 3 if len(node.input) > 1:
            node.input[0], node.input[1] = node.input[1], node.input[0]
        case 4 if node.attribute:
            _change_attribute(node.attribute[how % len(node.attribute)], how)
        case 5:
            _change_shape(graph.initializer[where % len(graph.initializer)], how)
        case 6:
            _change_numbers(graph.initializer[where % len(graph.initializer)], how)
        case 7 if node.attribute:
            del node.attribute[how % len(node.attribute)]
        case 8:
            graph.output.add().name = other


def _change_attribute(attribute: onnx.AttributeProto, how: int) -> None:
    number = NUMBERS[how % len(NUMBERS)]
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = number
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = (float("nan"), float("inf"), 0.0, -1.0, 1e-45, 1e30)[how % 6]
    elif attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        attribute.ints[how % len(attribute.ints)] = number
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = b"tanh"


def _change_shape(tensor: onnx.TensorProto, how: int) -> None:
    if len(tensor.dims) == 0:
        tensor.dims.append(1)
    elif how % 4 == 0:
        tensor.dims[how % len(tensor.dims)] = NUMBERS[how % len(NUMBERS)]
    elif how % 4 == 1:
        tensor.dims.append(1)
    elif how % 4 == 2:
        dims = list(tensor.dims)[::-1]
        del tensor.dims[:]
        tensor.dims.extend(dims)
    else:
        tensor.data_type = (1, 2, 3, 6, 7, 10, 11)[how % 7]


def _change_numbers(tensor: onnx.TensorProto, how: int) -> None:
    array = onnx.numpy_helper.to_array(tensor).copy()
    if array.size == 0:
        return
    if array.dtype.kind == "f":
        array.flat[how % array.size] = (np.nan, np.inf, 0.0, -1.0, 1e-45, 3e38)[how % 6]
    elif array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        array.flat[how % array.size] = (info.min, info.max, 0, 1, 5)[how % 5]
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


@pytest.fixture(scope="module")
def packed(compiled: Callable[[str, str], Path]) -> bytes:
    """A packed BERT: embeddings, unpacking chains, attention, quantisation, a head in float."""
    return compiled("bert", "sequence").read_bytes()


CHANGE = st.tuples(st.integers(0, 8), st.integers(0, 10_000), st.integers(0, 10_000))


@given(changes=st.lists(CHANGE, min_size=1, max_size=3))
@settings(
    max_examples=100,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_changed_graphs(changes: list[tuple[int, int, int]], packed: bytes, opener: Opener) -> None:
    """No crash, and nothing loads with the engine that ONNX Runtime alone refuses."""
    model = onnx.load_from_string(packed)
    for change in changes:
        mutate(model, *change)
    folded = opener.open(model)
    for answer in (folded, folded["packed"] or folded):
        if answer["alone"].startswith("refused"):
            assert answer["engine"].startswith("refused")
        else:
            assert not answer["engine"].startswith("refused"), answer


def _packed_parts(model: onnx.ModelProto) -> dict[str, Any]:
    """The chain of the first packed matrix, by op, and its initializers."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    scatter = next(node for node in model.graph.node if node.op_type == "ScatterND")
    total = makers[scatter.input[1]]
    steps = makers[total.input[0]]
    shape = next(n for n in model.graph.node if scatter.output[0] in n.input)
    zeros = makers[scatter.input[0]]
    return {
        "scatter": scatter,
        "sum": total,
        "steps": steps,
        "reshape": shape,
        "zeros": zeros,
        "gaps": stored[steps.input[0]],
        "values": stored[scatter.input[2]],
        "blocks": stored[zeros.input[0]],
    }


def _set(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def _too_far(parts: dict[str, Any]) -> None:
    gaps = onnx.numpy_helper.to_array(parts["gaps"])
    _set(parts["gaps"], np.full_like(gaps, 15))


def _too_many_gaps(parts: dict[str, Any]) -> None:
    gaps = onnx.numpy_helper.to_array(parts["gaps"])
    _set(parts["gaps"], np.concatenate([gaps, gaps * 0]))


def _too_many_values(parts: dict[str, Any]) -> None:
    values = onnx.numpy_helper.to_array(parts["values"])
    _set(parts["values"], np.concatenate([values, values[:1]]))


def _no_values(parts: dict[str, Any]) -> None:
    values = onnx.numpy_helper.to_array(parts["values"])
    _set(parts["values"], values[:0])


def _twice(parts: dict[str, Any]) -> None:
    gaps = onnx.numpy_helper.to_array(parts["gaps"]).copy()
    gaps[0], gaps[1] = 0, 0
    _set(parts["gaps"], gaps)


def _blocks(number: int) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        blocks = onnx.numpy_helper.to_array(parts["blocks"])
        _set(parts["blocks"], np.array([number, blocks[1]], np.int64))

    return change


CHAINS: dict[str, Callable[[dict[str, Any]], None]] = {
    "places beyond the end": _too_far,
    "more gaps than values": _too_many_gaps,
    "more values than gaps": _too_many_values,
    "no values": _no_values,
    "two blocks at one place": _twice,
    "too few blocks": _blocks(3),
    "a negative number of blocks": _blocks(-4),
    "more blocks than memory": _blocks(2**40),
    "blocks among ones": lambda parts: _attribute(
        parts["zeros"], "value", onnx.numpy_helper.from_array(np.ones(1, np.int8))
    ),
    "blocks among zeros of another type": lambda parts: _attribute(
        parts["zeros"], "value", onnx.numpy_helper.from_array(np.zeros(1, np.float32))
    ),
    "blocks that add up": lambda parts: _attribute(parts["scatter"], "reduction", "add"),
    "sums that leave out their own gap": lambda parts: _attribute(parts["sum"], "exclusive", 1),
    "sums from behind": lambda parts: _attribute(parts["sum"], "reverse", 1),
    "gaps in another type": lambda parts: _attribute(parts["steps"], "to", 6),
    "a shape that copies": lambda parts: _attribute(parts["reshape"], "allowzero", 1),
}
"""What is done to the chain of a packed matrix."""


@pytest.mark.parametrize("change", CHAINS)
def test_changed_chains_of_packed_matrices(change: str, packed: bytes, opener: Opener) -> None:
    """The engine refuses, runs or leaves them as ONNX Runtime does, and computes the same."""
    model = onnx.load_from_string(packed)
    CHAINS[change](_packed_parts(model))
    answer = opener.open(model)["packed"]
    assert answer["engine"].split(":")[0] == answer["alone"].split(":")[0], answer
    assert answer["apart"] <= LARGEST, answer
