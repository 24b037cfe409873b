"""Packed models in onnxruntime-node and in onnxruntime-web (WebAssembly)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.compat

HERE = Path(__file__).parent


@pytest.mark.parametrize("runtime", ["onnxruntime-node", "onnxruntime-web"])
@pytest.mark.parametrize(("arch", "head"), [("bert", "sequence"), ("roberta", "token")])
def test_predictions_are_those_of_python(
    compiled, installed, run_here, run_tool, assert_close, tmp_path, runtime, arch, head
):
    how = f"npm install --ignore-scripts --prefix {HERE / 'node'}"
    modules = installed("OBERT_COMPAT_NODE", HERE / "node" / "node_modules", how)
    folder = compiled(arch, head)
    rng = np.random.default_rng(1)
    feed = {"input_ids": rng.integers(5, 100, (2, 9))}
    feed["attention_mask"] = np.array([[1] * 9, [1] * 5 + [0] * 4])
    if arch == "bert":
        feed["token_type_ids"] = np.zeros((2, 9), np.int64)
    expected = run_here(folder, feed)
    feeds = {n: {"shape": a.shape, "data": a.reshape(-1).tolist()} for n, a in feed.items()}
    (tmp_path / "feeds.json").write_text(json.dumps(feeds))
    # node looks for packages beside the script: run a copy beside them.
    script = modules.parent / "predict.mjs"
    if script.parent != HERE / "node":
        script.write_text((HERE / "node" / "predict.mjs").read_text())
    arguments = [runtime, str(folder / "model.onnx"), str(tmp_path / "feeds.json")]
    found = json.loads(run_tool(["node", str(script), *arguments]))
    assert set(found["outputs"]) == set(expected)
    for name, output in found["outputs"].items():
        assert_close(np.array(output["data"]).reshape(output["shape"]), expected[name])
