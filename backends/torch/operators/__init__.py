"""How each ONNX op becomes torch calls: `table.OPERATORS`, filled by the files of this folder.

To support one more op, add a row (a function with ``@operator("OpType")``) to the file it belongs
to, and a case to ``tests/backends/torch/test_operators.py``.
"""

from obert_compiler.backends.torch.operators import (
    arithmetic,
    attention,
    convolution,
    indexing,
    normalisation,
    products,
    quantisation,
    reductions,
    shapes,
)
from obert_compiler.backends.torch.operators.table import OPERATORS, Call, Host, Operand, operator

__all__ = [
    "OPERATORS",
    "Call",
    "Host",
    "Operand",
    "arithmetic",
    "attention",
    "convolution",
    "indexing",
    "normalisation",
    "operator",
    "products",
    "quantisation",
    "reductions",
    "shapes",
]
