"""Opening a model in ONNX Runtime."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.runtime.cpu import default_threads

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["first_line", "model_file", "session", "session_options"]

MODEL_FILE = "model.onnx"


def session(
    model: str | Path | Graph,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
) -> onnxruntime.InferenceSession:
    """Open an artefact folder, an .onnx file or a graph in memory.

    Args:
        model: what to open.
        threads: threads inside an op; the physical cores by default.
        providers: execution providers by preference; ONNX Runtime's own for the CPU by default.

    Raises:
        UsageError: no such file or provider.
        ModelError: ONNX Runtime cannot load it.
    """
    return open_session(model, session_options(threads), providers)


def open_session(
    model: str | Path | Graph,
    options: onnxruntime.SessionOptions,
    providers: Sequence[str] | None = None,
) -> onnxruntime.InferenceSession:
    """`session` with options of the caller's own."""
    import onnxruntime

    chosen = list(providers) if providers is not None else ["CPUExecutionProvider"]
    unknown = sorted(set(chosen) - set(onnxruntime.get_available_providers()))
    if unknown:
        raise UsageError(
            f"provider '{unknown[0]}': expected one of "
            f"{', '.join(onnxruntime.get_available_providers())}"
        )
    with ExitStack() as stack:
        if isinstance(model, Graph):
            # Weights go beside the graph: a protobuf ends at 2 GB. ONNX Runtime keeps what it
            # needs, so the files may go when the session is open.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="obert-"))
            path = Path(folder) / MODEL_FILE
            ir.save(model.model, path, external_data="weights.bin")
        else:
            path = model_file(model)
        try:
            opened = onnxruntime.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:
            raise ModelError(
                f"model '{path}': expected a model that ONNX Runtime "
                f"{onnxruntime.__version__} loads, found: {first_line(error)}"
            ) from error
        return_freed_memory()
        return opened


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library has to be told.

    ONNX Runtime frees what it unpacked weights through, but glibc keeps freed memory below the
    highest block in use: a packed model would hold twice the resident memory of an unpacked one.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # another C library


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Options of every session: all graph optimisations, ``threads`` inside an op, only errors
    logged.

    Raises:
        UsageError: ``threads`` is not positive.
    """
    import onnxruntime

    if threads is not None and threads < 1:
        raise UsageError(f"threads: expected at least 1, found {threads}")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def model_file(model: str | Path) -> Path:
    """The .onnx file of a folder or path: ``model.onnx``, or the only one in the folder.

    Raises:
        UsageError: there is none, or there are several.
    """
    path = Path(model)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"model '{model}': expected a folder or an .onnx file, found none")
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    found = sorted(path.glob("*.onnx"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no .onnx file"
        raise UsageError(
            f"model '{model}': expected {MODEL_FILE} in the folder, found {names}; name the file"
        )
    return found[0]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for a message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
