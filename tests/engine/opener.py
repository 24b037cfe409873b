"""Opens and runs models that a test sends, with the engine and without it, in a process of its own.

Reads frames from stdin, an 8-byte length and a serialised model, and answers each with one line of
JSON: what became of it in both. A crash is seen by the test as the end of the output.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

import numpy as np
import onnxruntime

from obert_compiler.runtime.provider import add_engine, leave_packed

TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def options(*, engine: bool, fold: bool) -> onnxruntime.SessionOptions:
    """Options of a small, silent session."""
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = 4
    chosen.intra_op_num_threads = 2
    if not fold:
        leave_packed(chosen)
    if engine:
        add_engine(chosen, 2)
    return chosen


def feed_of(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Two rows of nine tokens for whatever inputs the model has."""
    rng = np.random.default_rng(0)
    feed = {}
    for value in session.get_inputs():
        free = iter((2, 9))
        shape = [d if isinstance(d, int) else next(free, 3) for d in value.shape]
        numbers: Any = rng.standard_normal(shape)
        if value.type != "tensor(float)":
            numbers = np.ones(shape) if "mask" in value.name else rng.integers(0, 50, shape)
        feed[value.name] = np.asarray(numbers, TYPES[value.type])
    return feed


def outcome(model: bytes, *, engine: bool, fold: bool) -> tuple[str, list[np.ndarray]]:
    """``refused``, ``failed`` or ``ran``, with the error's text, and the outputs."""
    try:
        chosen = options(engine=engine, fold=fold)
        session = onnxruntime.InferenceSession(model, chosen, enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - every refusal counts
        return f"refused: {error}", []
    try:
        return "ran", session.run(None, feed_of(session))
    except Exception as error:  # noqa: BLE001
        return f"failed: {error}", []


def answer(model: bytes) -> dict[str, Any]:
    """What became of ``model``; under ``packed`` with its packed matrices left as they are."""
    packed = compare(model, fold=False) if b"ScatterND" in model else None
    return {**compare(model, fold=True), "packed": packed}


def compare(model: bytes, *, fold: bool) -> dict[str, Any]:
    """What became of ``model`` in both, and how far the outputs lie apart."""
    alone, expected = outcome(model, engine=False, fold=fold)
    ours, found = outcome(model, engine=True, fold=fold)
    apart = 0.0
    for a, b in zip(found, expected, strict=False):
        if a.shape != b.shape or a.dtype != b.dtype:
            apart = float("inf")
        elif a.size and a.dtype.kind == "f" and np.isfinite(b).all():
            scale = np.abs(b).max() + 1e-6
            apart = max(apart, float(np.nan_to_num(np.abs(a - b).max() / scale, nan=np.inf)))
    return {"alone": alone[:200], "engine": ours[:600], "apart": apart}


def main() -> None:
    """Answer until stdin ends."""
    while header := sys.stdin.buffer.read(8):
        model = sys.stdin.buffer.read(struct.unpack("<Q", header)[0])
        print(json.dumps(answer(model)), flush=True)


if __name__ == "__main__":
    main()
