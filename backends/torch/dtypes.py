"""Element types and arrays between ONNX, numpy and torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from obert_compiler.errors import GraphError

__all__ = ["integer_range", "tensor_from_array", "torch_dtype"]

_TORCH: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    # torch has no four-bit integers with arithmetic: a byte each
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
}

_RANGES: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}


def torch_dtype(dtype: ir.DataType) -> torch.dtype:
    """The torch type of an ONNX element type.

    Raises:
        GraphError: torch has none (strings, complex numbers).
    """
    found = _TORCH.get(dtype)
    if found is None:
        raise GraphError(f"element type {dtype.name}: expected a type that torch has, found none")
    return found


def integer_range(dtype: ir.DataType) -> tuple[int, int]:
    """Smallest and largest value of a quantised type.

    Raises:
        GraphError: not an integer type that QuantizeLinear may yield.
    """
    found = _RANGES.get(dtype)
    if found is None:
        raise GraphError(f"element type {dtype.name}: expected an integer type to quantise to")
    return found


def tensor_from_array(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """A tensor with its own memory; four-bit integers widen to bytes, bfloat16 stays."""
    name = array.dtype.name
    if name in {"int4", "uint4"}:
        return torch.from_numpy(array.astype(np.int8 if name == "int4" else np.uint8))
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if name in {"float8_e4m3fn", "float8_e5m2"}:
        bits = torch.from_numpy(array.view(np.uint8).copy())
        return bits.view(getattr(torch, name))
    if array.dtype.kind not in "fiub":
        raise GraphError(f"element type {name}: expected a type that torch has, found none")
    return torch.from_numpy(np.array(array, order="C", copy=True))
