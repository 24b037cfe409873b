"""The growing histogram against counting, in any order and any cut of the data."""

from __future__ import annotations

import numpy as np
import pytest

from obert_compiler.passes.calibration_histogram import GrowingHistogram


def _filled(parts: list[np.ndarray], bins: int = 64) -> GrowingHistogram:
    histogram = GrowingHistogram(bins)
    for part in parts:
        histogram.add(part)
    return histogram


def _values() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(3000) * np.exp(rng.standard_normal(3000) * 2.0)
    values[:50] = 0.0
    return values.astype(np.float32)


def test_counts_are_those_of_a_loop() -> None:
    values = _values()
    histogram = _filled(np.array_split(values, 7))
    edges = histogram.edges
    for i, count in enumerate(histogram.counts):
        assert count == sum(edges[i] <= v < edges[i + 1] for v in values.tolist())
    assert histogram.total == len(values)
    assert len(histogram.counts) <= 64


def test_the_order_and_the_cut_of_the_data_do_not_matter() -> None:
    values = _values()
    whole = _filled([values])
    for parts in ([values[::-1]], np.array_split(np.sort(values), 11), [values[:1], values[1:]]):
        other = _filled(parts)
        assert other.width == whole.width
        np.testing.assert_array_equal(other.counts, whole.counts)
        np.testing.assert_array_equal(other.edges, whole.edges)


def test_zero_is_an_edge_of_a_power_of_two_grid() -> None:
    histogram = _filled([_values()])
    assert 0.0 in histogram.edges.tolist()
    assert np.log2(histogram.width) == round(np.log2(histogram.width))


def test_memory_stays_bounded_while_the_range_grows() -> None:
    histogram = GrowingHistogram(32)
    for power in range(-30, 31):
        histogram.add(np.array([2.0**power, -(2.0**power)], np.float32))
        assert len(histogram.counts) <= 32
    assert histogram.total == 122


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_quantiles_are_right_to_a_bin(fraction: float) -> None:
    values = np.random.default_rng(1).standard_normal(20000).astype(np.float32)
    histogram = _filled(np.array_split(values, 3), bins=1024)
    assert histogram.quantile(fraction) == pytest.approx(
        np.quantile(values, fraction), abs=2 * histogram.width
    )


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [-3.0], [1e-40], [3e38, -3e38]])
def test_odd_data_is_counted(values: list[float]) -> None:
    histogram = _filled([np.array(values, np.float32)])
    assert histogram.total == len(values)
    assert np.isfinite(histogram.edges).all()
