"""The torch back end as an engine for ``obertc eval --engine torch``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from obert_compiler.graph.graph import Graph
from obert_compiler.runtime.engine import InputSpec

__all__ = ["TorchEngine"]

Array = npt.NDArray[Any]


class TorchEngine:
    """A graph as an nn.Module, run without gradients."""

    name = "torch"

    def __init__(self, graph: Graph, threads: int | None = None) -> None:
        import torch

        from obert_compiler.backends.torch.module import to_module

        if threads is not None:
            torch.set_num_threads(threads)
        self._module = to_module(graph).eval()
        self.inputs = tuple(
            InputSpec(
                value.name or "",
                np.dtype(np.float32) if value.dtype is None else value.dtype.numpy(),
                tuple(d if isinstance(d, int) else None for d in value.shape or ()),
            )
            for value in graph.model.graph.inputs
        )

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        with torch.no_grad():
            outputs: dict[str, torch.Tensor] = self._module(**tensors)
        return {name: tensor.numpy() for name, tensor in outputs.items()}
