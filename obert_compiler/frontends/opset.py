"""Conversion of older files to the opset that the canonical form has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from obert_compiler.errors import ModelError
from obert_compiler.frontends.canonical import OPSET

__all__ = ["unflatten_softmax", "upgrade"]

_IR_VERSION = 10  # the IR version that belongs to opset 21


def upgrade(model: ir.Model, file: Path) -> None:
    """Convert ``model`` to opset 21 if it is older, in place.

    Large weights are left out of the protobuf messages that the converter needs, so the size of a
    message does not limit the model.

    Raises:
        ModelError: the converter cannot convert an op; ``file`` is named.
    """
    opset = model.graph.opset_imports.get("", OPSET)
    if opset < OPSET:
        from onnxscript.version_converter import convert_version

        with _converter_log() as reasons:
            convert_version(model, OPSET, fallback=True)
        if model.graph.opset_imports.get("") != OPSET:
            reason = f": {reasons[0]}" if reasons else ""
            raise ModelError(
                f"file '{file}': cannot be converted from opset {opset} to {OPSET}{reason}; export "
                f"the model with opset {OPSET}"
            )
    model.ir_version = max(model.ir_version or 0, _IR_VERSION)


def unflatten_softmax(model: ir.Model) -> None:
    """Undo the converter's Flatten, Softmax, Reshape where a plain Softmax says the same.

    Before opset 13 Softmax worked on its operand flattened at ``axis``; at the last axis that is
    what it does today.
    """
    graph = model.graph
    for softmax in list(graph):
        if softmax.op_type not in {"Softmax", "LogSoftmax"} or softmax.inputs[0] is None:
            continue
        flatten = softmax.inputs[0].producer()
        readers = tuple(softmax.outputs[0].uses())
        if flatten is None or flatten.op_type != "Flatten" or len(readers) != 1:
            continue
        source, reshape = flatten.inputs[0], readers[0].node
        if source is None or source.shape is None or reshape.op_type != "Reshape":
            continue
        shape = None if reshape.inputs[1] is None else reshape.inputs[1].producer()
        restores = shape is not None and shape.op_type == "Shape" and shape.inputs[0] is source
        at_last = flatten.attributes.get_int("axis", 1) in {source.shape.rank() - 1, -1}
        if not restores or not at_last:
            continue
        softmax.replace_input_with(0, source)
        softmax.attributes["axis"] = ir.AttrInt64("axis", -1)
        softmax.outputs[0].shape = source.shape
        ir.convenience.replace_all_uses_with(
            reshape.outputs[0], softmax.outputs[0], replace_graph_outputs=True
        )
        graph.remove(reshape, safe=True)
    common_passes.RemoveUnusedNodesPass()(model)


@contextmanager
def _converter_log() -> Iterator[list[str]]:
    """Keep the converter's complaints, which it only logs, instead of showing them."""
    reasons: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                reasons.append(str(record.exc_info[1]).strip().splitlines()[0])

    logger = logging.getLogger("onnxscript.version_converter")
    handler, propagate = Keep(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
