"""Front end for ONNX files of any exporter, opset 11 to 23. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.frontends.canonical import canonicalise, refuse_foreign_ops
from obert_compiler.frontends.configuration import TASK_OUTPUTS, read_config, task_of
from obert_compiler.frontends.dimensions import name_dimensions
from obert_compiler.frontends.opset import unflatten_softmax, upgrade
from obert_compiler.frontends.sentence_embedding import add_sentence_embedding, read_modules
from obert_compiler.graph.graph import STAGE_KEY, Graph, Source

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "lower_onnx"]

OLDEST_OPSET = 11
NEWEST_OPSET = 23
_INDICES = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING}


def lower_onnx(
    file: Path, *, task: str | None = None, tokenizer: str | Path | None = None
) -> Graph:
    """Lower an ONNX file, with its configuration and tokenizer where they lie beside it.

    Weights stay in the file (memory-mapped) until something changes them. Older opsets are
    converted; half precision becomes float32.

    Args:
        file: the ``.onnx`` file; external data beside it.
        task: name of the task; read from config.json beside the file where it says so.
        tokenizer: folder with tokenizer files, where they do not lie beside the file.

    Raises:
        UsageError: no such file, or an unknown task.
        ModelError: the file is truncated or not ONNX, external data is missing, the opset is not
            supported, or the graph holds control flow, foreign ops or weights that are not finite.
    """
    if task is not None and task not in TASK_OUTPUTS:
        raise UsageError(f"task '{task}': expected one of {', '.join(TASK_OUTPUTS)}")
    model = _load(file)
    opset = _opset(model)
    _map_external_data(model, file)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveInitializersFromInputsPass()(model)
    common_passes.InlinePass()(model)
    common_passes.RemoveUnusedNodesPass()(model)
    refuse_foreign_ops(model)
    upgrade(model, file)
    name_dimensions(model)
    canonicalise(model)
    if opset < 13:
        unflatten_softmax(model)
    folder = _folder_of(file)
    config = (read_config(folder) if folder is not None else None) or {}
    task = task or task_of(config, folder)
    source = Source(
        "onnx",
        location=str(file),
        task=task,
        config=config,
        folder=Path(tokenizer) if tokenizer is not None else folder,
        bytes_on_disk=_float32_bytes(model),
    )
    graph = Graph(model, source)
    _embed_sentences(graph, folder)
    return graph


def _load(file: Path) -> ir.Model:
    if not file.is_file():
        raise UsageError(f"model '{file}': no such file; check the path")
    try:
        model = ir.load(file)
    except OSError as error:
        raise ModelError(f"file '{file}': cannot be read ({error.strerror})") from error
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"file '{file}': expected an ONNX model, found bytes that do not parse as one; the "
            "file is truncated or something else"
        ) from error
    _shorten_domain(model)
    opset = _opset(model)
    if not model.graph.outputs or not opset:
        raise ModelError(
            f"file '{file}': expected an ONNX model with outputs and an opset, found none; the "
            "file is truncated or something else"
        )
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelError(
            f"file '{file}': expected opset {OLDEST_OPSET} to {NEWEST_OPSET}, found {opset}; "
            "export the model with another opset"
        )
    return model


def _opset(model: ir.Model) -> int:
    """Version of the standard ops, 0 where the model imports none."""
    return model.graph.opset_imports.get("", 0)


def _shorten_domain(model: ir.Model) -> None:
    """Write the domain of the standard ops as "", its other spelling being ai.onnx."""
    opsets = model.graph.opset_imports
    if "ai.onnx" in opsets:
        opsets.setdefault("", opsets.pop("ai.onnx"))
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""


def _map_external_data(model: ir.Model, file: Path) -> None:
    """Turn external tensors into arrays mapped from their file, which any folder can save."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            if tensor is None:
                raise ModelError(f"file '{file}': initializer '{name}' has no data; export again")
            continue
        path = Path(tensor.path)
        if not path.is_file():
            raise ModelError(
                f"file '{file}': expected its external data in '{path.name}' beside it, found no "
                "such file; copy it there"
            )
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if path.stat().st_size < end:
            raise ModelError(
                f"file '{path}': expected at least {end} bytes for '{name}', found "
                f"{path.stat().st_size}; the file is truncated, copy it again"
            )
        value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def _folder_of(file: Path) -> Path | None:
    """The folder with config.json that belongs to ``file``: its own, or the one above ``onnx/``."""
    own = file.resolve().parent
    for folder in (own, own.parent) if own.name == "onnx" else (own,):
        if (folder / "config.json").is_file():
            return folder
    return None


def _embed_sentences(graph: Graph, folder: Path | None) -> None:
    """Add ``sentence_embedding`` for a sentence-transformers folder whose file stops before it."""
    outputs = {value.name for value in graph.model.graph.outputs}
    foreign = STAGE_KEY not in graph.model.metadata_props
    bare = "last_hidden_state" in outputs and "sentence_embedding" not in outputs
    if foreign and bare and folder is not None and (folder / "modules.json").is_file():
        add_sentence_embedding(graph, read_modules(folder))


def _float32_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(4 * t.size for t in tensors if t is not None and t.dtype not in _INDICES)
