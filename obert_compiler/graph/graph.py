"""The intermediate graph: an `onnx_ir.Model` plus where it came from.

The ONNX project's own IR is the graph; this package adds only the views that a compression pass
needs (Linear sites, encoder layers, attention, embeddings) and the stage of the graph.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

__all__ = ["STAGE_KEY", "Graph", "Source", "Stage"]

STAGE_KEY = "obert.stage"


class Stage(StrEnum):
    """How far a graph has been compressed; later members include what earlier ones allow."""

    DENSE = "dense"
    PRUNED = "pruned"
    QUANTISED = "quantised"
    PACKED = "packed"

    @property
    def rank(self) -> int:
        """Position in the order dense, pruned, quantised, packed."""
        return list(Stage).index(self)


@dataclass(frozen=True)
class Source:
    """Where a graph came from.

    Attributes:
        kind: the front end that lowered it.
        location: folder, hub id or file; None for a module in memory.
        task: name of the task, None where none is known.
        config: the Hugging Face configuration as a dictionary, empty for other sources.
        folder: local folder with config.json and tokenizer files to copy into the artefact.
        bytes_on_disk: size of the source weights as float32, in bytes (the size that reports
            compare with).
    """

    kind: Literal["huggingface", "torch", "onnx"]
    location: str | None = None
    task: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    bytes_on_disk: int = 0


@dataclass
class Graph:
    """A model on its way through the passes.

    Attributes:
        model: the ONNX IR; in the canonical form that `obert_compiler.frontends` guarantees.
        source: where it came from.
    """

    model: ir.Model
    source: Source

    @property
    def stage(self) -> Stage:
        """Stage recorded in the model, or read off its nodes for a foreign file."""
        recorded = self.model.metadata_props.get(STAGE_KEY)
        if recorded is not None:
            return Stage(recorded)
        quantised = any(node.op_type == "DequantizeLinear" for node in self.model.graph)
        return Stage.QUANTISED if quantised else Stage.DENSE

    def advance(self, stage: Stage) -> None:
        """Record that ``stage`` is reached; a graph never goes back."""
        if stage.rank >= self.stage.rank:
            self.model.metadata_props[STAGE_KEY] = stage.value

    def copy(self) -> Graph:
        """An independent graph; the arrays behind unchanged tensors are shared."""
        return Graph(self.model.clone(), copy.copy(self.source))
