"""A torch module that comes from no library: lower it with example inputs, prune, pack, emit.

python examples/front_end_torch_module.py [OUT]
"""

import sys

import numpy as np
import torch

import obert_compiler as obc
from obert_compiler.passes import Pack, Prune


class Scorer(torch.nn.Module):
    """Two layers over a vector of 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 256)
        self.second = torch.nn.Linear(256, 8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores ``[batch, 8]`` of ``features`` ``[batch, 64]``."""
        return self.second(torch.relu(self.first(features)))


def main(out: str = "out/torch-module") -> None:
    """Compress and compare with the module."""
    torch.manual_seed(0)
    module = Scorer().eval()
    graph = obc.lower(module, example_inputs={"features": torch.randn(2, 64)})
    passes = [Prune(method="magnitude", sparsity=0.5, include=("first",)), Pack()]
    obc.emit(obc.PassManager(passes).run(graph), "onnx", out)

    features = torch.randn(5, 64)
    (scores,) = obc.runtime.session(out).run(None, {"features": features.numpy()})
    with torch.no_grad():
        expected = module(features).numpy()
    print("correlation with the module:", np.corrcoef(scores.ravel(), expected.ravel())[0, 1])


if __name__ == "__main__":
    main(*sys.argv[1:])
