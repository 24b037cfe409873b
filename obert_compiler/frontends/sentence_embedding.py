"""Pooling and normalisation of sentence-transformers, added to a graph as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.errors import ModelError
from obert_compiler.frontends.configuration import read_json
from obert_compiler.graph.graph import Graph

__all__ = ["Dense", "Normalise", "Pooling", "Step", "add_sentence_embedding", "read_modules"]

_MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken")
_ACTIVATIONS = {"Identity": None, "ReLU": "Relu", "Sigmoid": "Sigmoid", "Tanh": "Tanh"}


@dataclass(frozen=True)
class Pooling:
    """One vector for the tokens of a sentence: ``mean``, ``cls``, ``max``, ``mean_sqrt_len``,
    ``lasttoken``."""

    mode: str


@dataclass(frozen=True)
class Dense:
    """``activation(x W + b)``.

    Attributes:
        name: of the module's folder.
        weight: float32 ``[inputs, outputs]``.
        bias: float32 ``[outputs]``, or None.
        activation: an ONNX op, or None.
    """

    name: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    activation: str | None


@dataclass(frozen=True)
class Normalise:
    """Unit length."""


Step = Pooling | Dense | Normalise


def read_modules(folder: Path) -> list[Step]:
    """What follows the Transformer in ``folder/modules.json``: Pooling, then Dense or Normalize.

    Raises:
        ModelError: a module or pooling mode is not supported, or a file does not parse.
    """
    file = folder / "modules.json"
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"file '{file}': expected a list of modules, found something else")
    steps: list[Step] = []
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = folder / str(module.get("path", ""))
        if kind == "Pooling" and not steps:
            steps.append(Pooling(_pooling_mode(path / "config.json")))
        elif kind == "Dense" and steps:
            steps.append(_read_dense(path))
        elif kind == "Normalize" and steps:
            steps.append(Normalise())
        elif kind != "Transformer":
            raise ModelError(
                f"file '{file}': expected Transformer, Pooling, then Dense or Normalize, found "
                f"'{kind}'; convert the model without that module"
            )
    if not steps:
        raise ModelError(f"file '{file}': expected a Pooling module, found none")
    return steps


def add_sentence_embedding(graph: Graph, steps: list[Step]) -> None:
    """Append the output ``sentence_embedding`` to a graph with ``last_hidden_state``.

    Args:
        graph: the graph; it has an input ``attention_mask`` unless the mode is ``cls``.
        steps: as `read_modules` gives them.

    Raises:
        ModelError: the graph has no attention mask, or a matrix does not fit.
    """
    model = graph.model
    hidden = next(v for v in model.graph.outputs if v.name == "last_hidden_state")
    build = _Nodes(model.graph)
    embedding = hidden
    size = hidden.shape[-1] if hidden.shape is not None else None
    for step in steps:
        if isinstance(step, Pooling):
            embedding = _pool(build, model.graph, embedding, step.mode)
        elif isinstance(step, Normalise):
            embedding = _normalise(build, embedding)
        else:
            if isinstance(size, int) and size != len(step.weight):
                raise ModelError(
                    f"module '{step.name}': expected a matrix for {size} features, found "
                    f"{len(step.weight)}; use the module that belongs to the model"
                )
            embedding = _project(build, embedding, step)
            size = step.weight.shape[1]
    embedding.name = "sentence_embedding"
    embedding.shape = ir.Shape(["batch", size])
    model.graph.outputs.append(embedding)


def _pool(build: _Nodes, graph: ir.Graph, hidden: ir.Value, mode: str) -> ir.Value:
    if mode == "cls":
        return build("Gather", hidden, build.constant("pool_first", np.array(0)), axis=1)
    mask = next((v for v in graph.inputs if v.name == "attention_mask"), None)
    if mask is None:
        raise ModelError(
            "pooling: expected an input 'attention_mask', found none; export the model with one"
        )
    if mode == "lasttoken":  # wherever the padding is: the first of those that end the count
        axis = build.constant("pool_count_axis", np.array(1))
        seen = build("Cast", mask, dtype=ir.DataType.INT32)
        count = build("CumSum", seen, axis, dtype=ir.DataType.INT32)
        index = build("ArgMax", count, axis=1, keepdims=1, dtype=ir.DataType.INT64)
        return build("GatherND", hidden, index, batch_dims=1)
    last = build.constant("pool_last_axis", np.array([-1]))
    sequence = build.constant("pool_sequence_axis", np.array([1]))
    weights = build("Unsqueeze", build("Cast", mask), last)
    if mode == "max":
        seen = build("Cast", weights, dtype=ir.DataType.BOOL)
        lowest = build.constant("pool_lowest", np.array(-1e9, np.float32))
        return build("ReduceMax", build("Where", seen, hidden, lowest), sequence, keepdims=0)
    total = build("ReduceSum", build("Mul", hidden, weights), sequence, keepdims=0)
    count = build("ReduceSum", weights, sequence, keepdims=0)
    if mode == "mean_sqrt_len":
        count = build("Sqrt", count)
    return build("Div", total, build("Max", count, build.constant("pool_tiny", np.float32(1e-9))))


def _pooling_mode(file: Path) -> str:
    config = read_json(file)
    named = config.get("pooling_mode")
    if isinstance(named, str):
        modes = [named]
    else:
        flags = {
            "pooling_mode_cls_token": "cls",
            "pooling_mode_mean_tokens": "mean",
            "pooling_mode_max_tokens": "max",
            "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
            "pooling_mode_lasttoken": "lasttoken",
        }
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [flags.get(key, key) for key in on]
    if len(modes) != 1 or modes[0] not in _MODES:
        found = ", ".join(map(str, modes)) or "none"
        raise ModelError(
            f"file '{file}': expected one pooling mode of {', '.join(_MODES)}, found "
            f"{found}; convert the model with one of these"
        )
    return modes[0]


def _read_dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    named = str(config.get("activation_function", "torch.nn.modules.linear.Identity"))
    activation = named.rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"module '{folder}': expected an activation of {', '.join(_ACTIVATIONS)}, found "
            f"'{named}'; convert the model without that module"
        )
    tensors = _read_weights(folder)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        found = ", ".join(f"{name} {array.shape}" for name, array in tensors.items()) or "nothing"
        raise ModelError(
            f"module '{folder}': expected linear.weight [outputs, inputs] and perhaps linear.bias, "
            f"found {found}"
        )
    transposed = np.ascontiguousarray(weight.T)
    return Dense(folder.name, transposed, bias, _ACTIVATIONS[activation])


def _read_weights(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    import torch
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    try:
        if file.is_file():
            tensors = load_file(file)
        else:
            file = folder / "pytorch_model.bin"
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}
    except Exception as error:  # whatever a file that is none of the two leads to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"file '{file}': the weights cannot be read: {reason}") from error


def _project(build: _Nodes, embedding: ir.Value, dense: Dense) -> ir.Value:
    weight = build.constant(f"{dense.name}_weight", dense.weight)
    embedding = build("MatMul", embedding, weight)
    if dense.bias is not None:
        bias = build.constant(f"{dense.name}_bias", dense.bias)
        embedding = build("Add", embedding, bias)
    return build(dense.activation, embedding) if dense.activation else embedding


def _normalise(build: _Nodes, embedding: ir.Value) -> ir.Value:
    axis = build.constant("norm_axis", np.array([-1]))
    length = build("ReduceL2", embedding, axis, keepdims=1)
    return build(
        "Div", embedding, build("Max", length, build.constant("norm_tiny", np.float32(1e-12)))
    )


class _Nodes:
    """Appends nodes to a graph; values and nodes are called ``sentence_<op>_<n>``."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._count = 0

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: int,
    ) -> ir.Value:
        self._count += 1
        name = f"sentence_{op_type}_{self._count}"
        if op_type == "Cast":
            attributes["to"] = int(dtype)
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        node = ir.node(op_type, list(inputs), attributes, outputs=[output], name=name)
        self._graph.append(node)
        return output

    def constant(self, name: str, array: Any) -> ir.Value:
        name = f"sentence_{name}"
        found = self._graph.initializers.get(name)
        if found is not None:
            return found
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
        )
        value.const_value = tensor
        self._graph.register_initializer(value)
        return value
