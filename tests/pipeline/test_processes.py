"""One process, and how work is shared out among several."""

from __future__ import annotations

import numpy as np
import pytest

from obert_compiler.pipeline.processes import Processes


def of(rank: int, count: int) -> Processes:
    processes = Processes()
    processes.rank, processes.count = rank, count
    return processes


def test_one_process_has_everything() -> None:
    alone = Processes()
    array = np.arange(3.0)
    assert alone.writer
    assert list(alone.share("abc")) == ["a", "b", "c"]
    assert alone.deal({"a": 1.0, "b": 2.0}) == {"a": 0, "b": 0}
    np.testing.assert_array_equal(alone.sum(array), array)
    alone.add_up(array, 0)
    np.testing.assert_array_equal(array, np.arange(3.0))
    assert alone.gather("x") == ["x"]
    assert alone.merge({"x": 1}) == {"x": 1}
    assert alone.broadcast("x") == "x"
    alone.wait()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_item_falls_to_one_process(count: int) -> None:
    shares = [list(of(rank, count).share(range(5))) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(5))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_sites_are_dealt_out_by_cost_in_any_order() -> None:
    costs = {"wide": 4.0, "deep": 4.0, "q": 1.0, "k": 1.0, "v": 1.0, "o": 1.0}
    owners = of(0, 2).deal(costs)
    load = [sum(costs[name] for name, rank in owners.items() if rank == r) for r in (0, 1)]
    assert load == [6.0, 6.0]
    assert of(1, 2).deal(dict(reversed(costs.items()))) == owners
