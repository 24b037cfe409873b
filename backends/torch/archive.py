"""Writing a graph as a torch.export archive with dynamic batch and sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from obert_compiler.backends.torch.builder import identifier
from obert_compiler.backends.torch.dtypes import torch_dtype
from obert_compiler.backends.torch.module import to_module
from obert_compiler.errors import ArtefactError
from obert_compiler.graph.graph import Graph

__all__ = ["ARCHIVE_NAME", "write_archive"]

ARCHIVE_NAME = "model.pt2"


def write_archive(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write ``model.pt2``; ``torch.export.load(path).module()`` takes the inputs by name
    (a name that is no Python identifier with underscores in it).

    Returns:
        Bytes of the file.

    Raises:
        ArtefactError: torch.export cannot follow the graph.
    """
    inputs, dynamic = _examples(graph)
    try:
        program = torch.export.export(
            to_module(graph).eval(), (), inputs, dynamic_shapes=dynamic, strict=False
        )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArtefactError(
            f"torch.export cannot follow the graph: {reason}; write '--backend onnx' instead"
        ) from error
    file = folder / ARCHIVE_NAME
    torch.export.save(program, file)
    return {"format": "torch.export", "bytes": file.stat().st_size, "files": [ARCHIVE_NAME]}


def _examples(graph: Graph) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, Any]]]:
    """An example of each input, and which of its axes are dynamic."""
    sizes: dict[str, int] = {}
    inputs: dict[str, torch.Tensor] = {}
    dynamic: dict[str, dict[int, Any]] = {}
    for value in graph.model.graph.inputs:
        name = identifier(str(value.name))
        if value.shape is None or value.dtype is None:
            raise ArtefactError(
                f"input '{name}': expected a type and a number of dimensions, found none; run "
                "shape inference on the source file"
            )
        shape = []
        dynamic[name] = {}
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            dynamic[name][axis] = torch.export.Dim.DYNAMIC
            # Axes of one name share a size; different names differ, lest they be taken for one.
            shape.append(sizes.setdefault(_name(dim, name, axis), 2 + 3 * len(sizes)))
        inputs[name] = torch.ones(shape, dtype=torch_dtype(value.dtype))
    return inputs, dynamic


def _name(dim: ir.SymbolicDim, value: str, axis: int) -> str:
    return dim.value or f"{value}.{axis}"
