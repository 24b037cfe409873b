"""Pooling and normalisation of sentence-transformers, added to a graph as ONNX nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from obert_compiler.errors import ModelError
from obert_compiler.frontends.configuration import read_json
from obert_compiler.graph.graph import Graph

__all__ = ["add_sentence_embedding", "read_modules"]


def read_modules(folder: Path) -> list[str]:
    """What follows the Transformer in ``folder/modules.json``: a pooling mode, then ``normalise``.

    Raises:
        ModelError: a module or pooling mode is not supported, or a file does not parse.
    """
    file = folder / "modules.json"
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"file '{file}': expected a list of modules, found something else")
    steps: list[str] = []
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling" and not steps:
            steps.append(_pooling_mode(folder / str(module.get("path", "")) / "config.json"))
        elif kind == "Normalize" and steps:
            steps.append("normalise")
        elif kind != "Transformer":
            raise ModelError(
                f"file '{file}': expected Transformer, Pooling and Normalize, in this order, found "
                f"'{kind}'; convert the model without that module"
            )
    if not steps:
        raise ModelError(f"file '{file}': expected a Pooling module, found none")
    return steps


def add_sentence_embedding(graph: Graph, steps: list[str]) -> None:
    """Append the output ``sentence_embedding`` to a graph with ``last_hidden_state``.

    Args:
        graph: the graph; it has an input ``attention_mask`` unless the mode is ``cls``.
        steps: as `read_modules` gives them.

    Raises:
        ModelError: the graph has no attention mask.
    """
    model = graph.model
    hidden = next(v for v in model.graph.outputs if v.name == "last_hidden_state")
    build = _Nodes(model.graph)
    embedding = _pool(build, model.graph, hidden, steps[0])
    for _ in steps[1:]:
        embedding = _normalise(build, embedding)
    embedding.name = "sentence_embedding"
    size = hidden.shape[-1] if hidden.shape is not None else None
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
    last = build.constant("pool_last_axis", np.array([-1]))
    sequence = build.constant("pool_sequence_axis", np.array([1]))
    weights = build("Unsqueeze", build("Cast", mask, to=int(ir.DataType.FLOAT)), last)
    if mode == "max":
        seen = build("Cast", weights, to=int(ir.DataType.BOOL))
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
        }
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [flags.get(key, key) for key in on]
    if len(modes) != 1 or modes[0] not in {"cls", "mean", "max", "mean_sqrt_len"}:
        found = ", ".join(map(str, modes)) or "none"
        raise ModelError(
            f"file '{file}': expected one pooling mode of mean, cls, max, mean_sqrt_len, found "
            f"{found}; convert the model with one of these"
        )
    return modes[0]


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

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        self._count += 1
        name = f"sentence_{op_type}_{self._count}"
        dtype = ir.DataType(attributes.get("to", ir.DataType.FLOAT))
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
