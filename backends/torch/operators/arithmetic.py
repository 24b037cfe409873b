"""Elementwise arithmetic, comparison, logic and activations."""

from __future__ import annotations

import functools
import operator as python
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from obert_compiler.backends.torch.operators.shapes import elementwise
from obert_compiler.backends.torch.operators.table import (
    OPERATORS,
    Call,
    Host,
    Operand,
    Row,
    operator,
)

_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # both round halves to even
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _unary_row(function: Callable[[torch.Tensor], torch.Tensor]) -> Row:
    def row(call: Call) -> Operand:
        result: Operand = call.emit(function, call.tensor(0))
        return result

    return row


OPERATORS.update({name: _unary_row(function) for name, function in _UNARY.items()})


def _on_host(call: Call, dtype: torch.dtype | None = None) -> Host | None:
    """The node as arithmetic on host integers, where every operand is one."""
    hosts = call.hosts()
    if hosts is None:
        return None
    rank = max(call.rank(i) or 0 for i in range(len(hosts)))
    dtype = dtype or call.dtype(len(hosts) - 1) or torch.int64
    return call.emit_host(elementwise, call.node.op_type, *hosts, rank=rank, dtype=dtype)


@operator("Neg", "Abs")
def _sign(call: Call) -> Operand:
    host = _on_host(call)
    if host is not None:
        return host
    return call.emit(torch.neg if call.node.op_type == "Neg" else torch.abs, call.tensor(0))


# Python's operators: `x * 0.125` in the generated code, and a number may stand on either side.
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
}
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


@operator(*_BINARY)
def _binary(call: Call) -> Operand:
    host = _on_host(call, torch.bool if call.node.op_type in _COMPARISONS else None)
    if host is not None:
        return host
    function = _BINARY[call.node.op_type]
    result: Operand = call.emit(function, call.number_or_tensor(0), call.number_or_tensor(1))
    return result


@operator("Div")
def _div(call: Call) -> Operand:
    host = _on_host(call)
    if host is not None:
        return host
    a, b = call.number_or_tensor(0), call.number_or_tensor(1)
    result: Operand = call.emit(python.truediv if call.is_float(0) else divide, a, b)
    return result


@operator("Mod")
def _mod(call: Call) -> Operand:
    host = None if call.flag("fmod") else _on_host(call)
    if host is not None:
        return host
    function = torch.fmod if call.flag("fmod") else torch.remainder
    return call.emit(function, call.tensor(0), call.number_or_tensor(1))


@operator("Pow")
def _pow(call: Call) -> Operand:
    base, exponent = call.tensor(0), call.number_or_tensor(1)
    return call.emit(torch.pow if call.is_float(0) else power, base, exponent)


@operator("Max", "Min")
def _extremum(call: Call) -> Operand:
    host = _on_host(call)
    if host is not None:
        return host
    function = torch.maximum if call.node.op_type == "Max" else torch.minimum
    result: Operand = functools.reduce(lambda a, b: call.emit(function, a, b), call.tensors())
    return result


@operator("Sum", "Mean")
def _sum(call: Call) -> Operand:
    tensors = call.tensors()
    total = functools.reduce(lambda a, b: call.emit(python.add, a, b), tensors)
    result: Operand = total
    if call.node.op_type == "Mean":
        result = call.emit(python.truediv, total, float(len(tensors)))
    return result


@operator("Where")
def _where(call: Call) -> Operand:
    host = _on_host(call)
    if host is not None:
        return host
    return call.emit(torch.where, *call.tensors())


@operator("Clip")
def _clip(call: Call) -> Operand:
    low = call.number_or_tensor(1) if call.has(1) else None
    high = call.number_or_tensor(2) if call.has(2) else None
    if low is None and high is None:
        return call.tensor(0)
    return call.emit(clip, call.tensor(0), low, high)


_LOGIC: dict[str, Callable[..., torch.Tensor]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}


@operator(*_LOGIC)
def _logic(call: Call) -> Operand:
    return call.emit(_LOGIC[call.node.op_type], call.tensor(0), call.tensor(1))


