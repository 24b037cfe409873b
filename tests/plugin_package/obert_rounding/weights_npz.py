"""The back end ``weights-npz``: every weight matrix as an array of one .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from obert_compiler.graph import Graph, find_linear_sites
from obert_compiler.pipeline.contract import Backend

__all__ = ["WeightsNpz"]


@dataclass(frozen=True)
class WeightsNpz(Backend):
    """Write the weights of all Linear sites.

    Attributes:
        half: store float16.
    """

    name: ClassVar[str] = "weights-npz"
    summary: ClassVar[str] = "every weight matrix as an array of one .npz file"

    half: bool = False

    def build(self, graph: Graph) -> dict[str, npt.NDArray[Any]]:
        """Weights ``[out, in]`` by site name."""
        dtype = np.float16 if self.half else np.float32
        return {site.name: site.weight().astype(dtype) for site in find_linear_sites(graph)}

    def write(self, graph: Graph, folder: Path) -> dict[str, Any]:
        """Write weights.npz."""
        file = folder / "weights.npz"
        np.savez(file, **self.build(graph))  # type: ignore[arg-type] # its stub wants bool
        return {"bytes": file.stat().st_size}
