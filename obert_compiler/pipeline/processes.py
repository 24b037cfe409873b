"""The processes of one run: how passes share out their work and put the results together.

`Processes` is a run of one process, and what every pass uses unless it is told otherwise: each
method is then next to nothing. `obert_compiler.backends.torch.process_group` has the processes that
``torchrun`` and ``accelerate launch`` start. Passes call `Context.processes` at the places where
sums over examples or results of sites come together; what they compute in between knows nothing of
processes.

Every process runs the same passes in the same order and so reaches the same calls: `sum`, `add_up`,
`gather`, `broadcast` and `wait` are collective. Batches are dealt out whole, so a forward pass is
the same whichever process runs it, and results differ from those of one process by the order of
sums alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Processes"]

T = TypeVar("T")
Float64Array = npt.NDArray[np.float64]


class Processes:
    """One process, which does everything.

    Attributes:
        rank: number of this process, 0 to ``count - 1``.
        count: processes of the run.
        local_rank: number of this process among those of its machine; that of its CUDA device.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def writer(self) -> bool:
        """Whether this is the one process that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Every ``count``-th of ``items``, from this process's own on; none where they run out.

        All of ``items`` are read, so that a progress bar around them shows the whole run.
        """
        for place, item in enumerate(items):
            if place % self.count == self.rank:
                yield item

    def deal(self, costs: Mapping[str, float]) -> dict[str, int]:
        """The rank that each name falls to, so that every process has about the same cost.

        Dearest first, each to the process with the least so far; the order of ``costs`` does not
        matter.
        """
        load = [(0.0, rank) for rank in range(self.count)]
        owners: dict[str, int] = {}
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            least, rank = load[0]
            owners[name] = rank
            heapq.heapreplace(load, (least + costs[name], rank))
        return owners

    def sum(self, array: Float64Array) -> Float64Array:
        """The sum over processes of a float64 array, the same on all of them."""
        return array

    def add_up(self, array: npt.NDArray[Any], owner: int) -> None:
        """Put the sum over processes into ``array`` of the process ``owner``.

        Added in float64 and rounded once, a part of the array at a time; other processes' arrays
        are left as they are.
        """
        del array, owner

    def gather(self, value: T) -> list[T]:
        """``value`` of every process, by rank, on all of them; it must be picklable."""
        return [value]

    def broadcast(self, value: T) -> T:
        """``value`` of rank 0, on all processes."""
        return value

    def wait(self) -> None:
        """Return once every process is here."""
        self.gather(None)

    def merge(self, parts: Mapping[str, T]) -> dict[str, T]:
        """One dictionary of the ``parts`` that each process has, on all of them."""
        merged: dict[str, T] = {}
        for found in self.gather(dict(parts)):
            merged.update(found)
        return merged