@operator("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def _bitwise(call: Call) -> Operand:
    return call.emit(bits, call.node.op_type, call.tensor(0), call.number_or_tensor(1))


@operator("BitShift")
def _bit_shift(call: Call) -> Operand:
    direction = call.text("direction", "")
    return call.emit(bits, direction, call.tensor(0), call.number_or_tensor(1))


@operator("IsInf")
def _is_inf(call: Call) -> Operand:
    positive, negative = call.flag("detect_positive", True), call.flag("detect_negative", True)
    if positive and negative:
        return call.emit(torch.isinf, call.tensor(0))
    return call.emit(torch.isposinf if positive else torch.isneginf, call.tensor(0))


# -- activations with attributes ------------------------------------------------------------------


@operator("Gelu")
def _gelu(call: Call) -> Operand:
    return call.emit(functional.gelu, call.tensor(0), approximate=call.text("approximate", "none"))


@operator("Softmax")
def _softmax(call: Call) -> Operand:
    return call.emit(torch.softmax, call.tensor(0), dim=call.integer("axis", -1))


@operator("LogSoftmax")
def _log_softmax(call: Call) -> Operand:
    return call.emit(torch.log_softmax, call.tensor(0), dim=call.integer("axis", -1))


@operator("Elu")
def _elu(call: Call) -> Operand:
    return call.emit(functional.elu, call.tensor(0), alpha=call.number("alpha", 1.0))


@operator("Celu")
def _celu(call: Call) -> Operand:
    return call.emit(functional.celu, call.tensor(0), alpha=call.number("alpha", 1.0))


@operator("Selu")
def _selu(call: Call) -> Operand:
    alpha = call.number("alpha", 1.67326319217681884765625)
    gamma = call.number("gamma", 1.05070102214813232421875)
    return call.emit(python.mul, call.emit(functional.elu, call.tensor(0), alpha=alpha), gamma)


@operator("LeakyRelu")
def _leaky_relu(call: Call) -> Operand:
    return call.emit(
        functional.leaky_relu, call.tensor(0), negative_slope=call.number("alpha", 0.01)
    )


@operator("PRelu")
def _prelu(call: Call) -> Operand:
    return call.emit(prelu, call.tensor(0), call.tensor(1))


@operator("ThresholdedRelu")
def _thresholded_relu(call: Call) -> Operand:
    return call.emit(functional.threshold, call.tensor(0), call.number("alpha", 1.0), 0.0)


@operator("HardSigmoid")
def _hard_sigmoid(call: Call) -> Operand:
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    return call.emit(hard_sigmoid, call.tensor(0), alpha, beta)


@operator("Swish")
def _swish(call: Call) -> Operand:
    x, alpha = call.tensor(0), call.number("alpha", 1.0)
    inner = x if alpha == 1.0 else call.emit(python.mul, x, alpha)
    return call.emit(python.mul, x, call.emit(torch.sigmoid, inner))


# -- at run time ----------------------------------------------------------------------------------


def divide(a: Any, b: Any) -> Any:
    """Quotient; integers round towards zero."""
    x = a if isinstance(a, torch.Tensor) else b
    if x.is_floating_point():
        return a / b
    return torch.div(a if a is x else torch.tensor(a, dtype=x.dtype), b, rounding_mode="trunc")


def power(base: torch.Tensor, exponent: Any) -> torch.Tensor:
    """``base ** exponent`` in the type of ``base``."""
    return torch.pow(base, exponent).to(base.dtype)


def clip(x: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
    """``x`` limited to ``low`` and ``high``, numbers or tensors; ``high`` wins when they cross."""
    if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
        if low is not None:
            x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
        if high is not None:
            x = torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))
        return x
    return torch.clamp(x, low, high)


_WIDE = frozenset({torch.uint16, torch.uint32, torch.uint64})


_BITS: dict[str, Callable[[Any, Any], Any]] = {
    "BitwiseAnd": python.and_,
    "BitwiseOr": python.or_,
    "BitwiseXor": python.xor,
    "LEFT": python.lshift,
    "RIGHT": python.rshift,
}


def bits(kind: str, a: torch.Tensor, b: Any) -> torch.Tensor:
    """A bit operation; torch lacks most for unsigned types wider than a byte, int64 has them."""
    function = _BITS[kind]
    if a.dtype not in _WIDE:
        result: torch.Tensor = function(a, b)
        return result
    other = b.to(torch.int64) if isinstance(b, torch.Tensor) else b
    wide: torch.Tensor = function(a.to(torch.int64), other)
    return wide.to(a.dtype)


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """``x`` where positive, else ``slope * x``; ``slope`` broadcasts."""
    return torch.where(x >= 0, x, slope * x)


def hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """``max(0, min(1, alpha * x + beta))``."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)
