"""What ends a training early: numbers that are not finite, SIGTERM, a full disk, a budget."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from obert_compiler.backends.torch import to_module
from obert_compiler.data.batches import Batches
from obert_compiler.errors import ArtefactError, NumericsError, TerminatedError
from obert_compiler.graph import Graph, find_linear_sites
from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.training import train
from obert_compiler.passes.training.checkpoints import last_checkpoint
from obert_compiler.passes.training.finite import check_gradients
from obert_compiler.passes.training.trainer import GraphTrainer
from obert_compiler.pipeline.contract import Context
from obert_compiler.tasks import task_for

TinyGraph = Callable[[str, str], Graph]
MakeBatches = Callable[..., Batches]


class At(TrainerCallback):
    """Does something before a step, counted from 0."""

    def __init__(self, step: int, what: Callable[[torch.nn.Module], None]) -> None:
        self.step, self.what = step, what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.what(kwargs["model"])


@pytest.fixture
def graph(tiny_graph: TinyGraph) -> Graph:
    return tiny_graph("bert", "sequence")


@pytest.fixture
def context(graph: Graph, make_batches: MakeBatches, tmp_path: Path) -> Context:
    """Labelled data of 3 steps an epoch, and a work folder."""
    data = make_batches(graph, 24)
    return Context(data=data, task=task_for(graph.source), work=tmp_path)


LABELS = Finetune(epochs=4, batch_size=8, hardness=0, checkpoint="2steps")


def test_a_loss_that_is_not_finite_names_step_and_site(graph: Graph, context: Context) -> None:
    site = find_linear_sites(graph).sites[3].name

    def spoil(module: Any) -> None:
        with torch.no_grad():
            module.linear_sites[site].weight[0, 0] = torch.inf

    with pytest.raises(NumericsError) as caught:
        train(graph, context, LABELS, callbacks=[At(5, spoil)])
    message = str(caught.value)
    assert message.startswith("finetune: step 6: expected finite numbers, found a loss of nan;")
    assert f"first not finite: the output of site '{site}'" in message
    assert "\n" not in message
    assert context.unfinished is not None
    kept = last_checkpoint(context.unfinished / "finetune")
    assert kept is not None
    assert kept.name == "checkpoint-4"


def test_a_gradient_that_is_not_finite_names_its_parameter(graph: Graph) -> None:
    module = to_module(graph)
    names = [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        parameter.grad = torch.full_like(parameter, torch.nan if name in names[:9] else 1.0)
    with pytest.raises(NumericsError, match=f"step 3: .* the gradient of '{names[8]}'"):
        check_gradients(torch.tensor(torch.nan), module, "finetune: step 3")
    check_gradients(torch.tensor(1.0), module, "finetune: step 3")


def test_sigterm_ends_it_after_the_step_with_a_checkpoint(graph: Graph, context: Context) -> None:
    whole = graph.copy()
    train(whole, Context(data=context.data, task=context.task), LABELS)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError, match=r"SIGTERM.* after step 6; run again with --resume"):
        train(
            graph.copy(),
            context,
            LABELS,
            callbacks=[At(5, lambda _: os.kill(os.getpid(), signal.SIGTERM))],
        )
    assert signal.getsignal(signal.SIGTERM) is before
    assert context.unfinished is not None
    kept = last_checkpoint(context.unfinished / "finetune")
    assert kept is not None
    assert kept.name == "checkpoint-6"
    train(graph, context, LABELS)
    for ours, theirs in zip(find_linear_sites(graph), find_linear_sites(whole), strict=True):
        assert ours.weight().tobytes() == theirs.weight().tobytes()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("file write failed")]
)
def test_a_full_disk_keeps_the_last_checkpoint(
    graph: Graph, context: Context, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write = GraphTrainer._save_optimizer_and_scheduler

    def full(self: GraphTrainer, folder: str) -> None:
        if self.state.global_step == 4:
            raise error
        write(self, folder)

    monkeypatch.setattr(GraphTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(ArtefactError) as caught:
        train(graph, context, LABELS)
    message = str(caught.value)
    assert "checkpoint-4': expected to write it, found" in message
    assert "'checkpoint-2' is kept; free some disk space and run again with --resume" in message
    assert context.unfinished is not None
    folder = context.unfinished / "finetune"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-2", "training.json"]


def test_a_budget_ends_it_and_the_learning_rate_follows_the_time(
    graph: Graph, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("obert_compiler.passes.training.clock.time.monotonic", lambda: now[0])

    def later(_module: torch.nn.Module) -> None:
        now[0] += 10

    options = Finetune(budget="50s", batch_size=8, hardness=0, learning_rate=1e-3, final_rate=0)
    steps = [At(step, later) for step in range(20)]
    result = train(graph, context, options, callbacks=steps)
    assert result.steps == 5
    assert result.seconds == 50
    rates = [p["learning_rate"] for p in result.curve if "learning_rate" in p]
    np.testing.assert_allclose(rates[-1], 2e-4)  # of the last step, after 40 of 50 seconds


def test_steps_end_it_before_the_budget(graph: Graph, context: Context) -> None:
    options = Finetune(budget="5h", steps=2, batch_size=8, hardness=0)
    assert train(graph, context, options).steps == 2


def test_part_of_an_epoch(graph: Graph, context: Context) -> None:
    result = train(graph, context, Finetune(epochs=0.5, batch_size=8, hardness=0))
    assert (result.steps, result.report["epochs"]) == (2, 0.667)
