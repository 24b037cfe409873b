"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from obert_compiler.backends.torch.operators.table import Call, Operand, operator


@operator("LayerNormalization")
def _layer_norm(call: Call) -> Operand | Sequence[Operand]:
    x, scale, bias = call.tensor(0), call.tensor(1), call.tensor_or_none(2)
    axis, epsilon = call.integer("axis", -1), call.number("epsilon", 1e-5)
    if call.wants(1) or call.wants(2):
        parts = call.emit(layer_norm_with_statistics, x, scale, bias, axis, epsilon)
        return call.outputs_of(parts, len(call.node.outputs))
    shape = _static_shape(call, 1)
    if (
        shape is not None
        and axis < 0
        and len(shape) == -axis
        and _static_shape(call, 2) in {shape, None}
    ):
        return call.emit(functional.layer_norm, x, shape, scale, bias, epsilon)
    return call.emit(layer_norm, x, scale, bias, axis, epsilon)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(call: Call) -> Operand:
    axis, epsilon = call.integer("axis", -1), call.number("epsilon", 1e-5)
    return call.emit(rms_norm, call.tensor(0), call.tensor(1), axis, epsilon)


@operator("BatchNormalization")
def _batch_norm(call: Call) -> Operand:
    if call.flag("training_mode"):
        raise call.error("expected an inference graph, found training_mode=1; export in eval mode")
    x, scale, bias, mean, variance = (call.tensor(i) for i in range(5))
    epsilon = call.number("epsilon", 1e-5)
    return call.emit(functional.batch_norm, x, mean, variance, scale, bias, eps=epsilon)


@operator("InstanceNormalization")
def _instance_norm(call: Call) -> Operand:
    epsilon = call.number("epsilon", 1e-5)
    return call.emit(
        functional.instance_norm,
        call.tensor(0),
        weight=call.tensor(1),
        bias=call.tensor(2),
        eps=epsilon,
    )


@operator("GroupNormalization")
def _group_norm(call: Call) -> Operand:
    groups, epsilon = call.integer("num_groups"), call.number("epsilon", 1e-5)
    return call.emit(
        functional.group_norm, call.tensor(0), groups, call.tensor(1), call.tensor(2), epsilon
    )


@operator("LpNormalization")
def _lp_norm(call: Call) -> Operand:
    p, axis = call.integer("p", 2), call.integer("axis", -1)
    return call.emit(functional.normalize, call.tensor(0), p=float(p), dim=axis, eps=0.0)


def _static_shape(call: Call, index: int) -> tuple[int, ...] | None:
    value = call.node.inputs[index] if index < len(call.node.inputs) else None
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(d) for d in value.shape.numpy())


# -- at run time ----------------------------------------------------------------------------------


def layer_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, axis: int, epsilon: float
) -> torch.Tensor:
    """Layer normalisation from ``axis`` on; scale and bias broadcast."""
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    result = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return result if bias is None else result + bias


def layer_norm_with_statistics(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, axis: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layer normalisation, its mean and its inverse standard deviation."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    return layer_norm(x, scale, bias, axis, epsilon), mean, inverse


def rms_norm(x: torch.Tensor, scale: torch.Tensor, axis: int, epsilon: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the axes from ``axis`` on."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale
