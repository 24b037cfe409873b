"""The operator table: how each ONNX op becomes torch calls.

A row is a function that takes a `Call` (one ONNX node) and returns what the node yields::

    @operator("Softmax")
    def softmax(call: Call) -> Operand:
        return call.emit(torch.softmax, call.tensor(0), dim=call.integer("axis", -1))

`Call.emit` adds a call to the torch.fx graph, or runs it at once when every argument is known: that
is how constants fold.

An operand is one of three things:

* an `fx.Node`: a tensor at run time;
* a `torch.Tensor`: a constant, known while building;
* a `Host`: integers that describe shapes. They are Python ints (0-D) or tuples of ints (1-D), never
  tensors, so that batch and sequence stay dynamic when the module is exported, and a shape costs no
  kernel launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import onnx_ir as ir
import torch
from torch import fx

from obert_compiler.backends.torch.dtypes import torch_dtype
from obert_compiler.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "OPERATORS",
    "Call",
    "Emitter",
    "Host",
    "HostValue",
    "Operand",
    "Row",
    "TensorOperand",
    "operator",
]

HostValue: TypeAlias = "int | tuple[int, ...] | fx.Node"
TensorOperand: TypeAlias = "fx.Node | torch.Tensor"


@dataclass(frozen=True)
class Host:
    """Integers that describe shapes: an int (0-D), a tuple of ints (1-D), or a node yielding one.

    Attributes:
        value: the integers.
        rank: 0 or 1.
        dtype: element type when a consumer needs them as a tensor.
    """

    value: HostValue
    rank: int
    dtype: torch.dtype = torch.int64


Operand: TypeAlias = "fx.Node | torch.Tensor | Host"
Row: TypeAlias = "Callable[[Call], Operand | Sequence[Operand]]"

OPERATORS: dict[str, Row] = {}
"""Rows by ONNX op type; the files of this folder fill it."""


def operator(*op_types: str) -> Callable[[Row], Row]:
    """Register a row for one or more ONNX op types."""

    def register(row: Row) -> Row:
        OPERATORS.update(dict.fromkeys(op_types, row))
        return row

    return register


class Emitter(Protocol):
    """What a row needs from the builder of the fx graph."""

    def emit(self, kind: str, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        """Add a node to the fx graph, or run the call when all arguments are constants."""
        ...

    @property
    def device(self) -> Any:
        """Device of the graph's inputs at run time."""
        ...


class Call:
    """One ONNX node while it is translated: its operands, its attributes, and `emit`."""

    def __init__(self, node: ir.Node, operands: Sequence[Operand | None], to: Emitter) -> None:
        self.node = node
        self.operands = operands
        self._to = to
        first = next((o.name for o in node.outputs if o.name), None)
        self._name = first or node.op_type.lower()

    def __len__(self) -> int:
        return len(self.operands)

    # -- operands ---------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether the optional input ``index`` is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def operand(self, index: int) -> Operand:
        """Input ``index`` as it is.

        Raises:
            GraphError: the input is missing.
        """
        operand = self.operands[index] if index < len(self.operands) else None
        if operand is None:
            raise self.error(f"expected input {index}, found none")
        return operand

    def tensor(self, index: int) -> TensorOperand:
        """Input ``index`` as a tensor; shape integers are converted."""
        operand = self.operand(index)
        if not isinstance(operand, Host):
            return operand
        if not isinstance(operand.value, fx.Node):
            return torch.tensor(operand.value, dtype=operand.dtype)
        return self.emit(tensor_from_host, operand.value, operand.dtype, self.device)

    def tensor_or_none(self, index: int) -> TensorOperand | None:
        """Optional input ``index`` as a tensor."""
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[TensorOperand]:
        """Every given input as a tensor."""
        return [self.tensor(i) for i in range(len(self.operands)) if self.has(i)]

    def number_or_tensor(self, index: int) -> Any:
        """Input ``index``, a constant 0-D tensor as a Python number (no buffer, no broadcast)."""
        operand = self.tensor(index)
        if isinstance(operand, torch.Tensor) and operand.ndim == 0 and not self._all_constant():
            return operand.item()
        return operand

    def constant(self, index: int) -> torch.Tensor | None:
        """Input ``index`` if it is a constant, else None."""
        operand = self.operands[index] if self.has(index) else None
        return operand if isinstance(operand, torch.Tensor) else None

    def host(self, index: int) -> HostValue:
        """Input ``index`` as integers on the host: an int for 0-D, a tuple for 1-D.

        A tensor computed from data is read back at run time; that works eagerly and ends an export
        with torch's own message about data-dependent shapes.
        """
        operand = self.operand(index)
        if isinstance(operand, Host):
            return operand.value
        return self.emit_host(host_from_tensor, operand, rank=0).value

    def hosts(self) -> list[HostValue] | None:
        """Every input as host integers if that loses nothing, else None.

        That is so when at least one input is a `Host` and the rest are integer constants of at most
        one dimension.
        """
        if not any(isinstance(o, Host) for o in self.operands):
            return None
        if not all(isinstance(o, Host) or _is_small(o) for o in self.operands if o is not None):
            return None
        return [self.host(i) for i in range(len(self.operands)) if self.has(i)]

    def rank(self, index: int) -> int | None:
        """Number of dimensions of input ``index`` where it is known while building."""
        operand = self.operand(index)
        if isinstance(operand, Host):
            return operand.rank
        if isinstance(operand, torch.Tensor):
            return operand.ndim
        value = self.node.inputs[index]
        return None if value is None or value.shape is None else value.shape.rank()

    def dtype(self, index: int) -> torch.dtype | None:
        """Element type of input ``index`` where it is known while building."""
        operand = self.operands[index] if self.has(index) else None
        if isinstance(operand, (torch.Tensor, Host)):
            return operand.dtype
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return None if value is None or value.dtype is None else torch_dtype(value.dtype)

    def is_float(self, index: int) -> bool:
        """Whether input ``index`` is known to be of a floating-point type."""
        dtype = self.dtype(index)
        return dtype is not None and dtype.is_floating_point

    def output_dtype(self, index: int = 0) -> torch.dtype | None:
        """Element type of output ``index`` where it is known while building."""
        dtype = self.node.outputs[index].dtype
        return None if dtype is None else torch_dtype(dtype)

    def wants(self, index: int) -> bool:
        """Whether somebody reads output ``index``."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.uses()) or value.is_graph_output()

    def _all_constant(self) -> bool:
        return all(isinstance(o, torch.Tensor) for o in self.operands if o is not None)

    # -- attributes -------------------------------------------------------------------------------

    def integer(self, name: str, default: int = 0) -> int:
        """Integer attribute."""
        return self.node.attributes.get_int(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Integer attribute that is 0 or 1."""
        return bool(self.node.attributes.get_int(name, int(default)))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """List of integers, None where absent."""
        found = self.node.attributes.get_ints(name, None)
        return None if found is None else tuple(found)

    def number(self, name: str, default: float) -> float:
        """Float attribute."""
        return self.node.attributes.get_float(name, default)

    def text(self, name: str, default: str) -> str:
        """String attribute."""
        return self.node.attributes.get_string(name, default)

    # -- results ----------------------------------------------------------------------------------

    @property
    def device(self) -> Any:
        """Device of the graph's inputs, for tensors that a row creates."""
        return self._to.device

    def emit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> TensorOperand:
        """Call ``function`` at run time, or now when every argument is a constant."""
        result: TensorOperand = self._emit("call_function", function, args, kwargs)
        return result

    def emit_method(self, name: str, *args: Any) -> TensorOperand:
        """Call the tensor method ``name`` of the first argument."""
        result: TensorOperand = self._emit("call_method", name, args, {})
        return result

    def emit_host(
        self, function: Callable[..., Any], *args: Any, rank: int, dtype: torch.dtype = torch.int64
    ) -> Host:
        """Call a function of host integers that yields an int (rank 0) or a tuple (rank 1)."""
        return Host(self._emit("call_function", function, args, {}), rank, dtype)

    def _emit(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        return self._to.emit(kind, target, args, kwargs, self._name)

    def outputs_of(self, result: TensorOperand, number: int) -> tuple[TensorOperand, ...]:
        """The ``number`` items of a result that is a tuple."""
        return tuple(self.emit(item, result, i) for i in range(number))

    def error(self, message: str) -> GraphError:
        """An error that names the node."""
        name = self.node.name or self._name
        return GraphError(f"node '{name}' ({self.node.op_type}): {message}")


def item(values: Sequence[Any], index: int) -> Any:
    """One item of a tuple."""
    return values[index]


def tensor_from_host(
    value: int | Iterable[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Shape integers as a tensor, 0-D or 1-D."""
    if not isinstance(value, tuple):
        return torch.scalar_tensor(value, dtype=dtype, device=device)  # type: ignore[arg-type]
    if all(isinstance(v, int) for v in value):
        return torch.tensor(value, dtype=dtype, device=device)
    return torch.stack([torch.scalar_tensor(v, dtype=dtype, device=device) for v in value])


def host_from_tensor(x: torch.Tensor) -> int | tuple[int, ...]:
    """A tensor of integers (0-D or 1-D) as Python ints."""
    if x.ndim == 0:
        return int(x.item())
    return tuple(x.tolist())


def _is_small(operand: Operand) -> bool:
    return (
        isinstance(operand, torch.Tensor)
        and operand.ndim <= 1
        and operand.dtype in {torch.int64, torch.int32, torch.bool}
    )
