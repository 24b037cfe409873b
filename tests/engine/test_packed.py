"""Packed matrices that reach the engine as they are stored, against the same unpacked before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.data.batches import Batches
from obert_compiler.emission import emit
from obert_compiler.passes import unpacking_turns
from obert_compiler.pipeline.manager import PassManager
from obert_compiler.runtime import engine_use, session
from obert_compiler.runtime.provider import add_engine, leave_packed, read_claims
from obert_compiler.runtime.session import is_packed

Compiled = Callable[[str, str], Path]
Run = Callable[[onnxruntime.InferenceSession], list[np.ndarray]]


def unpacked_before(file: Path) -> onnxruntime.InferenceSession:
    """A session with the engine, to which ONNX Runtime shows unpacked matrices."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    add_engine(options, 2)
    return onnxruntime.InferenceSession(str(file), options, enable_fallback=0)


@pytest.fixture
def run(tokens: Callable[..., dict[str, np.ndarray]]) -> Run:
    """``run(session)``: its outputs of five rows of eleven tokens."""

    def outputs(opened: onnxruntime.InferenceSession) -> list[np.ndarray]:
        found: list[np.ndarray] = opened.run(
            None, tokens([value.name for value in opened.get_inputs()], 5, 11)
        )
        return found

    return outputs


def chains(file: Path) -> int:
    """How many matrices are packed."""
    return [node.op_type for node in ir.load(file).graph].count("ScatterND")


@pytest.mark.parametrize("arch", ["bert", "albert", "distilbert", "modernbert"])
def test_the_engine_unpacks_the_same_weights(arch: str, compiled: Compiled, run: Run) -> None:
    file = compiled(arch, "sequence")
    ours = session(file, 2, engine="obert")
    claims = engine_use(ours).claims
    assert claims is not None
    assert not claims.wants_folding
    # More nodes than there are without what unpacks.
    assert claims.claimed > 5 * chains(file) > 0
    for found, expected in zip(run(ours), run(unpacked_before(file)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_matrices_that_take_turns(
    tiny_graph: Any,
    tokens: Callable[..., dict[str, np.ndarray]],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unpacking_turns, "LEAST_BYTES", 1)
    graph = tiny_graph("bert", "sequence")
    data = Batches.from_arrays(tokens([v.name for v in graph.model.graph.inputs], 8, 12))
    passes = "prune:method=magnitude:sparsity=0.8:block=4,quant:min_outputs=1,pack"
    emit(PassManager(passes).run(graph, data=data), "onnx", tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    assert [node.op_type for node in ir.load(file).graph].count("Expand") > 1
    ours = session(file, 2, engine="obert")
    claims = engine_use(ours).claims
    assert claims is not None
    assert not claims.wants_folding
    assert claims.claimed > 5 * chains(file)
    for found, expected in zip(run(ours), run(unpacked_before(file)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_packed_matrix_that_the_engine_leaves_is_unpacked_before(
    tiny_graph: Any, run: Run, tmp_path: Path
) -> None:
    graph = tiny_graph("bert", "sequence")
    passes = "prune:method=magnitude:sparsity=0.6:block=4,pack"  # too many weights for the engine
    emit(PassManager(passes).run(graph), "onnx", tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    assert chains(file) > 0
    ours = session(file, 2, engine="obert")
    claims = engine_use(ours).claims
    assert claims is not None
    assert not claims.wants_folding
    assert any("not sparse" in left.reason for left in claims.left)
    alone = session(file, 2, engine="cpu")
    for found, expected in zip(run(ours), run(alone), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_products_of_constants_are_folded(compiled: Compiled, run: Run, tmp_path: Path) -> None:
    """DeBERTa's tables of positions are products of constants that nothing has folded."""
    file = compiled("deberta-v3", "sequence")
    claims = engine_use(session(file, 2, engine="obert")).claims
    assert claims is not None
    assert not claims.wants_folding
    assert claims.parts == 1
    found = {}
    for unfolded in ("claim", "leave"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        leave_packed(options)
        add_engine(options, 2, tmp_path / unfolded, unfolded=unfolded)
        opened = onnxruntime.InferenceSession(str(file), options, enable_fallback=0)
        found[unfolded] = run(opened)[0]
        told = read_claims(tmp_path / unfolded)
        assert told is not None
        assert told.wants_folding
        assert told.claimed > 0
    alone = run(session(file, 2, engine="cpu"))[0]
    np.testing.assert_allclose(found["leave"], alone, rtol=1e-5, atol=1e-6)
    assert np.abs(found["claim"] - alone).max() <= 0.05 * np.abs(alone).max()


def test_an_unknown_word_for_unfolded_graphs(compiled: Compiled) -> None:
    options = onnxruntime.SessionOptions()
    add_engine(options, 2, unfolded="perhaps")
    with pytest.raises(Exception, match="'unfolded': expected claim or leave, found 'perhaps'"):
        onnxruntime.InferenceSession(str(compiled("bert", "sequence")), options, enable_fallback=0)


def test_the_stage_is_read_off_the_file(
    compiled: Compiled, tiny_graph: Any, tmp_path: Path
) -> None:
    file = compiled("bert", "sequence")
    assert is_packed(file)
    assert is_packed(file.parent)
    graph = tiny_graph("bert", "sequence")
    assert not is_packed(graph)
    emit(graph, "onnx", tmp_path / "out")
    assert not is_packed(tmp_path / "out")
