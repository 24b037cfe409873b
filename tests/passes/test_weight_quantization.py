"""Quantised weights against loops, and the promises that kernels and pruning rely on."""

from __future__ import annotations

import numpy as np
import pytest

from obert_compiler.passes.weight_quantization import (
    bias_correction,
    quantization_limit,
    quantize_weight,
)


def _weight(seed: int = 0, shape: tuple[int, int] = (5, 24)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_seven_bits_cannot_saturate_a_pair_of_products_in_int16() -> None:
    assert 2 * 255 * quantization_limit(7) <= 32767
    assert 2 * 255 * quantization_limit(8) > 32767


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("scale", ["max", "mse"])
def test_integers_stay_within_the_limit_and_close_to_the_weight(bits: int, scale: str) -> None:
    W = _weight()
    quantized = quantize_weight(W, bits=bits, scale=scale)
    assert quantized.q.dtype == np.int8
    assert np.abs(quantized.q).max() == quantization_limit(bits)
    inside = np.abs(quantized.q) < quantization_limit(bits)
    half_step = quantized.scale[:, None] * np.float32(0.5001)
    assert (np.abs(W - quantized.dequantize()) <= half_step)[inside].all()


def test_max_scale_is_a_loop_over_rows() -> None:
    W = _weight()
    quantized = quantize_weight(W, scale="max")
    for row, scale, q in zip(W, quantized.scale, quantized.q, strict=True):
        assert scale == pytest.approx(max(abs(w) for w in row) / 64, rel=1e-6)
        assert [round(float(w / scale)) for w in row] == q.tolist()


def _row_error(row: np.ndarray, scale: float, importance: np.ndarray) -> float:
    total = 0.0
    for w, weight in zip(row.tolist(), importance.tolist(), strict=True):
        q = max(-64, min(64, round(w / scale)))
        total += weight * (w - scale * q) ** 2
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_mse_scale_is_the_best_of_the_grid(weighted: bool) -> None:
    W = _weight(1)
    W[0, 0] = 9.0  # an outlier that is worth clipping
    importance = np.ones(24, np.float32)
    if weighted:
        importance = np.random.default_rng(2).uniform(0.01, 4.0, 24).astype(np.float32)
    chosen = quantize_weight(W, scale="mse", importance=importance if weighted else None).scale
    for row, scale in zip(W, chosen, strict=True):
        largest = np.abs(row).max() / 64
        errors = [_row_error(row, largest * f, importance) for f in np.linspace(1.0, 0.6, 21)]
        assert _row_error(row, float(scale), importance) <= min(errors) * (1 + 1e-4)


def test_weighting_an_input_protects_it() -> None:
    W = np.full((1, 512), 0.11, np.float32)
    W[0, 0] = 2.0
    heavy = np.full(512, 1e-3, np.float32)
    heavy[0] = 1e3
    protected = quantize_weight(W, importance=heavy).dequantize()[0, 0]
    plain = quantize_weight(W, importance=heavy[::-1].copy()).dequantize()[0, 0]
    assert abs(protected - 2.0) < abs(plain - 2.0)


@pytest.mark.parametrize("scale", ["max", "mse"])
def test_pruned_weights_stay_zero_and_dead_rows_get_a_usable_scale(scale: str) -> None:
    W = _weight()
    pruned = np.random.default_rng(3).random(W.shape) < 0.8
    W[pruned] = 0.0
    W[2] = 0.0
    W[3] = np.float32(1e-44)
    quantized = quantize_weight(W, scale=scale)
    assert not quantized.q[pruned].any()
    assert not quantized.q[2].any()
    assert (quantized.scale > 0).all()
    assert np.isfinite(quantized.scale).all()
    assert np.isfinite(quantized.dequantize()).all()


def test_rows_are_independent_of_how_many_come_together() -> None:
    W = _weight(4, (70, 2000))
    whole = quantize_weight(W)
    for row in (0, 31, 32, 69):
        alone = quantize_weight(W[row : row + 1])
        assert alone.scale[0] == whole.scale[row]
        np.testing.assert_array_equal(alone.q[0], whole.q[row])


def test_bias_correction_restores_the_mean_output() -> None:
    rng = np.random.default_rng(5)
    W = _weight(5)
    X = (rng.standard_normal((200, 24)) + 3.0).astype(np.float32)
    quantized = quantize_weight(W)
    correction = bias_correction(W, quantized, X.mean(axis=0))
    gap = np.zeros(5)
    for x in X:
        for o in range(5):
            exact = sum(float(a) * float(b) for a, b in zip(x, W[o], strict=True))
            rounded = sum(
                float(a) * float(b) for a, b in zip(x, quantized.dequantize()[o], strict=True)
            )
            gap[o] += (exact - rounded) / len(X)
    assert np.abs(gap).max() > 1e-3
    np.testing.assert_allclose(correction, gap, atol=1e-5)
