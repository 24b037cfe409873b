"""`lower`: choose the front end by what the model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from obert_compiler.errors import UsageError
from obert_compiler.graph.graph import Graph

__all__ = ["lower"]


def lower(
    model: object,
    *,
    task: str | None = None,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    dynamic_shapes: Mapping[str, Any] | tuple[Any, ...] | None = None,
    tokenizer: str | Path | None = None,
    new_head: str | None = None,
) -> Graph:
    """Lower ``model`` to a graph in canonical form (`obert_compiler.frontends.canonical`).

    Args:
        model: a Hugging Face folder or hub id, a ``.onnx`` file or a folder that holds one, or a
            ``torch.nn.Module``.
        task: one of the registered tasks; read from the configuration where it says so.
        example_inputs: inputs of a ``torch.nn.Module``, by keyword or in order.
        dynamic_shapes: as `torch.export.export` takes them, for a ``torch.nn.Module``; by default
            both dimensions of integer matrices and the first dimension of everything else.
        tokenizer: folder with the tokenizer files for the artefact, where they do not lie beside
            the model.
        new_head: names of classes joined by ``+``, or their number: gives a Hugging Face model a
            head for ``task`` that is not trained yet.

    Raises:
        UsageError: the model is unknown, or the arguments do not fit it.
        ModelError: the model is known, but it cannot be read or lowered.
    """
    if isinstance(model, str | Path):
        if example_inputs is not None or dynamic_shapes is not None:
            raise UsageError(
                f"model '{model}': example_inputs and dynamic_shapes belong to a torch.nn.Module, "
                "found a path; leave them out"
            )
        file = _onnx_file(model)
        if file is not None and new_head is not None:
            raise UsageError(
                f"model '{model}': expected a Hugging Face folder for a new head, found an ONNX "
                "file, whose head is part of it; write the sparse model with --backend torch"
            )
        if file is not None:
            from obert_compiler.frontends.onnx_file import lower_onnx

            return lower_onnx(file, task=task, tokenizer=tokenizer)
        with _needing_extra(f"model '{model}'"):
            from obert_compiler.frontends.huggingface import lower_huggingface
        return lower_huggingface(model, task=task, tokenizer=tokenizer, new_head=new_head)
    if not any(base.__module__.startswith("torch.nn") for base in type(model).__mro__):
        raise UsageError(
            f"model: expected a path, a hub id or a torch.nn.Module, found {type(model).__name__}"
        )
    if new_head is not None:
        raise UsageError("model: expected a folder or a hub id for a new head, found a module")
    from obert_compiler.frontends.torch_module import lower_module

    return lower_module(
        model,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        task=task,
        tokenizer=tokenizer,
    )


@contextmanager
def _needing_extra(what: str) -> Iterator[None]:
    """Say which extra to install where an import finds that it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{what}: lowering it needs the package '{error.name}', which is not installed; "
            "pip install 'obert-compiler[compile]'"
        ) from error


def _onnx_file(model: str | Path) -> Path | None:
    """The ONNX file that ``model`` names: itself, or the one in a folder without other weights."""
    path = Path(model)
    if path.suffix == ".onnx":
        return path
    weights = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")
    if not path.is_dir() or any(any(path.glob(pattern)) for pattern in weights):
        return None
    for file in (path / "model.onnx", path / "onnx" / "model.onnx"):
        if file.is_file():
            return file
    others = sorted(path.glob("*.onnx"))
    if len(others) > 1:
        names = ", ".join(file.name for file in others)
        raise UsageError(f"model '{model}': expected one ONNX file, found {names}; name the file")
    return others[0] if others else None
