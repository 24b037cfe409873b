"""What runs a model: one small interface over our engine, ONNX Runtime and OpenVINO.

An engine that is not a file's business (the torch back end) is made by its caller: anything with
``name``, ``inputs`` and ``run`` will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.graph.graph import Graph
from obert_compiler.runtime.cpu import default_threads
from obert_compiler.runtime.session import engine_use, first_line, model_file, session

__all__ = ["ENGINES", "Engine", "InputSpec", "engine_reason", "open_engine"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: its name.
        dtype: type of its elements.
        shape: its dimensions, None where the model takes any.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Engine(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """How ``--engine`` calls it."""
        ...

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Inputs of the model."""
        ...

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        ...


class OnnxRuntimeEngine:
    """ONNX Runtime: with our engine (``obert``), or with its own CPU provider alone (``cpu``).

    Args:
        model: what to open.
        threads: threads inside an op; the physical cores by default.
        engine: ``obert``, ``cpu``, or None for the first of them that can be used.
    """

    def __init__(
        self, model: str | Path | Graph, threads: int | None = None, engine: str | None = None
    ) -> None:
        self.session = session(model, threads, engine=engine)
        self.use = engine_use(self.session)
        self.name = self.use.engine
        self.inputs = tuple(
            InputSpec(value.name, _NUMPY[value.type], _dimensions(value.shape))
            for value in self.session.get_inputs()
        )
        self._outputs = [value.name for value in self.session.get_outputs()]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        try:
            values = self.session.run(self._outputs, dict(feed))
        except Exception as error:
            raise ModelError(
                f"model: expected it to run on inputs {_shapes(feed)}, found: {first_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))


class OpenVinoEngine:
    """OpenVINO on the CPU, in float32: it would take bfloat16 by itself where the CPU has it."""

    name = "openvino"

    def __init__(self, model: str | Path | Graph, threads: int | None = None) -> None:
        if isinstance(model, Graph):
            raise UsageError("engine 'openvino': expected a file or folder, found a graph")
        try:
            import openvino
        except ImportError:
            raise UsageError(
                "engine 'openvino': expected the package openvino, found none; pip install openvino"
            ) from None
        path = model_file(model)
        options = {
            "INFERENCE_NUM_THREADS": threads or default_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            self._model = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise ModelError(
                f"model '{path}': expected a model that OpenVINO loads, found: {first_line(error)}"
            ) from error
        self.inputs = tuple(
            InputSpec(
                port.get_any_name(),
                np.dtype(port.get_element_type().to_dtype()),
                tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape()),
            )
            for port in self._model.inputs
        )
        self._outputs = [port.get_any_name() for port in self._model.outputs]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        values = self._model(dict(feed))
        return {name: np.array(values[i]) for i, name in enumerate(self._outputs)}


ENGINES: dict[str, Callable[[str | Path | Graph, int | None], Engine]] = {
    "obert": partial(OnnxRuntimeEngine, engine="obert"),
    "cpu": partial(OnnxRuntimeEngine, engine="cpu"),
    "openvino": OpenVinoEngine,
}
"""Engines that open a file by themselves. A further one is one class and one line here."""


def open_engine(name: str | None, model: str | Path | Graph, threads: int | None = None) -> Engine:
    """Load ``model`` in the engine called ``name``; None: ``obert``, or ``cpu`` where that cannot
    be used.

    Raises:
        UsageError: no such engine, or its package is missing.
        FailureError: ``obert`` was asked for and cannot be used.
        ModelError: it cannot load the model.
    """
    if name is None:
        return OnnxRuntimeEngine(model, threads)
    if name not in ENGINES:
        raise UsageError(f"engine '{name}': expected one of {', '.join(ENGINES)}")
    return ENGINES[name](model, threads)


def engine_reason(engine: Engine) -> str:
    """Why ``engine`` is ONNX Runtime alone although our engine was wanted; empty otherwise."""
    return engine.use.reason if isinstance(engine, OnnxRuntimeEngine) else ""


_NUMPY: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}


def _dimensions(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) and size > 0 else None for size in shape)


def _shapes(feed: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
