"""The error of a layer's output against a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from obert_compiler.passes.calibration import Quantizer
from obert_compiler.passes.quantization_error import OutputError, output_error, relative_error
from obert_compiler.passes.weight_quantization import quantize_weight


@pytest.mark.parametrize("quantizer", [None, Quantizer(0.04, 128)])
@pytest.mark.parametrize("corrected", [False, True])
def test_output_error_is_that_of_a_loop(quantizer: Quantizer | None, corrected: bool) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((6, 8)).astype(np.float32)
    W = rng.standard_normal((5, 8)).astype(np.float32)
    quantized = quantize_weight(W)
    correction = rng.standard_normal(5).astype(np.float32) if corrected else None
    found = output_error(X, W, quantized, quantizer, correction)
    error = signal = 0.0
    for x in X:
        x_rounded = x if quantizer is None else quantizer.round_trip(x)
        for o in range(5):
            exact = float(x @ W[o])
            rounded = float(x_rounded @ quantized.dequantize()[o])
            rounded += 0.0 if correction is None else float(correction[o])
            error += (exact - rounded) ** 2
            signal += exact**2
    assert found.error == pytest.approx(error, rel=1e-3)
    assert found.signal == pytest.approx(signal, rel=1e-4)
    assert found.relative == pytest.approx(error / signal, rel=1e-3)


def test_no_signal() -> None:
    assert OutputError(0.0, 0.0).relative == 0.0
    assert math.isinf(OutputError(1.0, 0.0).relative)


def test_relative_error_of_a_table() -> None:
    exact = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(exact, np.array([[3.0, 3.0]], np.float32)) == pytest.approx(1 / 25)
