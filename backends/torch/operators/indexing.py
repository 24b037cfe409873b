"""Gather, scatter, and ops that make or use indices. Negative indices count from the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from obert_compiler.backends.torch.operators.table import Call, Host, Operand, operator

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather")
def _gather(call: Call) -> Operand:
    data, axis = call.operand(0), call.integer("axis", 0)
    index_rank = call.rank(1)
    if isinstance(data, Host):
        rank = index_rank or 0
        return call.emit_host(pick, data.value, call.host(1), rank=rank, dtype=data.dtype)
    if index_rank == 0 and isinstance(call.operand(1), (Host, torch.Tensor)):
        return call.emit(torch.select, data, axis, call.host(1))
    return call.emit(gather, data, call.tensor(1), axis)


@operator("GatherElements")
def _gather_elements(call: Call) -> Operand:
    return call.emit(gather_elements, call.tensor(0), call.tensor(1), call.integer("axis", 0))


@operator("GatherND")
def _gather_nd(call: Call) -> Operand:
    return call.emit(gather_nd, call.tensor(0), call.tensor(1), call.integer("batch_dims", 0))


@operator("ScatterElements", "Scatter")
def _scatter_elements(call: Call) -> Operand:
    axis, reduction = call.integer("axis", 0), call.text("reduction", "none")
    return call.emit(scatter_elements, *call.tensors(), axis, reduction)


@operator("ScatterND")
def _scatter_nd(call: Call) -> Operand:
    return call.emit(scatter_nd, *call.tensors(), call.text("reduction", "none"))


@operator("NonZero")
def _non_zero(call: Call) -> Operand:
    return call.emit(non_zero, call.tensor(0))


@operator("Compress")
def _compress(call: Call) -> Operand:
    axis = call.node.attributes.get_int("axis", None)
    return call.emit(compress, call.tensor(0), call.tensor(1), axis)


@operator("OneHot")
def _one_hot(call: Call) -> Operand:
    axis = call.integer("axis", -1)
    return call.emit(one_hot, call.tensor(0), call.host(1), call.tensor(2), axis)


@operator("TopK")
def _top_k(call: Call) -> Sequence[Operand]:
    axis, largest = call.integer("axis", -1), call.flag("largest", True)
    return call.outputs_of(call.emit(top_k, call.tensor(0), call.host(1), axis, largest), 2)


@operator("ArgMax", "ArgMin")
def _arg_extremum(call: Call) -> Operand:
    return call.emit(
        arg_extremum,
        call.tensor(0),
        call.integer("axis", 0),
        call.flag("keepdims", True),
        call.node.op_type == "ArgMax",
        call.flag("select_last_index"),
    )


@operator("Trilu")
def _trilu(call: Call) -> Operand:
    diagonal = call.host(1) if call.has(1) else 0
    return call.emit(triangle, call.tensor(0), diagonal, call.flag("upper", True))


@operator("EyeLike")
def _eye_like(call: Call) -> Operand:
    return call.emit(eye_like, call.tensor(0), call.integer("k", 0), call.output_dtype())


@operator("ReverseSequence")
def _reverse_sequence(call: Call) -> Operand:
    batch, time = call.integer("batch_axis", 1), call.integer("time_axis", 0)
    return call.emit(reverse_sequence, call.tensor(0), call.tensor(1), batch, time)


# -- at run time ----------------------------------------------------------------------------------


def pick(values: tuple[int, ...], index: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Gather on host integers."""
    return tuple(values[i] for i in index) if isinstance(index, tuple) else values[index]


