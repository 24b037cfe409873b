"""The loss that Fisher differentiates, one value per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from obert_compiler.errors import GraphError
from obert_compiler.graph.graph import Graph

if TYPE_CHECKING:
    import torch

    from obert_compiler.data.batches import Batch
    from obert_compiler.tasks.base import Task

__all__ = ["Objective"]


class Objective:
    """Losses of examples under labels of the data, or under labels drawn from the model.

    Args:
        graph: the graph whose inputs are fed.
        task: gives losses and samples; None samples the first output as a Gaussian.
        own_labels: draw labels from the model.
        seed: of the draw. Each batch has a draw of its own, the same whenever and in whichever
            process it comes.
    """

    def __init__(self, graph: Graph, task: Task | None, own_labels: bool, seed: int) -> None:
        self.input_names = [value.name or "" for value in graph.model.graph.inputs]
        self.task = task
        self.own_labels = own_labels
        self.seed = seed

    def describe(self) -> str:
        """Where labels come from."""
        if self.task is None:
            return "drawn from a Gaussian around the model's output"
        return "drawn from the model's predictions" if self.own_labels else "from the data"

    def losses(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """``[batch]``, differentiable."""
        import torch

        feed = batch.feed(self.input_names)
        first = next(module.parameters(), None)
        device = None if first is None else first.device
        found = module(**{n: torch.as_tensor(array, device=device) for n, array in feed.items()})
        # Labels and draws are the processor's, and so the same with CUDA and without.
        outputs = {name: value.cpu() for name, value in found.items()}
        if self.task is None:
            return self._gaussian(outputs, batch)
        if self.own_labels:
            with torch.no_grad():
                batch = self.task.sample_labels(outputs, batch, self._generator(batch))
        return self.task.losses(outputs, batch)

    def _gaussian(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Half the squared distance to a sample of N(output, I), padding left out."""
        import torch

        output = next((v for v in outputs.values() if v.is_floating_point()), None)
        if output is None or output.shape[:1] != (len(batch),):
            raise GraphError(
                "fisher: expected a floating-point output with one row per example, found "
                f"{', '.join(f'{n} {tuple(v.shape)}' for n, v in outputs.items())}; name a --task"
            )
        noise = torch.randn(output.shape, generator=self._generator(batch))
        mask = batch.inputs.get("attention_mask")
        if mask is not None and output.ndim == 3 and output.shape[:2] == mask.shape:
            noise = noise * torch.as_tensor(mask).unsqueeze(-1)
        # The gradient of 1/2 ||f - (f0 + noise)||^2 at f = f0 is that of -<f, noise>.
        return -(output * noise).flatten(1).sum(dim=1)

    def _generator(self, batch: Batch) -> torch.Generator:
        """Of the labels of one batch, which its first example names."""
        import torch

        state = np.random.SeedSequence([self.seed, int(batch.rows[0])]).generate_state(1)
        return torch.Generator().manual_seed(int(state[0]))
