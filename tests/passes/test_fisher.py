"""The pass on lowered models, against autograd with one example at a time."""

import numpy as np
import pytest
import torch

from obert_compiler.backends.torch.module import to_module
from obert_compiler.data.batches import Batches
from obert_compiler.errors import GraphError, NumericsError, UsageError
from obert_compiler.graph.linear import find_linear_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.passes.fisher_statistics import FisherStatistics
from obert_compiler.pipeline.contract import Context, SilentProgress
from obert_compiler.pipeline.manager import PassManager
from obert_compiler.tasks import task_for

ROWS = [
    {"sentence": "the film is good", "label": 1},
    {"sentence": "a terrible , dull story with no plot and a sad old actor", "label": 0},
    {"sentence": "funny", "label": 1},
    {"sentence": "anna walks along the river at night", "label": 0},
    {"sentence": "not a bad movie", "label": 1},
]


def open_data(graph, folder, rows=ROWS, batch_size=2):
    task = task_for(graph.source)
    return task, Batches.open(rows, task, folder, batch_size=batch_size)


def estimate(graph, data, task, tmp_path, **options):
    context = Context(task=task, data=data, seed=3, work=tmp_path)
    fisher = Fisher(**options)
    fisher.requires(graph)
    return fisher.run(graph, context), context


def oracle(graph, data, task, site, block):
    """Mean outer products of the gradients of single examples, each alone in its batch."""
    module = to_module(graph).eval()
    weight = module.linear_sites[site].weight
    names = [value.name for value in graph.model.graph.inputs]
    total = 0.0
    for batch in data.with_batch_size(1):
        feed = {name: torch.as_tensor(a) for name, a in batch.feed(names).items()}
        (G,) = torch.autograd.grad(task.losses(module(**feed), batch).sum(), weight)
        g = G.numpy().astype(np.float64).reshape(-1, block)
        total = total + g[:, :, None] * g[:, None, :]
    return total / len(data.examples)


@pytest.mark.parametrize("arch", ["bert", "albert", "deberta-v3", "modernbert"])
def test_it_matches_gradients_of_single_examples(tiny_graph, tiny_folder, tmp_path, arch):
    graph = tiny_graph(arch, "sequence")
    task, data = open_data(graph, tiny_folder(arch, "sequence"))
    result, context = estimate(graph, data, task, tmp_path, samples=5, block=8)
    statistics = context.statistics["fisher"]
    assert result.report["labels"] == "from the data"
    assert result.report["examples"] == 5
    assert not result.changed
    incomplete = {skip.subject for skip in result.skips if "with a constant" in skip.reason}
    assert len(incomplete) == (6 if arch == "deberta-v3" else 0)
    for site in list(statistics.layouts)[:6]:
        if site in incomplete:
            continue
        expected = oracle(graph, data, task, site, 8)
        blocks = statistics.blocks(site)
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(blocks, expected, rtol=1e-2, atol=1e-4 * scale)


