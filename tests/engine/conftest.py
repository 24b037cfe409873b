"""Compiled tiny models, and the same session with and without the engine.

These tests fail where the engine is missing although a C++ compiler is there, and are skipped where
neither is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.emission import emit
from obert_compiler.pipeline.manager import PassManager
from obert_compiler.runtime import engine_absence, engine_use, session

Arrays = dict[str, np.ndarray]
Compiled = Callable[[str, str], Path]

PASSES = "prune:method=magnitude:sparsity=0.8:block=4,quant:min_outputs=1,pack"


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(autouse=True)
def engine() -> None:
    """Every test here needs the engine."""
    reason = engine_absence()
    if reason is not None and compiler() is None:
        pytest.skip("no C++ compiler on this machine, and no engine")
    assert reason is None


@pytest.fixture(scope="session")
def compiled(tiny_graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """``compiled(arch, head)``: the file of a pruned, quantised and packed tiny model."""
    root = tmp_path_factory.mktemp("engine")

    def make(arch: str, head: str) -> Path:
        out = root / f"{arch}-{head}"
        if not out.exists():
            graph = tiny_graph(arch, head)
            names = [value.name for value in graph.model.graph.inputs]
            feed = tokens(names, 32, 24)
            emit(PassManager(PASSES).run(graph, data=Batches.from_arrays(feed)), "onnx", out)
        return out / "model.onnx"

    return make


def tokens(names: list[str], batch: int, length: int, seed: int = 0) -> Arrays:
    """Random tokens for the inputs called ``names``, each row padded on the right."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, (batch, 1)) if length else np.zeros((batch, 1), int)
    mask = (np.arange(length) < lengths).astype(np.int64)
    ids = rng.integers(5, 100, (batch, length)).astype(np.int64) * mask
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: known[name] for name in names}


def input_names(opened: onnxruntime.InferenceSession) -> list[str]:
    """Names of the inputs of a session."""
    return [value.name for value in opened.get_inputs()]


Pair = tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]


@pytest.fixture
def both() -> Callable[..., Pair]:
    """``both(model)``: the session with the engine, which claims something, and without it."""

    def opened(model: Path, threads: int = 2) -> Pair:
        ours = session(model, threads, engine="obert")
        claims = engine_use(ours).claims
        assert claims is not None
        assert claims.claimed > 0, claims.describe()
        return ours, session(model, threads, engine="cpu")

    return opened
