"""Opening a model in ONNX Runtime, with the engine where it can be used."""

from __future__ import annotations

import ctypes
import logging
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.graph.graph import STAGE_KEY, Graph, Stage
from obert_compiler.runtime.cpu import default_threads
from obert_compiler.runtime.provider import (
    Claims,
    add_engine,
    engine_absence,
    leave_packed,
    read_claims,
    report_file,
)

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["EngineUse", "engine_use", "first_line", "model_file", "session", "session_options"]

MODEL_FILE = "model.onnx"

_log = logging.getLogger("obert_compiler")
_said: set[str] = set()


@dataclass(frozen=True)
class EngineUse:
    """What runs a session.

    Attributes:
        engine: ``obert`` (the engine, and ONNX Runtime for what it leaves) or ``cpu`` (ONNX Runtime
            alone).
        reason: why it is not the engine although it was wanted; empty otherwise.
        claims: what the engine took; None where it was not asked.
    """

    engine: str
    reason: str = ""
    claims: Claims | None = None


_uses: weakref.WeakKeyDictionary[onnxruntime.InferenceSession, EngineUse] = (
    weakref.WeakKeyDictionary()
)


def session(
    model: str | Path | Graph,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    *,
    engine: str | None = None,
) -> onnxruntime.InferenceSession:
    """Open an artefact folder, an .onnx file or a graph in memory.

    Args:
        model: what to open.
        threads: threads inside an op; the physical cores by default.
        providers: execution providers by preference, without the engine.
        engine: ``obert`` for the engine, ``cpu`` for ONNX Runtime alone. By default the engine
            where it can be used; where it cannot, ONNX Runtime alone, and the reason is logged and
            told by `engine_use`.

    Raises:
        UsageError: no such file, provider or engine.
        ModelError: it cannot be loaded.
        FailureError: the engine was asked for by name and cannot be used.
    """
    if engine not in {None, "obert", "cpu"}:
        raise UsageError(f"engine '{engine}': expected obert or cpu")
    if providers is not None and engine is not None:
        raise UsageError(f"engine '{engine}': expected no providers beside it, found {providers}")
    if providers is not None or engine == "cpu":
        return _noted(open_session(model, session_options(threads), providers), EngineUse("cpu"))
    reason = engine_absence()
    if reason is None or engine == "obert":
        try:
            return _open_with_engine(model, threads)
        except ModelError as error:
            if engine == "obert":
                raise
            reason = str(error)
    opened = open_session(model, session_options(threads))
    if reason not in _said:
        _said.add(reason)
        _log.warning("the engine is not used: %s", reason)
    return _noted(opened, EngineUse("cpu", reason))


def engine_use(session: onnxruntime.InferenceSession) -> EngineUse:
    """What runs a session that `session` opened, and what the engine claimed of it."""
    return _uses.get(session, EngineUse("cpu"))


def _noted(opened: onnxruntime.InferenceSession, use: EngineUse) -> onnxruntime.InferenceSession:
    _uses[opened] = use
    return opened


def _open_with_engine(
    model: str | Path | Graph, threads: int | None
) -> onnxruntime.InferenceSession:
    """Packed matrices go to the engine as they are, if it takes all that constants make."""
    if is_packed(model):
        opened = _offered_to_engine(model, threads, fold=False)
        claims = engine_use(opened).claims
        if claims is None or not claims.wants_folding:
            return opened
        del opened  # its memory, before the next one's
    return _offered_to_engine(model, threads, fold=True)


def _offered_to_engine(
    model: str | Path | Graph, threads: int | None, *, fold: bool
) -> onnxruntime.InferenceSession:
    options = session_options(threads)
    if not fold:
        leave_packed(options)
    with report_file() as report:
        # Packing matrices for a session that is opened again would be for nothing.
        unfolded = "claim" if fold else "leave"
        add_engine(options, options.intra_op_num_threads, report, unfolded=unfolded)
        opened = open_session(model, options)
        return _noted(opened, EngineUse("obert", claims=read_claims(report)))


def is_packed(model: str | Path | Graph) -> bool:
    """Whether the pass ``pack`` has packed matrices of ``model``.

    Read off the end of a file, where a protobuf holds its metadata: graphs of others count as not
    packed.

    Raises:
        UsageError: no such file.
    """
    if isinstance(model, Graph):
        return model.stage is Stage.PACKED
    with model_file(model).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _METADATA))
        return _PACKED in file.read()


_METADATA = 1 << 16
"""Bytes at the end of a file in which its stage is looked for."""

_PACKED = (
    STAGE_KEY.encode() + b"\x12" + bytes([len(Stage.PACKED.value)]) + Stage.PACKED.value.encode()
)
"""The stage as a protobuf holds it."""


def open_session(
    model: str | Path | Graph,
    options: onnxruntime.SessionOptions,
    providers: Sequence[str] | None = None,
) -> onnxruntime.InferenceSession:
    """`session` with options of the caller's own, which may hold providers already."""
    import onnxruntime

    chosen = None if providers is None else list(providers)
    if chosen is None and not options.has_providers():
        chosen = ["CPUExecutionProvider"]
    unknown = sorted(set(chosen or ()) - set(onnxruntime.get_available_providers()))
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
            opened = onnxruntime.InferenceSession(
                str(path), options, providers=chosen, enable_fallback=0
            )
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
    """The first line of an error's text, short enough for a message; only the engine's words where
    it is the engine's error."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    _, mark, words = lines[0].rpartition("obert engine: ")
    return (mark + words)[:300]
