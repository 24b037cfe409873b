"""The quant pass on every architecture: the graph runs and stays close to the float one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from obert_compiler.graph import Graph, Stage, find_linear_sites
from obert_compiler.graph.verify import verify
from obert_compiler.passes.quant import Quant
from obert_compiler.pipeline.contract import Context

Arrays = dict[str, np.ndarray]
TinyGraph = Callable[[str, str], Graph]


class RandomText:
    """Batches of random tokens, padded on the right."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[RandomBatch]:
        return (RandomBatch(seed) for seed in range(self._number))

    def describe(self) -> str:
        return "random"


class RandomBatch:
    """Eight examples of up to 20 tokens."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        mask = (np.arange(20) < rng.integers(5, 21, 8)[:, None]).astype(np.int64)
        self.inputs = {
            "input_ids": rng.integers(5, 100, (8, 20)).astype(np.int64) * mask,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }

    def __len__(self) -> int:
        return 8

    def feed(self, names: list[str]) -> Arrays:
        return {name: self.inputs[name] for name in names}


def _run(graph: Graph, feeds: Arrays) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    payload = ir.to_proto(graph.model).SerializeToString()
    session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(
        None, {i.name: feeds[i.name] for i in session.get_inputs()}
    )
    return outputs


def _held(graph: Graph) -> int:
    return sum(v.const_value.nbytes for v in graph.model.graph.initializers.values())


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("bert", "sequence"),
        ("roberta", "sequence"),
        ("xlm-roberta", "sequence"),
        ("distilbert", "mlm"),
        ("electra", "sequence"),
        ("mpnet", "sequence"),
        ("albert", "mlm"),
        ("deberta-v2", "sequence"),
        ("deberta-v3", "sequence"),
        ("modernbert", "mlm"),
    ],
)
def test_a_quantised_model_stays_close(arch: str, head: str, tiny_graph: TinyGraph) -> None:
    graph = tiny_graph(arch, head)
    before = [site.name for site in find_linear_sites(graph)]
    feeds = RandomBatch(99).inputs
    exact, bytes_before = _run(graph, feeds), _held(graph)
    data: Any = RandomText(6)
    result = Quant().run(graph, Context(data=data))
    graph.advance(Stage.QUANTISED)
    verify(graph, Stage.QUANTISED)
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)
    assert _held(graph) < 0.6 * bytes_before
    sites = find_linear_sites(graph)
    assert [site.name for site in sites] == before
    quantised = {row["site"] for row in result.report["sites"]}
    assert quantised | {skip.subject for skip in result.skips} >= set(before)
    assert max(row["relative_error"] for row in result.report["sites"]) < 0.005
    keep = feeds["attention_mask"].astype(bool)
    for a, b in zip(exact, _run(graph, feeds), strict=True):
        if a.shape[:2] == keep.shape:
            a, b = a[keep], b[keep]
        # Random layers amplify rounding more than trained ones.
        assert 0.0 < np.square(a - b).sum() / np.square(a).sum() < 0.08
