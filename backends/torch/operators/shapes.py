"""Ops that compute shapes, and ops that only rearrange elements.

Shapes are computed on Python ints (`Host`) as long as they come from `Shape`, `Size` and integer
constants; the functions at the end are that arithmetic.
"""

from __future__ import annotations

import functools
import math
import operator as python
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from obert_compiler.backends.torch.dtypes import tensor_from_array, torch_dtype
from obert_compiler.backends.torch.operators.table import Call, Host, Operand, operator

__all__ = ["elementwise"]

Dims = Sequence[int]


@operator("Shape")
def _shape(call: Call) -> Operand:
    operand = call.operand(0)
    start, end = call.integer("start", 0), call.node.attributes.get_int("end", None)
    if isinstance(operand, Host):
        return call.emit_host(shape_of_host, operand.value, rank=1)
    return call.emit_host(shape_of, operand, start, end, rank=1)


@operator("Size")
def _size(call: Call) -> Operand:
    return call.emit_host(torch.numel, call.tensor(0), rank=0)


@operator("Identity", "Dropout")
def _identity(call: Call) -> Operand:
    return call.operand(0)


@operator("Constant")
def _constant(call: Call) -> Operand:
    tensor = call.node.attributes.get_tensor("value", None)
    if tensor is not None:
        return tensor_from_array(tensor.numpy())
    for name, attribute in call.node.attributes.items():
        value: Any = attribute.value
        if name in {"value_float", "value_floats"}:
            return torch.tensor(value, dtype=torch.float32)
        if name in {"value_int", "value_ints"}:
            return torch.tensor(value, dtype=torch.int64)
    raise call.error("expected a tensor, number or numbers as value")


@operator("Cast")
def _cast(call: Call) -> Operand:
    import onnx_ir as ir

    return _to(call, torch_dtype(ir.DataType(call.integer("to"))))


@operator("CastLike")
def _cast_like(call: Call) -> Operand:
    dtype = call.dtype(1)
    if dtype is None:
        return call.emit_method("type_as", call.tensor(0), call.tensor(1))
    return _to(call, dtype)


def _to(call: Call, dtype: torch.dtype) -> Operand:
    operand = call.operand(0)
    if isinstance(operand, Host) and dtype in {torch.int64, torch.int32}:
        return Host(operand.value, operand.rank, dtype)
    return call.emit_method("to", call.tensor(0), dtype)


@operator("Reshape")
def _reshape(call: Call) -> Operand:
    operand, shape = call.operand(0), call.host(1)
    if isinstance(operand, Host) and isinstance(shape, tuple) and len(shape) < 2:
        reshaped = as_tuple if shape else only
        return call.emit_host(reshaped, operand.value, rank=len(shape), dtype=operand.dtype)
    if isinstance(shape, fx.Node) or (0 in _tuple(shape) and not call.flag("allowzero")):
        return call.emit(reshape, call.tensor(0), shape, call.flag("allowzero"))
    return call.emit(torch.reshape, call.tensor(0), shape)


@operator("Flatten")
def _flatten(call: Call) -> Operand:
    return call.emit(flatten, call.tensor(0), call.integer("axis", 1))


@operator("Expand")
def _expand(call: Call) -> Operand:
    return call.emit(expand, call.tensor(0), call.host(1))


@operator("Tile")
def _tile(call: Call) -> Operand:
    return call.emit(tile, call.tensor(0), call.host(1))


@operator("Transpose")
def _transpose(call: Call) -> Operand:
    x, perm = call.tensor(0), call.integers("perm")
    return call.emit(reverse_axes, x) if perm is None else call.emit(torch.permute, x, perm)


@operator("Squeeze")
def _squeeze(call: Call) -> Operand:
    operand, axes = call.operand(0), _axes(call, 1)
    if isinstance(operand, Host):
        return call.emit_host(only, operand.value, rank=0, dtype=operand.dtype)
    if axes is None:
        return call.emit(torch.squeeze, operand)
    return call.emit(torch.squeeze, operand, axes)


@operator("Unsqueeze")
def _unsqueeze(call: Call) -> Operand:
    operand, axes = call.operand(0), _axes(call, 1)
    if axes is None:
        raise call.error("expected axes, found none")
    if isinstance(operand, Host) and axes in {(0,), (-1,)} and operand.rank == 0:
        return call.emit_host(as_tuple, operand.value, rank=1, dtype=operand.dtype)
    x = call.tensor(0)
    if isinstance(axes, tuple) and len(axes) == 1:
        return call.emit(torch.unsqueeze, x, axes[0])
    return call.emit(unsqueeze, x, axes)


@operator("Concat")
def _concat(call: Call) -> Operand:
    hosts = call.hosts()
    if hosts is not None:
        return call.emit_host(join, tuple(hosts), rank=1)
    return call.emit(torch.cat, call.tensors(), dim=call.integer("axis"))


