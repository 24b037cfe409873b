"""A training that was stopped ends bit-equal to one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from obert_compiler.data.batches import Batches
from obert_compiler.errors import ArtefactError
from obert_compiler.graph import Graph, Stage, find_linear_sites
from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.training import TrainingResult, train
from obert_compiler.pipeline.contract import Context
from obert_compiler.tasks import task_for

TinyGraph = Callable[[str, str], Graph]
MakeBatches = Callable[..., Batches]

OPTIONS = Finetune(
    epochs=3, batch_size=8, learning_rate=1e-3, weight_decay=0.1, rewinds=(0.5,), best=True,
    checkpoint="4steps",
)  # fmt: skip


class StoppedError(Exception):
    """What a power cut is here."""


class Stop(TrainerCallback):
    """Raises after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise StoppedError


@pytest.fixture
def parts(tiny_graph: TinyGraph, make_batches: MakeBatches) -> tuple[Graph, Batches, Batches]:
    """A pruned graph, data of 40 examples (5 steps an epoch), held-out data."""
    graph = tiny_graph("bert", "sequence")
    for site in find_linear_sites(graph):
        weight = site.weight()
        weight[np.abs(weight) < np.median(np.abs(weight))] = 0
        site.set_weight(weight)
    graph.advance(Stage.PRUNED)
    return graph, make_batches(graph, 40), make_batches(graph, 16, seed=3)


def run(
    parts: tuple[Graph, Batches, Batches],
    work: Path | None,
    stop: int | None = None,
    options: Finetune = OPTIONS,
    **changed: Any,
) -> tuple[TrainingResult, dict[str, Any]]:
    """Train a copy of the graph; the result and its weights."""
    pruned, data, held_out = parts
    graph = pruned.copy()
    given = {"data": data, "eval_data": held_out, "task": task_for(graph.source), "seed": 7}
    teacher = graph.copy()
    for site in find_linear_sites(teacher):
        site.set_weight(site.weight() * np.float32(1.25))
    context = Context(**(given | {"work": work, "teacher": teacher} | changed))
    callbacks = [] if stop is None else [Stop(stop)]
    result = train(graph, context, options, callbacks=callbacks)
    values = graph.model.graph.initializers.items()
    return result, {n: v.const_value.numpy() for n, v in values if v.const_value is not None}


def assert_bit_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("stops", [[6], [2, 9, 13], [14]])
def test_it_ends_bit_equal(
    parts: tuple[Graph, Batches, Batches], tmp_path: Path, stops: list[int]
) -> None:
    whole, wanted = run(parts, None)
    for stop in stops:
        with pytest.raises(StoppedError):
            run(parts, tmp_path, stop)
    result, found = run(parts, tmp_path)
    assert_bit_equal(found, wanted)
    assert result.steps == whole.steps == 15
    same = ("curve", "best", "loss", "metric", "masked_sparsity")
    assert {k: result.report[k] for k in same} == {k: whole.report[k] for k in same}


def test_with_inner_states_too(parts: tuple[Graph, Batches, Batches], tmp_path: Path) -> None:
    options = Finetune(epochs=2, batch_size=8, hidden=1.0, attention=1.0, checkpoint="3steps")
    _, wanted = run(parts, None, options=options)
    with pytest.raises(StoppedError):
        run(parts, tmp_path, 8, options)
    _, found = run(parts, tmp_path, options=options)
    assert_bit_equal(found, wanted)


def test_a_training_that_was_done_is_not_done_again(
    parts: tuple[Graph, Batches, Batches], tmp_path: Path
) -> None:
    _, wanted = run(parts, tmp_path)
    result, found = run(parts, tmp_path, stop=0)  # no step begins
    assert_bit_equal(found, wanted)
    assert result.steps == 15


def test_a_checkpoint_half_written_is_not_used(
    parts: tuple[Graph, Batches, Batches], tmp_path: Path
) -> None:
    _, wanted = run(parts, None)
    with pytest.raises(StoppedError):
        run(parts, tmp_path, 6)
    folder = tmp_path / "unfinished" / "finetune"
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    half = folder / "partial" / "checkpoint-8"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    _, found = run(parts, tmp_path)
    assert_bit_equal(found, wanted)


@pytest.mark.parametrize(
    ("key", "what"),
    [("seed", "seed"), ("data", "data"), ("teacher", "teacher"), ("options", "passes")],
)
def test_a_checkpoint_of_another_training_is_refused(
    parts: tuple[Graph, Batches, Batches], tmp_path: Path, key: str, what: str
) -> None:
    with pytest.raises(StoppedError):
        run(parts, tmp_path, 6)
    changed: dict[str, Any] = {
        "seed": {"seed": 8},
        "data": {"data": parts[2]},
        "teacher": {"teacher": parts[0]},
        "options": {"options": Finetune(epochs=2, batch_size=8)},
    }[key]
    with pytest.raises(ArtefactError, match=f"expected the same {what} as now .* --resume"):
        run(parts, tmp_path, **changed)


def test_a_checkpoint_of_another_model_is_refused(
    parts: tuple[Graph, Batches, Batches], tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        run(parts, tmp_path, 6)
    other = parts[0].copy()
    site = find_linear_sites(other).sites[0]
    site.set_weight(site.weight() * np.float32(2))
    with pytest.raises(ArtefactError, match="expected the same model as now"):
        run((other, parts[1], parts[2]), tmp_path)


def test_the_random_generators_of_the_caller_are_left_alone(
    parts: tuple[Graph, Batches, Batches],
) -> None:
    import torch

    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    run(parts, None, options=Finetune(steps=1, batch_size=8))
    assert torch.equal(torch.rand(3), wanted)
