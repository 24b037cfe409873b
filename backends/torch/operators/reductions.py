"""Ops that reduce axes, and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from obert_compiler.backends.torch.operators.table import Call, Host, Operand, operator

Axes = tuple[int, ...] | None


def _square_sum(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    return _sum(x * x, axes, keepdims)


def _sum(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    return torch.sum(x, dim=axes, keepdim=keepdims, dtype=x.dtype)


def _mean(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    if x.is_floating_point():
        return torch.mean(x, dim=axes, keepdim=keepdims)
    count = x.numel() if axes is None else math.prod(x.shape[a] for a in axes)
    return torch.div(_sum(x, axes, keepdims), count, rounding_mode="trunc")


def _extremum(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reduce(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
        return function(x, dim=() if axes is None else axes, keepdim=keepdims)

    return reduce


def _product(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    where = range(x.ndim) if axes is None else [a % x.ndim for a in axes]
    for axis in sorted(where, reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keepdims, dtype=x.dtype)
    return x


def _l1(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    return _sum(x.abs(), axes, keepdims)


def _l2(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    return torch.sqrt(_square_sum(x, axes, keepdims).to(torch.float32)).to(x.dtype)


def _log_sum(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    return torch.log(_sum(x, axes, keepdims))


def _log_sum_exp(x: torch.Tensor, axes: Axes, keepdims: bool) -> torch.Tensor:
    return torch.logsumexp(x, dim=tuple(range(x.ndim)) if axes is None else axes, keepdim=keepdims)


_REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extremum(torch.amax),
    "ReduceMean": _mean,
    "ReduceMin": _extremum(torch.amin),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _square_sum,
}
_ON_HOST: dict[str, Callable[[tuple[int, ...]], int]] = {
    "ReduceMax": max,
    "ReduceMin": min,
    "ReduceProd": math.prod,
    "ReduceSum": sum,
}


@operator(*_REDUCTIONS)
def _reduce(call: Call) -> Operand:
    operand, kind = call.operand(0), call.node.op_type
    axes: Any = call.host(1) if call.has(1) else call.integers("axes")
    if isinstance(axes, tuple) and not axes:
        axes = None
    keepdims = call.flag("keepdims", True)
    if axes is None and call.flag("noop_with_empty_axes"):
        return operand
    if isinstance(operand, Host) and kind in _ON_HOST:
        rank = operand.rank if keepdims else 0
        arguments = (kind, operand.value, keepdims)
        return call.emit_host(reduce_host, *arguments, rank=rank, dtype=operand.dtype)
    if isinstance(axes, int):
        axes = (axes,)
    x = call.tensor(0)
    if kind == "ReduceMean" and call.is_float(0) and not isinstance(axes, fx.Node):
        return call.emit(torch.mean, x, dim=axes, keepdim=keepdims)
    return call.emit(reduce_tensor, kind, x, axes, keepdims)


@operator("CumSum")
def _cumsum(call: Call) -> Operand:
    exclusive, reverse = call.flag("exclusive"), call.flag("reverse")
    axis = call.host(1)
    return call.emit(cumulative_sum, call.tensor(0), axis, exclusive, reverse)


# -- at run time ----------------------------------------------------------------------------------


def reduce_host(kind: str, value: int | tuple[int, ...], keepdims: bool) -> int | tuple[int, ...]:
    """Reduction of host integers to one, 0-D or (``keepdims``) 1-D."""
    result = _ON_HOST[kind](value) if isinstance(value, tuple) else value
    return (result,) if keepdims and isinstance(value, tuple) else result


def reduce_tensor(
    kind: str,
    x: torch.Tensor,
    axes: int | tuple[int, ...] | None,
    keepdims: bool,
) -> torch.Tensor:
    """Reduction over ``axes`` in the type of ``x``."""
    return _REDUCTIONS[kind](x, (axes,) if isinstance(axes, int) else axes, keepdims)


def cumulative_sum(
    x: torch.Tensor, axis: int | tuple[int, ...], exclusive: bool, reverse: bool
) -> torch.Tensor:
    """Running sum in the type of ``x``; ``exclusive`` leaves the element itself out."""
    dim = axis[0] if isinstance(axis, tuple) else axis
    if reverse:
        x = x.flip(dim)
    total = torch.cumsum(x, dim=dim, dtype=x.dtype)
    if exclusive:
        total = total - x
    return total.flip(dim) if reverse else total
