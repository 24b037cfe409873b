"""Front end for ``torch.nn.Module``: torch.export to ONNX, every parameter under its own name."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.frontends.canonical import OPSET, canonicalise
from obert_compiler.frontends.dimensions import name_dimensions
from obert_compiler.graph.graph import Graph, Source

__all__ = ["export", "lower_module", "parameter_bytes"]

Dynamic = dict[str, Any] | tuple[Any, ...]


def lower_module(
    module: object,
    *,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None,
    dynamic_shapes: Mapping[str, Any] | tuple[Any, ...] | None = None,
    task: str | None = None,
    tokenizer: str | Path | None = None,
) -> Graph:
    """Lower a module in memory.

    Args:
        module: a ``torch.nn.Module``; it is exported in evaluation mode and left as it was.
        example_inputs: tensors by keyword, or in order; at least 2 along each dynamic dimension.
        dynamic_shapes: as `torch.export.export` takes them; by default both dimensions of integer
            matrices ``[batch, sequence]`` and the first dimension of every other tensor.
        task: name of the task, kept in the source.
        tokenizer: folder with tokenizer files for the artefact.

    Raises:
        UsageError: example inputs are missing.
        ModelError: the module cannot be exported, or a parameter is not finite.
    """
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"model: expected a torch.nn.Module, found {type(module).__name__}")
    if not example_inputs:
        raise UsageError(
            f"module '{type(module).__name__}': expected example inputs to export it with, found "
            "none; pass example_inputs={'name': tensor}"
        )
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    shapes: Dynamic
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
        shapes = {name: _dynamic(value) for name, value in kwargs.items()}
    else:
        args = tuple(example_inputs)
        shapes = tuple(_dynamic(value) for value in args)
    if isinstance(dynamic_shapes, Mapping):
        shapes = dict(dynamic_shapes)
    elif dynamic_shapes is not None:
        shapes = dynamic_shapes
    model = export(module, args, kwargs, shapes)
    name_dimensions(model)
    canonicalise(model, parameters=set(module.state_dict()))
    source = Source(
        "torch",
        task=task,
        folder=None if tokenizer is None else Path(tokenizer),
        bytes_on_disk=parameter_bytes(module),
    )
    return Graph(model, source)


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Dynamic,
) -> ir.Model:
    """Export ``module`` to ONNX without optimising, so that initializers keep parameter names.

    Raises:
        ModelError: a parameter is not finite, or the exporter refuses the module.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"parameter '{name}': expected finite values, found NaN or infinity; mend the "
                "checkpoint"
            )
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
        raise ModelError(
            f"module '{type(module).__name__}': torch.onnx.export refused it: {_reason(error)}"
        ) from error
    finally:
        for child in training:
            child.training = True
    if program is None:
        raise ModelError(f"module '{type(module).__name__}': torch.onnx.export returned no model")
    # The exporter's values overload comparison as ONNX ops; a clone's values are plain ones.
    model = program.model.clone()
    _name_tied(model, module)
    return model


def _name_tied(model: ir.Model, module: torch.nn.Module) -> None:
    """Call a tied parameter by its first name, as checkpoints do; the exporter takes the last."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        value = model.graph.initializers.get(name)
        if value is not None and name != first[id(parameter)]:
            value.name = first[id(parameter)]


def parameter_bytes(module: torch.nn.Module) -> int:
    """Size of all parameters as float32, shared ones once, in bytes."""
    return sum(4 * parameter.numel() for parameter in module.parameters())


def _dynamic(value: Any) -> dict[int, Any] | None:
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return None
    both = value.ndim == 2 and not value.is_floating_point()
    return dict.fromkeys((0, 1) if both else (0,), torch.export.Dim.DYNAMIC)


def _reason(error: BaseException) -> str:
    """The first telling line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says about itself; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
