"""Passes on CUDA give what they give on the CPU, to rounding. Skipped where there is no CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from obert_compiler import Batches, PassManager
from obert_compiler.graph import Graph, find_linear_sites
from obert_compiler.passes.fisher import Fisher
from obert_compiler.pipeline.contract import Context
from obert_compiler.pipeline.registry import passes_from_text
from obert_compiler.tasks import task_for

TinyGraph = Callable[[str, str], Graph]
MakeBatches = Callable[..., Batches]

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),  # torch on its first product
]

PRUNE = "prune:sparsity=0.6"
TRAIN = "steps=4:batch_size=8:learning_rate=0.001:hidden=1.0:precision=float32"


@pytest.fixture
def on_both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """``on_both(work)``: what ``work()`` gives with CUDA hidden, and with CUDA."""

    def run(work: Callable[[], Any]) -> tuple[Any, Any]:
        with monkeypatch.context() as hidden:
            hidden.setattr(torch.cuda, "is_available", lambda: False)
            cpu = work()
        return cpu, work()

    return run


def compiled(graph: Graph, data: Batches, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights of the sites after the passes of ``text``, and the report of the last pass."""
    manager = PassManager(passes_from_text(text))
    made = manager.run(graph.copy(), data=data, task=task_for(graph.source), seed=3)
    report: dict[str, Any] = manager.records[-1]["report"]
    return {site.name: site.weight() for site in find_linear_sites(made)}, report


@pytest.mark.parametrize("head", ["sequence", "token", "qa", "mlm"])
def test_fisher(
    tiny_graph: TinyGraph, make_batches: MakeBatches, tmp_path: Path, on_both: Any, head: str
) -> None:
    graph = tiny_graph("bert", head)
    data = make_batches(graph, 16)
    folders = iter((tmp_path / "cpu", tmp_path / "cuda"))

    def estimate() -> Any:
        work = next(folders)
        work.mkdir()
        context = Context(task=task_for(graph.source), data=data, seed=3, work=work)
        Fisher(samples=16, block=8).run(graph, context)
        return context.statistics["fisher"]

    cpu, cuda = on_both(estimate)
    for name in cpu.layouts:
        blocks = cpu.blocks(name)
        np.testing.assert_allclose(
            cuda.blocks(name), blocks, rtol=1e-3, atol=1e-4 * np.abs(blocks).max(), err_msg=name
        )


def test_prune_removes_the_same_weights(
    tiny_graph: TinyGraph, make_batches: MakeBatches, on_both: Any
) -> None:
    graph = tiny_graph("bert", "sequence")
    data = make_batches(graph, 32)
    (cpu, _), (cuda, _) = on_both(lambda: compiled(graph, data, PRUNE))
    differ = sum(int(((W == 0) != (cuda[name] == 0)).sum()) for name, W in cpu.items())
    assert differ <= 0.002 * sum(W.size for W in cpu.values())


@pytest.mark.parametrize(
    "text",
    [
        f"{PRUNE},finetune:{TRAIN}",
        f"gradual:sparsity=0.6:prunings=2:{TRAIN}",
        "prune:sparsity=0.6:method=magnitude,qat:min_outputs=0:steps=4:batch_size=8:hidden=1.0"
        ":precision=float32",
    ],
    ids=["prune,finetune", "gradual", "qat"],
)
def test_training(
    tiny_graph: TinyGraph, make_batches: MakeBatches, on_both: Any, text: str
) -> None:
    graph = tiny_graph("bert", "sequence")
    data = make_batches(graph, 32)
    (cpu, on_cpu), (cuda, on_cuda) = on_both(lambda: compiled(graph, data, text))
    if "device" in on_cpu:
        assert (on_cpu["device"], on_cuda["device"]) == ("cpu", "cuda")
    losses = [[point["loss"] for point in found["curve"]] for found in (on_cpu, on_cuda)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    same_zeros = [((W == 0) == (cuda[name] == 0)).mean() for name, W in cpu.items()]
    assert min(same_zeros) > 0.98


def test_bfloat16_is_what_cuda_chooses(tiny_graph: TinyGraph, make_batches: MakeBatches) -> None:
    graph = tiny_graph("bert", "sequence")
    data = make_batches(graph, 16)
    text = "finetune:steps=2:batch_size=8"
    _, chosen = compiled(graph, data, text)
    _, asked = compiled(graph, data, f"{text}:precision=bfloat16")
    assert [p["loss"] for p in chosen["curve"]] == [p["loss"] for p in asked["curve"]]
