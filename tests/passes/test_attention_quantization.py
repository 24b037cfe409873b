"""quant with attention_products=int8: what is rounded, where, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from obert_compiler import Batches
from obert_compiler.errors import UsageError
from obert_compiler.graph import Graph
from obert_compiler.graph.attention import find_attention
from obert_compiler.passes.attention_quantization import find_operands, plan_attention
from obert_compiler.passes.calibration import ActivationStatistics
from obert_compiler.passes.qat import QuantizationAwareTraining
from obert_compiler.passes.quant import Quant
from obert_compiler.pipeline.contract import Context

TinyGraph = Callable[[str, str], Graph]


def texts() -> Batches:
    rng = np.random.default_rng(0)
    mask = (np.arange(16) < rng.integers(5, 17, 32)[:, None]).astype(np.int64)
    ids = rng.integers(5, 100, (32, 16)).astype(np.int64) * mask
    return Batches.from_arrays(
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}, 16
    )


def test_queries_keys_and_values_are_rounded_behind_their_sites(tiny_graph: TinyGraph) -> None:
    graph = tiny_graph("bert", "sequence")
    result = Quant(attention_products="int8").run(graph, Context(data=texts()))
    rows = result.report["attention"]
    regions = list(find_attention(graph))
    assert [row["operand"] for row in rows] == ["query", "key", "value"] * len(regions)
    assert all(0.0 < row["relative_error"] < 0.01 for row in rows)
    for attention in regions:
        for node, index in ((attention.scores, 0), (attention.scores, 1), (attention.context, 1)):
            value = node.inputs[index]
            seen = []
            while value is not None and value.producer() is not None and len(seen) < 4:
                seen.append(value.producer().op_type)
                value = value.producer().inputs[0]
            assert "DequantizeLinear" in seen, seen


def test_float_attention_is_left_alone(tiny_graph: TinyGraph) -> None:
    result = Quant(attention_products="float").run(
        tiny_graph("bert", "sequence"), Context(data=texts())
    )
    assert result.report["attention"] == []


def test_an_operand_over_the_limit_keeps_the_attention_float(tiny_graph: TinyGraph) -> None:
    plans, skips = find_operands(tiny_graph("bert", "sequence"))
    assert plans
    assert not skips
    rng = np.random.default_rng(0)
    statistics = {}
    for plan in plans:
        for operand in plan.operands:
            found = ActivationStatistics(32, rng)
            found.add(rng.standard_normal((64, 32)).astype(np.float32))
            statistics[operand.value] = found
    options: dict[str, Any] = {"calibration": "minmax", "percentile": 99.99, "limit": 1e-12}
    chosen, skips = plan_attention(plans, statistics, keep_sensitive=True, **options)
    assert not chosen
    assert len(skips) == len(plans)
    assert all("over the limit" in skip.reason for skip in skips)
    chosen, skips = plan_attention(plans, statistics, keep_sensitive=False, **options)
    assert chosen == plans
    assert all("sensitive=report" in skip.reason for skip in skips)


def test_rotary_positions_are_a_reason(tiny_graph: TinyGraph) -> None:
    plans, skips = find_operands(tiny_graph("modernbert", "sequence"))
    assert not plans
    assert skips
    assert all("stands between a Linear layer and its query" in skip.reason for skip in skips)


def operand_scales(rows: list[dict[str, Any]]) -> list[float]:
    return [row["scale"] for row in rows]


@pytest.mark.parametrize("options", [{"observe": 1.0}, {"scales": "learnt"}])
def test_training_moves_the_ranges_and_they_are_written(
    options: dict[str, Any], tiny_graph: TinyGraph
) -> None:
    dense = tiny_graph("bert", "sequence")
    context = Context(data=texts(), teacher=dense)
    shared: dict[str, Any] = {"attention_products": "int8", "batch_size": 4, "learning_rate": 0.01}
    chosen = Quant(attention_products="int8").run(dense.copy(), context)
    still = QuantizationAwareTraining(steps=20, observe=0.0, **shared).run(dense.copy(), context)
    calibrated = operand_scales(chosen.report["attention"])
    assert operand_scales(still.report["attention"]) == calibrated
    training = QuantizationAwareTraining(steps=20, **shared, **options)
    result = training.run(dense.copy(), context)
    assert result.report["difference_from_trained_module"] <= 1e-12
    trained = operand_scales(result.report["attention"])
    assert all(a != b for a, b in zip(trained, calibrated, strict=True))
    written = [
        float(node.inputs[1].const_value.numpy())
        for node in result.graph.model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[1].const_value.size == 1
    ]
    assert {np.float32(scale) for scale in trained} <= {np.float32(scale) for scale in written}


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(UsageError, match="attention_products"):
        Quant(attention_products="int4")  # type: ignore[arg-type]
