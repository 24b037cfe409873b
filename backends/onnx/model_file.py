"""From the graph to model.onnx, without what a runtime does not read.

What leaves: shapes and types of values between nodes (a runtime infers them), and the metadata of
exporters. What stays: names of weights, and what lets a written model be read back as the graph
that it was without computing anything: ``obert.`` metadata (stage, names of sites and parameters)
and the shapes of weights that nodes dequantise or unpack.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

import obert_compiler
from obert_compiler.errors import GraphError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.linear import find_linear_sites

__all__ = ["DATA_FILE", "MODEL_FILE", "build_model", "check_model", "write_model"]

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx_data"

_PREFIX = "obert."
_INLINE_LIMIT = 2**31 - 2**26
"""Bytes of weights that a protobuf holds for certain: 2 GB, less 64 MB for everything else."""

_EXTERNAL_FROM = 1024
"""Tensors of fewer bytes stay inside the model file: shapes must, for shape inference."""


def build_model(graph: Graph) -> onnx.ModelProto:
    """The model as a protobuf, weights inside.

    Raises:
        GraphError: the weights exceed what a protobuf holds.
    """
    size = _weight_bytes(graph)
    if size > _INLINE_LIMIT:
        raise GraphError(
            f"model: expected weights of at most {_INLINE_LIMIT} bytes for a model in memory, "
            f"found {size}; write it to a folder instead"
        )
    # Weights that a file or a checkpoint holds are read: the protobuf must not point there.
    proto = ir.to_proto(ir.external_data.load_to_model(graph.model))
    _tidy(proto, _made_weights(graph))
    return proto


def check_model(model: onnx.ModelProto | Path) -> None:
    """Run onnx.checker in full, shape inference included.

    Raises:
        GraphError: with the first line of what the checker says.
    """
    subject: Any = str(model) if isinstance(model, Path) else model
    try:
        onnx.checker.check_model(subject, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GraphError(f"model: expected what onnx.checker accepts, found: {text}") from error


def write_model(graph: Graph, folder: Path) -> list[str]:
    """Write the model into ``folder`` and check it.

    Returns:
        The names of the files.

    Raises:
        GraphError: onnx.checker refuses the model.
        OSError: it cannot be written.
    """
    if _weight_bytes(graph) <= _INLINE_LIMIT:
        proto = build_model(graph)
        check_model(proto)
        (folder / MODEL_FILE).write_bytes(proto.SerializeToString())
        return [MODEL_FILE]
    ir.save(
        graph.model,
        folder / MODEL_FILE,
        external_data=DATA_FILE,
        size_threshold_bytes=_EXTERNAL_FROM,
    )
    proto = onnx.load(folder / MODEL_FILE, load_external_data=False)
    _tidy(proto, _made_weights(graph))
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())
    check_model(folder / MODEL_FILE)
    return [MODEL_FILE, DATA_FILE]


def _weight_bytes(graph: Graph) -> int:
    return sum(
        value.const_value.nbytes
        for value in graph.model.graph.initializers.values()
        if value.const_value is not None
    )


def _made_weights(graph: Graph) -> set[str]:
    """Names of the values behind which the weights of Linear sites are stored."""
    names = set()
    for site in find_linear_sites(graph):
        value: ir.Value | None = site.weight_value
        while value is not None and (node := value.producer()) is not None:
            names.add(value.name or "")
            unwraps = node.op_type in {"DequantizeLinear", "Transpose"}
            value = node.inputs[0] if unwraps else None
    return names


def _tidy(proto: onnx.ModelProto, shapes_of: set[str]) -> None:
    proto.producer_name = "obert_compiler"
    proto.producer_version = obert_compiler.__version__
    # UINT4 and INT4 tensors exist from this version on, whatever the source was written with.
    proto.ir_version = max(proto.ir_version, 10)
    graph = proto.graph
    for message in (proto, graph, *graph.node):
        message.ClearField("doc_string")
        _keep_own(message)
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        _keep_own(tensor)
    noted = []
    for value in graph.value_info:
        _keep_own(value)
        if value.metadata_props or value.name in shapes_of:
            noted.append(value)
    kept = [value.SerializeToString() for value in noted]
    del graph.value_info[:]
    graph.value_info.extend(onnx.ValueInfoProto.FromString(text) for text in kept)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        _keep_own(value)


def _keep_own(message: Any) -> None:
    """Drop the metadata of others, and empty entries."""
    kept = {p.key: p.value for p in message.metadata_props if p.key.startswith(_PREFIX)}
    if len(kept) != len(message.metadata_props):
        del message.metadata_props[:]
        _fill(message, kept.items())


def _fill(message: Any, items: Iterable[tuple[str, str]]) -> None:
    for key, value in items:
        message.metadata_props.add(key=key, value=value)
