"""Compiled tiny models, and the same session with and without the engine.

Bound: the engine computes the same 8-bit products, and sums, softmaxes and normalisations in
float32 in another order. A value within a float32 rounding of the border between two 8-bit codes
may so take the other code. Most outputs are equal to the last bits; where a code tipped over, an
output moves by a few steps of its quantisation. On these models, whose random weights carry a step
on undamped, the largest difference stays below `LARGEST` of the largest output, and its root mean
square below `USUAL` of the output's.

These tests fail where the engine is missing although a C++ compiler is there, and are skipped where
neither is.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from obert_compiler.data.batches import Batches
from obert_compiler.emission import emit
from obert_compiler.pipeline.manager import PassManager
from obert_compiler.runtime import engine_absence, engine_use, session

Arrays = dict[str, np.ndarray]
Compiled = Callable[[str, str], Path]
Pair = tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]

PASSES = "prune:method=magnitude:sparsity=0.8:block=4,quant:min_outputs=1,pack"


@pytest.fixture(scope="session")
def has_compiler() -> bool:
    """Whether this machine could have built the engine."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return any(name and shutil.which(name) for name in names)


@pytest.fixture(autouse=True)
def engine(has_compiler: bool) -> None:
    """Every test here needs the engine."""
    reason = engine_absence()
    if reason is not None and not has_compiler:
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
            feed = _tokens(names, 32, 24)
            emit(PassManager(PASSES).run(graph, data=Batches.from_arrays(feed)), "onnx", out)
        return out / "model.onnx"

    return make


def _saturates() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "avx2" in flags and "vnni" not in flags


def _with_unsigned_weights(model: Path, target: Path) -> Path:
    nodes = onnx.load(model, load_external_data=False).graph.node
    if all(node.op_type != "DequantizeLinear" for node in nodes):
        return model
    # Constants are folded first, as ONNX Runtime would: packed weights have become whole then.
    folded = target.with_suffix(".folded.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    proto = onnx.load(folded)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in arrays:
            continue
        weights, scale = (arrays[name] for name in node.input[:2])
        if weights.dtype != np.int8:
            continue
        zero_point = (
            arrays[node.input[2]] if len(node.input) > 2 else np.zeros(scale.shape, np.int8)
        )
        del node.input[2:]
        node.input.append(f"{node.output[0]}_unsigned_zero_point")
        node.input[0] = f"{node.output[0]}_unsigned"
        for name, array in zip(node.input[::2], (weights, zero_point), strict=True):
            unsigned = (array.astype(np.int16) + 128).astype(np.uint8)
            proto.graph.initializer.append(numpy_helper.from_array(unsigned, name))
    onnx.save(proto, target)
    return target


@pytest.fixture(autouse=True)
def exact_oracle(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sessions without the engine multiply exactly, whatever the processor.

    Without VNNI ONNX Runtime's products of uint8 with int8 saturate, those with uint8 do not: it
    reads the same weights as uint8, 128 higher, with zero points that are 128 higher. (Its own mode
    of exact products, session.x64quantprecision, fails on graphs of its own quantiser.)
    """
    if not _saturates():
        return
    module = importlib.import_module("obert_compiler.runtime.session")  # the function has its name
    opened = module.open_session

    def exact(model: Any, options: Any, providers: Any = None) -> onnxruntime.InferenceSession:
        if not options.has_providers() and isinstance(model, str | Path):
            target = tmp_path_factory.mktemp("oracle") / "model.onnx"
            model = _with_unsigned_weights(module.model_file(model), target)
        return opened(model, options, providers)

    monkeypatch.setattr(module, "open_session", exact)


def _tokens(names: list[str], batch: int, length: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, (batch, 1)) if length else np.zeros((batch, 1), int)
    mask = (np.arange(length) < lengths).astype(np.int64)
    ids = rng.integers(5, 100, (batch, length)).astype(np.int64) * mask
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: known[name] for name in names}


@pytest.fixture(scope="session")
def tokens() -> Callable[..., Arrays]:
    """``tokens(names, batch, length, seed=0)``: random tokens, each row padded on the right."""
    return _tokens


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


LARGEST, USUAL = 0.05, 0.02

Difference = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


def _difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if not expected.size:
        return 0.0, 0.0
    off = (found - expected).astype(np.float64)
    rms = np.sqrt(np.square(off).mean() / np.square(expected.astype(np.float64)).mean())
    return float(np.abs(off).max() / np.abs(expected).max()), float(rms)


@pytest.fixture(scope="session")
def difference() -> Difference:
    """Largest and root mean square difference, as shares of the expected."""
    return _difference


@pytest.fixture(scope="session")
def assert_close() -> Callable[[list[np.ndarray], list[np.ndarray]], None]:
    """``assert_close(found, expected)``: lists of outputs, within the bound of this file."""

    def check(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
        for a, b in zip(found, expected, strict=True):
            largest, usual = _difference(a, b)
            assert largest <= LARGEST
            assert usual <= USUAL

    return check


_ANSWER = """
import sys
import numpy as np
from obert_compiler.runtime import engine_use, session
results = {}
for number, file in enumerate(sys.argv[2:]):
    feed = np.load(file.replace(".onnx", ".npz"))
    opened = session(file, 2, engine="obert")
    claims = engine_use(opened).claims
    inputs = {value.name: feed[value.name] for value in opened.get_inputs()}
    results[f"{claims.isa} {number}"] = opened.run(None, inputs)[0]
np.savez(sys.argv[1], **results)
"""

TABLES = ("portable", "avx2", "avxvnni", "avx512vnni", "amx", "neondot", "neoni8mm")
# Where OBERT_TEST_AMX is set, a processor or a system without AMX is an error.
DEMANDED = {"portable"} | ({"amx"} if os.environ.get("OBERT_TEST_AMX") else set())


@pytest.fixture
def tables() -> tuple[str, ...]:
    """The names of all instruction sets that have kernels."""
    return TABLES


Answers = Callable[[list[tuple[Path, Arrays]]], dict[str, list[np.ndarray]]]


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    """``answers([(file, feed), ...])``: first outputs, by each instruction set that is here."""

    def run(work: list[tuple[Path, Arrays]]) -> dict[str, list[np.ndarray]]:
        files = []
        for number, (file, feed) in enumerate(work):
            files.append(tmp_path / f"{number}.onnx")
            files[-1].symlink_to(file)
            np.savez(files[-1].with_suffix(".npz"), **feed)  # type: ignore[arg-type] # keywords
        found = {}
        for isa in TABLES:
            out = tmp_path / f"{isa}.npz"
            done = subprocess.run(
                [sys.executable, "-c", _ANSWER, str(out), *map(str, files)],
                env=os.environ | {"OBERT_FORCE_ISA": isa},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                assert isa not in DEMANDED, done.stderr
                assert "OBERT_FORCE_ISA: expected an instruction set" in done.stderr, done.stderr
                continue
            results = np.load(out)
            assert all(name.split()[0] == isa for name in results.files)
            found[isa] = [results[name] for name in results.files]
        return found

    return run