def from_end(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices with negative ones counted from the end, as int64."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def gather(data: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Slices of ``data`` along ``axis``; the result has the shape of ``index`` in its place."""
    index = from_end(index, data.shape[axis])
    if data.ndim == 2 and axis == 0 and data.is_floating_point():
        return functional.embedding(index, data)  # its backward is the fast one
    axis = axis % data.ndim
    picked = data.index_select(axis, index.reshape(-1))
    return picked.reshape(data.shape[:axis] + index.shape + data.shape[axis + 1 :])


def gather_elements(data: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """``out[i][j] = data[index[i][j]][j]`` for axis 0, and so on."""
    return torch.gather(data, axis, from_end(index, data.shape[axis]))


def gather_nd(data: torch.Tensor, index: torch.Tensor, batch_dims: int) -> torch.Tensor:
    """The last dimension of ``index`` addresses one slice of ``data`` (behind the batch dims)."""
    return data[_address(data, index, batch_dims)]


def _address(
    data: torch.Tensor, index: torch.Tensor, batch_dims: int = 0
) -> tuple[torch.Tensor, ...]:
    """Index tensors, one per addressed axis, that broadcast to ``index.shape[:-1]``."""
    rank = index.ndim - 1
    grids = []
    for axis in range(batch_dims):
        shape = [1] * rank
        shape[axis] = data.shape[axis]
        grids.append(torch.arange(data.shape[axis], device=data.device).reshape(shape))
    depth = index.shape[-1]
    parts = [from_end(index[..., i], data.shape[batch_dims + i]) for i in range(depth)]
    return (*grids, *parts)


def scatter_elements(
    data: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, axis: int, reduction: str
) -> torch.Tensor:
    """A copy of ``data`` with single elements along ``axis`` replaced or reduced."""
    index = from_end(index, data.shape[axis])
    if reduction == "none":
        return data.scatter(axis, index, updates)
    return data.scatter_reduce(axis, index, updates, _REDUCE[reduction], include_self=True)


def scatter_nd(
    data: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, reduction: str
) -> torch.Tensor:
    """A copy of ``data`` with the slices that ``index`` addresses replaced or reduced."""
    address = _address(data, index)
    if reduction in {"none", "add"}:
        return data.index_put(address, updates, accumulate=reduction == "add")
    depth = index.shape[-1]
    flat = torch.zeros_like(address[0])
    for axis, part in enumerate(address):
        flat = flat * data.shape[axis] + part
    slices = math.prod(data.shape[:depth])
    values = updates.reshape(flat.numel(), -1)
    target = flat.reshape(-1, 1).expand_as(values)
    reduced = data.reshape(slices, -1).scatter_reduce(0, target, values, _REDUCE[reduction])
    return reduced.reshape(data.shape)


def non_zero(x: torch.Tensor) -> torch.Tensor:
    """Indices of the elements that are not zero, ``[rank, count]``."""
    return torch.nonzero(x).t()


def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Slices whose condition holds; a short condition drops the rest."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


def one_hot(
    index: torch.Tensor, depth: int | tuple[int, ...], values: torch.Tensor, axis: int
) -> torch.Tensor:
    """``values[1]`` at the index, ``values[0]`` elsewhere, along a new axis of size ``depth``."""
    size = depth[0] if isinstance(depth, tuple) else depth
    axis = axis + index.ndim + 1 if axis < 0 else axis
    classes = torch.arange(size, device=index.device)
    classes = classes.reshape([size if a == axis else 1 for a in range(index.ndim + 1)])
    hit = from_end(index, size).unsqueeze(axis) == classes
    return torch.where(hit, values[1], values[0])


def top_k(
    x: torch.Tensor, k: int | tuple[int, ...], axis: int, largest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest or smallest in order; equal values by rising index."""
    count = k[0] if isinstance(k, tuple) else k
    values, index = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


def arg_extremum(
    x: torch.Tensor, axis: int, keepdims: bool, largest: bool, last: bool
) -> torch.Tensor:
    """Index of the largest or smallest element, of equal ones the first or the last."""
    find = torch.argmax if largest else torch.argmin
    if not last:
        return find(x, dim=axis, keepdim=keepdims)
    return x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=keepdims)


def triangle(x: torch.Tensor, diagonal: int, upper: bool) -> torch.Tensor:
    """Upper or lower triangle of the last two axes."""
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def eye_like(x: torch.Tensor, diagonal: int, dtype: torch.dtype | None) -> torch.Tensor:
    """Ones on a diagonal of a matrix shaped like ``x``."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device)
    return (columns - rows == diagonal).to(dtype or x.dtype)


def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, batch: int, time: int) -> torch.Tensor:
    """The first ``lengths[b]`` steps of each sequence in reverse."""
    steps = torch.arange(x.shape[time], device=x.device).unsqueeze(0)
    ends = lengths.to(torch.int64).unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    moved = x.movedim((batch, time), (0, 1))
    rows = torch.arange(moved.shape[0], device=x.device).unsqueeze(1)
    return moved[rows, index].movedim((0, 1), (batch, time))
