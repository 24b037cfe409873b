"""Accumulation of the Fisher over a data set, in groups of sites that fit a memory bound."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from obert_compiler.errors import GraphError, NumericsError, UsageError
from obert_compiler.passes.fisher_blocks import BlockLayout, packed_diagonal, packed_size
from obert_compiler.passes.fisher_gradients import GradientRecorder, accumulate_blocks
from obert_compiler.passes.fisher_statistics import FisherStatistics
from obert_compiler.pipeline.contract import Progress, Skip
from obert_compiler.pipeline.processes import Processes

if TYPE_CHECKING:
    import torch

    from obert_compiler.data.batches import Batch, Batches
    from obert_compiler.passes.fisher_objective import Objective

__all__ = ["Estimation", "group_sites"]

_FLUSH_EXAMPLES = 64
"""Examples per update of F: enough that the traffic to and from F does not bind."""

_WORKING_BYTES = 64 << 20
"""Gradients of a few rows at a time, and triangles on their way to disk."""


def group_sites(
    layouts: Mapping[str, BlockLayout], bound: int, positions: Mapping[str, int]
) -> list[list[str]]:
    """Sites to estimate together.

    The last sites come first: autograd stops at the first site of a group, so that all groups but
    the last need a part of the backward pass only.

    Args:
        layouts: the sites in graph order.
        bound: bytes that a group may take: its blocks of F, and for one batch its inputs and
            output gradients.
        positions: rows of input that a site sees in the largest batch, examples times tokens times
            uses of its weight.

    Raises:
        UsageError: a site alone exceeds the bound.
    """
    room = bound - _WORKING_BYTES
    groups: list[list[str]] = []
    used = 0
    for name, layout in reversed(list(layouts.items())):
        recorded = 4 * positions[name] * (layout.rows + layout.columns)
        cost = 4 * layout.count * packed_size(layout.block) + recorded
        if cost > room:
            needed = (cost + _WORKING_BYTES) / 1e9
            raise UsageError(
                f"fisher: expected memory of at least {needed:.2f} GB for site '{name}', found "
                f"{bound / 1e9:g}; raise memory, or lower block or the batch size"
            )
        if not groups or used + cost > room:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += cost
    return groups


@dataclass
class Estimation:
    """Accumulates F group by group and writes it.

    Attributes:
        module: the model, frozen, in evaluation mode, with its ``linear_sites``.
        objective: the loss.
        data: the examples.
        bound: bytes that may be held beside a forward and backward pass.
        statistics: where results go.
        processes: those that share the batches; each writes the sites that fall to it.
        seconds: time spent, by kind of work, of the process that took longest.
        peak_bytes: most bytes that a process held at once.
        traffic_bytes: bytes that went to and from memory for F, over all processes: its triangles
            twice at every update and on their way to disk, recorded inputs and gradients once. What
            a cache holds meanwhile, gradients and products of a tile, does not count.
        dead_inputs: inputs of a site without any gradient, where there are some.
        skips: uses and sites that do not count.
    """

    module: torch.nn.Module
    linear_sites: Mapping[str, torch.nn.Linear]
    objective: Objective
    data: Batches
    bound: int
    statistics: FisherStatistics
    processes: Processes = field(default_factory=Processes)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"forward_backward": 0.0, "accumulate": 0.0, "write": 0.0}
    )
    peak_bytes: int = 0
    traffic_bytes: int = 0
    dead_inputs: dict[str, int] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)

    def estimate(self, layouts: Mapping[str, BlockLayout], progress: Progress, what: str) -> None:
        """Estimate and write the sites of ``layouts``.

        Raises:
            NumericsError: a loss, an activation or a gradient is not finite.
            GraphError: the loss depends on none of the sites.
        """
        import torch

        self.statistics.layouts.update(layouts)
        size, device = packed_size(self.statistics.block), _device(self.module)
        F = {n: torch.zeros(x.count, size, device=device) for n, x in layouts.items()}
        held = sum(blocks.nbytes for blocks in F.values()) + _WORKING_BYTES
        recorder = GradientRecorder({name: self.linear_sites[name] for name in layouts})
        largest = 0
        try:
            batches = progress.track(self.data, what, len(self.data))
            for batch in self.processes.share(batches):
                before = recorder.nbytes
                self._forward_backward(recorder, batch)
                recorded = recorder.nbytes
                self.peak_bytes = max(self.peak_bytes, held + recorded)
                largest = max(largest, recorded - before)
                # Sites with the most examples first: each update of F costs its traffic.
                for name in sorted(layouts, key=recorder.waiting, reverse=True):
                    full = recorder.waiting(name) >= _FLUSH_EXAMPLES
                    if full or held + recorder.nbytes + largest > self.bound:
                        self._flush(recorder, name, layouts[name], F[name])
            for name, layout in layouts.items():
                self._flush(recorder, name, layout, F[name])
        finally:
            recorder.close()
        self._note_ignored(recorder)
        owners = self.processes.deal(self.statistics.costs)
        for name, layout in layouts.items():
            triangles = F.pop(name).cpu().numpy()
            self.processes.add_up(triangles, owners[name])
            if owners[name] == self.processes.rank:
                self._write(name, layout, triangles)

    def finish(self) -> None:
        """Put together what the processes found, once every group is estimated."""
        statistics, processes = self.statistics, self.processes
        statistics.mean_squares = processes.merge(statistics.mean_squares)
        self.dead_inputs = processes.merge(self.dead_inputs)
        self.skips = list(dict.fromkeys(skip for s in processes.gather(self.skips) for skip in s))
        self.peak_bytes = max(processes.gather(self.peak_bytes))
        self.traffic_bytes = sum(processes.gather(self.traffic_bytes))
        spent = processes.gather(self.seconds)
        self.seconds = {kind: max(each[kind] for each in spent) for kind in self.seconds}
        statistics.finish(len(self.data.examples), write=processes.writer)
        # Sites of other processes may be read once this returns.
        processes.wait()

    def _forward_backward(self, recorder: GradientRecorder, batch: Batch) -> None:
        start = time.perf_counter()
        recorder.start(batch.rows)
        losses = self.objective.losses(self.module, batch)
        if losses.shape != (len(batch),):
            raise GraphError(
                f"fisher: expected one loss for each of {len(batch)} examples, found the shape "
                f"{tuple(losses.shape)}; the task's losses must not be averaged"
            )
        finite = losses.detach().isfinite()
        if not finite.all():
            first = int(batch.rows[int((~finite).nonzero()[0])])
            raise NumericsError(
                f"loss: expected finite values, found NaN or infinity for example {first} of the "
                "data; look at the example and its label, and at the weights of the model"
            )
        if not losses.requires_grad:
            raise GraphError(
                f"fisher: expected a loss that depends on site '{next(iter(recorder.recorded))}', "
                "found none that depends on any of its group; exclude what does not reach an output"
            )
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.seconds["forward_backward"] += time.perf_counter() - start

    def _flush(
        self, recorder: GradientRecorder, name: str, layout: BlockLayout, F: torch.Tensor
    ) -> None:
        start = time.perf_counter()
        if recorded := recorder.bytes_of(name):
            self.traffic_bytes += 2 * F.nbytes + recorded
        accumulate_blocks(F, layout, recorder.recorded[name])
        recorder.clear(name)
        self.seconds["accumulate"] += time.perf_counter() - start

    def _note_ignored(self, recorder: GradientRecorder) -> None:
        self.skips += [
            Skip(name, f"a use with input {shape} has no batch axis in front and was not counted")
            for name, shape in recorder.ignored.items()
        ]

    def _write(self, name: str, layout: BlockLayout, triangles: npt.NDArray[np.float32]) -> None:
        start = time.perf_counter()
        triangles /= len(self.data.examples)
        diagonal = layout.join(packed_diagonal(triangles, layout.block))
        dead = int((~diagonal.any(axis=0)).sum())
        if dead == layout.columns:
            self.skips.append(Skip(name, "no gradient reached it"))
        elif dead:
            self.dead_inputs[name] = dead
        self.statistics.write_packed(name, layout, triangles)
        self.traffic_bytes += 2 * triangles.nbytes
        self.seconds["write"] += time.perf_counter() - start


def _device(module: torch.nn.Module) -> torch.device | None:
    first = next(module.parameters(), None)
    return None if first is None else first.device
