"""The nodes that rebuild a packed matrix: standard ops over initializers alone.

    gaps [stored, 1] -> Cast(int64) -> CumSum = the position of every stored block
    zeros [blocks, n] -> ScatterND(positions, values [stored, n])
                      -> Reshape [out, in] -> Transpose, where the reader wants [in, out]

Nothing depends on a graph input, so ONNX Runtime computes the chain once, when it opens the file,
and runs the same integer kernels as for a stored matrix. Runtimes that do not fold CumSum or
ScatterND (OpenVINO) compute it at every call: the same numbers, more slowly.

What the chain leaves behind while a runtime folds it counts at load: one `ConstantOfShape` serves
every matrix of the same number of blocks, gaps are stored as a column so that they need no
Unsqueeze, and the matrices of a large model take turns (`unpacking_turns`). From the second turn
on gaps pass a Reshape to the shape [0, 0], "as it was", whose zeros are known one round of
simplifications later than those of the turn before:

    gaps -> Cast(uint8) -> Reshape(shape) -> Cast(int64) -> ...
    zero, uint8 -> DequantizeLinear -> Abs -> Add -> QuantizeLinear = the next zero
             └───────── Cast(float32) ─────────┘
    the next zero -> Cast(int64) -> Expand = shape

The gaps wait and not something behind them, because a runtime folds whatever it can: int64 steps of
all matrices would lie in memory from the first round on.

ONNX Runtime folds a DequantizeLinear only together with one op of one input and the QuantizeLinear
behind it, and it drops an addition of zero, but only where it knows the zero when it begins to go
over the graph: so each time one more turn is reached. A runtime that folds everything at once
unpacks all matrices at once, to the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.passes.sparse_packing import PackedMatrix
from obert_compiler.passes.unpacking_turns import turns

__all__ = ["UnpackingChains", "is_unpacked"]

Array = npt.NDArray[np.generic]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT
_UINT8 = ir.DataType.UINT8


def is_unpacked(value: ir.Value) -> bool:
    """Whether ``value`` is made by a chain of this file."""
    node = value.producer()
    while node is not None and node.op_type in {"Transpose", "Reshape"}:
        operand = node.inputs[0]
        node = None if operand is None else operand.producer()
    return node is not None and node.op_type == "ScatterND"


class UnpackingChains:
    """Writes chains into one graph; shares what several of them need.

    Args:
        graph: edited in place; the chains go to its head.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._values = {v.name for v in graph.inputs} | set(graph.initializers)
        self._values.update(output.name for node in graph for output in node.outputs)
        self._nodes = {node.name for node in graph}
        self._shared: dict[str, ir.Value] = {}
        self._count = 0
        self._head: list[ir.Node] = []
        self._starts: list[tuple[ir.Node, int]] = []

    def replace(self, stored: ir.Value, packed: PackedMatrix, *, transposed: bool) -> None:
        """Let a chain over ``packed`` make what the initializer ``stored`` holds.

        Args:
            stored: an initializer, ``[in, out]`` when ``transposed``.
            packed: its content, as ``[out, in]``.
            transposed: whether readers want ``[in, out]``.
        """
        name = stored.name or "weight"
        dtype = ir.DataType.from_numpy(packed.values.dtype)
        rows, columns = packed.shape
        blocks = rows * columns // packed.block
        label = f"unpack{self._count}"
        self._count += 1
        gap_type = ml_dtypes.uint4 if packed.bits == 4 else np.uint8
        gaps = self._initializer(f"{name}.gaps", packed.gaps.astype(gap_type)[:, None])
        values = self._initializer(f"{name}.values", packed.values)
        count = len(packed.gaps)
        zeros = self._zeros(blocks, packed.block, packed.values.dtype)
        steps = self._node("Cast", [gaps], f"{label}.steps", _INT64, [count, 1], to=_INT64.value)
        self._starts.append((self._head[-1], rows * columns * packed.values.itemsize))
        axis = self._constant("unpack.axis", np.array(0, np.int64))
        places = self._node("CumSum", [steps, axis], f"{label}.places", _INT64, [count, 1])
        filled = self._node(
            "ScatterND", [zeros, places, values], f"{label}.blocks", dtype, [blocks, packed.block]
        )
        shape = self._constant(f"unpack.{rows}x{columns}", np.array([rows, columns], np.int64))
        matrix = self._node("Reshape", [filled, shape], f"{label}.rows", dtype, [rows, columns])
        if transposed:
            matrix = self._node(
                "Transpose", [matrix], f"{label}.columns", dtype, [columns, rows], perm=[1, 0]
            )
        matrix.metadata_props.update(stored.metadata_props)
        ir.convenience.replace_all_uses_with(stored, matrix)
        del self._graph.initializers[name]
        matrix.name = name

    def insert(self) -> None:
        """Let the chains take turns and put their nodes in front of all others."""
        if self._head:
            chains, self._head = self._head, []
            self._take_turns()
            self._graph.insert_before(self._graph[0], [*self._head, *chains])
            self._head = []

    def _take_turns(self) -> None:
        chosen = turns([size for _, size in self._starts])
        gates: list[ir.Value] = []
        zero = scale = None
        for turn in range(1, max(chosen) + 1):
            if zero is None or scale is None:
                zero = self._constant("unpack.zero", np.array(0, np.uint8))
                scale = self._constant("unpack.scale", np.array(1, np.float32))
            name = f"unpack.turn{turn}"
            zero = self._next_zero(zero, scale, name)
            wide = self._node("Cast", [zero], f"{name}.wide", _INT64, [], to=_INT64.value)
            two = self._constant("unpack.two", np.array([2], np.int64))
            gates.append(self._node("Expand", [wide, two], f"{name}.shape", _INT64, [2]))
        for (node, _), turn in zip(self._starts, chosen, strict=True):
            if turn:
                self._wait(node, gates[turn - 1])
        self._starts = []

    def _wait(self, steps: ir.Node, gate: ir.Value) -> None:
        """Let the Cast ``steps`` wait for ``gate``, two zeros: as a shape they copy."""
        gaps = steps.inputs[0]
        if gaps is None or gaps.shape is None:
            raise ValueError(f"node '{steps.name}': expected gaps of known shape, found none")
        shape = gaps.shape.numpy()
        if gaps.dtype != _UINT8:  # ONNX Runtime reshapes no 4-bit tensors
            gaps = self._node("Cast", [gaps], f"{steps.name}.u8", _UINT8, shape, to=_UINT8.value)
        late = self._node("Reshape", [gaps, gate], f"{steps.name}.late", _UINT8, shape)
        steps.replace_input_with(0, late)

    def _next_zero(self, zero: ir.Value, scale: ir.Value, name: str) -> ir.Value:
        """A zero that ONNX Runtime knows one round later than ``zero``."""
        read = self._node("DequantizeLinear", [zero, scale], f"{name}.read", _FLOAT, [])
        size = self._node("Abs", [read], f"{name}.abs", _FLOAT, [])
        known = self._node("Cast", [zero], f"{name}.known", _FLOAT, [], to=_FLOAT.value)
        total = self._node("Add", [size, known], f"{name}.sum", _FLOAT, [])
        return self._node("QuantizeLinear", [total, scale], name, _UINT8, [])

    def _zeros(self, blocks: int, block: int, dtype: np.dtype[np.generic]) -> ir.Value:
        name = f"unpack.zeros.{blocks}x{block}.{dtype.name}"
        if name not in self._shared:
            shape = self._constant(f"unpack.{blocks}x{block}", np.array([blocks, block], np.int64))
            self._shared[name] = self._node(
                "ConstantOfShape",
                [shape],
                name,
                ir.DataType.from_numpy(dtype),
                [blocks, block],
                value=ir.tensor(np.zeros(1, dtype)),
            )
        return self._shared[name]

    def _constant(self, name: str, array: Array) -> ir.Value:
        if name not in self._shared:
            self._shared[name] = self._initializer(name, array)
        return self._shared[name]

    def _initializer(self, name: str, array: Array) -> ir.Value:
        free = _free(name, self._values)
        tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=free)
        value = ir.Value(
            name=free,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        **attributes: int | Sequence[int] | ir.TensorProtocol,
    ) -> ir.Value:
        output = ir.Value(
            name=_free(name, self._values), shape=ir.Shape(shape), type=ir.TensorType(dtype)
        )
        free = _free(name, self._nodes)
        self._head.append(ir.node(op_type, inputs, attributes, outputs=[output], name=free))
        return output


def _free(name: str, taken: set[str | None]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
