"""The methods of benchmarks/pruning.py on a tiny encoder, and the tables of docs/pruning.md."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.graph.layers import prunable_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.pipeline.contract import Context
from obert_compiler.tasks import task_for

ROOT = Path(__file__).parents[2]
ROWS = [
    {"text": f"the quick brown fox jumps over {i} lazy dogs {'again ' * (i % 7)}", "label": i % 2}
    for i in range(24)
]


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHODS = benchmark("pruning_methods")


@pytest.mark.parametrize(
    "method", ["magnitude", "default", "steps=2:samples=16", "plain:steps=0.5+0.7:samples=16"]
)
def test_every_method_reaches_every_level(method, tiny_graph, tiny_folder):
    graph = tiny_graph("bert", "sequence")
    task = task_for(graph.source)
    data = Batches.open(ROWS, task, tiny_folder("bert", "sequence"), batch_size=8)
    context = Context(task=task, data=data)
    Fisher(samples=16).run(graph, context)
    before = [site.weight() for site in prunable_sites(graph)[0]]
    found = {}
    for level, pruned in METHODS.pruned_at(graph, method, context, [0.5, 0.6, 0.7]):
        weights = [site.weight() for site in prunable_sites(pruned)[0]]
        zeros = sum(int((W == 0).sum()) for W in weights) / sum(W.size for W in weights)
        found[level] = zeros
        assert zeros == pytest.approx(level, abs=1e-3)
    assert set(found) == {0.5, 0.6, 0.7}
    for site, W in zip(prunable_sites(graph)[0], before, strict=True):
        np.testing.assert_array_equal(site.weight(), W)


def test_the_page_shows_the_tables_of_the_results():
    tables = benchmark("pruning_tables")
    results = [json.loads(p.read_text()) for p in sorted(tables.RESULTS.glob("pruning-*"))]
    page = tables.PAGE.read_text(encoding="utf-8")
    assert results
    assert tables.filled(page, results) == page, "python benchmarks/pruning_tables.py"
