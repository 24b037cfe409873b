"""Comparing graphs with what they came from."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from obert_compiler.frontends import huggingface
from obert_compiler.graph import Graph

SIZES = ((2, 16), (1, 7), (3, 33), (1, 1), (4, 64))
Array = np.ndarray
Batch = dict[str, Array]


@pytest.fixture(autouse=True)
def lowered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it is the export that is tested."""
    once = huggingface.lower_huggingface
    monkeypatch.setattr(huggingface, "lower_huggingface", getattr(once, "anew", once))


@pytest.fixture
def run() -> Callable[[Graph | Path | onnx.ModelProto, Batch], dict[str, Array]]:
    """``run(model, inputs)``: outputs by name, from a graph, a file or a proto."""
    sessions: dict[int, onnxruntime.InferenceSession] = {}
    kept: list[object] = []

    def call(model: Graph | Path | onnx.ModelProto, inputs: Batch) -> dict[str, Array]:
        if id(model) not in sessions:
            if isinstance(model, Path):
                source: str | bytes = str(model)
            else:
                proto = ir.to_proto(model.model) if isinstance(model, Graph) else model
                source = proto.SerializeToString()
            sessions[id(model)] = onnxruntime.InferenceSession(source)
            kept.append(model)
        session = sessions[id(model)]
        names = [output.name for output in session.get_outputs()]
        feed = {value.name: inputs[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(None, feed), strict=True))

    return call


@pytest.fixture
def batches() -> Callable[[int, int], Iterator[Batch]]:
    """``batches(vocabulary, pad id)``: token batches of several sizes, the last row padded."""

    def make(vocabulary: int, pad: int) -> Iterator[Batch]:
        rng = np.random.default_rng(0)
        for rows, length in SIZES:
            ids = rng.integers(5, vocabulary, (rows, length))
            mask = np.ones((rows, length), np.int64)
            types = np.zeros((rows, length), np.int64)
            types[:, length // 2 :] = 1
            if rows > 1:
                mask[-1, length // 2 :] = 0
                ids[-1, length // 2 :] = pad
            yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    return make
