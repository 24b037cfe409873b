"""QuantizeLinear and DequantizeLinear: exact on constants, fake quantisation on activations.

A pair QuantizeLinear -> DequantizeLinear with the same scale and zero point becomes one function
whose forward rounds and whose backward passes the gradient through unchanged where the value lies
inside the quantised range, and stops it where it is clipped (the straight-through estimator, Bengio
et al. 2013, arXiv 1308.3432, with the clipping of Jacob et al. 2018, arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import onnx_ir as ir
import torch

from obert_compiler.backends.torch.dtypes import integer_range, torch_dtype
from obert_compiler.backends.torch.operators.table import Call, Operand, operator

__all__ = ["FakeQuantise", "fake_quantise_row"]


@operator("QuantizeLinear")
def _quantize(call: Call) -> Operand:
    dtype = _quantised_type(call.node)
    low, high = integer_range(dtype)
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    x, scale, zero = call.tensor(0), call.tensor(1), call.tensor_or_none(2)
    return call.emit(quantise, x, scale, zero, axis, block, low, high, torch_dtype(dtype))


@operator("DequantizeLinear")
def _dequantize(call: Call) -> Operand:
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    return call.emit(
        dequantise, call.tensor(0), call.tensor(1), call.tensor_or_none(2), axis, block
    )


@operator("DynamicQuantizeLinear")
def _dynamic_quantize(call: Call) -> Sequence[Operand]:
    return call.outputs_of(call.emit(dynamic_quantise, call.tensor(0)), 3)


def fake_quantise_row(call: Call) -> Operand:
    """A QuantizeLinear and the DequantizeLinear behind it as one function of the float input.

    ``call`` is the QuantizeLinear's.
    """
    low, high = integer_range(_quantised_type(call.node))
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    x, scale, zero = call.tensor(0), call.tensor(1), call.tensor_or_none(2)
    return cast("Operand", call.emit(fake_quantise, x, scale, zero, axis, block, low, high))


def _quantised_type(node: ir.Node) -> ir.DataType:
    if len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].dtype is not None:
        return node.inputs[2].dtype
    stated = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(stated) if stated else ir.DataType.UINT8


# -- at run time ----------------------------------------------------------------------------------


def _spread(parameter: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """A scale or zero point shaped to broadcast against ``x``."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = parameter.shape[0]
    return parameter.reshape(shape)


def quantise(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    axis: int,
    block: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``clamp(round(x / scale) + zero, low, high)``, halves to even."""
    levels = torch.round(x / _spread(scale, x, axis, block))
    if zero is not None:
        levels = levels + _spread(zero, x, axis, block).to(x.dtype)
    return levels.clamp(low, high).to(dtype)


def dequantise(
    q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int
) -> torch.Tensor:
    """``(q - zero) * scale``."""
    shifted = q.to(scale.dtype)
    if zero is not None:
        shifted = shifted - _spread(zero, q, axis, block).to(scale.dtype)
    return shifted * _spread(scale, q, axis, block)


class FakeQuantise(torch.autograd.Function):
    """Quantise and dequantise; the gradient passes where nothing was clipped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None,
        low: int,
        high: int,
    ) -> torch.Tensor:
        """``scale`` and ``zero`` (of the type of ``x``) broadcast against ``x``."""
        levels = (x / scale).round_()
        if zero is not None:
            levels.add_(zero)
        clipped = levels.clamp(low, high)
        # 1 or 0 in the type of the gradient: products of equal types are several times faster.
        ctx.save_for_backward(levels.eq_(clipped))
        if zero is not None:
            clipped.sub_(zero)
        return clipped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """The gradient with respect to ``x`` alone."""
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


def fake_quantise(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    axis: int,
    block: int,
    low: int,
    high: int,
) -> torch.Tensor:
    """`FakeQuantise` with ONNX's parameters."""
    step = _spread(scale, x, axis, block)
    offset = None if zero is None else _spread(zero, x, axis, block).to(x.dtype)
    result: torch.Tensor = FakeQuantise.apply(x, step, offset, low, high)  # type: ignore[no-untyped-call]
    return result


def dynamic_quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """8-bit levels of ``x``, scale and zero point from its own range, which includes 0."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / safe).clamp(0, 255))
    levels = (torch.round(x / safe) + zero).clamp(0, 255)
    return levels.to(torch.uint8), scale, zero.to(torch.uint8)
