"""Writing a graph out through a back end, into a folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obert_compiler.errors import ArtefactError, UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.pipeline import registry
from obert_compiler.pipeline.contract import Backend
from obert_compiler.pipeline.spec import parse_specs

__all__ = ["backend_from_text", "check_out", "emit", "new_folder"]


def backend_from_text(text: str) -> Backend:
    """Back end of a text such as ``"onnx"`` or ``"torch"``.

    Raises:
        UsageError: unknown back end or option, or not exactly one name.
    """
    specs = parse_specs(text)
    if len(specs) != 1:
        raise UsageError(f"back end '{text}': expected one name, found {len(specs)}")
    kind: type[Backend] = registry.load(registry.BACKENDS, specs[0].name)
    return kind.from_options(specs[0].options)


def emit(
    graph: Graph, backend: str = "onnx", out: Path | str | None = None, *, overwrite: bool = False
) -> object:
    """Emit ``graph``.

    Args:
        graph: the graph to write.
        backend: name of the back end, with options in the grammar of passes.
        out: folder to write; None builds the model in memory.
        overwrite: replace an existing ``out``.

    Returns:
        The model in memory (an ``onnx.ModelProto``, an ``nn.Module``), or the folder written.
    """
    chosen = backend_from_text(backend)
    chosen.requires(graph)
    if out is None:
        return chosen.build(graph)
    with new_folder(Path(out), overwrite=overwrite) as folder:
        chosen.write(graph, folder)
    return Path(out)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check that ``out`` can be made.

    Raises:
        UsageError: it exists (without ``overwrite``), is a file, or its parent cannot be written.
    """
    if out.exists() and not overwrite:
        raise UsageError(
            f"output '{out}': expected a new folder, found an existing one; choose another name or "
            "give --overwrite"
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"output '{out}': expected a folder, found a file; choose another name")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"output '{out}': its parent folder '{parent}' does not exist; create it")
    probe = parent / f".{out.name}.probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UsageError(
            f"output '{out}': expected a place that can be written, found '{parent}' "
            f"({error.strerror}); choose another place"
        ) from error


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``out`` when the block ends without an error.

    An existing ``out`` is replaced as the last step and stays untouched on any error.

    Raises:
        UsageError: `check_out` fails.
        ArtefactError: writing failed (a full disk).
    """
    check_out(out, overwrite=overwrite)
    partial = out.absolute().parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        _replace(partial, out.absolute())
    except OSError as error:
        raise ArtefactError(
            f"output '{out}': expected to write it, found {error}; nothing was changed there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
