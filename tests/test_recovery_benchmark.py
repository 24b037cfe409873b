"""The benchmark of training: its passes parse, and a cell is read from what ``obertc`` prints."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from obert_compiler.passes.finetune import Finetune
from obert_compiler.passes.gradual import Gradual
from obert_compiler.pipeline.registry import passes_from_text
from obert_compiler.runtime.evaluate import Evaluation

FILE = Path(__file__).parents[1] / "benchmarks" / "recovery.py"


@pytest.fixture(scope="module")
def recovery():
    spec = importlib.util.spec_from_file_location("recovery", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["recovery"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["recovery"]


@pytest.mark.parametrize("method", ["ours", "magnitude", "paper"])
@pytest.mark.parametrize("row", ["sst2-80", "sst2-90", "sst2-3-layers", "stsb-80"])
def test_every_cell_trains_for_the_same_steps(recovery, row, method):
    text = recovery.ROWS[row].passes(method, 100, 0, 16, ":precision=float32")
    passes = passes_from_text(text)
    trained = [p for p in passes if isinstance(p, Finetune | Gradual)]
    assert [(p.steps, p.batch_size, p.precision) for p in trained] == [(100, 16, "float32")]
    assert [p.name for p in passes[-2:]] == ["quant", "pack"]
    (sparsity,) = [p.sparsity for p in passes if hasattr(p, "sparsity")]
    assert sparsity == recovery.ROWS[row].sparsity
    rounded = passes_from_text(recovery.ROWS[row].passes(method, 100, 30, 16, ""))
    assert [p.name for p in rounded[-2:]] == ["qat", "pack"]
    assert (rounded[-2].steps, rounded[-2].batch_size) == (30, 16)
    assert rounded[:-2] == passes_from_text(recovery.ROWS[row].passes(method, 100, 0, 16, ""))[:-2]


def test_a_cell_is_compiled_once_and_evaluated_in_onnxruntime(recovery, tmp_path, monkeypatch):
    ran = []
    found = Evaluation("accuracy", {"accuracy": 0.875, "f1": 0.5}, 1.0, 8, "cpu", "cpu", 1)

    def obertc(arguments):
        ran.append(arguments)
        if arguments[0] == "compile":
            out = tmp_path / "sst2-80-ours"
            out.mkdir()
            trained = {"name": "finetune", "seconds": 5.0, "report": {"seconds_training": 4.0}}
            report = {
                "metric": {"name": "accuracy", "before": 0.9},
                "passes": [{"name": "prune", "seconds": 2.0, "report": {}}, trained],
                "bytes": {"after": 10},
            }
            (out / "report.json").write_text(json.dumps(report))
        return json.dumps(found.to_dict())

    monkeypatch.setattr(recovery, "obertc", obertc)
    options = argparse.Namespace(
        results=tmp_path, sst2="model", sst2_data="train", sst2_eval="dev", steps=7,
        rounded_steps=0, batch=2,
        common="", seed=0, threads=None,
    )  # fmt: skip
    cells = [recovery.run_cell(options, "sst2-80", "ours") for _ in range(2)]
    assert [arguments[0] for arguments in ran] == ["compile", "eval", "eval"]
    assert ran[1][-3:] == ["--engine", "cpu", "--json"]
    assert cells[0] == cells[1]
    assert (cells[0]["value"], cells[0]["dense"], cells[0]["seconds"]) == (0.875, 0.9, 7.0)
    shown = recovery.table({("sst2-80", "ours"): cells[0]})
    assert "| 6 layers, 80% 4-block INT8 | 0.9000 | 0.8750 (-2.5) |  |  |" in shown
