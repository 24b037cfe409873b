"""Writing a compressed graph back as a Hugging Face folder of safetensors.

The source model is loaded again, every parameter that the graph holds replaces the source's, and
layers that were dropped are cut out of it, so that the rest is numbered anew. What the graph does
not hold (a pooler that no output reads) stays the source's. Before anything is written, the model's
outputs are compared with the graph's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from obert_compiler.backends.torch.module import to_module
from obert_compiler.backends.torch.source_parameters import source_parameters
from obert_compiler.errors import ArtefactError
from obert_compiler.graph.graph import Graph
from obert_compiler.pipeline.registry import TASKS, load

__all__ = ["write_checkpoint"]

_KEPT_LAYERS_KEY = "obert.kept_layers"
_TOKENIZER_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja"})
_NOT_TOKENIZER = frozenset({"config.json", "generation_config.json"})
_TOLERANCE = 1e-3


def write_checkpoint(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write model.safetensors, config.json and the tokenizer's files into ``folder``.

    Quantised weights are written as the float32 values they stand for. Quantisation of activations
    has no place in such a checkpoint and is left out.

    Returns:
        Bytes of the model files, and the parameters taken from the source unchanged.

    Raises:
        ArtefactError: the source cannot be loaded again, or does not fit the graph.
        GraphError: the graph holds one parameter with two values.
    """
    with _quiet():
        model = _load_source(graph)
        untouched = _replace_parameters(model, graph)
        _cut_layers(model, graph)
        _compare(model, graph)
        model.save_pretrained(folder)
    _copy_tokenizer(graph, folder)
    files = sorted(folder.glob("*.safetensors*"))
    return {
        "format": "safetensors",
        "bytes": sum(file.stat().st_size for file in files),
        "files": [file.name for file in files],
        "parameters_of_the_source": untouched,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars and warnings: the runner reports."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load_source(graph: Graph) -> Any:
    import transformers

    source = graph.source
    if source.location is None or source.task is None:
        raise ArtefactError(
            "torch back end: expected a source with a location and a task, found none; lower the "
            "model from its folder or hub id"
        )
    name = load(TASKS, source.task).auto_class(str(source.config.get("model_type")))
    try:
        # Plain attention: what the graph computes, so that outputs compare to rounding.
        model = getattr(transformers, name).from_pretrained(
            source.location, dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtefactError(
            f"source '{source.location}': cannot be loaded again: {reason}; the torch back end "
            "needs it for the parameters that the graph does not hold"
        ) from error
    return model.eval()


def _replace_parameters(model: nn.Module, graph: Graph) -> list[str]:
    """Copy the graph's parameters into ``model``; returns the names of those it does not hold."""
    targets: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    targets.update(model.named_buffers(remove_duplicate=False))
    replaced: set[torch.Tensor] = set()
    with torch.no_grad():
        for name, array in source_parameters(graph).items():
            target = targets.get(name)
            if target is None or tuple(target.shape) != array.shape:
                found = "none" if target is None else f"shape {tuple(target.shape)}"
                raise ArtefactError(
                    f"parameter '{name}': expected it in the source model with shape "
                    f"{array.shape}, found {found}; was the source replaced since it was lowered?"
                )
            target.copy_(torch.tensor(array))
            replaced.add(target)
    return [name for name, p in model.named_parameters() if p not in replaced]


def _cut_layers(model: Any, graph: Graph) -> None:
    """Keep the layers that `drop-layers` recorded, and take over the configuration it wrote."""
    recorded = graph.model.metadata_props.get(_KEPT_LAYERS_KEY)
    if recorded is None:
        return
    kept: list[int] = json.loads(recorded)
    config = model.config.to_dict()
    changed = {
        key: value
        for key, value in graph.source.config.items()
        if "layer" in key and key in config and config[key] != value
    }
    depths = {config[key] for key in changed if isinstance(config[key], int)}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ModuleList) and len(module) in depths:
            model.set_submodule(name, nn.ModuleList(module[i] for i in kept))
    for key, value in changed.items():
        setattr(model.config, key, value)


def _compare(model: Any, graph: Graph) -> None:
    """Check that the model computes what the graph does, activations unrounded.

    Raises:
        ArtefactError: an output differs, so that the folder would not hold the compressed model.
    """
    module = to_module(graph, fake_quantisation=False)
    inputs = _example(graph, int(model.config.vocab_size))
    with torch.no_grad():
        expected, found = module(**inputs), model(**inputs)
    compared = 0
    for name, want in expected.items():
        got = getattr(found, name, None)
        if got is None:
            continue
        compared += 1
        difference = float((got - want).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(want.abs().max())):
            raise ArtefactError(
                f"output '{name}': expected the checkpoint to compute what the graph does, found a "
                f"difference of {difference:.3g}; write '--backend onnx' instead"
            )
    if not compared:
        raise ArtefactError(
            f"outputs {', '.join(expected)}: expected one that the source model has, found none"
        )


def _example(graph: Graph, vocabulary: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 12)
    ones = torch.ones(shape, dtype=torch.int64)
    ids = torch.randint(0, vocabulary, shape, generator=generator)
    return {
        str(value.name): ids
        if value.name == "input_ids"
        else ones * (value.name == "attention_mask")
        for value in graph.model.graph.inputs
    }


def _copy_tokenizer(graph: Graph, folder: Path) -> None:
    """Copy the tokenizer's files, and the modules of a sentence-transformers folder."""
    source = graph.source.folder
    if source is None:
        return
    for path in sorted(source.iterdir()):
        if path.is_dir() and (path / "config.json").is_file():
            shutil.copytree(path, folder / path.name)
        elif (
            path.suffix in _TOKENIZER_SUFFIXES
            and path.name not in _NOT_TOKENIZER
            and not path.name.endswith(".index.json")
        ):
            shutil.copyfile(path, folder / path.name)
