"""The task's metric of a module on held-out data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches
    from obert_compiler.tasks.base import Task

__all__ = ["Evaluation"]


class Evaluation:
    """Evaluates modules.

    Args:
        task: says what is kept of the outputs, and its metric.
        data: held-out data with targets.
        input_names: inputs of the module.
    """

    def __init__(self, task: Task, data: Batches, input_names: list[str]) -> None:
        self._task = task
        self._data = data
        self._input_names = input_names
        self.metric_name = task.metric_name
        self.higher_is_better = task.higher_is_better

    def __call__(self, module: torch.nn.Module) -> dict[str, float]:
        """Figures of ``module`` by name; it stays in evaluation mode."""
        module.eval()
        device = next(module.parameters()).device
        kept: dict[int, Any] = {}
        for batch in self._data:
            feed = {
                name: torch.from_numpy(array).to(device)
                for name, array in batch.feed(self._input_names).items()
            }
            with torch.no_grad():
                outputs = module(**feed)
            arrays = {name: value.float().cpu().numpy() for name, value in outputs.items()}
            for row, reduced in zip(batch.rows, self._task.reduce(arrays, batch), strict=True):
                kept[int(row)] = reduced
        reduced_all = [kept[index] for index in range(len(self._data.examples))]
        return self._task.metric(reduced_all, self._data.examples)
