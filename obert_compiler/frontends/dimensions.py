"""Names of symbolic dimensions: ``batch`` and ``sequence`` whatever the exporter called them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

__all__ = ["name_dimensions", "rename_dimensions"]

_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}


def name_dimensions(model: ir.Model) -> None:
    """Name the dynamic dimensions of the inputs, and follow the names through the graph.

    The first dynamic axis of every input is ``batch``; the second of an integer matrix (token ids,
    masks) is ``sequence``; others are called ``<input>_<axis>``. Fixed sizes stay.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        tokens = value.shape.rank() == 2 and value.dtype in _INTEGERS
        dims: list[int | str] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            wanted = "batch" if axis == 0 else "sequence" if tokens else f"{value.name}_{axis}"
            if dim.value is None:
                dims.append(wanted)
            else:
                dims.append(names.setdefault(dim.value, wanted))
        value.shape = ir.Shape(dims)
    rename_dimensions(model, names)


def rename_dimensions(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename symbolic dimensions in every shape of ``model``, within expressions too."""
    names = {old: new for old, new in names.items() if old != new}
    if not names:
        return
    symbol = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, names)) + r")(?!\w)")
    for value in [*model.graph.inputs, *(o for node in model.graph for o in node.outputs)]:
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape(
                symbol.sub(lambda match: names[match[0]], dim.value)
                if isinstance(dim, ir.SymbolicDim) and dim.value
                else dim
                for dim in value.shape
            )
