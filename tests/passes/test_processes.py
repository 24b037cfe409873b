"""Passes in several processes give what they give in one, to the rounding of sums.

The processes are threads of the test: real collective calls without the cost of starting.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.errors import NumericsError
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.activation_moments import ActivationMoments
from obert_compiler.passes.calibration import ActivationStatistics
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.prune import Prune
from obert_compiler.passes.quant import Quant
from obert_compiler.pipeline.contract import Context
from obert_compiler.pipeline.manager import PassManager
from obert_compiler.pipeline.processes import Processes
from obert_compiler.tasks import task_for


class _Thread(Processes):
    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count = rank, len(slots)
        self._slots, self._barrier = slots, barrier

    def gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = pickle.dumps(value)
        self._barrier.wait()
        found = [pickle.loads(slot) for slot in self._slots]
        self._barrier.wait()
        return found

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def sum(self, array: np.ndarray) -> np.ndarray:
        return np.add.reduce(self.gather(array))

    def add_up(self, array: np.ndarray, owner: int) -> None:
        total = np.add.reduce([part.astype(np.float64) for part in self.gather(array)])
        if self.rank == owner:
            array[...] = total


@pytest.fixture
def together() -> Callable[[int, Callable[[Processes], Any]], list[Any]]:
    """``together(count, work)``: what ``work(processes)`` gives in each of ``count`` processes."""

    def run(count: int, work: Callable[[Processes], Any]) -> list[Any]:
        slots: list[Any] = [None] * count
        barrier = threading.Barrier(count, timeout=60)

        def one(rank: int) -> Any:
            try:
                return work(_Thread(rank, slots, barrier))
            except BaseException:
                barrier.abort()
                raise

        with ThreadPoolExecutor(count) as pool:
            futures = [pool.submit(one, rank) for rank in range(count)]
            errors = [e for e in (f.exception() for f in futures) if e is not None]
            for error in errors:
                if not isinstance(error, threading.BrokenBarrierError):
                    raise error
            return [future.result() for future in futures]

    return run


ROWS = [
    {"sentence": "the film is good", "label": 1},
    {"sentence": "a terrible , dull story with no plot and a sad old actor", "label": 0},
    {"sentence": "funny", "label": 1},
    {"sentence": "anna walks along the river at night", "label": 0},
    {"sentence": "not a bad movie", "label": 1},
]
UNLABELLED = [{"sentence": row["sentence"]} for row in ROWS]


@pytest.fixture
def model(tiny_graph, tiny_folder):
    graph = tiny_graph("bert", "sequence")
    return graph, task_for(graph.source), tiny_folder("bert", "sequence")


@pytest.mark.parametrize("rows", [ROWS, UNLABELLED], ids=["labels", "own labels"])
@pytest.mark.parametrize(("count", "shared"), [(2, True), (4, False)])
def test_fisher(model, together, tmp_path, rows, count, shared):
    """Four processes have three batches, and temporary folders of their own."""
    graph, task, folder = model
    data = Batches.open(rows, task, folder, batch_size=2)

    def estimate(processes):
        context = Context(task=task, data=data, seed=3, processes=processes)
        context.work = tmp_path if shared and processes.count > 1 else None
        result = Fisher(samples=5, block=8).run(graph.copy(), context)
        statistics = context.statistics["fisher"]
        return result, statistics, processes.deal(statistics.costs)

    expected, alone, _ = estimate(Processes())
    found = together(count, estimate)
    owners = found[0][2]
    assert set(owners.values()) == set(range(count))
    for rank, (result, statistics, _) in enumerate(found):
        assert statistics.mean_squares == found[0][1].mean_squares
        for key in ("examples", "labels", "sites", "blocks", "dead_inputs"):
            assert result.report[key] == expected.report[key]
        assert result.skips == expected.skips
        for name, owner in owners.items():
            if shared or owner == rank:
                blocks = alone.blocks(name)
                scale = np.abs(blocks).max()
                np.testing.assert_allclose(
                    statistics.blocks(name), blocks, rtol=1e-4, atol=1e-6 * scale
                )


@pytest.mark.parametrize("options", [{"repair": "fisher"}, {"steps": ("0.5",)}], ids=str)
def test_prune(model, together, options):
    graph, task, folder = model
    data = Batches.open(ROWS, task, folder, batch_size=2)

    def prune(processes):
        context = Context(task=task, data=data, seed=3, processes=processes)
        pruned = graph.copy()
        Fisher(samples=5, block=8).run(pruned, context)
        result = Prune(sparsity=0.6, samples=5, **options).run(pruned, context)
        return result, {site.name: site.weight() for site in find_linear_sites(pruned)}

    expected, alone = prune(Processes())
    first, *others = together(3, prune)
    for result, weights in others:
        assert result.report == first[0].report
        for name, W in weights.items():
            np.testing.assert_array_equal(W, first[1][name])
    assert first[0].report["groups_removed"] == expected.report["groups_removed"]
    for name, W in first[1].items():
        np.testing.assert_array_equal(W == 0, alone[name] == 0)
        np.testing.assert_allclose(W, alone[name], rtol=1e-3, atol=1e-4 * np.abs(W).max())


def test_quant_has_the_very_same_scales_and_weights(model, together):
    graph, task, folder = model
    data = Batches.open(ROWS, task, folder, batch_size=1)

    def quant(processes):
        context = Context(task=task, data=data, seed=3, processes=processes)
        quantised = graph.copy()
        result = Quant(examples=4).run(quantised, context)
        values = quantised.model.graph.initializers.items()
        return result.report, {name: value.const_value.numpy() for name, value in values}

    report, expected = quant(Processes())
    for found, values in together(3, quant):
        assert found["sites"] == report["sites"]
        assert values.keys() == expected.keys()
        for name, array in values.items():
            # The mean error in the bias comes from sums in another order.
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_statistics_of_parts_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=(n, 3)) * 10**n).astype(np.float32) for n in (7, 1, 4)]

    def seen(numbers):
        statistics = ActivationStatistics(3, np.random.default_rng(9), sample_rows=5, bins=32)
        for number in numbers:
            statistics.add(parts[number], np.random.default_rng([1, number]))
        return statistics

    whole = seen([0, 1, 2])
    for first, second in (([0, 2], [1]), ([1], [0, 2]), ([2, 0, 1], [])):
        found = seen(first)
        found.merge(seen(second))
        assert (found.rows, found.low, found.high) == (whole.rows, whole.low, whole.high)
        np.testing.assert_array_equal(found.sample, whole.sample)
        np.testing.assert_array_equal(found.histogram.counts, whole.histogram.counts)
        np.testing.assert_array_equal(found.histogram.edges, whole.histogram.edges)
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-6)


def test_moments_add_up(together):
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 30, 4)).astype(np.float32)

    def moments(processes):
        found = ActivationMoments(4, 4)
        for row in processes.share(range(0, 30, 20)):
            found.add(x[row : row + 20], z[row : row + 20])
        found.add_up(processes.sum)
        return found

    expected = moments(Processes())
    for found in together(3, moments):
        assert found.rows == 30
        for centred in (True, False):
            for ours, theirs in zip(found.second(centred), expected.second(centred), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_an_error_of_one_process_is_its_own(model, together):
    graph, task, folder = model
    data = Batches.open(ROWS, task, folder, batch_size=2)

    def prune(processes):
        spoilt = graph.copy()
        if processes.rank == 1:
            site = find_linear_sites(spoilt).sites[0]
            site.set_weight(np.full(site.shape, np.nan, np.float32))
        manager = PassManager("fisher:samples=5")
        return manager.run(spoilt, data=data, task=task, processes=processes)

    with pytest.raises(NumericsError, match="expected finite weights"):
        together(2, prune)
