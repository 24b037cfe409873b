"""The pass ``qat``: options, promises, the report, and a resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from obert_compiler import Batches, PassManager
from obert_compiler.backends.torch import to_module
from obert_compiler.cli.main import main
from obert_compiler.errors import GraphError, SpecError, UsageError
from obert_compiler.graph import Graph, Stage, find_linear_sites
from obert_compiler.graph.verify import verify
from obert_compiler.passes import qat
from obert_compiler.passes.qat import QuantizationAwareTraining
from obert_compiler.passes.quant import Quant
from obert_compiler.pipeline.contract import Context, PassResult
from obert_compiler.pipeline.registry import passes_from_text
from obert_compiler.report.sites import site_rows
from obert_compiler.tasks import task_for

Arrays = dict[str, np.ndarray]
TinyGraph = Callable[[str, str], Graph]


def texts(count: int = 64, seed: int = 0) -> Batches:
    rng = np.random.default_rng(seed)
    mask = (np.arange(16) < rng.integers(5, 17, count)[:, None]).astype(np.int64)
    ids = rng.integers(5, 100, (count, 16)).astype(np.int64) * mask
    return Batches.from_arrays(
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}, 16
    )


def pruned(graph: Graph) -> Graph:
    rng = np.random.default_rng(0)
    for site in find_linear_sites(graph):
        weight = site.weight()
        gone = rng.random((weight.shape[0], weight.shape[1] // 4)) < 0.5
        weight[np.repeat(gone, 4, 1)] = 0.0
        site.set_weight(weight)
    graph.advance(Stage.PRUNED)
    return graph


def run(graph: Graph, spec: str, teacher: Graph, **context: Any) -> PassResult:
    (chosen,) = passes_from_text(spec)
    chosen.requires(graph)
    context = {"data": texts(), "seed": 3} | context
    result = chosen.run(graph, Context(teacher=teacher, **context))
    result.graph.advance(Stage.QUANTISED)
    verify(result.graph, Stage.QUANTISED)
    return result


def logits(graph: Graph, data: Batches) -> np.ndarray:
    module, names = to_module(graph).eval(), [v.name or "" for v in graph.model.graph.inputs]
    found = []
    with torch.no_grad():
        for batch in data:
            feed = {n: torch.from_numpy(a) for n, a in batch.feed(names).items()}
            found.append(next(iter(module(**feed).values())).numpy())
    return np.concatenate(found)


def test_training_brings_the_quantised_model_nearer_to_the_teacher(tiny_graph: TinyGraph) -> None:
    dense = tiny_graph("bert", "sequence")
    held_out = texts(64, seed=9)
    want = logits(dense, held_out)
    plain = Quant(min_outputs=0).run(pruned(dense.copy()), Context(data=texts())).graph
    spec = "qat:min_outputs=0:steps=60:learning_rate=0.002:batch_size=16"
    result = run(pruned(dense.copy()), spec, dense)
    assert result.changed
    errors = [np.square(logits(g, held_out) - want).mean() for g in (plain, result.graph)]
    assert errors[1] < 0.5 * errors[0]
    before = {site.name: site.weight() for site in find_linear_sites(pruned(dense.copy()))}
    for site in find_linear_sites(result.graph):
        assert not site.weight()[before[site.name] == 0].any()
    assert result.report["difference_from_trained_module"] <= 1e-12
    assert result.report["steps"] == 60
    assert {row["site"] for row in result.report["sites"]} == set(before)
    assert {row.scheme for row in site_rows(result.graph)} == {"dense int8, trained"}
    packed = PassManager("pack").run(result.graph)
    assert {row.scheme for row in site_rows(packed)} <= {
        "dense int8, trained",
        "packed int8, trained",
    }


@pytest.mark.parametrize("head", ["reranker", "token", "qa", "embedding", "mlm"])
def test_every_task_trains_and_is_written(
    tiny_graph: TinyGraph, make_batches: Callable[..., Batches], head: str
) -> None:
    dense = tiny_graph("bert", head)
    data, task = make_batches(dense, 16), task_for(dense.source)
    spec = "qat:steps=2:batch_size=8:min_outputs=0"
    spec += ":hidden=1" if head == "embedding" else ":hardness=0.5"
    result = run(pruned(dense.copy()), spec, dense, data=data, task=task)
    assert result.report["difference_from_trained_module"] <= 1e-12
    outputs = [value.name for value in result.graph.model.graph.outputs]
    assert outputs == [value.name for value in dense.model.graph.outputs]


@pytest.mark.parametrize("scales", ["observed", "learnt"])
def test_the_same_seed_gives_the_same_file(scales: str, tiny_graph: TinyGraph) -> None:
    dense = tiny_graph("bert", "sequence")
    spec = f"qat:scales={scales}:steps=4:batch_size=8"
    first, second = (run(pruned(dense.copy()), spec, dense).graph for _ in range(2))
    files = [ir.to_proto(g.model).SerializeToString(deterministic=True) for g in (first, second)]
    assert files[0] == files[1]


def ranges(result: PassResult) -> list[float]:
    return [use["scale"] for row in result.report["sites"] for use in row["uses"]]


def test_ranges_move_while_they_are_observed(tiny_graph: TinyGraph) -> None:
    dense = tiny_graph("bert", "sequence")
    calibrated = ranges(Quant().run(pruned(dense.copy()), Context(data=texts(), seed=3)))
    spec = "qat:steps=24:batch_size=4:learning_rate=0.01"
    assert ranges(run(pruned(dense.copy()), f"{spec}:observe=0", dense)) == calibrated
    # 16 batches are the reference; of the first half of the steps none moves anything
    assert ranges(run(pruned(dense.copy()), f"{spec}:observe=0.5", dense)) == calibrated
    moved = ranges(run(pruned(dense.copy()), f"{spec}:observe=1", dense))
    assert all(a != b for a, b in zip(moved, calibrated, strict=True))
    learnt = ranges(run(pruned(dense.copy()), f"{spec}:scales=learnt", dense))
    assert sum(a != b for a, b in zip(learnt, calibrated, strict=True)) > len(learnt) / 2


def test_a_killed_training_goes_on_to_the_same_file(
    tiny_graph: TinyGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_graph("bert", "sequence")
    spec = "qat:steps=24:batch_size=4:observe=0.9:checkpoint=5steps"
    whole = run(pruned(dense.copy()), spec, dense, work=tmp_path / "whole").graph
    train = qat.train

    def killed(*arguments: Any, on_share: Callable[[float], None], **options: Any) -> Any:
        def die(share: float) -> None:
            on_share(share)
            if share > 0.8:
                raise KeyboardInterrupt

        return train(*arguments, on_share=die, **options)

    with monkeypatch.context() as patch:
        patch.setattr(qat, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            run(pruned(dense.copy()), spec, dense, work=tmp_path / "killed")
    resumed = run(pruned(dense.copy()), spec, dense, work=tmp_path / "killed").graph
    files = [ir.to_proto(g.model).SerializeToString(deterministic=True) for g in (whole, resumed)]
    assert files[0] == files[1]


def test_the_options_are_those_of_quant_and_of_finetune() -> None:
    spec = "qat:steps=10:bits=8:scales=learnt"
    (chosen,) = passes_from_text(spec)
    assert isinstance(chosen, QuantizationAwareTraining)
    assert (chosen.steps, chosen.bits, chosen.embeddings) == (10, 8, Quant().embeddings)
    assert passes_from_text(str(chosen)) == [chosen]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("qat:observe=1.5", "qat: expected observe from 0 to 1, found 1.5"),
        ("qat:observe=nan", "qat: expected observe from 0 to 1, found nan"),
        ("qat:learning_rate=0", "qat: expected learning_rate above 0 to 1, found 0.0"),
        ("qat:steps=0", "qat: expected steps from 1"),
        ("qat:group=1", "option 'group' of 'qat': expected at least 2, found 1"),
        ("qat:examples=0", "option 'examples' of 'qat': expected at least 1, found 0"),
    ],
)
def test_options_out_of_range_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        passes_from_text(spec)


def test_other_words_for_scales_are_refused() -> None:
    with pytest.raises(SpecError, match="expected observed or learnt, found 'fixed'"):
        passes_from_text("qat:scales=fixed")


def test_a_quantised_graph_is_refused(tiny_graph: TinyGraph) -> None:
    graph = Quant().run(tiny_graph("bert", "sequence"), Context(data=texts())).graph
    graph.advance(Stage.QUANTISED)
    with pytest.raises(GraphError, match="pass 'qat': expected a dense or pruned graph, found a"):
        QuantizationAwareTraining().requires(graph)


def test_data_are_needed(tiny_graph: TinyGraph) -> None:
    with pytest.raises(UsageError, match="pass 'qat': expected calibration data, found none"):
        QuantizationAwareTraining().run(tiny_graph("bert", "sequence"), Context())


def test_a_graph_that_computes_something_else_is_refused(
    tiny_graph: TinyGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Quant.write

    def wrong(self: Quant, graph: Graph, plan: Any) -> PassResult:
        quantized = plan.sites[3].quantized
        quantized.q[:] = -quantized.q
        return write(self, graph, plan)

    monkeypatch.setattr(QuantizationAwareTraining, "write", wrong)
    dense = tiny_graph("bert", "sequence")
    with pytest.raises(GraphError, match="qat: expected the quantised graph to compute what was"):
        run(dense.copy(), "qat:steps=1:batch_size=8", dense)


def test_the_command_line_trains_packs_and_reports(
    tiny_folder: Callable[[str, str], Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    words = ["good", "bad", "film", "plot", "the", "a", "of", "is"]
    rows = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(32)]
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "\n".join(json.dumps({"text": row, "label": int("good" in row)}) for row in rows)
    )
    out = tmp_path / "out"
    model = str(tiny_folder("bert", "sequence"))
    passes = "prune:sparsity=0.5:method=magnitude,qat:steps=2:batch_size=8:min_outputs=0,pack"
    common = ["--data", str(data), "--eval-data", str(data), "--no-latency"]
    assert main(["compile", model, "-o", str(out), "--passes", passes, *common]) == 0
    report = json.loads((out / "report.json").read_text())
    trained = next(step for step in report["passes"] if step["name"] == "qat")["report"]
    assert trained["masked_sparsity"] > 0.3
    assert trained["difference_from_trained_module"] <= 1e-12
    # the module's metric at the end of the training is that of the emitted file
    assert report["metric"]["after"] == pytest.approx(trained["metric"]["accuracy"], abs=1 / 32)
    assert all(site["scheme"].endswith("int8, trained") for site in report["sites"])
