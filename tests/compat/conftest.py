"""Compiled tiny models that other programs load, and the programs.

    npm install --ignore-scripts --prefix tests/compat/node
    python -m venv tests/compat/optimum/.venv
    tests/compat/optimum/.venv/bin/pip install -r tests/compat/optimum/requirements.txt
    pytest tests/compat -m compat

What is not installed is skipped, by name. ``OBERT_COMPAT_NODE`` and ``OBERT_COMPAT_PYTHON`` name
another ``node_modules`` folder and another Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.emission import emit
from obert_compiler.pipeline.manager import PassManager

PASSES = "prune:method=magnitude:sparsity=0.8:block=4,quant:min_outputs=1,pack"

Compiled = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def compiled(tiny_graph, tmp_path_factory) -> Compiled:
    """``compiled(arch, head)``: the folder of a pruned, quantised and packed tiny model."""
    root = tmp_path_factory.mktemp("compiled")

    def make(arch: str, head: str) -> Path:
        out = root / f"{arch}-{head}"
        if not out.exists():
            graph = tiny_graph(arch, head)
            rng = np.random.default_rng(0)
            ids = rng.integers(5, 100, (32, 24))
            names = [value.name for value in graph.model.graph.inputs]
            arrays = {name: np.ones_like(ids) for name in names} | {"input_ids": ids}
            if "token_type_ids" in arrays:
                arrays["token_type_ids"] = np.zeros_like(ids)
            data = Batches.from_arrays(arrays, batch_size=8)
            emit(PassManager(PASSES).run(graph, data=data), "onnx", out)
            types = {node.op_type for node in onnx.load(out / "model.onnx").graph.node}
            assert {"ScatterND", "DequantizeLinear"} <= types
        return out

    return make


@pytest.fixture
def installed() -> Callable[[str, Path, str], Path]:
    """``installed(variable, default, how)``: a tool's place, or a skip that says how to get it."""

    def find(variable: str, default: Path, how: str) -> Path:
        path = Path(os.environ.get(variable, default))
        if not path.exists():
            pytest.skip(f"{path} does not exist; install it: {how}")
        return path

    return find


@pytest.fixture
def run_here() -> Callable[[Path, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """``run_here(folder, feed)``: outputs by name in this environment's ONNX Runtime."""

    def run(folder: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        names = [value.name for value in session.get_outputs()]
        feed = {value.name: feed[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(None, feed), strict=True))

    return run


@pytest.fixture
def run_tool(tmp_path) -> Callable[[list[str]], str]:
    """``run_tool(command)``: the last line that a command prints."""

    def run(command: list[str]) -> str:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip().splitlines()[-1]

    return run


@pytest.fixture
def assert_close() -> Callable[[np.ndarray, np.ndarray], None]:
    """Compare up to the rounding of activations to 8 bits, where versions may break ties apart."""

    def check(found: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max(), rtol=0)

    return check
