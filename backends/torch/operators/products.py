"""Matrix products that are no Linear site."""

from __future__ import annotations

import operator as python

import torch

from obert_compiler.backends.torch.operators.table import Call, Operand, TensorOperand, operator


@operator("MatMul")
def _matmul(call: Call) -> Operand:
    return call.emit(torch.matmul, call.tensor(0), call.tensor(1))


@operator("Gemm")
def _gemm(call: Call) -> Operand:
    a, b = call.tensor(0), call.tensor(1)
    if call.flag("transA"):
        a = call.emit(torch.t, a)
    if call.flag("transB"):
        b = call.emit(torch.t, b)
    product = call.emit(torch.matmul, a, b)
    if call.number("alpha", 1.0) != 1.0:
        product = call.emit(python.mul, product, call.number("alpha", 1.0))
    return add_bias(call, product)


def add_bias(call: Call, product: TensorOperand) -> TensorOperand:
    """Gemm's ``+ beta * C``, where C is given."""
    if not call.has(2):
        return product
    bias, beta = call.tensor(2), call.number("beta", 1.0)
    if beta != 1.0:
        bias = call.emit(python.mul, bias, beta)
    return call.emit(python.add, product, bias)


@operator("Einsum")
def _einsum(call: Call) -> Operand:
    return call.emit(torch.einsum, call.text("equation", ""), *call.tensors())


@operator("MatMulInteger")
def _matmul_integer(call: Call) -> Operand:
    return call.emit(
        matmul_integer,
        call.tensor(0),
        call.tensor(1),
        call.tensor_or_none(2),
        call.tensor_or_none(3),
    )


def matmul_integer(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    """int32 product of 8-bit matrices less their zero points (per row of a, per column of b)."""
    a, b = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        a = a - (a_zero.to(torch.int32).unsqueeze(-1) if a_zero.ndim else a_zero.to(torch.int32))
    if b_zero is not None:
        b = b - b_zero.to(torch.int32)
    return torch.matmul(a, b)