@operator("Split")
def _split(call: Call) -> Sequence[Operand]:
    number = len(call.node.outputs)
    if call.has(1):
        sizes: Any = call.host(1)
    else:
        sizes = call.integers("split")
    axis = call.integer("axis", 0)
    if sizes is None:
        parts = call.emit(split_evenly, call.tensor(0), call.integer("num_outputs", number), axis)
    else:
        parts = call.emit(split, call.tensor(0), sizes, axis)
    return call.outputs_of(parts, number)


@operator("Slice")
def _slice(call: Call) -> Operand:
    operand = call.operand(0)
    starts, ends = call.host(1), call.host(2)
    axes = call.host(3) if call.has(3) else None
    steps = call.host(4) if call.has(4) else None
    if isinstance(operand, Host):
        bounds = (starts, ends, steps)
        return call.emit_host(slice_host, operand.value, *bounds, rank=1, dtype=operand.dtype)
    return call.emit(slice_tensor, operand, starts, ends, axes, steps)


@operator("Pad")
def _pad(call: Call) -> Operand:
    value = call.number_or_tensor(2) if call.has(2) else 0
    if not isinstance(value, (int, float)):
        value = call.emit(torch.Tensor.item, value)
    axes = call.host(3) if call.has(3) else None
    return call.emit(pad, call.tensor(0), call.host(1), call.text("mode", "constant"), value, axes)


@operator("ConstantOfShape")
def _constant_of_shape(call: Call) -> Operand:
    tensor = call.node.attributes.get_tensor("value", None)
    fill = tensor_from_array(np.zeros(1, np.float32) if tensor is None else tensor.numpy())
    shape = call.host(0)
    return call.emit(
        torch.full, _tuple(shape), fill.item(), dtype=fill.dtype, device=_device(call, shape)
    )


@operator("Range")
def _range(call: Call) -> Operand:
    dtype = call.dtype(0) or call.output_dtype() or torch.int64
    bounds: list[Any] = [
        call.host(i) if not dtype.is_floating_point else call.tensor(i) for i in (0, 1, 2)
    ]
    if dtype.is_floating_point:
        return call.emit(float_range, *bounds)
    device = call.device if any(isinstance(b, fx.Node) for b in bounds) else torch.device("cpu")
    return call.emit(torch.arange, *bounds, dtype=dtype, device=device)


def _device(call: Call, shape: object) -> Any:
    return call.device if isinstance(shape, fx.Node) else torch.device("cpu")


def _tuple(shape: Any) -> Any:
    return (shape,) if isinstance(shape, int) else shape


def _axes(call: Call, index: int) -> Any:
    return _tuple(call.host(index)) if call.has(index) else call.integers("axes")


# -- shapes at run time: ints and tuples of ints (or of torch.SymInt under export) -----------------


def shape_of(x: torch.Tensor, start: int, end: int | None) -> tuple[int, ...]:
    """Dimensions ``start`` to ``end`` of a tensor."""
    return tuple(x.shape[start:end])


