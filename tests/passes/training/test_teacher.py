"""The teacher's outputs: kept ones in float32, those of every step in the student's precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from obert_compiler.backends.torch.module import to_module
from obert_compiler.data.batches import Batch, Batches
from obert_compiler.graph import Graph
from obert_compiler.passes.training.data import BatchCollator
from obert_compiler.passes.training.teacher import Teacher, outputs_by_token

TinyGraph = Callable[[str, str], Graph]
MakeBatches = Callable[..., Batches]

ROWS = list(range(8))


@pytest.fixture
def parts(tiny_graph: TinyGraph, make_batches: MakeBatches) -> tuple[Graph, Batches]:
    graph = tiny_graph("bert", "sequence")
    return graph, make_batches(graph, len(ROWS))


def logits(graph: Graph, data: Batches, *, keep: bool, bfloat16: bool) -> torch.Tensor:
    collator = BatchCollator(data)
    teacher = Teacher(
        to_module(graph),
        [value.name or "" for value in graph.model.graph.inputs],
        collator,
        ROWS,
        len(ROWS),
        token_outputs=outputs_by_token(graph) if keep else None,
        bfloat16=bfloat16,
    )
    batch = Batch(rows=np.array(ROWS), inputs=collator(ROWS)["inputs"], labels={})
    return teacher.outputs(batch, ROWS)["logits"]


def test_a_teacher_of_every_step_computes_in_bfloat16_and_gives_float32(
    parts: tuple[Graph, Batches],
) -> None:
    exact = logits(*parts, keep=False, bfloat16=False)
    half = logits(*parts, keep=False, bfloat16=True)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))


def test_what_is_kept_is_computed_in_float32(
    parts: tuple[Graph, Batches],
) -> None:
    exact = logits(*parts, keep=False, bfloat16=False)
    torch.testing.assert_close(logits(*parts, keep=True, bfloat16=True), exact, rtol=0, atol=1e-6)
