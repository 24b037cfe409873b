"""The ONNX back end: one folder with one standard model file and what it needs to be loaded.

    model.onnx            standard ops only; weights inside, or beside it in model.onnx_data where a
                          protobuf could not hold them
    config.json ...       configuration, tokenizer and sentence-transformers files of the source

Optimum's ``ORTModelFor*.from_pretrained(folder)`` and sentence-transformers' ONNX back end load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx

from obert_compiler.backends.onnx.companions import write_companions
from obert_compiler.backends.onnx.model_file import build_model, check_model, write_model
from obert_compiler.errors import ArtefactError
from obert_compiler.graph.graph import Graph
from obert_compiler.graph.verify import verify
from obert_compiler.pipeline.contract import Backend

__all__ = ["OnnxBackend"]


@dataclass(frozen=True)
class OnnxBackend(Backend):
    """Writes ``model.onnx`` and its companions."""

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "one standard model.onnx with its configuration and tokenizer"

    def requires(self, graph: Graph) -> None:
        """Check the graph against the rules of its stage.

        Raises:
            GraphError: naming the first broken rule.
        """
        verify(graph, graph.stage)

    def build(self, graph: Graph) -> onnx.ModelProto:
        """The model in memory, checked.

        Raises:
            GraphError: onnx.checker refuses it, or its weights exceed what a protobuf holds.
        """
        proto = build_model(graph)
        check_model(proto)
        return proto

    def write(self, graph: Graph, folder: Path) -> dict[str, Any]:
        """Write ``folder/model.onnx`` and the files beside it.

        Returns:
            ``bytes`` of the model files, their names as ``model_files``, and ``files``, the names
            of the others.

        Raises:
            GraphError: onnx.checker refuses the model.
            ArtefactError: the folder cannot be written, or the disk is full.
        """
        try:
            model_files = write_model(graph, folder)
            others = write_companions(graph.source, folder)
        except OSError as error:
            raise ArtefactError(
                f"folder '{folder}': expected to write the model there, found "
                f"{error.strerror or error}; free some space or choose another place"
            ) from error
        return {
            "bytes": sum((folder / name).stat().st_size for name in model_files),
            "model_files": model_files,
            "files": others,
        }