def shape_of_host(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """Shape of host integers: ``()`` or ``(n,)``."""
    return (len(value),) if isinstance(value, tuple) else ()


def only(value: int | tuple[int, ...]) -> int:
    """The single integer of a one-item tuple."""
    return value[0] if isinstance(value, tuple) else value


def as_tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """A 0-D integer as a tuple of one."""
    return value if isinstance(value, tuple) else (value,)


def join(parts: Sequence[int | tuple[int, ...]]) -> tuple[int, ...]:
    """Concatenation of tuples."""
    return tuple(v for part in parts for v in as_tuple(part))


def slice_host(
    value: tuple[int, ...],
    starts: int | tuple[int, ...],
    ends: int | tuple[int, ...],
    steps: int | tuple[int, ...] | None,
) -> tuple[int, ...]:
    """``value[start:end:step]``."""
    return value[only(starts) : only(ends) : 1 if steps is None else only(steps)]


def elementwise(kind: str, *values: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Arithmetic on ints, or item by item on tuples (a tuple of one repeats).

    ``kind`` is an ONNX op type; a function as argument could not be printed as code.
    """
    function = _ARITHMETIC[kind]
    lengths = [len(v) for v in values if isinstance(v, tuple)]
    if not lengths:
        result: int = function(*values)
        return result
    n = next((length for length in lengths if length != 1), 1)
    columns = [v * n if isinstance(v, tuple) and len(v) == 1 else v for v in values]
    rows = [v if isinstance(v, tuple) else (v,) * n for v in columns]
    return tuple(function(*items) for items in zip(*rows, strict=True))


def largest(*values: int) -> int:
    """Maximum; Python's own would compare symbolic sizes and so fix them."""
    return functools.reduce(torch.sym_max, values)


def smallest(*values: int) -> int:
    """Minimum, likewise."""
    return functools.reduce(torch.sym_min, values)


def choose(condition: bool, a: int, b: int) -> int:
    """``a`` where the condition holds, else ``b``."""
    return a if condition else b


def truncated_division(a: int, b: int) -> int:
    """Integer division that rounds towards zero, as ONNX and C do (Python rounds down)."""
    quotient = a // b
    return quotient + 1 if quotient < 0 and quotient * b != a else quotient


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Abs": abs,
    "Add": python.add,
    "Div": truncated_division,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Max": largest,
    "Min": smallest,
    "Mod": python.mod,
    "Mul": python.mul,
    "Neg": python.neg,
    "Sub": python.sub,
    "Where": choose,
}


# -- tensors at run time --------------------------------------------------------------------------


def reshape(x: torch.Tensor, shape: int | tuple[int, ...], allow_zero: bool) -> torch.Tensor:
    """ONNX Reshape: a 0 copies the dimension of ``x`` unless ``allow_zero``."""
    dims = as_tuple(shape)
    if not allow_zero and any(type(d) is int and d == 0 for d in dims):
        dims = tuple(x.shape[i] if type(d) is int and d == 0 else d for i, d in enumerate(dims))
    return x.reshape(dims)


def flatten(x: torch.Tensor, axis: int) -> torch.Tensor:
    """To 2-D: dimensions before ``axis`` times dimensions from ``axis`` on."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def expand(x: torch.Tensor, shape: int | tuple[int, ...]) -> torch.Tensor:
    """Broadcast ``x`` and ``shape`` against each other (a 1 in ``shape`` keeps ``x``)."""
    dims = list(as_tuple(shape))
    dims = [1] * (x.ndim - len(dims)) + dims
    own = [1] * (len(dims) - x.ndim) + list(x.shape)
    return x.expand(
        [mine if type(d) is int and d == 1 else d for d, mine in zip(dims, own, strict=True)]
    )


def tile(x: torch.Tensor, repeats: int | tuple[int, ...]) -> torch.Tensor:
    """Repeat along each axis."""
    return x.repeat(as_tuple(repeats))


def reverse_axes(x: torch.Tensor) -> torch.Tensor:
    """Transpose with the axes reversed."""
    return x.permute(tuple(range(x.ndim - 1, -1, -1)))


def unsqueeze(x: torch.Tensor, axes: Dims) -> torch.Tensor:
    """Insert several axes, counted in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def split(x: torch.Tensor, sizes: int | tuple[int, ...], axis: int) -> tuple[torch.Tensor, ...]:
    """Parts of the given sizes."""
    return torch.split(x, list(as_tuple(sizes)), axis)


def split_evenly(x: torch.Tensor, number: int, axis: int) -> tuple[torch.Tensor, ...]:
    """``number`` equal parts, the last one smaller when it does not divide."""
    size = -(-x.shape[axis] // number)
    return torch.split(x, [size] * (number - 1) + [x.shape[axis] - size * (number - 1)], axis)


def slice_tensor(
    x: torch.Tensor,
    starts: int | tuple[int, ...],
    ends: int | tuple[int, ...],
    axes: int | tuple[int, ...] | None,
    steps: int | tuple[int, ...] | None,
) -> torch.Tensor:
    """ONNX Slice, whose negative steps torch's own slices lack."""
    first, last = as_tuple(starts), as_tuple(ends)
    where = tuple(range(len(first))) if axes is None else as_tuple(axes)
    strides = (1,) * len(first) if steps is None else as_tuple(steps)
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, where, strides, strict=True):
        if step > 0:
            index[axis] = slice(start, end, step)
        else:
            kept = range(x.shape[axis])[start:end:step]
            x = x.index_select(axis, torch.tensor(kept, dtype=torch.int64, device=x.device))
    return x[tuple(index)]


def pad(
    x: torch.Tensor,
    pads: tuple[int, ...],
    mode: str,
    value: float,
    axes: int | tuple[int, ...] | None,
) -> torch.Tensor:
    """ONNX Pad: begins then ends, for ``axes`` or all; modes constant, edge, reflect, wrap."""
    where = list(range(x.ndim)) if axes is None else [a % x.ndim for a in as_tuple(axes)]
    for position, axis in enumerate(where):
        before, after = pads[position], pads[position + len(where)]
        if mode == "constant":
            flat = [0, 0] * (x.ndim - 1 - axis) + [before, after]
            x = torch.nn.functional.pad(x, flat, value=value)
        elif before or after:
            index = torch.arange(-before, x.shape[axis] + after, device=x.device)
            x = x.index_select(axis, _wrap(index, x.shape[axis], mode))
    return x


def _wrap(index: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index % size
    period = max(2 * (size - 1), 1)
    index = index.abs() % period
    return torch.minimum(index, period - index)


def float_range(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Range of floats; the number of elements is read back from the tensors."""
    return torch.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device
    )
