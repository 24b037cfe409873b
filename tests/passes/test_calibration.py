"""Ranges and quantisers against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from obert_compiler.passes.calibration import (
    ActivationStatistics,
    Quantizer,
    choose_range,
    quantizer_for,
)


def _statistics(rows: np.ndarray, cuts: int = 3, **options: int) -> ActivationStatistics:
    statistics = ActivationStatistics(rows.shape[1], np.random.default_rng(0), **options)
    for part in np.array_split(rows, cuts):
        statistics.add(part)
    return statistics


def _rows(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((500, 12)).astype(np.float32) + np.float32(0.5)
    rows[7, 3] = 40.0  # a lone outlier
    return rows


def test_statistics_are_those_of_all_rows() -> None:
    rows = _rows()
    found = _statistics(rows)
    assert found.rows == 500
    assert (found.low, found.high) == (rows.min(), rows.max())
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-5)


def test_the_sample_is_distinct_rows_of_the_data_and_bounded() -> None:
    rows = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    found = _statistics(rows, cuts=9, sample_rows=50)
    drawn = found.sample[:, 0] / 3
    assert found.sample.shape == (50, 3)
    assert len(set(drawn.tolist())) == 50
    np.testing.assert_array_equal(rows[drawn.astype(int)], found.sample)
    assert found.nbytes < 50 * 3 * 4 + 50 * 8 + 3 * 8 + 4096 * 8 + 1


def test_the_sample_is_uniform() -> None:
    hits = np.zeros(40)
    for seed in range(400):
        found = ActivationStatistics(1, np.random.default_rng(seed), sample_rows=10)
        for part in np.split(np.arange(40, dtype=np.float32)[:, None], 4):
            found.add(part)
        hits[found.sample[:, 0].astype(int)] += 1
    # 400 draws of 10 from 40: mean 100, standard deviation 8.7.
    assert hits.sum() == 4000
    assert np.abs(hits - 100).max() < 45


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.0, 2.0), (0.5, 2.0), (-4.0, -1.0), (-1e-3, 700.0)]
)
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float) -> None:
    quantizer = quantizer_for(low, high)
    assert 0 <= quantizer.zero_point <= 255
    assert quantizer.round_trip(np.zeros(1, np.float32))[0] == 0.0
    assert quantizer.low <= min(low, 0.0) + quantizer.scale
    assert quantizer.high >= max(high, 0.0) - quantizer.scale
    x = np.linspace(low, high, 1001, dtype=np.float32)
    assert np.abs(quantizer.round_trip(x) - x).max() <= quantizer.scale * 1.001


def test_round_trip_is_the_formula_of_quantize_linear() -> None:
    quantizer = Quantizer(0.05, 100)
    for x in np.linspace(-9.0, 14.0, 300, dtype=np.float32):
        q = min(255, max(0, int(np.rint(x / np.float32(0.05))) + 100))
        expected = (q - 100) * np.float32(0.05)
        assert quantizer.round_trip(np.array([x]))[0] == pytest.approx(expected, abs=1e-6)


def test_minmax_covers_what_was_seen() -> None:
    quantizer = choose_range(_statistics(_rows()), "minmax")
    assert quantizer.high == pytest.approx(40.0, rel=0.02)


def test_percentile_cuts_the_tails_at_its_quantiles() -> None:
    rows = _rows()
    quantizer = choose_range(_statistics(rows), "percentile", percentile=99.0)
    assert quantizer.high == pytest.approx(np.quantile(rows, 0.99), abs=0.05)
    assert quantizer.low == pytest.approx(np.quantile(rows, 0.01), abs=0.05)


def _squared_error(rows: np.ndarray, quantizer: Quantizer) -> float:
    return float(np.square(rows - quantizer.round_trip(rows), dtype=np.float64).sum())


def test_mse_comes_close_to_the_best_of_a_dense_search() -> None:
    rows = np.random.default_rng(3).standard_normal((20000, 4)).astype(np.float32)
    rows[0, 0] = 9.0
    found = _statistics(rows)
    chosen = _squared_error(rows, choose_range(found, "mse"))
    fractions = np.linspace(0.05, 1.0, 30)
    best = min(
        _squared_error(rows, quantizer_for(found.low * a, found.high * b))
        for a, b in itertools.product(fractions, fractions)
    )
    assert chosen <= best * 1.05
    assert chosen < 0.9 * _squared_error(rows, choose_range(found, "minmax"))


def test_only_zeros_get_a_usable_scale() -> None:
    found = _statistics(np.zeros((5, 3), np.float32))
    assert found.dead
    for method in ("minmax", "percentile", "mse"):
        assert choose_range(found, method) == Quantizer(1.0, 0)
