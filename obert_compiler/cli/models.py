"""MODEL_OR_OUT of a command: an emitted file is opened as it is, anything else is lowered."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obert_compiler.graph.graph import Graph, Source

__all__ = ["Model", "emitted_file", "open_model"]


@dataclass(frozen=True)
class Model:
    """A model named on the command line.

    Attributes:
        source: where it came from, with task and configuration.
        file: the emitted file; None for a model that was lowered.
        graph: the lowered graph; None for an emitted file.
    """

    source: Source
    file: Path | None
    graph: Graph | None

    def saved(self, stack: ExitStack) -> Path:
        """A file of the model, written to a temporary folder for one that was lowered."""
        if self.file is not None:
            return self.file
        import tempfile

        import onnx_ir as ir

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="obertc-")))
        assert self.graph is not None  # noqa: S101 - one of the two is set
        ir.save(self.graph.model, folder / "model.onnx", external_data="model.onnx_data")
        return folder / "model.onnx"


def emitted_file(text: str) -> Path | None:
    """The .onnx file that ``text`` names: itself, or model.onnx in the folder."""
    path = Path(text)
    if path.suffix == ".onnx":
        return path
    file = path / "model.onnx"
    return file if file.is_file() else None


def open_model(text: str, *, task: str | None = None, tokenizer: str | None = None) -> Model:
    """Open an emitted file, or lower a folder or hub id.

    Raises:
        UsageError, ModelError: there is no such model, or it cannot be lowered.
    """
    file = emitted_file(text)
    if file is not None:
        return Model(_source_of(file, task), file, None)
    from obert_compiler.frontends import lower

    graph = lower(text, task=task, tokenizer=tokenizer)
    return Model(graph.source, None, graph)


def _source_of(file: Path, task: str | None) -> Source:
    """Source of an emitted file, from what lies beside it."""
    from obert_compiler.frontends.configuration import read_config, read_json, task_of
    from obert_compiler.graph.graph import Source

    folder = file.resolve().parent
    config = read_config(folder) or {}
    report = folder / "report.json"
    recorded = read_json(report).get("model", {}).get("task") if report.is_file() else None
    has_tokenizer = any(folder.glob("tokenizer*"))
    return Source(
        kind="onnx",
        location=str(file),
        task=task or recorded or task_of(config, folder),
        config=config,
        folder=folder if has_tokenizer else None,
    )
