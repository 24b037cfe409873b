"""The curve, the cuts and the split of a budget, against sums and published numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obert_compiler.passes.gradual_schedule import (
    Stretch,
    StretchRate,
    cubic_sparsities,
    epochs_of,
    seconds_left,
    steps_of,
    stretches,
)
from obert_compiler.passes.training.schedule import LearningRate


def test_the_curve_of_zhu_and_gupta_by_hand():
    # 0.9 - 0.2 * (1 - t)^3 at t = 0, 1/3, 2/3, 1
    assert cubic_sparsities(0.7, 0.9, 4) == pytest.approx(
        [0.7, 0.9 - 0.2 * 8 / 27, 0.9 - 0.2 / 27, 0.9]
    )


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40))
def test_the_curve_rises_and_ends_exactly(a, b, count):
    first, final = sorted((a, b))
    curve = cubic_sparsities(first, final, count)
    assert len(curve) == count
    assert curve[-1] == final
    assert all(x <= y + 1e-12 for x, y in itertools.pairwise(curve))
    assert count == 1 or curve[0] == pytest.approx(first)


@given(st.floats(0.1, 0.8), st.integers(3, 40))
def test_every_step_of_the_curve_is_smaller_than_the_one_before(first, count):
    curve = cubic_sparsities(first, 0.95, count)
    rises = [b - a for a, b in itertools.pairwise(curve)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rises))


def test_the_schedule_of_thirty_epochs():
    """Prunings at epochs 2, 6, ... 26 of 30, 70% at the first."""
    parts = stretches(7, 2 / 30, 26 / 30)
    assert [round(30 * part.start, 9) for part in parts] == [0, 2, 6, 10, 14, 18, 22, 26]
    assert [part.prunings for part in parts] == [(), (0,), (1,), (2,), (3,), (4,), (5,), (6,)]
    assert [epochs_of(30, part) for part in parts] == pytest.approx([2, 4, 4, 4, 4, 4, 4, 4])


def test_one_pruning_is_at_the_start():
    assert stretches(1, 0.0, 0.5) == [Stretch(0.0, 1.0, (0,))]
    assert stretches(1, 0.25, 0.5) == [Stretch(0.0, 0.25), Stretch(0.25, 1.0, (0,))]


def test_a_pruning_at_the_end_keeps_a_stretch_without_training():
    assert stretches(2, 0.0, 1.0) == [Stretch(0.0, 1.0, (0,)), Stretch(1.0, 1.0, (1,))]


def test_prunings_at_the_same_moment_share_a_stretch():
    assert stretches(3, 0.5, 0.5) == [Stretch(0.0, 0.5), Stretch(0.5, 1.0, (0, 1, 2))]


@given(st.integers(1, 20), st.floats(0, 1), st.floats(0, 1))
def test_stretches_tile_the_training_and_hold_every_pruning_once(count, a, b):
    parts = stretches(count, *sorted((a, b)))
    assert parts[0].start == 0
    assert parts[-1].end == 1
    assert all(x.end == y.start for x, y in itertools.pairwise(parts))
    assert [n for part in parts for n in part.prunings] == list(range(count))


@given(st.integers(1, 12), st.floats(0, 1), st.floats(0, 1), st.integers(0, 500))
def test_steps_add_up_and_follow_the_shares(count, a, b, more):
    parts = stretches(count, *sorted((a, b)))
    long = [part for part in parts if part.share > 0]
    total = len(long) + more
    steps = steps_of(total, parts)
    assert sum(steps) == total
    assert all((n > 0) == (part.share > 0) for n, part in zip(steps, parts, strict=True))
    if min(part.share for part in long) * total > 1:
        for n, part in zip(steps, parts, strict=True):
            assert abs(n - part.share * total) <= 1


def test_fewer_steps_than_stretches_are_refused():
    with pytest.raises(ValueError, match="3 stretches and 2 steps"):
        steps_of(2, stretches(2, 0.2, 0.6))


def test_a_budget_pays_for_the_prunings_to_come():
    parts = stretches(3, 0.0, 0.5)  # shares 0.25, 0.25, 0.5
    # 100 s, 20 used, two prunings of 10 s to come: 60 s for the training, a quarter of it now
    assert seconds_left(100, 20, 10, parts) == pytest.approx(15)
    assert seconds_left(100, 45, 10, parts[1:]) == pytest.approx(15)
    assert seconds_left(100, 70, 10, parts[2:]) == pytest.approx(30)


def test_a_budget_that_is_used_up_leaves_nothing():
    parts = stretches(3, 0.0, 0.5)
    assert seconds_left(100, 90, 10, parts) == 0
    assert seconds_left(100, 20, 0, [Stretch(1.0, 1.0, (0,))]) == 0


@given(st.floats(1, 1e5), st.floats(0, 100), st.integers(1, 9), st.floats(0, 1))
def test_a_budget_is_used_to_the_end_when_everything_takes_what_was_expected(
    training, pruning, count, end
):
    parts = stretches(count, 0.0, end)
    budget = training + pruning * count
    used = 0.0
    for number, part in enumerate(parts):
        used += pruning * len(part.prunings)
        used += seconds_left(budget, used, pruning, parts[number:])
    if parts[-1].share > 0:
        assert used == pytest.approx(budget)


def test_the_rate_of_a_stretch_is_that_of_the_whole_at_the_same_moment():
    whole = LearningRate(8e-5, 0.1, "linear", 0.05, (0.2, 0.6))
    for part in stretches(3, 0.2, 0.6):
        rate = StretchRate.of(whole, part)
        for done in (0.0, 0.3, 0.99):
            assert rate.at(done) == whole.at(part.start + part.share * done)


def test_the_rate_starts_anew_with_a_stretch_that_begins_at_a_rewind():
    whole = LearningRate(1.0, 0.1, rewinds=(0.5,))
    first, second = stretches(1, 0.5, 0.5)
    assert StretchRate.of(whole, first).factor(0.0) == 1.0
    assert StretchRate.of(whole, first).factor(0.999) == pytest.approx(0.1, abs=0.001)
    assert StretchRate.of(whole, second).factor(0.0) == 1.0
    assert StretchRate.of(whole, second).factor(1.0) == pytest.approx(0.1)
