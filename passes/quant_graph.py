"""Writing quantised tensors into the graph, with standard QuantizeLinear and DequantizeLinear.

    x -> QuantizeLinear -> DequantizeLinear -> MatMul(., DequantizeLinear(Wq)) -> Add(bias)

Runtimes recognise this form and run one integer product. One pair of nodes quantises an activation
for all its readers; one initializer holds a weight for all its uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import GraphError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import LinearSite
from obert_compiler.passes.calibration import Quantizer
from obert_compiler.passes.weight_quantization import QuantizedWeight

__all__ = ["QuantizedGraph", "keep_parameter", "root_initializer"]

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float32]


def root_initializer(value: ir.Value) -> tuple[ir.Value, bool]:
    """The initializer behind the Transposes that make ``value``, and whether their number is odd.

    Raises:
        GraphError: something else than a transposed float32 initializer makes ``value``.
    """
    transposed = False
    producer = value.producer()
    while producer is not None and producer.op_type == "Transpose":
        operand = producer.inputs[0]
        if operand is None:
            break
        value, transposed = operand, not transposed
        producer = value.producer()
    if producer is not None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
        raise GraphError(
            f"weight '{value.name}': expected a float32 initializer, found {value.dtype}; quantise "
            "a graph once, before 'pack'"
        )
    return value, transposed


def keep_parameter(old: ir.Value | None, new: ir.Value) -> None:
    """Let the node that makes ``new`` name the source's parameter that the initializer ``old`` was.

    Its output is that parameter, or rows of it gathered by ids. Whoever needs the float parameter
    back (a torch checkpoint) finds it by that.
    """
    node = new.producer()
    if old is None or node is None:
        return
    for key in ("obert.parameter", "obert.transposed"):
        if key in old.metadata_props:
            node.metadata_props[key] = old.metadata_props[key]


class QuantizedGraph:
    """Edits one graph; remembers which activations and constants it has written.

    Args:
        graph: edited in place.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph: ir.Graph = graph.model.graph
        self._names = {v.name for v in self.graph.inputs} | set(self.graph.initializers)
        for node in self.graph:
            self._names.add(node.name)
            self._names.update(output.name for output in node.outputs)
        self._activations: dict[ir.Value, ir.Value] = {}
        self._constants: dict[str, ir.Value] = {}

    def initializer(self, name: str, array: Array) -> ir.Value:
        """A new initializer holding ``array``, under ``name`` or a free variant of it."""
        free = self._free_name(name)
        tensor = ir.tensor(np.asarray(array, order="C"), name=free)
        value = ir.Value(
            name=free,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def shared_constant(self, name: str, array: Array) -> ir.Value:
        """An initializer that every caller with the same ``name`` shares."""
        if name not in self._constants:
            self._constants[name] = self.initializer(name, array)
        return self._constants[name]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType,
        shape: ir.Shape | None,
        attributes: Mapping[str, int | float | Sequence[int]] | None = None,
    ) -> ir.Node:
        """A new node, not yet in the graph, whose one output is ``name`` with type and shape."""
        free = self._free_name(name)
        output = ir.Value(name=free, shape=shape, type=ir.TensorType(dtype))
        return ir.node(op_type, inputs, dict(attributes or {}), outputs=[output], name=free)

    def insert_after(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Put ``nodes`` right behind what makes ``value``, first for an input or initializer."""
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], list(nodes))
        else:
            self.graph.insert_after(producer, list(nodes))

    def quantized_activation(self, x: ir.Value, quantizer: Quantizer) -> ir.Value:
        """``x`` behind its one QuantizeLinear and DequantizeLinear pair."""
        if x not in self._activations:
            self._activations[x] = self._rounded(x, quantizer)
        return self._activations[x]

    def round_uses(
        self, x: ir.Value, quantizer: Quantizer, uses: Sequence[tuple[ir.Node, int]]
    ) -> ir.Value:
        """Let ``uses`` (node, index of its input) alone read ``x`` behind a pair of its own.

        Returns:
            What the pair makes of ``x``.
        """
        rounded = self._rounded(x, quantizer)
        for node, index in uses:
            node.replace_input_with(index, rounded)
        return rounded

    def change_rounding(self, rounded: ir.Value, quantizer: Quantizer) -> None:
        """Give the pair that `round_uses` wrote another scale and zero point."""
        dequantize = rounded.producer()
        if dequantize is None:
            raise ValueError(f"value '{rounded.name}' is no rounding")
        _, scale, zero_point = dequantize.inputs
        if scale is None or zero_point is None:
            raise ValueError(f"value '{rounded.name}' has no scale or zero point")
        scale.const_value = ir.tensor(np.array(quantizer.scale, np.float32), name=scale.name)
        number = np.array(quantizer.zero_point, np.uint8)
        zero_point.const_value = ir.tensor(number, name=zero_point.name)

    def _rounded(self, x: ir.Value, quantizer: Quantizer) -> ir.Value:
        scale = self.initializer(f"{x.name}_scale", np.array(quantizer.scale, np.float32))
        zero_point = self.initializer(
            f"{x.name}_zero_point", np.array(quantizer.zero_point, np.uint8)
        )
        u8, f32 = ir.DataType.UINT8, ir.DataType.FLOAT
        quantize = self.node(
            "QuantizeLinear", [x, scale, zero_point], f"{x.name}_quantized", u8, x.shape
        )
        dequantize = self.node(
            "DequantizeLinear",
            [quantize.outputs[0], scale, zero_point],
            f"{x.name}_dequantized",
            f32,
            x.shape,
        )
        self.insert_after(x, [quantize, dequantize])
        return dequantize.outputs[0]

    def quantized_weight(self, name: str, quantized: QuantizedWeight) -> ir.Value:
        """The weight ``[in, out]`` behind DequantizeLinear, for the right operand of MatMul."""
        stored = self.initializer(f"{name}.weight_quantized", quantized.q.T)
        scale = self.initializer(f"{name}.weight_scale", quantized.scale)
        return self._dequantized_columns(name, stored, scale)

    def quantized_tied_weight(self, name: str, table: ir.Value, scale: ir.Value) -> ir.Value:
        """As `quantized_weight`, read from an int8 ``table`` ``[V, H]`` that Gathers share.

        ``scale`` is the float32 initializer ``[V]`` of its rows.
        """
        i8, shape = ir.DataType.INT8, table.shape
        shape = None if shape is None else ir.Shape([shape[1], shape[0]])
        perm = {"perm": [1, 0]}
        transpose = self.node("Transpose", [table], f"{name}.weight_quantized", i8, shape, perm)
        self.insert_after(table, [transpose])
        return self._dequantized_columns(name, transpose.outputs[0], scale)

    def _dequantized_columns(self, name: str, stored: ir.Value, scale: ir.Value) -> ir.Value:
        outputs = 0 if scale.const_value is None else scale.const_value.size
        zero_point = self.initializer(f"{name}.weight_zero_point", np.zeros(outputs, np.int8))
        dequantize = self.node(
            "DequantizeLinear",
            [stored, scale, zero_point],
            f"{name}.weight_dequantized",
            ir.DataType.FLOAT,
            stored.shape,
            {"axis": 1},
        )
        self.insert_after(stored, [dequantize])
        return dequantize.outputs[0]

    def folded(self, name: str, stored: ir.Value, scale: ir.Value) -> ir.Value:
        """The float matrix as Cast and Mul of integers, which runtimes fold when they load it.

        For constants that no integer product reads. DequantizeLinear would be evaluated at each
        run: runtimes keep it unfolded to find integer products.

        Args:
            name: stem of the new names.
            stored: int8 matrix, an initializer.
            scale: float32 initializer that broadcasts against it.
        """
        f32 = ir.DataType.FLOAT
        cast = self.node("Cast", [stored], f"{name}_float", f32, stored.shape, {"to": f32.value})
        inputs = [cast.outputs[0], scale]
        scaled = self.node("Mul", inputs, f"{name}_dequantized", f32, stored.shape)
        self.insert_after(stored, [cast, scaled])
        return scaled.outputs[0]

    def rewrite_linear(
        self,
        site: LinearSite,
        activations: Sequence[ir.Value],
        weight: ir.Value,
        correction: FloatArray | None,
    ) -> None:
        """Let every use of ``site`` multiply ``activations`` by ``weight`` ``[in, out]``.

        Args:
            site: found before; Gemm becomes MatMul and Add.
            activations: left operand of each use.
            weight: right operand of all uses.
            correction: float32 ``[out]``, added to the bias; None leaves it. A use without a bias
                gets none.
        """
        biases: dict[ir.Value, ir.Value] = {}
        for node, x, bias in zip(site.nodes, activations, site.bias_values, strict=True):
            if bias is not None and bias not in biases:
                biases[bias] = self._new_bias(site, node, bias, correction)
            new_bias = None if bias is None else biases[bias]
            if node.op_type == "Gemm":
                self._gemm_to_matmul(node, x, weight, new_bias)
                continue
            node.replace_input_with(0, x)
            node.replace_input_with(1, weight)
            if bias is not None and new_bias is not bias:
                add = node.outputs[0].consumers()[0]
                add.replace_input_with(list(add.inputs).index(bias), new_bias)

    def correct_bias(self, site: LinearSite, correction: FloatArray) -> LinearSite:
        """Add ``correction`` ``[out]`` to the bias of a site that stays float for now.

        Returns:
            The site with its new biases.
        """
        biases: dict[ir.Value, ir.Value] = {}
        for node, bias in zip(site.nodes, site.bias_values, strict=True):
            if bias is None:
                continue
            if bias not in biases:
                biases[bias] = self._new_bias(site, node, bias, correction)
            reader = node if node.op_type == "Gemm" else node.outputs[0].consumers()[0]
            reader.replace_input_with(list(reader.inputs).index(bias), biases[bias])
        new = [None if bias is None else biases[bias] for bias in site.bias_values]
        return replace(site, bias_values=tuple(new))

    def _new_bias(
        self, site: LinearSite, node: ir.Node, bias: ir.Value, correction: FloatArray | None
    ) -> ir.Value:
        beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
        constant = None if bias.producer() is not None else bias.const_value
        if constant is None or (correction is None and beta == 1.0):
            return bias
        features = site.shape[0]
        old = np.broadcast_to(np.float32(beta) * constant.numpy().reshape(-1), (features,))
        new = old if correction is None else old + correction
        value = self.initializer(f"{bias.name}_corrected", new.astype(np.float32))
        value.metadata_props.update(bias.metadata_props)
        return value

    def _gemm_to_matmul(
        self, gemm: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None
    ) -> None:
        old = gemm.outputs[0]
        name = old.name
        nodes = [self.node("MatMul", [x, weight], f"{name}_matmul", ir.DataType.FLOAT, old.shape)]
        nodes[0].metadata_props.update(gemm.metadata_props)
        if bias is not None:
            product = nodes[0].outputs[0]
            nodes.append(
                self.node("Add", [product, bias], f"{name}_biased", ir.DataType.FLOAT, old.shape)
            )
        new = nodes[-1].outputs[0]
        self.graph.insert_after(gemm, nodes)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(gemm, safe=True)
        new.name = name
        new.metadata_props.update(old.metadata_props)

    def remove_unused(self) -> int:
        """Remove nodes and initializers that nothing reads any more; returns how many."""
        removed = 0
        for node in reversed(self.graph):
            if not any(o.uses() or o.is_graph_output() for o in node.outputs):
                self.graph.remove(node, safe=True)
                removed += 1
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]
                removed += 1
        return removed

    def _free_name(self, name: str) -> str:
        free, number = name, 1
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free
