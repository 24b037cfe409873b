"""Which products ONNX Runtime computes in integers, and which stay in float.

Read off the graph after ONNX Runtime's own optimisation, not off the file: a quantised pattern that
it did not recognise runs in float, and slower than an unquantised one.
"""

from __future__ import annotations

import collections
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from obert_compiler.graph.constants import is_constant
from obert_compiler.graph.graph import Graph
from obert_compiler.runtime.session import open_session, session_options

__all__ = ["Products", "count_products"]

INTEGER_OPS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
FLOAT_OPS = frozenset(
    {"Conv", "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "Gemm", "MatMul"}
)


@dataclass(frozen=True)
class Products:
    """Products with a constant matrix in an optimised graph.

    Attributes:
        integer: how many run in integers.
        floating: names of the ones that run in float, be the matrix stored in float or dequantised
            at each call.
        ops: number of nodes by op, of the whole graph.
    """

    integer: int
    floating: tuple[str, ...]
    ops: dict[str, int]

    def to_dict(self) -> dict[str, object]:
        """The figures, ready for JSON."""
        return {"integer": self.integer, "float": len(self.floating), "names": list(self.floating)}


def count_products(model: str | Path | Graph) -> Products:
    """Optimise ``model`` in ONNX Runtime and count.

    Raises:
        UsageError, ModelError: as `obert_compiler.runtime.session`.
    """
    with tempfile.TemporaryDirectory(prefix="obert-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = session_options()
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimised.bin"
        )
        # Layouts for this CPU alone are of no interest, and their warning none either.
        options.log_severity_level = 4
        open_session(model, options)
        graph = ir.load(optimised).graph
        integer = 0
        floating = []
        ops: collections.Counter[str] = collections.Counter()
        for node in graph:
            ops[node.op_type] += 1
            if node.op_type in INTEGER_OPS:
                integer += 1
            elif node.op_type in FLOAT_OPS:
                weight = node.inputs[1]
                if weight is not None and is_constant(weight):
                    floating.append(node.name or weight.name or node.op_type)
        return Products(integer, tuple(floating), dict(ops))
