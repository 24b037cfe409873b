"""Arrays that fit the inputs of a model: real batches, and random ones to time with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from obert_compiler.data.batches import Batch
from obert_compiler.errors import DataError
from obert_compiler.runtime.engine import InputSpec

__all__ = ["feed_batch", "index_limits", "random_feed"]

Array = npt.NDArray[Any]


def feed_batch(batch: Batch, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Arrays of ``batch`` for ``inputs``, cast and padded with zeros to fixed dimensions.

    Raises:
        DataError: an input is missing, or the batch is larger than a fixed dimension.
    """
    found = batch.feed(spec.name for spec in inputs)
    return {spec.name: _fit(found[spec.name], spec) for spec in inputs}


def _fit(array: Array, spec: InputSpec) -> Array:
    array = array.astype(spec.dtype, copy=False)
    widths = []
    for axis, size in enumerate(array.shape):
        fixed = spec.shape[axis] if axis < len(spec.shape) else None
        if fixed is not None and size > fixed:
            raise DataError(
                f"input '{spec.name}': expected at most {fixed} along axis {axis}, found {size}; "
                "lower --seq-len or the batch size"
            )
        widths.append((0, 0 if fixed is None else fixed - size))
    return np.pad(array, widths) if any(after for _, after in widths) else array


def random_feed(
    inputs: Sequence[InputSpec],
    batch: int,
    sequence: int,
    limits: Mapping[str, int],
    seed: int = 0,
) -> dict[str, Array]:
    """Random, valid inputs of ``batch`` sequences of ``sequence`` tokens; fixed dimensions stay.

    Indices lie below ``limits`` by input name (0 where no limit is known), masks are all ones,
    token types zeros, positions ascend, floats are standard normal.
    """
    generator = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for spec in inputs:
        free = iter((batch, sequence))
        shape = tuple(next(free, 1) if size is None else size for size in spec.shape)
        if spec.dtype.kind == "f":
            values: Array = generator.standard_normal(shape)
        elif "mask" in spec.name or spec.dtype.kind == "b":
            values = np.ones(shape)
        elif "position" in spec.name:
            values = np.broadcast_to(np.arange(shape[-1]), shape)
        elif "token_type" in spec.name:
            values = np.zeros(shape)
        else:
            values = generator.integers(0, max(1, limits.get(spec.name, 1)), shape)
        feed[spec.name] = np.ascontiguousarray(values, spec.dtype)
    return feed


def index_limits(path: Path) -> dict[str, int]:
    """Rows of the table that each index input of an ONNX file selects from.

    Read off the Gather nodes that the input reaches unchanged; ``vocab_size`` of a config.json
    beside the file stands in for ``input_ids`` where none is found.
    """
    model = ir.load(path)
    limits: dict[str, int] = {}
    for node in model.graph:
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        table, index = node.inputs[0], _origin(node.inputs[1])
        if table is None or index is None or not index.is_graph_input():
            continue
        rows = table.shape[0] if table.shape is not None and table.shape.rank() else None
        if index.name and isinstance(rows, int):
            limits[index.name] = min(rows, limits.get(index.name, rows))
    config = path.parent / "config.json"
    if "input_ids" not in limits and config.is_file():
        size = json.loads(config.read_text(encoding="utf-8")).get("vocab_size")
        if isinstance(size, int):
            limits["input_ids"] = size
    return limits


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The value that ``value`` is a recast or reshaped copy of."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in {"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}:
            return value
        value = node.inputs[0]
    return value
