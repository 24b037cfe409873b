"""The learning rate by share of the training, and the texts of durations."""

from __future__ import annotations

import math

import pytest

from obert_compiler.errors import UsageError
from obert_compiler.passes.training.budget import parse_budget, parse_interval
from obert_compiler.passes.training.schedule import LearningRate


def test_it_falls_linearly_from_the_peak_to_the_final_rate() -> None:
    rate = LearningRate(8e-5, 0.1)
    assert [rate.at(x) for x in (0, 0.5, 1)] == pytest.approx([8e-5, 4.4e-5, 8e-6])
    assert rate.at(1.7) == pytest.approx(8e-6)


def test_it_starts_anew_at_each_rewind() -> None:
    rate = LearningRate(1.0, 0.2, rewinds=(0.75, 0.5))
    shares = (0, 0.25, 0.499999, 0.5, 0.625, 0.75, 1)
    assert [rate.at(x) for x in shares] == pytest.approx([1, 0.6, 0.2, 1, 0.6, 1, 0.2], abs=1e-5)


def test_it_rises_over_the_warm_up() -> None:
    rate = LearningRate(1.0, 0.0, warmup=0.2)
    assert [rate.at(x) for x in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_it_falls_along_a_cosine_or_not_at_all() -> None:
    cosine = LearningRate(1.0, 0.0, "cosine")
    assert cosine.at(0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    constant = LearningRate(1.0, 0.0, "constant", warmup=0.5)
    assert [constant.at(x) for x in (0.25, 0.5, 1)] == [0.5, 1, 1]


def test_a_warm_up_over_everything_ends_at_the_peak_or_below() -> None:
    assert LearningRate(1.0, 0.5, warmup=1.0).at(1.0) <= 1.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30min", 1800), ("1.5h", 5400), ("2m", 120), (" 5MIN", 300)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_budget(text, "budget") == seconds
    assert parse_interval(text, "checkpoint") == (None, seconds)


def test_steps_are_an_interval() -> None:
    assert parse_interval("200steps", "checkpoint") == (200, None)
    assert parse_interval("1step", "checkpoint") == (1, None)


@pytest.mark.parametrize("text", ["", "30", "min", "-5min", "0s", "5 years", "1e3s", "inf"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="budget: expected a time such as 30min"):
        parse_budget(text, "budget")
    with pytest.raises(UsageError, match="expected a time or a number of steps"):
        parse_interval(text, "checkpoint")


def test_no_steps_are_no_interval() -> None:
    with pytest.raises(UsageError, match="expected at least 1 step, found '0steps'"):
        parse_interval("0steps", "checkpoint")
