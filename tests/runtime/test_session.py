"""Opening models, and the promise that running one needs no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.graph.graph import Graph, Source
from obert_compiler.runtime import session

FEED = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 3), np.int64)}


def test_file_folder_and_graph_are_the_same_model(model_file: Path) -> None:
    graph = Graph(ir.load(model_file), Source("onnx"))
    outputs = [
        session(model).run(None, FEED)[0] for model in (model_file, str(model_file.parent), graph)
    ]
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])


def test_a_graph_is_as_before_after_a_session(model_file: Path) -> None:
    graph = Graph(ir.load(model_file), Source("onnx"))
    weight = graph.model.graph.initializers["weight"].const_value
    session(graph)
    assert graph.model.graph.initializers["weight"].const_value is weight
    assert weight is not None
    assert weight.numpy().shape == (8, 2)


def test_the_only_other_file_of_a_folder(model_file: Path) -> None:
    model_file.rename(model_file.with_name("other.onnx"))
    assert session(model_file.parent).get_inputs()[0].name == "input_ids"
    shutil.copyfile(model_file.with_name("other.onnx"), model_file.with_name("third.onnx"))
    with pytest.raises(
        UsageError, match=r"expected model\.onnx in the folder, found other\.onnx, t"
    ):
        session(model_file.parent)


def test_threads_are_set(model_file: Path) -> None:
    assert session(model_file, threads=2).get_session_options().intra_op_num_threads == 2
    with pytest.raises(UsageError, match="threads: expected at least 1, found 0"):
        session(model_file, threads=0)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx': expected a folder or an \.onnx file"):
        session(tmp_path / "nowhere.onnx")
    with pytest.raises(UsageError, match=r"found no \.onnx file"):
        session(tmp_path)


def test_unknown_provider(model_file: Path) -> None:
    with pytest.raises(
        UsageError, match=r"provider 'NoSuchProvider': expected one of .*CPUExecutionProvider"
    ):
        session(model_file, providers=["NoSuchProvider"])


@pytest.mark.parametrize("kept", [0, 0.5])
def test_broken_file(model_file: Path, kept: float) -> None:
    payload = model_file.read_bytes()
    model_file.write_bytes(payload[: int(len(payload) * kept)])
    with pytest.raises(ModelError, match=r"expected a model that ONNX Runtime .* loads") as caught:
        session(model_file)
    assert "\n" not in str(caught.value)


def test_running_and_timing_import_no_training_framework(model_file: Path) -> None:
    code = f"""
import sys
from obert_compiler.runtime import bench, session
session({str(model_file)!r}, threads=1)
bench({str(model_file)!r}, threads=1, runs=1, warm_up=0)
print(*(m for m in ("torch", "transformers", "datasets", "tokenizers") if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")
