"""Tests of the pass ``finetune`` on tiny models: every task, masks, resume, wrong input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler import PassManager
from obert_compiler.data.batches import Batches
from obert_compiler.errors import DataError, UsageError
from obert_compiler.graph import Graph, find_linear_sites
from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.prune import Prune
from obert_compiler.pipeline.contract import Context
from obert_compiler.tasks import task_for

TinyGraph = Callable[[str, str], Graph]
MakeBatches = Callable[..., Batches]

HALF = Prune(sparsity=0.5, method="magnitude")


def train(
    graph: Graph, data: Batches, *passes: Any, **options: Any
) -> tuple[Graph, dict[str, Any]]:
    """Run passes; the graph and the report of the last one."""
    manager = PassManager(list(passes))
    trained = manager.run(graph, data=data, task=task_for(graph.source), **options)
    report: dict[str, Any] = manager.records[-1]["report"]
    return trained, report


def weights(graph: Graph) -> dict[str, Any]:
    return {site.name: site.weight() for site in find_linear_sites(graph)}


@pytest.mark.parametrize(
    "head", ["sequence", "reranker", "token", "qa", "features", "embedding", "mlm"]
)
def test_every_task_trains_towards_the_dense_model_without_labels(
    tiny_graph: TinyGraph, make_batches: MakeBatches, head: str
) -> None:
    graph = tiny_graph("bert", head)
    data = make_batches(graph, 48, labels=False)
    pruned, _ = train(graph, data, HALF)
    trained, report = train(graph, data, HALF, Finetune(epochs=6, batch_size=8, learning_rate=2e-3))
    losses = [point["loss"] for point in report["curve"]]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    before, after = weights(pruned), weights(trained)
    zeros = {name: W == 0 for name, W in before.items()}
    assert all((after[name][z] == 0).all() for name, z in zeros.items())
    assert sum(z.sum() for z in zeros.values()) > 10_000
    assert any((after[name] != before[name]).any() for name in before)


@pytest.mark.parametrize("head", ["sequence", "reranker", "token", "qa", "mlm"])
def test_every_task_with_labels_trains_on_them(
    tiny_graph: TinyGraph, make_batches: MakeBatches, head: str
) -> None:
    graph = tiny_graph("bert", head)
    data = make_batches(graph, 16)
    _, report = train(graph, data, Finetune(epochs=8, batch_size=8, learning_rate=2e-3, hardness=0))
    losses = [point["loss"] for point in report["curve"]]
    assert report["teacher"] is None
    assert np.mean(losses[-2:]) < 0.85 * np.mean(losses[:2])


def test_a_dense_graph_trains_whole_and_says_so(
    tiny_graph: TinyGraph, make_batches: MakeBatches
) -> None:
    graph = tiny_graph("bert", "sequence")
    manager = PassManager([Finetune(steps=1, hardness=0)])
    manager.run(graph, data=make_batches(graph, 8), task=task_for(graph.source))
    (record,) = manager.records
    assert record["skips"] == [
        {"subject": "masks", "reason": "no weight is pruned: all of them train"}
    ]


def test_the_teacher_is_the_graph_before_the_passes_unless_another_is_given(
    tiny_graph: TinyGraph, make_batches: MakeBatches
) -> None:
    graph = tiny_graph("bert", "sequence")
    data = make_batches(graph, 8)
    dense_finetune = Finetune(steps=1, batch_size=8)
    _, own = train(graph, data, dense_finetune)
    assert own["curve"][0]["loss"] == pytest.approx(0, abs=1e-6)
    other = graph.copy()
    for site in find_linear_sites(other):
        site.set_weight(site.weight() * np.float32(0.5))
    _, given = train(graph, data, dense_finetune, teacher=other)
    assert given["curve"][0]["loss"] > 1e-3


def test_labels_are_needed_below_hardness_1(
    tiny_graph: TinyGraph, make_batches: MakeBatches
) -> None:
    graph = tiny_graph("bert", "sequence")
    data = make_batches(graph, 8, labels=False)
    with pytest.raises(DataError, match=r"expected labelled data for hardness=0\.5"):
        train(graph, data, Finetune(hardness=0.5))


def test_data_and_teacher_are_needed(tiny_graph: TinyGraph, make_batches: MakeBatches) -> None:
    graph = tiny_graph("bert", "sequence")
    with pytest.raises(UsageError, match="expected data, found none"):
        Finetune().run(graph, Context())
    data = make_batches(graph, 8)
    with pytest.raises(UsageError, match="expected a teacher"):
        Finetune().run(graph, Context(data=data, task=task_for(graph.source)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0.0}, "expected epochs above 0 to 10000, found 0"),
        ({"epochs": float("nan")}, "expected epochs above 0"),
        ({"epochs": 1.0, "steps": 3}, "expected epochs or steps, found both"),
        ({"steps": 0}, "expected steps from 1"),
        ({"learning_rate": 0.0}, "expected learning_rate above 0 to 1, found 0"),
        ({"learning_rate": 2.0}, "expected learning_rate above 0 to 1, found 2"),
        ({"budget": "soon"}, "budget: expected a time such as 30min"),
        ({"hardness": 1.5}, "expected hardness from 0 to 1, found 1.5"),
        ({"temperature": 0.0}, "expected temperature above 0, found 0"),
        ({"rewinds": (0.5, 1.0)}, "expected rewinds between 0 and 1, found 1"),
        ({"batch_size": 0}, "expected batch_size of at least 1, found 0"),
        ({"checkpoint": "often"}, "expected a time or a number of steps"),
        ({"best": True}, None),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str | None) -> None:
    if message is None:
        Finetune(**options)
        return
    with pytest.raises(UsageError, match=message):
        Finetune(**options)


def test_best_needs_held_out_data(tiny_graph: TinyGraph, make_batches: MakeBatches) -> None:
    graph = tiny_graph("bert", "sequence")
    with pytest.raises(UsageError, match="expected held-out data with labels for best=true"):
        train(graph, make_batches(graph, 8), Finetune(best=True))


def test_best_gives_the_weights_of_the_best_epoch(
    tiny_graph: TinyGraph, make_batches: MakeBatches
) -> None:
    graph = tiny_graph("bert", "sequence")
    data, held_out = make_batches(graph, 24), make_batches(graph, 32, seed=5)
    options: dict[str, Any] = {"batch_size": 8, "learning_rate": 3e-3, "hardness": 0.0}
    _, report = train(graph, data, Finetune(epochs=5, best=True, **options), eval_data=held_out)
    figures = [point["accuracy"] for point in report["curve"] if "accuracy" in point]
    assert len(figures) == 5
    assert report["best"]["metric"] == max(figures)
    assert report["best"]["step"] == 3 * (1 + figures.index(max(figures)))


def test_the_work_folder_is_left_clean(
    tiny_graph: TinyGraph, make_batches: MakeBatches, tmp_path: Path
) -> None:
    graph = tiny_graph("bert", "sequence")
    train(graph, make_batches(graph, 8), Finetune(steps=2, checkpoint="1step"), work=tmp_path)
    assert list(tmp_path.iterdir()) == []
