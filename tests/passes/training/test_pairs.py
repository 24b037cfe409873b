"""Embeddings trained on pairs of texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from obert_compiler import PassManager
from obert_compiler.data.batches import Batches
from obert_compiler.errors import DataError, UsageError
from obert_compiler.graph import Graph
from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.training.data import EpochSampler
from obert_compiler.passes.training.losses import contrastive, cosine_error
from obert_compiler.passes.training.pairs import pairs_of
from obert_compiler.tasks import task_for

TinyGraph = Callable[[str, str], Graph]
MakeBatches = Callable[..., Batches]


@pytest.fixture
def graph(tiny_graph: TinyGraph) -> Graph:
    return tiny_graph("bert", "embedding")


def test_the_examples_of_a_row_are_a_pair(graph: Graph, make_batches: MakeBatches) -> None:
    data = make_batches(graph, 6)
    pairs = pairs_of(data)
    assert pairs is not None
    assert pairs.scores is not None
    rows = [[data.examples[index].row for index in pair] for pair in pairs.members]
    assert rows == [[n, n] for n in range(6)]
    targets = np.array([data.examples[first].target for first, _ in pairs.members])
    scaled = (targets - targets.min()) / (targets.max() - targets.min())
    np.testing.assert_allclose(pairs.scores, scaled)


@pytest.mark.parametrize("labels", [True, False])
def test_the_loss_of_a_batch(graph: Graph, make_batches: MakeBatches, labels: bool) -> None:
    pairs = pairs_of(make_batches(graph, 6, labels=labels))
    assert pairs is not None
    embeddings = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    (a, b), (c, d) = pairs.members[1], pairs.members[4]
    alone = pairs.members[0][0]
    found = pairs.loss(embeddings, [d, alone, a, b, c])
    first, second = embeddings[[2, 4]], embeddings[[3, 0]]
    wanted = contrastive(first, second)
    if labels:
        assert pairs.scores is not None
        wanted = cosine_error(first, second, torch.tensor([pairs.scores[1], pairs.scores[4]]))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_pairs_stay_together_in_every_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, 40).tolist()
    units = [(n, n + 20) for n in range(20)]
    sampler = EpochSampler(lengths, 8, 0, units)
    assert len(sampler) == 40
    orders = [sampler.order(epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(40))
        assert {tuple(order[n : n + 2]) for n in range(0, 40, 2)} == set(units)
    assert orders[0] != orders[1]
    assert orders[0] == EpochSampler(lengths, 8, 0, units).order(0)


@pytest.mark.parametrize("labels", [True, False])
def test_embeddings_learn_from_pairs_alone(
    graph: Graph, make_batches: MakeBatches, labels: bool
) -> None:
    data = make_batches(graph, 16, labels=labels)
    manager = PassManager([Finetune(epochs=8, batch_size=8, hardness=0, learning_rate=1e-3)])
    manager.run(graph, data=data, task=task_for(graph.source))
    report: dict[str, Any] = manager.records[0]["report"]
    losses = [point["loss"] for point in report["curve"]]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_single_texts_and_odd_batches_are_refused(graph: Graph, make_batches: MakeBatches) -> None:
    data, task = make_batches(graph, 4), task_for(graph.source)
    with pytest.raises(UsageError, match="an even batch_size for pairs of texts, found 3"):
        PassManager([Finetune(hardness=0, batch_size=3)]).run(graph, data=data, task=task)
    alone = replace(data, examples=tuple(replace(e, details={}) for e in data.examples))
    with pytest.raises(DataError, match="expected labelled data for hardness=0"):
        PassManager([Finetune(hardness=0)]).run(graph, data=alone, task=task)
