"""The teacher's predictions, computed once for every example where that fits into memory.

Neither model has dropout and the data are not augmented, so that the teacher says the same about an
example in every epoch. What it says is kept by example. To the last bit a forward pass depends on
the batch that an example is in: examples are therefore always given to the teacher in the batches
of the first epoch, whatever the order is now. Then a run that goes on in a later epoch, with
nothing kept, computes the same bits as the run that was not stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from obert_compiler.errors import NumericsError
from obert_compiler.passes.training.data import BatchCollator

if TYPE_CHECKING:
    from obert_compiler.backends.torch import OnnxModule
    from obert_compiler.data.batches import Batch
    from obert_compiler.graph.graph import Graph

__all__ = ["Teacher", "outputs_by_token"]

_LARGEST_STORE = 1 << 30
"""Bytes that kept predictions may take in all."""


class Teacher:
    """Gives the teacher's outputs for a batch.

    Args:
        module: the teacher; frozen here.
        input_names: its inputs.
        collator: makes batches of the training data.
        order: indices of the examples in the order of the first epoch.
        batch_size: examples in a batch of the first epoch.
        token_outputs: outputs whose second axis runs over the tokens (`outputs_by_token`); None to
            keep nothing.
        bfloat16: compute products in bfloat16 where nothing is kept, as the student does: there the
            teacher runs at every step. What is kept is computed once, in float32.
    """

    def __init__(
        self,
        module: OnnxModule,
        input_names: Sequence[str],
        collator: BatchCollator,
        order: Sequence[int],
        batch_size: int,
        *,
        token_outputs: frozenset[str] | None,
        bfloat16: bool = False,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self._inputs = list(input_names)
        self._collator = collator
        self._order = list(order)
        self._batch_size = batch_size
        self._position = {example: place for place, example in enumerate(self._order)}
        self._keep = token_outputs is not None
        self._bfloat16 = bfloat16
        self._token_outputs = token_outputs or frozenset()
        self._kept: dict[int, dict[str, torch.Tensor]] = {}

    @property
    def keeps(self) -> bool:
        """Whether outputs are kept."""
        return self._keep

    def outputs(self, batch: Batch, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The teacher's outputs for a batch of training data, by name.

        Args:
            batch: the batch, on the device of the student.
            rows: indices of its examples.
        """
        missing = [row for row in rows if row not in self._kept] if self._keep else []
        for group in dict.fromkeys(self._position[row] // self._batch_size for row in missing):
            members = self._order[group * self._batch_size : (group + 1) * self._batch_size]
            tensors: Mapping[str, Any] = batch.inputs
            if list(rows) != members:
                device = self._device(batch)
                tensors = {
                    name: tensor.to(device)
                    for name, tensor in self._collator(members)["inputs"].items()
                }
            found = self._run(tensors)
            lengths = [self._collator.data.examples[i].length for i in members]
            if not self._kept and not self._fits(found, lengths):
                self._keep = False
                break
            self._store(found, members, lengths)
        return self._stacked(rows, batch) if self._keep else self._run(batch.inputs)

    def _run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        feed = {name: value for name, value in inputs.items() if name in self._inputs}
        if "token_type_ids" in self._inputs and "token_type_ids" not in feed:
            feed["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        device = next(iter(feed.values())).device
        self.module.to(device)
        half = self._bfloat16 and not self._keep
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            found = self.module(**feed)
        if half:
            found = {n: v.float() if v.is_floating_point() else v for n, v in found.items()}
        for name, value in found.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NumericsError(
                    f"teacher: expected finite outputs, found NaN or infinity in '{name}'; name "
                    "another model with --teacher"
                )
        return found

    def _device(self, batch: Batch) -> torch.device:
        value: Any = next(iter(batch.inputs.values()))
        device: torch.device = value.device
        return device

    def _fits(self, found: dict[str, torch.Tensor], lengths: Sequence[int]) -> bool:
        """Whether outputs such as these may be kept for all examples.

        The same for every batch: a resumed run begins with another one.
        """
        everything = self._collator.data.examples
        total = 0.0
        for name, value in found.items():
            one = value[0].numel() * value.element_size()
            if name in self._token_outputs:
                total += one / max(lengths) * sum(example.length for example in everything)
            else:
                total += one * len(everything)
        return total <= _LARGEST_STORE

    def _store(
        self, found: dict[str, torch.Tensor], members: Sequence[int], lengths: Sequence[int]
    ) -> None:
        for place, (example, length) in enumerate(zip(members, lengths, strict=True)):
            self._kept[example] = {
                name: (value[place, :length] if name in self._token_outputs else value[place])
                .cpu()
                .clone()
                for name, value in found.items()
            }

    def _stacked(self, rows: Sequence[int], batch: Batch) -> dict[str, torch.Tensor]:
        kept = [self._kept[row] for row in rows]
        device = self._device(batch)
        stacked = {}
        for name in kept[0]:
            values = [k[name] for k in kept]
            if name in self._token_outputs:
                stacked[name] = pad_sequence(values, batch_first=True).to(device)
            else:
                stacked[name] = torch.stack(values).to(device)
        return stacked


def outputs_by_token(graph: Graph) -> frozenset[str] | None:
    """Outputs of a graph whose second axis runs over the tokens.

    None where the graph does not say enough about its outputs to cut them into examples.
    """
    found = set()
    for value in graph.model.graph.outputs:
        if value.shape is None or not value.shape.rank() or isinstance(value.shape[0], int):
            return None
        if value.shape.rank() > 1 and not isinstance(value.shape[1], int):
            found.add(value.name or "")
    return frozenset(found)
