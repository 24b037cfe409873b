"""The torch back end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from obert_compiler.backends.torch.archive import write_archive
from obert_compiler.backends.torch.builder import check_supported
from obert_compiler.backends.torch.checkpoint import write_checkpoint
from obert_compiler.backends.torch.module import OnnxModule, to_module
from obert_compiler.graph.graph import Graph
from obert_compiler.pipeline.contract import Backend

__all__ = ["TorchBackend"]


@dataclass(frozen=True)
class TorchBackend(Backend):
    """Emits torch: a module in memory; on disk what the source was, as far as torch has it.

    A Hugging Face source becomes a folder that ``AutoModelFor...from_pretrained`` loads, any other
    source a torch.export archive.
    """

    name: ClassVar[str] = "torch"
    summary: ClassVar[str] = "safetensors for from_pretrained, or a torch.export archive"

    def requires(self, graph: Graph) -> None:
        """Check that every op can be translated.

        Raises:
            GraphError: naming the first op that cannot.
        """
        check_supported(graph)

    def build(self, graph: Graph) -> OnnxModule:
        """The graph as a trainable nn.Module."""
        return to_module(graph)

    def write(self, graph: Graph, folder: Path) -> dict[str, Any]:
        """Write the model into ``folder``.

        Raises:
            ArtefactError: the source cannot be loaded again, or torch.export cannot follow.
        """
        if graph.source.kind == "huggingface":
            return write_checkpoint(graph, folder)
        return write_archive(graph, folder)
