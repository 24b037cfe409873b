"""Convolutions and pooling of one, two or three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from obert_compiler.backends.torch.operators.table import Call, Operand, operator

_CONV: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX: dict[int, Callable[..., Any]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVERAGE: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


@operator("Conv")
def _conv(call: Call) -> Operand:
    return call.emit(
        convolve,
        call.tensor(0),
        call.tensor(1),
        call.tensor_or_none(2),
        _padding(call),
        call.integers("strides"),
        call.integers("dilations"),
        call.integer("group", 1),
    )


@operator("ConvTranspose")
def _conv_transpose(call: Call) -> Operand:
    if call.text("auto_pad", "NOTSET") != "NOTSET" or call.integers("output_shape"):
        raise call.error("expected explicit pads, found auto_pad or output_shape")
    return call.emit(
        convolve_transposed,
        call.tensor(0),
        call.tensor(1),
        call.tensor_or_none(2),
        call.integers("pads"),
        call.integers("strides"),
        call.integers("dilations"),
        call.integers("output_padding"),
        call.integer("group", 1),
    )


@operator("MaxPool")
def _max_pool(call: Call) -> Operand:
    if call.wants(1):
        raise call.error("expected one output, found the indices in use, which are not supported")
    return call.emit(
        max_pool,
        call.tensor(0),
        call.integers("kernel_shape"),
        _padding(call),
        call.integers("strides"),
        call.integers("dilations"),
        call.flag("ceil_mode"),
    )


@operator("AveragePool")
def _average_pool(call: Call) -> Operand:
    if any(d != 1 for d in call.integers("dilations") or ()):
        raise call.error("expected no dilations, found some")
    return call.emit(
        average_pool,
        call.tensor(0),
        call.integers("kernel_shape"),
        _padding(call),
        call.integers("strides"),
        call.flag("ceil_mode"),
        call.flag("count_include_pad"),
    )


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Operand:
    return call.emit(global_pool, call.tensor(0), call.node.op_type == "GlobalMaxPool")


def _padding(call: Call) -> tuple[int, ...] | str | None:
    """Explicit pads, or how to compute them at run time."""
    mode = call.text("auto_pad", "NOTSET")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        return mode
    return None if mode == "VALID" else call.integers("pads")


# -- at run time ----------------------------------------------------------------------------------


def _pads(
    x: torch.Tensor,
    kernel: Sequence[int],
    padding: tuple[int, ...] | str | None,
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    axes = len(kernel)
    if padding is None:
        return [0] * axes, [0] * axes
    if not isinstance(padding, str):
        return list(padding[:axes]), list(padding[axes:])
    before, after = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if padding == "SAME_UPPER" else large)
        after.append(large if padding == "SAME_UPPER" else small)
    return before, after


def _pad(x: torch.Tensor, before: list[int], after: list[int], value: float) -> torch.Tensor:
    if not any(before) and not any(after):
        return x
    flat = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return functional.pad(x, flat, value=value)


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: tuple[int, ...] | str | None,
    strides: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None,
    groups: int,
) -> torch.Tensor:
    """ONNX Conv: pads may differ before and after."""
    axes = weight.ndim - 2
    stride, dilation = strides or (1,) * axes, dilations or (1,) * axes
    before, after = _pads(x, weight.shape[2:], padding, stride, dilation)
    if before != after:
        x, before = _pad(x, before, after, 0.0), [0] * axes
    return _CONV[axes](x, weight, bias, stride, before, dilation, groups)


def convolve_transposed(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pads: tuple[int, ...] | None,
    strides: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None,
    output_padding: tuple[int, ...] | None,
    groups: int,
) -> torch.Tensor:
    """ONNX ConvTranspose with explicit pads; what asymmetric pads cut is cut afterwards."""
    axes = weight.ndim - 2
    ones = (1,) * axes
    result = _TRANSPOSED[axes](
        x, weight, bias, strides or ones, 0, output_padding or 0, groups, dilations or ones
    )
    if pads:
        index = [slice(None)] * 2
        index += [slice(pads[a], result.shape[a + 2] - pads[a + axes]) for a in range(axes)]
        result = result[tuple(index)]
    return result


def max_pool(
    x: torch.Tensor,
    kernel: tuple[int, ...],
    padding: tuple[int, ...] | str | None,
    strides: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None,
    ceil_mode: bool,
) -> torch.Tensor:
    """ONNX MaxPool without indices."""
    ones = (1,) * len(kernel)
    stride, dilation = strides or ones, dilations or ones
    before, after = _pads(x, kernel, padding, stride, dilation)
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        x, before = _pad(x, before, after, float("-inf")), [0] * len(kernel)
    result: torch.Tensor = _MAX[len(kernel)](x, kernel, stride, before, dilation, ceil_mode)
    return result


def average_pool(
    x: torch.Tensor,
    kernel: tuple[int, ...],
    padding: tuple[int, ...] | str | None,
    strides: tuple[int, ...] | None,
    ceil_mode: bool,
    count_include_pad: bool,
) -> torch.Tensor:
    """ONNX AveragePool; unequal pads are averaged by hand."""
    axes = len(kernel)
    stride = strides or (1,) * axes
    before, after = _pads(x, kernel, padding, stride, (1,) * axes)
    pool = _AVERAGE[axes]
    if before == after:
        return pool(x, kernel, stride, before, ceil_mode, count_include_pad)
    padded = pool(_pad(x, before, after, 0.0), kernel, stride, 0, ceil_mode)
    if count_include_pad:
        return padded
    counted = _pad(torch.ones_like(x[:1, :1]), before, after, 0.0)
    return padded / pool(counted, kernel, stride, 0, ceil_mode)


def global_pool(x: torch.Tensor, largest: bool) -> torch.Tensor:
    """Mean or maximum over all spatial axes, which stay as ones."""
    return (torch.amax if largest else torch.mean)(x, dim=tuple(range(2, x.ndim)), keepdim=True)
