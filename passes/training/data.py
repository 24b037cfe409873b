"""Batches for the Trainer: examples by index, collated by the task, grouped by length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from obert_compiler.data.batches import Batch, collate

if TYPE_CHECKING:
    from obert_compiler.data.batches import Batches

__all__ = ["BatchCollator", "EpochSampler", "IndexDataset", "as_batch", "digest_of_data"]

ROWS = "rows"


class IndexDataset(Dataset[int]):
    """The indices of the examples: what belongs to them is looked up when they are collated."""

    def __init__(self, data: Batches) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.examples)

    def __getitem__(self, index: int) -> int:
        return index


class BatchCollator:
    """Makes tensors of the examples with some indices.

    The result is ``{"inputs": {...}, "labels": {...}, "rows": [b]}``; labels are left out where an
    example has none.
    """

    def __init__(self, data: Batches) -> None:
        self.data = data

    def __call__(self, indices: Sequence[int]) -> dict[str, Any]:
        make = collate if self.data.task is None else self.data.task.collate
        batch = make([self.data.examples[i] for i in indices], self.data.pad_token_id)
        tensors: dict[str, Any] = {
            "inputs": _tensors(batch.inputs),
            ROWS: torch.as_tensor(np.asarray(indices, np.int64)),
        }
        if batch.labels is not None:
            tensors["labels"] = _tensors(batch.labels)
        return tensors


def _tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def as_batch(tensors: dict[str, Any]) -> Batch:
    """The batch of collated tensors; its arrays are the tensors, on their device.

    Losses of tasks read tensors and arrays alike.
    """
    return Batch(tensors["inputs"], tensors.get("labels"), tensors[ROWS])


class EpochSampler(LengthGroupedSampler):
    """The Trainer's grouping by length, with an order that the seed and the epoch alone decide.

    The Trainer's own sampler draws from the global generator: after a resume in the middle of the
    second epoch the order would be another one.
    """

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        seed: int,
        units: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Group examples.

        Args:
            lengths: tokens of each example.
            batch_size: examples in a batch of all processes.
            seed: of the order.
            units: indices of examples that must be neighbours, as many in each; they divide the
                batch. By default each example alone.
        """
        self._units = units or [[index] for index in range(len(lengths))]
        self._examples = len(lengths)
        super().__init__(
            batch_size // len(self._units[0]),
            lengths=[max(lengths[index] for index in unit) for unit in self._units],
            generator=torch.Generator(),
        )
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return self._examples

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self._epoch))

    def order(self, epoch: int) -> list[int]:
        """Indices of the examples in the order of an epoch."""
        # Two numbers in one: neighbouring seeds must not give the epochs of one another.
        mixed = np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0]
        self.generator.manual_seed(int(mixed))
        units: list[int] = list(super().__iter__())  # type: ignore[no-untyped-call]
        return [index for unit in units for index in self._units[unit]]


def digest_of_data(data: Batches) -> str:
    """A digest of inputs and labels of all examples, in their order."""
    sha = hashlib.sha256()
    for example in data.examples:
        for arrays in (example.inputs, example.labels or {}):
            for name in sorted(arrays):
                sha.update(name.encode())
                sha.update(np.ascontiguousarray(arrays[name]).data)
    return sha.hexdigest()[:16]