def test_heads_are_left_out_with_the_reason(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    task, data = open_data(graph, tiny_folder("bert", "sequence"))
    result, context = estimate(graph, data, task, tmp_path, samples=2)
    skipped = {skip.subject: skip.reason for skip in result.skips}
    assert skipped["classifier"] == "outside the encoder layers"
    estimated = set(context.statistics["fisher"].layouts)
    assert estimated | set(skipped) == {site.name for site in find_linear_sites(graph)}
    assert len(estimated) == 18


def test_a_small_memory_bound_means_groups_and_the_same_fisher(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    rows = [{"sentence": row["sentence"]} for row in ROWS]
    task, data = open_data(graph, tiny_folder("bert", "sequence"), rows)
    whole, one = estimate(graph, data, task, tmp_path / "a", samples=5)
    # 64 MiB of working memory, and two or three of the matrices.
    small, several = estimate(graph, data, task, tmp_path / "b", samples=5, memory=0.0676)
    assert (whole.report["groups"], small.report["groups"] > 3) == (1, True)
    assert small.report["memory_used_bytes"] <= small.report["memory_bound_bytes"]
    assert any("groups to stay below" in line for line in several.progress.lines)
    for site in one.statistics["fisher"].layouts:
        blocks = one.statistics["fisher"].blocks(site)
        scale = np.abs(blocks).max()
        again = several.statistics["fisher"].blocks(site)
        np.testing.assert_allclose(again, blocks, rtol=1e-3, atol=1e-5 * scale)


def test_without_labels_they_are_drawn_from_the_model(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    rows = [{"sentence": row["sentence"]} for row in ROWS]
    task, data = open_data(graph, tiny_folder("bert", "sequence"), rows)
    result, context = estimate(graph, data, task, tmp_path / "a", samples=5)
    assert result.report["labels"] == "drawn from the model's predictions"
    _, again = estimate(graph, data, task, tmp_path / "b", samples=5)
    first = next(iter(context.statistics["fisher"].layouts))
    blocks = context.statistics["fisher"].blocks(first)
    assert blocks.any()
    np.testing.assert_array_equal(again.statistics["fisher"].blocks(first), blocks)
    with pytest.raises(UsageError, match="expected labels in the data"):
        estimate(graph, data, task, tmp_path, samples=5, labels="data")


def test_without_a_task_the_output_is_sampled_as_a_gaussian(tiny_graph, tmp_path):
    graph = tiny_graph("bert", "features")
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 60, (6, 7))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    arrays["token_type_ids"] = np.zeros_like(ids)
    data = Batches.from_arrays(arrays, batch_size=3)
    result, context = estimate(graph, data, None, tmp_path, samples=6, block=8)
    assert result.report["labels"] == "drawn from a Gaussian around the model's output"
    statistics = context.statistics["fisher"]
    assert all(statistics.blocks(site).any() for site in statistics.layouts)


def test_fewer_examples_than_samples_is_said(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    task, data = open_data(graph, tiny_folder("bert", "sequence"))
    result, context = estimate(graph, data, task, tmp_path, samples=9, include=("layer.0",))
    assert result.report["examples"] == 5
    assert context.progress.lines == ["fisher: the data has 5 examples, fewer than samples=9"]


def test_weights_that_are_not_finite_are_named(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    task, data = open_data(graph, tiny_folder("bert", "sequence"))
    site = find_linear_sites(graph).sites[3]
    W = site.weight().copy()
    W[0, 0] = np.inf
    site.set_weight(W)
    with pytest.raises(NumericsError, match=f"site '{site.name}': expected finite weights"):
        estimate(graph, data, task, tmp_path)


def test_what_cannot_be_estimated_is_refused(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    task, data = open_data(graph, tiny_folder("bert", "sequence"))
    with pytest.raises(UsageError, match="expected data, found none"):
        Fisher().run(graph, Context(task=task))
    with pytest.raises(GraphError, match="found 20 Linear sites, all left out"):
        Fisher(exclude=("*",)).requires(graph)
    with pytest.raises(UsageError, match=r"memory of at least .* GB for site"):
        estimate(graph, data, task, tmp_path, memory=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples of at least 1"),
        ({"block": 0}, "block of at least 1"),
        ({"memory": 0.0}, "memory in GB above 0"),
        ({"memory": float("inf")}, "memory in GB above 0"),
        ({"labels": "none"}, "labels auto, data or model"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Fisher(**options)


def test_an_interrupted_run_finds_the_statistics_again(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    task, data = open_data(graph, tiny_folder("bert", "sequence"))
    _, context = estimate(graph, data, task, tmp_path, samples=5)
    later = Context(work=tmp_path)
    Fisher().restore(later)
    statistics = later.statistics["fisher"]
    assert isinstance(statistics, FisherStatistics)
    assert statistics.layouts == context.statistics["fisher"].layouts
    assert later.statistics["fisher_pass"] == Fisher()


def test_prune_brings_its_fisher_along(tiny_graph, tiny_folder, tmp_path):
    graph = tiny_graph("bert", "sequence")
    task, data = open_data(graph, tiny_folder("bert", "sequence"))
    manager, progress = PassManager("prune:sparsity=0.5"), SilentProgress()
    pruned = manager.run(graph, data=data, task=task, work=tmp_path, progress=progress)
    assert [record["name"] for record in manager.records] == ["fisher", "prune"]
    assert manager.records[0]["inserted"]
    zero = total = 0
    for site in find_linear_sites(pruned):
        W = site.weight().reshape(-1, 4)
        groups = int((W == 0).all(axis=1).sum())
        if "layer" not in site.name:
            assert groups == 0
            continue
        zero, total = zero + groups, total + len(W)
    assert zero == total // 2
    assert manager.records[1]["report"]["groups_removed"] == zero
    assert manager.records[1]["report"]["repair"] == "rows"
    assert manager.records[1]["report"]["steps"] == 1
